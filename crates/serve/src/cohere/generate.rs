//! `POST /v1/generate`

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{Meta, Sampling, fallback, finish_reason_v1, stop_sequences};
use crate::app::{Client, Shared};
use crate::ask::{Ask, EndReason, Fields, Piece, Prompt, Text, Truncate, Whole, finite, total_usage};
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::ids::uuid;
use crate::session::Session;
use crate::stream::{self, json_line};

const FIELDS: Fields = Fields { prompt: "prompt", max_tokens: "max_tokens", format: "response_format" };

/// A text to be continued.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "demo-base", "prompt": "Once there was", "max_tokens": 40}))]
pub struct GenerateRequest {
    /// The text.
    prompt: String,
    /// Name of the model; without, the best for conversations.
    model: Option<String>,
    /// How many continuations, 1 to 5.
    num_generations: Option<usize>,
    /// Send the text while it is written.
    stream: Option<bool>,
    /// Most tokens of a continuation.
    max_tokens: Option<usize>,
    /// `NONE`, `START` or `END`: what is left out of a prompt that is too long.
    truncate: Option<String>,
    /// 0 takes the likeliest token always, up to 5.
    temperature: Option<f32>,
    /// Equal seeds give equal continuations.
    seed: Option<u64>,
    /// Texts before which a continuation is cut, five at most.
    end_sequences: Option<Vec<String>>,
    /// Texts after which a continuation is cut, five at most.
    stop_sequences: Option<Vec<String>>,
    /// Choose among so many likeliest tokens, 0 to 500.
    k: Option<usize>,
    /// Choose among the likeliest tokens that have this probability together.
    p: Option<f32>,
    /// Makes repeating words less likely, 0 to 1.
    frequency_penalty: Option<f32>,
    /// Makes new words likelier, 0 to 1.
    presence_penalty: Option<f32>,
    /// `NONE`, `GENERATION` or `ALL`.
    return_likelihoods: Option<String>,
}

impl GenerateRequest {
    /// With the texts that stay in a continuation which they end.
    fn ask(self) -> Result<(Ask, Vec<String>, bool), ApiError> {
        if self.prompt.is_empty() {
            return Err(ApiError::field("prompt", "expected some text, found none"));
        }
        let mut ask = Ask::new(Prompt::Texts(vec![Text::Plain(self.prompt)]), FIELDS);
        ask.count = self.num_generations.unwrap_or(1);
        if !(1..=5).contains(&ask.count) {
            return Err(ApiError::field("num_generations", format!("expected 1 to 5, found {}", ask.count)));
        }
        ask.max_tokens = self.max_tokens;
        ask.truncate = match self.truncate.as_deref().map(str::to_ascii_uppercase).as_deref() {
            None | Some("END") => Truncate::End,
            Some("START") => Truncate::Start,
            Some("NONE") => Truncate::No,
            Some(other) => {
                return Err(ApiError::field(
                    "truncate",
                    format!("expected NONE, START or END, found {other:?}"),
                ));
            }
        };
        ask.sampling = Sampling {
            temperature: self.temperature,
            most_temperature: 5.0,
            k: self.k,
            p: self.p,
            seed: self.seed,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
        }
        .check()?;
        ask.fallback = fallback(0.75);
        let kept = stop_sequences(self.stop_sequences, "stop_sequences")?;
        ask.stop = stop_sequences(self.end_sequences, "end_sequences")?;
        ask.stop.extend(kept.iter().cloned());
        let likelihoods = match self.return_likelihoods.as_deref().map(str::to_ascii_uppercase).as_deref() {
            None | Some("NONE") => false,
            Some("GENERATION") => true,
            Some("ALL") => {
                ask.prompt_log_probabilities = Some("return_likelihoods");
                true
            }
            Some(other) => {
                let problem = format!("expected ALL, GENERATION or NONE, found {other:?}");
                return Err(ApiError::field("return_likelihoods", problem));
            }
        };
        ask.log_probabilities = likelihoods.then_some(0);
        Ok((ask, kept, likelihoods))
    }
}

/// Whole continuations.
#[derive(Debug, Serialize, ToSchema)]
pub struct GenerateResponse {
    id: String,
    prompt: String,
    generations: Vec<Generation>,
    meta: Meta,
}

/// A continuation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Generation {
    id: String,
    text: String,
    index: usize,
    finish_reason: &'static str,
    /// Mean log-probability of its tokens, with `ALL` of the prompt's too.
    #[serde(skip_serializing_if = "Option::is_none")]
    likelihood: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_likelihoods: Option<Vec<TokenLikelihood>>,
}

/// A token with its log-probability.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenLikelihood {
    token: String,
    /// None of a prompt's first token where nothing stands before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    likelihood: Option<f32>,
}

