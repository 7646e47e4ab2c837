//! `POST /v1/chat/completions`

use std::collections::BTreeMap;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strata_data::Role;
use strata_generate::ToolCall;
use utoipa::ToSchema;

use super::{
    OneOrMany, StreamOptions, TokenLogprob, Usage, bias, error_of, finish_reason, role, seed, stops,
};
use crate::app::{Client, Shared};
use crate::ask::{
    Ask, AskUsage, AskedSampling, AskedTool, Choice, Fields, Format, Piece, Truncate, Whole, in_range,
    total_usage,
};
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::ids::{now, unique};
use crate::session::Session;
use crate::stream::{self, event};
use crate::turn::{Called, Turn};

const FIELDS: Fields = Fields { prompt: "messages", max_tokens: "max_tokens", format: "response_format" };

/// A conversation to be answered.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "demo-dialogue", "messages": [{"role": "user", "content": "Hello"}]}))]
pub struct ChatRequest {
    /// Name of the model.
    model: String,
    /// The turns so far; at least one.
    messages: Vec<ChatMessage>,
    /// Send the answer while it is written.
    stream: Option<bool>,
    /// How to.
    stream_options: Option<StreamOptions>,
    /// 0 takes the likeliest token always, up to 2.
    temperature: Option<f32>,
    /// Choose among the likeliest tokens that have this probability together.
    top_p: Option<f32>,
    /// Choose among so many likeliest tokens (not of the OpenAI API).
    top_k: Option<usize>,
    /// How many answers.
    n: Option<usize>,
    /// Most tokens of an answer; what the context has no room for is not written.
    max_tokens: Option<usize>,
    /// The newer name of `max_tokens`.
    max_completion_tokens: Option<usize>,
    /// Texts that end an answer, four at most.
    stop: Option<OneOrMany>,
    /// Equal seeds give equal answers.
    seed: Option<i64>,
    /// Tell the log-probability of every token.
    logprobs: Option<bool>,
    /// And those of so many likeliest ones, 20 at most.
    top_logprobs: Option<usize>,
    /// What the answer must look like.
    response_format: Option<ResponseFormat>,
    /// Functions that the model may call.
    tools: Option<Vec<ToolDefinition>>,
    /// `none`, `auto`, `required`, or one of them.
    tool_choice: Option<ToolChoice>,
    /// Makes repeating words less likely, -2 to 2.
    frequency_penalty: Option<f32>,
    /// Makes new words likelier, -2 to 2.
    presence_penalty: Option<f32>,
    /// `auto` leaves out the oldest turns where the context has no room for them, and says how many in the header
    /// `x-omitted-messages` (not of this API of OpenAI's); `disabled`, the default, makes them an error.
    truncation: Option<String>,
    /// Added to the logits of tokens, by their numbers, -100 to 100.
    logit_bias: Option<BTreeMap<String, f32>>,
}

/// A turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    role: String,
    /// What is said.
    content: Option<Content>,
    /// What the assistant asked to be called.
    tool_calls: Option<Vec<ChatToolCall>>,
    /// With `tool`: which call this answers.
    tool_call_id: Option<String>,
}

/// Text, or parts of it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of parts")]
pub enum Content {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<ContentPart>),
}

/// A part of a turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text` or `refusal`; models here read nothing else.
    #[serde(rename = "type")]
    kind: String,
    /// The text.
    text: Option<String>,
    /// The words of a refusal.
    refusal: Option<String>,
}

/// A call of a tool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatToolCall {
    /// Its number in a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// A name of its own.
    id: Option<String>,
    /// `function`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// What to call.
    function: CalledFunction,
}

/// A function that is called.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CalledFunction {
    /// Its name.
    name: String,
    /// Its arguments, as JSON.
    arguments: String,
}

/// What an answer must look like.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    kind: String,
    /// The schema, with `json_schema`.
    json_schema: Option<NamedSchema>,
}

/// A schema with a name.
#[derive(Debug, Deserialize, ToSchema)]
pub struct NamedSchema {
    /// Its JSON schema.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
}

/// A tool.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ToolDefinition {
    /// `function`.
    #[serde(rename = "type")]
    kind: String,
    /// The function.
    function: Option<FunctionDefinition>,
}

