//! Reading a request's JSON, such that an error names the field.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The JSON body of a request.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // A page of another origin may post plain text without asking, but not JSON.
        let content = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let kind = content.split(';').next().unwrap_or("").trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let problem = format!("expected the header Content-Type: application/json, found {content:?}");
            return Err(ApiError::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, problem));
        }
        let body =
            tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await.map_err(|_| {
                let problem = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
                ApiError::request(StatusCode::REQUEST_TIMEOUT, problem)
            })?;
        let bytes = body.map_err(|rejection| match rejection.status() {
            // Cohere's SDK has a class of its own for 400 only.
            StatusCode::PAYLOAD_TOO_LARGE => {
                ApiError::request(StatusCode::BAD_REQUEST, "the body is larger than this server accepts")
            }
            _ => ApiError::request(StatusCode::BAD_REQUEST, "the body ended early"),
        })?;
        let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let problem = error.inner();
            if problem.is_data() {
                let field = if path == "." { missing_field(problem).unwrap_or(path) } else { path };
                ApiError::field(field, problem)
            } else {
                ApiError::request(StatusCode::BAD_REQUEST, format!("the body is not valid JSON: {problem}"))
            }
        })?;
        deserializer.end().map_err(|error| {
            let problem = format!("the body is not one JSON object: {error}");
            ApiError::request(StatusCode::BAD_REQUEST, problem)
        })?;
        Ok(JsonBody(value))
    }
}

/// The field of serde's message "missing field `x` at …".
fn missing_field(error: &serde_json::Error) -> Option<String> {
    let text = error.to_string();
    let name = text.strip_prefix("missing field `")?;
    Some(name.split('`').next()?.to_string())
}