/// Continue a text.
#[utoipa::path(post, path = "/v1/generate", tag = "Cohere", request_body = GenerateRequest, responses(
    (status = 200, description = "The continuations, whole or as lines of JSON", content((GenerateResponse = "application/json"), (Object = "application/stream+json"))),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn generate(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    JsonBody(mut request): JsonBody<GenerateRequest>,
) -> Result<Response, ApiError> {
    let streamed = request.stream == Some(true);
    let model = match request.model.take() {
        Some(model) => model,
        None => app.catalog.default_name().await?,
    };
    let prompt = request.prompt.clone();
    let (ask, kept, likelihoods) = request.ask()?;
    let count = ask.count;
    let session = Session::begin(&app, &client, &model, ask).await?;
    if streamed {
        let answers = vec![Whole::default(); count];
        return Ok(stream::stream(
            session,
            GenerateStream { id: uuid(), prompt, kept, likelihoods, answers },
        )
        .await);
    }
    let answers = session.whole().await?;
    let usage = total_usage(&answers, count);
    let generations = answers.into_iter().enumerate();
    let generations =
        generations.map(|(index, answer)| generation(index, answer, &kept, likelihoods)).collect();
    Ok(Json(GenerateResponse { id: uuid(), prompt, generations, meta: Meta::new(Some(usage)) })
        .into_response())
}

fn generation(index: usize, answer: Whole, kept: &[String], likelihoods: bool) -> Generation {
    let reason = answer.reason();
    let read = answer.read.unwrap_or_default();
    let first = read.first.iter().map(|bytes| TokenLikelihood::new(bytes, None));
    let others = read.rest.iter().chain(&answer.tokens);
    let others = others.map(|token| TokenLikelihood::new(&token.bytes, Some(finite(token.log_probability))));
    let tokens: Vec<TokenLikelihood> = first.chain(others).collect();
    let known: Vec<f32> = tokens.iter().filter_map(|token| token.likelihood).collect();
    let mean = known.iter().sum::<f32>() / known.len().max(1) as f32;
    Generation {
        id: uuid(),
        text: answer.text + stay(&reason, kept),
        index,
        finish_reason: finish_reason_v1(&reason),
        likelihood: (likelihoods && !known.is_empty()).then_some(mean),
        token_likelihoods: likelihoods.then_some(tokens),
    }
}

impl TokenLikelihood {
    fn new(bytes: &[u8], likelihood: Option<f32>) -> TokenLikelihood {
        TokenLikelihood { token: String::from_utf8_lossy(bytes).into_owned(), likelihood }
    }
}

/// The stop sequence that stays in the text it ends.
fn stay<'a>(reason: &'a EndReason, kept: &[String]) -> &'a str {
    match reason {
        EndReason::StopString(stop) if kept.contains(stop) => stop,
        _ => "",
    }
}

struct GenerateStream {
    id: String,
    prompt: String,
    kept: Vec<String>,
    likelihoods: bool,
    answers: Vec<Whole>,
}

impl stream::Format for GenerateStream {
    const CONTENT_TYPE: &'static str = "application/stream+json";

    fn begin(&mut self, _: &mut Vec<u8>) {}

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Vec<u8>) {
        let Some(answer) = self.answers.get_mut(index) else { return };
        let text = match piece {
            Piece::Text(piece) => {
                answer.text += &piece.text;
                answer.tokens.extend(piece.token);
                piece.text
            }
            Piece::Read(read) => {
                answer.read = Some(read);
                return;
            }
            Piece::ToolCalls(_) => return,
            Piece::End(end) => {
                if let EndReason::Failed(problem) = &end.reason {
                    let line = json!({"event_type": "stream-error", "index": index, "is_finished": true, "finish_reason": "ERROR", "err": problem});
                    json_line(out, &line);
                }
                let text = stay(&end.reason, &self.kept).to_string();
                answer.end = Some(end);
                text
            }
        };
        if !text.is_empty() {
            let line =
                json!({"event_type": "text-generation", "text": text, "index": index, "is_finished": false});
            json_line(out, &line);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let answers = std::mem::take(&mut self.answers);
        if answers.iter().any(|answer| matches!(answer.reason(), EndReason::Failed(_))) {
            return;
        }
        let usage = total_usage(&answers, answers.len());
        let generations: Vec<Generation> = answers
            .into_iter()
            .enumerate()
            .map(|(index, answer)| generation(index, answer, &self.kept, self.likelihoods))
            .collect();
        let finish_reason = generations.first().map_or("COMPLETE", |generation| generation.finish_reason);
        let response = json!({"id": self.id, "prompt": self.prompt, "generations": generations, "meta": Meta::new(Some(usage))});
        let line = json!({"event_type": "stream-end", "is_finished": true, "finish_reason": finish_reason, "response": response});
        json_line(out, &line);
    }
}
