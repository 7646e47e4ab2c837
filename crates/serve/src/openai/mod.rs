//! The OpenAI API: chat completions, completions, models.

pub mod chat;
pub mod completions;
pub mod models;

use serde::{Deserialize, Serialize};
use strata_data::Role;
use utoipa::ToSchema;

use crate::ask::{AskUsage, End, EndReason, TokenPiece, check_stops, finite, in_range};
use crate::error::ApiError;

/// One text or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompt.
    prompt_tokens: usize,
    /// Written.
    completion_tokens: usize,
    /// Together.
    total_tokens: usize,
    /// More about the prompt's.
    prompt_tokens_details: PromptTokens,
}

/// More about the tokens of a prompt.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct PromptTokens {
    /// Those that did not have to be computed again.
    cached_tokens: usize,
}

impl From<AskUsage> for Usage {
    fn from(usage: AskUsage) -> Usage {
        Usage {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            prompt_tokens_details: PromptTokens { cached_tokens: usage.cached },
        }
    }
}

/// How streams are sent.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Whether a last event tells the tokens.
    include_usage: Option<bool>,
}

/// What a stream ends with where an answer came to nothing: the API has no reason for that. One of several without words ends like any other: an
/// error would cost the client the rest.
fn error_of(end: &End, answers: usize) -> Option<ApiError> {
    match &end.reason {
        EndReason::Failed(problem) => Some(ApiError::failed(problem)),
        _ if answers == 1 && end.is_nothing_in_time() => Some(ApiError::nothing_in_time()),
        _ => None,
    }
}

fn finish_reason(reason: &EndReason) -> &'static str {
    match reason {
        EndReason::Stop | EndReason::StopString(_) => "stop",
        EndReason::ToolCalls => "tool_calls",
        EndReason::Length | EndReason::Timeout | EndReason::Failed(_) => "length",
    }
}

fn role(name: &str, field: impl FnOnce() -> String) -> Result<Role, ApiError> {
    match name {
        "developer" => Ok(Role::System),
        "function" => Ok(Role::Tool),
        other => Role::from_name(other).ok_or_else(|| {
            ApiError::field(
                field(),
                format!("expected system, developer, user, assistant or tool, found {other:?}"),
            )
        }),
    }
}

/// The stop strings of a request, of which the API allows four.
fn stops(stop: Option<OneOrMany>) -> Result<Vec<String>, ApiError> {
    let stop = stop.map(OneOrMany::into_vec).unwrap_or_default();
    if stop.len() > 4 {
        return Err(ApiError::field("stop", format!("expected at most 4 texts, found {}", stop.len())));
    }
    check_stops(&stop, "stop")?;
    Ok(stop)
}

/// Seeds may be negative there.
fn seed(seed: Option<i64>) -> Option<u64> {
    seed.map(|seed| seed as u64)
}

/// Tokens by number, as text, with what is added to their logits.
fn bias(bias: Option<std::collections::BTreeMap<String, f32>>) -> Result<Vec<(u32, f32)>, ApiError> {
    let one = |(token, bias): (String, f32)| {
        let field = || format!("logit_bias.{token}");
        let id: u32 =
            token.parse().map_err(|_| ApiError::field(field(), "expected the number of a token as key"))?;
        // Else one token could be named twice.
        if id.to_string() != token {
            return Err(ApiError::field(
                field(),
                format!("expected the number of a token as key, such as {id}"),
            ));
        }
        in_range(&field(), Some(bias), -100.0, 100.0)?;
        Ok((id, bias))
    };
    bias.unwrap_or_default().into_iter().map(one).collect()
}

/// The characters of a token; bytes that are no text become U+FFFD.
fn token_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A token with its log-probability.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenLogprob {
    /// Its text.
    token: String,
    /// Natural logarithm of its probability.
    logprob: f32,
    /// Its bytes.
    bytes: Vec<u8>,
    /// The likeliest tokens in its place.
    top_logprobs: Vec<TopLogprob>,
}

/// A token that could have stood in the place of another.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TopLogprob {
    /// Its text.
    token: String,
    /// Natural logarithm of its probability.
    logprob: f32,
    /// Its bytes.
    bytes: Vec<u8>,
}

impl From<TokenPiece> for TokenLogprob {
    fn from(token: TokenPiece) -> TokenLogprob {
        let alternatives = token.alternatives.into_iter();
        TokenLogprob {
            token: token_text(&token.bytes),
            logprob: finite(token.log_probability),
            bytes: token.bytes,
            top_logprobs: alternatives
                .map(|(bytes, value)| TopLogprob { token: token_text(&bytes), logprob: finite(value), bytes })
                .collect(),
        }
    }
}
