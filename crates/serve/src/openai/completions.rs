//! `POST /v1/completions`

use std::collections::BTreeMap;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{OneOrMany, StreamOptions, Usage, bias, error_of, finish_reason, seed, stops, token_text};
use crate::app::{Client, Shared};
use crate::ask::{
    Ask, AskUsage, AskedSampling, Fields, Piece, Prompt, ReadPrompt, Text, TokenPiece, finite, in_range,
    total_usage,
};
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::ids::{now, unique};
use crate::session::Session;
use crate::stream::{self, event};

const FIELDS: Fields = Fields { prompt: "prompt", max_tokens: "max_tokens", format: "response_format" };

/// A text to be continued.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "demo-base", "prompt": "Once there was", "max_tokens": 40}))]
pub struct CompletionRequest {
    /// Name of the model.
    model: String,
    /// A text, several, or tokens.
    prompt: Prompts,
    /// Most tokens of a continuation; 16 where nothing is said.
    max_tokens: Option<usize>,
    /// Send the text while it is written.
    stream: Option<bool>,
    /// How to.
    stream_options: Option<StreamOptions>,
    /// 0 takes the likeliest token always, up to 2.
    temperature: Option<f32>,
    /// Choose among the likeliest tokens that have this probability together.
    top_p: Option<f32>,
    /// Choose among so many likeliest tokens (not of the OpenAI API).
    top_k: Option<usize>,
    /// How many continuations of each prompt.
    n: Option<usize>,
    /// Texts that end a continuation, four at most.
    stop: Option<OneOrMany>,
    /// Equal seeds give equal continuations.
    seed: Option<i64>,
    /// Tell log-probabilities, with those of so many likeliest tokens, 5 at most.
    logprobs: Option<usize>,
    /// Repeat the prompt before the continuation; with `logprobs`, with its tokens' too.
    echo: Option<bool>,
    /// Not supported: must be `n` or absent.
    best_of: Option<usize>,
    /// Not supported: must be absent.
    suffix: Option<String>,
    /// Makes repeating words less likely, -2 to 2.
    frequency_penalty: Option<f32>,
    /// Makes new words likelier, -2 to 2.
    presence_penalty: Option<f32>,
    /// Added to the logits of tokens, by their numbers, -100 to 100.
    logit_bias: Option<BTreeMap<String, f32>>,
}

/// What to continue.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of tokens or a list of such lists"
)]
pub enum Prompts {
    /// A text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Tokens.
    Tokens(Vec<u32>),
    /// Several lists of tokens.
    TokenLists(Vec<Vec<u32>>),
}

/// Whole continuations.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionResponse<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// One of the continuations, or more of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

/// Log-probabilities as parallel lists.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    /// None of a prompt's first token where nothing stands before it.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// `offset` counts the characters before the first token.
    fn of(tokens: impl IntoIterator<Item = TokenPiece>, offset: &mut usize) -> CompletionLogprobs {
        let mut all = CompletionLogprobs::default();
        all.add(tokens, offset);
        all
    }

    fn of_prompt(read: ReadPrompt, offset: &mut usize) -> CompletionLogprobs {
        let mut all = CompletionLogprobs::default();
        if let Some(bytes) = read.first {
            all.add_text(token_text(&bytes), offset);
            all.token_logprobs.push(None);
            all.top_logprobs.push(None);
        }
        all.add(read.rest, offset);
        all
    }

    fn add(&mut self, tokens: impl IntoIterator<Item = TokenPiece>, offset: &mut usize) {
        for token in tokens {
            self.add_text(token_text(&token.bytes), offset);
            self.token_logprobs.push(Some(finite(token.log_probability)));
            let alternatives = token.alternatives.iter();
            let alternatives = alternatives.map(|(bytes, value)| (token_text(bytes), finite(*value)));
            // Several tokens may be the same text, where they are parts of characters: the likeliest stays.
            let mut top = BTreeMap::new();
            for (text, value) in alternatives {
                top.entry(text).or_insert(value);
            }
            self.top_logprobs.push(Some(top));
        }
    }

    fn add_text(&mut self, text: String, offset: &mut usize) {
        self.text_offset.push(*offset);
        *offset += text.chars().count();
        self.tokens.push(text);
    }
}

impl CompletionRequest {
    fn ask(self) -> Result<(String, Ask), ApiError> {
        if self.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field("suffix", "text before a suffix cannot be written by these models"));
        }
        if self.best_of.is_some_and(|best| best != self.n.unwrap_or(1)) {
            return Err(ApiError::field("best_of", "expected as many as n: all continuations are returned"));
        }
        let texts = match self.prompt {
            Prompts::Text(text) => vec![Text::Plain(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Text::Plain).collect(),
            Prompts::Tokens(ids) => vec![Text::Tokens(ids)],
            Prompts::TokenLists(lists) => lists.into_iter().map(Text::Tokens).collect(),
        };
        let mut ask = Ask::new(Prompt::Texts(texts), FIELDS);
        ask.count = self.n.unwrap_or(1);
        ask.max_tokens = Some(self.max_tokens.unwrap_or(16));
        ask.sampling = AskedSampling {
            temperature: in_range("temperature", self.temperature, 0.0, 2.0)?,
            top_k: self.top_k,
            top_p: in_range("top_p", self.top_p, 0.0, 1.0)?,
            seed: seed(self.seed),
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        };
        ask.stop = stops(self.stop)?;
        ask.bias = bias(self.logit_bias)?;
        if let Some(top) = self.logprobs
            && top > 5
        {
            return Err(ApiError::field("logprobs", format!("expected at most 5, found {top}")));
        }
        ask.log_probabilities = self.logprobs;
        ask.prompt_log_probabilities = (self.echo == Some(true) && self.logprobs.is_some()).then_some("echo");
        Ok((self.model, ask))
    }
}