/// A function that may be called.
#[derive(Debug, Deserialize, ToSchema)]
pub struct FunctionDefinition {
    /// Its name.
    name: String,
    /// What it does.
    description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

/// Whether tools are called.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected \"none\", \"auto\", \"required\" or a function")]
pub enum ToolChoice {
    /// `none`, `auto` or `required`.
    Mode(String),
    /// This one.
    Function {
        /// The function.
        function: FunctionName,
    },
}

/// The name of a function.
#[derive(Debug, Deserialize, ToSchema)]
pub struct FunctionName {
    /// Its name.
    name: String,
}

impl ChatMessage {
    fn turn(self, index: usize) -> Result<Turn, ApiError> {
        let role = role(&self.role, || format!("messages[{index}].role"))?;
        let text = match self.content {
            None if role == Role::Assistant => String::new(),
            None => {
                let field = format!("messages[{index}].content");
                return Err(ApiError::field(field, "expected a string or a list of parts, found none"));
            }
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let mut texts = Vec::with_capacity(parts.len());
                for (part_index, part) in parts.into_iter().enumerate() {
                    let field = format!("messages[{index}].content[{part_index}]");
                    let found = match part.kind.as_str() {
                        "text" | "input_text" => part.text,
                        "refusal" => part.refusal,
                        _ => None,
                    };
                    match found {
                        Some(text) => texts.push(text),
                        None => {
                            let problem = format!("expected a part of type \"text\", found {:?}", part.kind);
                            return Err(ApiError::field(field, problem));
                        }
                    }
                }
                texts.join("\n")
            }
        };
        let called = |ChatToolCall { id, function: CalledFunction { name, arguments }, .. }| Called {
            id,
            name,
            arguments,
        };
        let calls = self.tool_calls.unwrap_or_default().into_iter().map(called).collect();
        Ok(Turn { calls, answers: self.tool_call_id.map(Called::by_id), ..Turn::new(role, text) })
    }
}

impl ChatRequest {
    fn ask(self) -> Result<(String, Ask), ApiError> {
        let messages = self.messages.into_iter().enumerate();
        let messages = messages.map(|(index, message)| message.turn(index)).collect::<Result<Vec<_>, _>>()?;
        let mut ask = Ask::chat(messages, FIELDS);
        ask.count = self.n.unwrap_or(1);
        ask.max_tokens = self.max_completion_tokens.or(self.max_tokens);
        ask.sampling = AskedSampling {
            temperature: in_range("temperature", self.temperature, 0.0, 2.0)?,
            top_k: self.top_k,
            top_p: in_range("top_p", self.top_p, 0.0, 1.0)?,
            seed: seed(self.seed),
            frequency_penalty: in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?
                .unwrap_or(0.0),
            presence_penalty: in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        };
        ask.truncate = match self.truncation.as_deref() {
            None | Some("disabled") => Truncate::No,
            Some("auto") => Truncate::Turns,
            Some(other) => {
                return Err(ApiError::field(
                    "truncation",
                    format!("expected auto or disabled, found {other:?}"),
                ));
            }
        };
        ask.stop = stops(self.stop)?;
        ask.bias = bias(self.logit_bias)?;
        if let Some(top) = self.top_logprobs {
            if self.logprobs != Some(true) {
                return Err(ApiError::field("top_logprobs", "it needs logprobs to be true"));
            }
            if top > 20 {
                return Err(ApiError::field("top_logprobs", format!("expected at most 20, found {top}")));
            }
        }
        if self.logprobs == Some(true) {
            ask.log_probabilities = Some(self.top_logprobs.unwrap_or(0));
        }
        if let Some(format) = self.response_format {
            ask.format = format.format()?;
        }
        for (index, tool) in self.tools.unwrap_or_default().into_iter().enumerate() {
            let field = || format!("tools[{index}].function");
            let function = tool.function.filter(|_| tool.kind == "function");
            let function =
                function.ok_or_else(|| ApiError::field(field(), "expected a tool of type \"function\""))?;
            ask.tools.push(AskedTool {
                name: function.name,
                description: function.description.unwrap_or_default(),
                parameters: function
                    .parameters
                    .unwrap_or_else(|| json!({"type": "object", "properties": {}})),
            });
        }
        ask.tool_choice = match self.tool_choice {
            None => Choice::Auto,
            Some(ToolChoice::Mode(mode)) => match mode.as_str() {
                "auto" => Choice::Auto,
                "none" => Choice::None,
                "required" => Choice::Required,
                other => {
                    let problem = format!("expected none, auto, required or a function, found {other:?}");
                    return Err(ApiError::field("tool_choice", problem));
                }
            },
            Some(ToolChoice::Function { function }) => Choice::Named(function.name),
        };
        Ok((self.model, ask))
    }
}

impl ResponseFormat {
    fn format(self) -> Result<Format, ApiError> {
        match self.kind.as_str() {
            "text" => Ok(Format::Text),
            "json_object" => Ok(Format::JsonObject),
            "json_schema" => {
                let schema = self.json_schema.and_then(|named| named.schema);
                schema.map(Format::JsonSchema).ok_or_else(|| {
                    ApiError::field(
                        "response_format.json_schema.schema",
                        "expected a JSON schema, found none",
                    )
                })
            }
            other => {
                let problem = format!("expected text, json_object or json_schema, found {other:?}");
                Err(ApiError::field("response_format.type", problem))
            }
        }
    }
}

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatResponse {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
}

