//! The Cohere API: chat (v2 and v1), generate, tokenize, detokenize, check-api-key.

pub mod chat_v1;
pub mod chat_v2;
pub mod generate;
pub mod tokens;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::ask::{AskUsage, AskedSampling, EndReason, check_stops, in_range};
use crate::error::ApiError;

/// Sampling as Cohere names it, checked against the ranges that the API promises.
#[derive(Debug, Clone, Copy, Default)]
struct Sampling {
    temperature: Option<f32>,
    most_temperature: f32,
    k: Option<usize>,
    p: Option<f32>,
    seed: Option<u64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
}

impl Sampling {
    fn check(self) -> Result<AskedSampling, ApiError> {
        if self.k.is_some_and(|k| k > 500) {
            return Err(ApiError::field("k", "expected 0 to 500"));
        }
        Ok(AskedSampling {
            temperature: in_range("temperature", self.temperature, 0.0, self.most_temperature)?,
            top_k: self.k,
            top_p: in_range("p", self.p, 0.0, 1.0)?,
            seed: self.seed,
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, 0.0, 1.0)?
                .unwrap_or(0.0),
            presence_penalty: in_range("presence_penalty", self.presence_penalty, 0.0, 1.0)?.unwrap_or(0.0),
        })
    }
}

/// What the API promises where neither the request nor the model says anything.
fn fallback(temperature: f32) -> AskedSampling {
    AskedSampling { temperature: Some(temperature), top_p: Some(0.75), ..AskedSampling::default() }
}

fn stop_sequences(stops: Option<Vec<String>>, field: &str) -> Result<Vec<String>, ApiError> {
    let stops = stops.unwrap_or_default();
    if stops.len() > 5 {
        return Err(ApiError::field(field, format!("expected at most 5 texts, found {}", stops.len())));
    }
    check_stops(&stops, field)?;
    Ok(stops)
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct TokenCounts {
    input_tokens: usize,
    output_tokens: usize,
}

impl From<AskUsage> for TokenCounts {
    fn from(usage: AskUsage) -> TokenCounts {
        TokenCounts { input_tokens: usage.prompt, output_tokens: usage.completion }
    }
}

/// About an answer of version 1.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Meta {
    api_version: ApiVersion,
    #[serde(skip_serializing_if = "Option::is_none")]
    billed_units: Option<TokenCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<TokenCounts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached_tokens: Option<usize>,
}

/// The version of the API.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ApiVersion {
    version: &'static str,
}

impl Meta {
    fn new(usage: Option<AskUsage>) -> Meta {
        Meta {
            api_version: ApiVersion { version: "1" },
            billed_units: usage.map(Into::into),
            tokens: usage.map(Into::into),
            cached_tokens: usage.map(|usage| usage.cached),
        }
    }
}

fn finish_reason(reason: &EndReason) -> &'static str {
    match reason {
        EndReason::Stop => "COMPLETE",
        EndReason::StopString(_) => "STOP_SEQUENCE",
        EndReason::Length => "MAX_TOKENS",
        EndReason::ToolCalls => "TOOL_CALL",
        EndReason::Timeout => "TIMEOUT",
        EndReason::Failed(_) => "ERROR",
    }
}

/// Version 1 has no word for tool calls.
fn finish_reason_v1(reason: &EndReason) -> &'static str {
    if *reason == EndReason::ToolCalls { "COMPLETE" } else { finish_reason(reason) }
}

/// A document with its id and, as Cohere numbers them, one where it has none.
fn document(value: Value, index: usize, beginning: &str) -> Value {
    let id = format!("{beginning}{index}");
    match value {
        Value::String(text) => json!({"id": id, "text": text}),
        Value::Object(mut fields) => {
            let named = fields.remove("id").filter(|id| !id.is_null()).unwrap_or_else(|| json!(id));
            let data = match fields.remove("data") {
                Some(Value::Object(data)) => data,
                Some(Value::String(text)) => [("text".to_string(), json!(text))].into_iter().collect(),
                _ => fields,
            };
            let mut whole = serde_json::Map::from_iter([("id".to_string(), named)]);
            whole.extend(data);
            Value::Object(whole)
        }
        other => json!({"id": id, "text": other.to_string()}),
    }
}