/// Continue a text.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest, responses(
    (status = 200, description = "The continuations, whole or as server-sent events", content((CompletionResponse = "application/json"), (CompletionResponse = "text/event-stream"))),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn completions(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    JsonBody(request): JsonBody<CompletionRequest>,
) -> Result<Response, ApiError> {
    let streamed = request.stream == Some(true);
    let include_usage = request.stream_options.is_some_and(|options| options.include_usage == Some(true));
    let with_logprobs = request.logprobs.is_some();
    let echo: Vec<String> = match &request.prompt {
        _ if request.echo != Some(true) => Vec::new(),
        Prompts::Text(text) => vec![text.clone()],
        Prompts::Texts(texts) => texts.clone(),
        // Its text comes with its log-probabilities.
        Prompts::Tokens(_) | Prompts::TokenLists(_) if with_logprobs => Vec::new(),
        Prompts::Tokens(_) | Prompts::TokenLists(_) => {
            let problem = "a prompt of tokens is repeated with logprobs only; send text, or ask for these";
            return Err(ApiError::field("echo", problem));
        }
    };
    let (model, ask) = request.ask()?;
    let count = ask.count;
    let session = Session::begin(&app, &client, &model, ask).await?;
    let (id, created) = (unique("cmpl-"), now());
    if streamed {
        let (usage, offsets) = (AskUsage::default(), BTreeMap::new());
        let all = session.open();
        let format = CompletionStream {
            id,
            created,
            model,
            count,
            all,
            include_usage,
            usage,
            with_logprobs,
            echo,
            offsets,
        };
        return Ok(stream::stream(session, format).await);
    }
    let answers = session.whole().await?;
    let usage = Some(Some(total_usage(&answers, count).into()));
    let choices = answers.into_iter().enumerate().map(|(index, answer)| {
        let finish_reason = Some(finish_reason(&answer.reason()));
        let before = echo_of(&echo, index / count, answer.read.as_ref());
        let logprobs = with_logprobs.then(|| {
            let mut offset = 0;
            let read = answer.read.unwrap_or_default();
            let mut all = CompletionLogprobs::of_prompt(read, &mut offset);
            all.add(answer.tokens, &mut offset);
            all
        });
        CompletionChoice { index, text: before + &answer.text, logprobs, finish_reason }
    });
    let choices = choices.collect();
    let object = "text_completion";
    Ok(Json(CompletionResponse { id: &id, object, created, model: &model, choices, usage }).into_response())
}

/// The prompt before an answer, as it was sent, or put together where it was sent as tokens.
fn echo_of(echo: &[String], prompt: usize, read: Option<&ReadPrompt>) -> String {
    echo.get(prompt).cloned().or_else(|| read.map(ReadPrompt::text)).unwrap_or_default()
}

struct CompletionStream {
    id: String,
    created: u64,
    model: String,
    /// Answers of each prompt, and of all.
    count: usize,
    all: usize,
    include_usage: bool,
    usage: AskUsage,
    with_logprobs: bool,
    echo: Vec<String>,
    /// Characters of each continuation so far.
    offsets: BTreeMap<usize, usize>,
}

impl CompletionStream {
    fn send(&self, choices: Vec<CompletionChoice>, usage: Option<Option<Usage>>, out: &mut Vec<u8>) {
        let (id, object, created, model) = (&self.id, "text_completion", self.created, &self.model);
        event(out, None, &CompletionResponse { id, object, created, model, choices, usage });
    }
}

impl stream::Format for CompletionStream {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.with_logprobs {
            // It comes with its log-probabilities.
            return;
        }
        for (prompt, text) in self.echo.iter().enumerate() {
            for index in prompt * self.count..(prompt + 1) * self.count {
                self.offsets.insert(index, text.chars().count());
                let choice =
                    CompletionChoice { index, text: text.clone(), logprobs: None, finish_reason: None };
                self.send(vec![choice], self.include_usage.then_some(None), out);
            }
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Vec<u8>) {
        let choice = match piece {
            Piece::Read(read) => {
                let text = echo_of(&self.echo, index / self.count, Some(&read));
                let offset = self.offsets.entry(index).or_default();
                let logprobs = Some(CompletionLogprobs::of_prompt(read, offset));
                CompletionChoice { index, text, logprobs, finish_reason: None }
            }
            Piece::Text(piece) => {
                let offset = self.offsets.entry(index).or_default();
                let logprobs = piece.token.map(|token| CompletionLogprobs::of([token], offset));
                CompletionChoice { index, text: piece.text, logprobs, finish_reason: None }
            }
            Piece::ToolCalls(_) => return,
            Piece::End(end) => {
                if let Some(error) = error_of(&end, self.all) {
                    return event(out, None, &error.body());
                }
                let counted = index.is_multiple_of(self.count);
                let (prompt, cached) = if counted { (end.usage.prompt, end.usage.cached) } else { (0, 0) };
                self.usage += AskUsage { prompt, cached, completion: end.usage.completion };
                let finish_reason = Some(finish_reason(&end.reason));
                CompletionChoice { index, text: String::new(), logprobs: None, finish_reason }
            }
        };
        self.send(vec![choice], self.include_usage.then_some(None), out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            self.send(Vec::new(), Some(Some(self.usage.into())), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}
