//! `POST /v1/tokenize`, `/v1/detokenize` and `/v1/check-api-key`

use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Meta;
use crate::app::{Client, Shared};
use crate::ask::LIGHT_BYTES;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::local::LocalModel;

/// Most characters or tokens in one request.
const MOST: usize = 65_536;

/// A text to be cut into tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "demo-dialogue", "text": "the water and the land"}))]
pub struct TokenizeRequest {
    /// The text, 1 to 65,536 characters.
    text: String,
    /// Name of the model.
    model: String,
}

/// The tokens of a text.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeResponse {
    tokens: Vec<u32>,
    token_strings: Vec<String>,
    meta: Meta,
}

/// Cut a text into the tokens of a model.
#[utoipa::path(post, path = "/v1/tokenize", tag = "Cohere", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = TokenizeResponse),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn tokenize(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let characters = request.text.chars().count();
    if !(1..=MOST).contains(&characters) {
        return Err(ApiError::field("text", format!("expected 1 to {MOST} characters, found {characters}")));
    }
    app.limit(&client, Instant::now())?;
    let model = app.catalog.get_local(&request.model).await?;
    let light = request.text.len() <= LIGHT_BYTES;
    let work = move || {
        let tokenizer = model.tokenizer();
        let tokens = tokenizer.encode_plain(&request.text).map_err(|error| ApiError::field("text", error))?;
        let text = |id: &u32| String::from_utf8_lossy(tokenizer.token_bytes(*id)).into_owned();
        let token_strings = tokens.iter().map(text).collect();
        Ok(Json(TokenizeResponse { tokens, token_strings, meta: Meta::new(None) }))
    };
    aside(light, work).await
}

/// Does what takes a while on a thread where it holds up nobody else, and what is light at once.
async fn aside<R: Send + 'static>(
    light: bool,
    work: impl FnOnce() -> Result<R, ApiError> + Send + 'static,
) -> Result<R, ApiError> {
    match light {
        true => work(),
        false => tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?,
    }
}

/// Tokens to be put together.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "demo-dialogue", "tokens": [300, 301]}))]
pub struct DetokenizeRequest {
    /// The tokens, 1 to 65,536.
    tokens: Vec<u32>,
    /// Name of the model.
    model: String,
}

/// The text of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    text: String,
    meta: Meta,
}

/// Put tokens of a model together.
#[utoipa::path(post, path = "/v1/detokenize", tag = "Cohere", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = DetokenizeResponse),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn detokenize(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    JsonBody(request): JsonBody<DetokenizeRequest>,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let count = request.tokens.len();
    if !(1..=MOST).contains(&count) {
        return Err(ApiError::field("tokens", format!("expected 1 to {MOST} tokens, found {count}")));
    }
    app.limit(&client, Instant::now())?;
    let model = app.catalog.get_local(&request.model).await?;
    let work = move || text_of(&model, &request.tokens);
    let text = aside(count <= LIGHT_BYTES, work).await?;
    Ok(Json(DetokenizeResponse { text, meta: Meta::new(None) }))
}

fn text_of(model: &LocalModel, tokens: &[u32]) -> Result<String, ApiError> {
    let tokenizer = model.tokenizer();
    if let Some(at) = tokens.iter().position(|id| *id as usize >= tokenizer.vocab_size()) {
        let (id, size) = (tokens[at], tokenizer.vocab_size());
        let problem = format!("token {id} is outside the vocabulary of {size}");
        return Err(ApiError::field(format!("tokens[{at}]"), problem));
    }
    tokenizer.decode(tokens, false).map_err(|error| ApiError::field("tokens", error))
}

/// Whether a key is good.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckResponse {
    valid: bool,
}

/// Check the key that the request is sent with.
#[utoipa::path(post, path = "/v1/check-api-key", tag = "Cohere", responses(
    (status = 200, description = "The key is good, or none is needed", body = CheckResponse),
    (status = 401, description = "The key is not good", body = ErrorBody),
))]
pub async fn check_api_key() -> Json<CheckResponse> {
    // A wrong key does not come this far.
    Json(CheckResponse { valid: true })
}
