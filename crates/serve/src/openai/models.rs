//! `GET /v1/models`: one answer for the clients of both APIs.

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::Shared;
use crate::catalog::ModelInfo;
use crate::error::{ApiError, ErrorBody};

/// All models, for clients of the OpenAI API in `data` and for those of Cohere's in `models`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
    models: Vec<ModelCard>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

/// A model as both APIs describe it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelCard {
    /// Its name.
    id: String,
    object: &'static str,
    /// When it was made, in seconds since 1970.
    created: u64,
    /// `upstream` where it runs on another server.
    owned_by: &'static str,
    /// Its name, once more.
    name: String,
    /// What it can be asked.
    endpoints: Vec<&'static str>,
    /// Tokens of its context.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<usize>,
    finetuned: bool,
    is_deprecated: bool,
    /// What it is, in words.
    description: String,
}

/// Which models to list.
#[derive(Debug, Deserialize, IntoParams)]
pub struct ListQuery {
    /// Most models in one answer.
    page_size: Option<f64>,
    /// Where the last answer ended.
    page_token: Option<String>,
    /// Only models that can be asked this.
    endpoint: Option<String>,
}

fn card(model: ModelInfo) -> ModelCard {
    let kind = match model.stage.as_deref() {
        Some(stage) => format!("{stage} model"),
        None => "model".to_string(),
    };
    let size = match model.parameters {
        Some(count) if count >= 1_000_000_000 => format!(", {:.1} B parameters", count as f64 / 1e9),
        Some(count) => format!(", {:.1} M parameters", count as f64 / 1e6),
        None => String::new(),
    };
    ModelCard {
        id: model.name.clone(),
        object: "model",
        created: model.created,
        owned_by: if model.upstream { "upstream" } else { "strata" },
        name: model.name,
        endpoints: vec!["chat", "generate"],
        context_length: model.context_length,
        finetuned: model.stage.is_some_and(|stage| stage != "base"),
        is_deprecated: false,
        description: kind + &size,
    }
}

/// List the models.
#[utoipa::path(get, path = "/v1/models", tag = "Models", params(ListQuery), responses(
    (status = 200, description = "The models, for clients of either API", body = ModelList),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn list_models(
    State(app): State<Shared>,
    query: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<ModelList>, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::field("query", rejection.body_text()))?;
    let mut cards: Vec<ModelCard> = app.catalog.list().await?.into_iter().map(card).collect();
    if let Some(endpoint) = &query.endpoint {
        cards.retain(|card| card.endpoints.contains(&endpoint.as_str()));
    }
    let start = match &query.page_token {
        None => 0,
        Some(token) => {
            let place = token.parse::<usize>().ok().filter(|start| *start <= cards.len());
            place.ok_or_else(|| {
                ApiError::field("page_token", "expected the next_page_token of an earlier answer")
            })?
        }
    };
    let size = match query.page_size {
        None => cards.len(),
        Some(size) if (1.0..=1000.0).contains(&size) => size as usize,
        Some(size) => return Err(ApiError::field("page_size", format!("expected 1 to 1000, found {size}"))),
    };
    let end = (start + size).min(cards.len());
    let next_page_token = (end < cards.len()).then(|| end.to_string());
    let page = cards[start..end].to_vec();
    Ok(Json(ModelList { object: "list", data: page.clone(), models: page, next_page_token }))
}

/// Describe a model.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "Models", params(("model" = String, Path, description = "Name of the model")), responses(
    (status = 200, description = "The model", body = ModelCard),
    (status = "4XX", description = "There is no such model", body = ErrorBody),
))]
pub async fn show_model(
    State(app): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    let models = app.catalog.list().await?;
    match models.iter().find(|model| model.name == name) {
        Some(model) => Ok(Json(card(model.clone()))),
        None => {
            let names: Vec<String> = models.into_iter().map(|model| model.name).collect();
            Err(ApiError::model(&name, &names))
        }
    }
}