/// One of the answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    index: usize,
    message: AnswerMessage,
    /// Log-probabilities, where asked for.
    logprobs: Option<Logprobs>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: &'static str,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerMessage {
    role: &'static str,
    content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ChatToolCall>>,
}

/// Log-probabilities of tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct Logprobs {
    content: Vec<TokenLogprob>,
}

/// An event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// More of one of the answers.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ChunkChoice {
    index: usize,
    delta: Delta,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ChatToolCall>>,
}

/// Answer a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatRequest, responses(
    (status = 200, description = "The answer, whole or as server-sent events", content((ChatResponse = "application/json"), (ChatChunk = "text/event-stream"))),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn chat_completions(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    JsonBody(request): JsonBody<ChatRequest>,
) -> Result<Response, ApiError> {
    let streamed = request.stream == Some(true);
    let include_usage = request.stream_options.is_some_and(|options| options.include_usage == Some(true));
    let with_logprobs = request.logprobs == Some(true);
    let (model, ask) = request.ask()?;
    let count = ask.count;
    let session = Session::begin(&app, &client, &model, ask).await?;
    let (id, created) = (unique("chatcmpl-"), now());
    let omitted = [("x-omitted-messages", session.omitted().to_string())];
    if streamed {
        let format = ChatStream { id, created, model, count, include_usage, usage: AskUsage::default() };
        return Ok((omitted, stream::stream(session, format).await).into_response());
    }
    let answers = session.whole().await?;
    let usage = total_usage(&answers, count).into();
    let choices =
        answers.into_iter().enumerate().map(|(index, answer)| choice(index, answer, with_logprobs)).collect();
    let response = ChatResponse { id, object: "chat.completion", created, model, choices, usage };
    Ok((omitted, Json(response)).into_response())
}

fn choice(index: usize, answer: Whole, with_logprobs: bool) -> ChatChoice {
    let finish_reason = finish_reason(&answer.reason());
    let tool_calls = (!answer.tool_calls.is_empty()).then(|| tool_calls(answer.tool_calls, false));
    let content = (tool_calls.is_none() || !answer.text.is_empty()).then_some(answer.text);
    let tokens = answer.tokens.into_iter().map(Into::into).collect();
    ChatChoice {
        index,
        message: AnswerMessage { role: "assistant", content, refusal: None, tool_calls },
        logprobs: with_logprobs.then_some(Logprobs { content: tokens }),
        finish_reason,
    }
}

fn tool_calls(calls: Vec<ToolCall>, numbered: bool) -> Vec<ChatToolCall> {
    let calls = calls.into_iter().enumerate().map(|(index, call)| ChatToolCall {
        index: numbered.then_some(index),
        id: Some(unique("call_")),
        kind: Some("function".into()),
        function: CalledFunction { name: call.name, arguments: call.arguments_text },
    });
    calls.collect()
}

struct ChatStream {
    id: String,
    created: u64,
    model: String,
    count: usize,
    include_usage: bool,
    usage: AskUsage,
}

impl ChatStream {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Option<Usage>>, out: &mut Vec<u8>) {
        let (id, object, created, model) = (&self.id, "chat.completion.chunk", self.created, &self.model);
        event(out, None, &ChatChunk { id, object, created, model, choices, usage });
    }

    fn send(&self, choice: ChunkChoice, out: &mut Vec<u8>) {
        // Where usage is asked for, it is null in all events but the last.
        self.chunk(vec![choice], self.include_usage.then_some(None), out);
    }
}

impl stream::Format for ChatStream {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Vec<u8>) {
        for index in 0..self.count {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()), tool_calls: None };
            self.send(ChunkChoice { index, delta, ..ChunkChoice::default() }, out);
        }
    }

    fn piece(&mut self, index: usize, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Read(_) => {}
            Piece::Text(piece) => {
                let delta = Delta { content: Some(piece.text), ..Delta::default() };
                let logprobs = piece.token.map(|token| Logprobs { content: vec![token.into()] });
                self.send(ChunkChoice { index, delta, logprobs, finish_reason: None }, out);
            }
            Piece::ToolCalls(calls) => {
                let delta = Delta { tool_calls: Some(tool_calls(calls, true)), ..Delta::default() };
                self.send(ChunkChoice { index, delta, ..ChunkChoice::default() }, out);
            }
            Piece::End(end) => {
                if let Some(error) = error_of(&end, self.count) {
                    return event(out, None, &error.body());
                }
                let (prompt, cached) = if index == 0 { (end.usage.prompt, end.usage.cached) } else { (0, 0) };
                self.usage += AskUsage { prompt, cached, completion: end.usage.completion };
                let finish_reason = Some(finish_reason(&end.reason));
                self.send(ChunkChoice { index, finish_reason, ..ChunkChoice::default() }, out);
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            self.chunk(Vec::new(), Some(Some(self.usage.into())), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}
