//! `POST /v2/chat`

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strata_data::Role;
use strata_generate::ToolCall;
use utoipa::ToSchema;

use super::{Sampling, TokenCounts, document, fallback, finish_reason, stop_sequences};
use crate::app::{Client, Shared};
use crate::ask::{
    Ask, AskUsage, AskedTool, Choice, EndReason, Fields, Format, Piece, Prompt, TokenPiece, finite,
    total_usage,
};
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::ids::{unique, uuid};
use crate::session::Session;
use crate::stream::{self, event};
use crate::turn::{Called, Turn};

const FIELDS: Fields = Fields { prompt: "messages", max_tokens: "max_tokens", format: "response_format" };

/// A conversation to be answered.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "demo-dialogue", "messages": [{"role": "user", "content": "Hello"}]}))]
pub struct ChatRequestV2 {
    /// Name of the model.
    model: String,
    /// The turns so far; at least one.
    messages: Vec<MessageV2>,
    /// Send the answer while it is written.
    stream: Option<bool>,
    /// Functions that the model may call.
    tools: Option<Vec<ToolV2>>,
    /// `REQUIRED` or `NONE`.
    tool_choice: Option<String>,
    /// Texts or objects to rely on.
    #[schema(value_type = Option<Vec<Object>>)]
    documents: Option<Vec<Value>>,
    /// What the answer must look like.
    response_format: Option<ResponseFormatV2>,
    /// Most tokens of the answer.
    max_tokens: Option<usize>,
    /// Texts that end the answer, five at most.
    stop_sequences: Option<Vec<String>>,
    /// 0 takes the likeliest token always, up to 1.
    temperature: Option<f32>,
    /// Equal seeds give equal answers.
    seed: Option<u64>,
    /// Makes repeating words less likely, 0 to 1.
    frequency_penalty: Option<f32>,
    /// Makes new words likelier, 0 to 1.
    presence_penalty: Option<f32>,
    /// Choose among so many likeliest tokens, 0 to 500.
    k: Option<usize>,
    /// Choose among the likeliest tokens that have this probability together.
    p: Option<f32>,
    /// Tell log-probabilities.
    logprobs: Option<bool>,
}

/// A turn.
#[derive(Debug, Deserialize, ToSchema)]
pub struct MessageV2 {
    /// `system`, `user`, `assistant` or `tool`.
    role: String,
    /// What is said.
    content: Option<ContentV2>,
    /// What the assistant asked to be called.
    tool_calls: Option<Vec<ToolCallV2>>,
    /// Why it did.
    tool_plan: Option<String>,
    /// With `tool`: which call this answers.
    tool_call_id: Option<String>,
}

/// Text, or parts of it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of parts")]
pub enum ContentV2 {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<PartV2>),
}

/// A part of a turn.
#[derive(Debug, Deserialize, ToSchema)]
pub struct PartV2 {
    /// `text`, `thinking` or `document`.
    #[serde(rename = "type")]
    kind: String,
    /// The text.
    text: Option<String>,
    /// What was thought, which is not told to the model again.
    thinking: Option<String>,
    /// A document.
    #[schema(value_type = Option<Object>)]
    document: Option<Value>,
}

/// A call of a tool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ToolCallV2 {
    /// A name of its own.
    id: Option<String>,
    /// `function`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// What to call.
    function: CalledV2,
}

/// A function that is called.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CalledV2 {
    /// Its name.
    name: Option<String>,
    /// Its arguments, as JSON.
    arguments: Option<String>,
}

/// A tool.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ToolV2 {
    /// `function`.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// The function.
    function: Option<FunctionV2>,
}

/// A function that may be called.
#[derive(Debug, Deserialize, ToSchema)]
pub struct FunctionV2 {
    /// Its name.
    name: String,
    /// What it does.
    description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    parameters: Option<Value>,
}

/// What an answer must look like.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ResponseFormatV2 {
    /// `text` or `json_object`.
    #[serde(rename = "type")]
    kind: String,
    /// The schema.
    #[schema(value_type = Option<Object>)]
    json_schema: Option<Value>,
    /// The schema, under its other name.
    #[schema(value_type = Option<Object>)]
    schema: Option<Value>,
}

impl ResponseFormatV2 {
    pub(super) fn format(self) -> Result<Format, ApiError> {
        match self.kind.as_str() {
            "text" => Ok(Format::Text),
            "json_object" => Ok(match self.json_schema.or(self.schema) {
                None => Format::JsonObject,
                Some(schema) => Format::JsonSchema(schema),
            }),
            other => {
                let problem = format!("expected text or json_object, found {other:?}");
                Err(ApiError::field("response_format.type", problem))
            }
        }
    }
}

impl MessageV2 {
    fn turn(self, index: usize) -> Result<Turn, ApiError> {
        let field = |name: &str| format!("messages[{index}].{name}");
        let role = Role::from_name(&self.role).ok_or_else(|| {
            let problem = format!("expected system, user, assistant or tool, found {:?}", self.role);
            ApiError::field(field("role"), problem)
        })?;
        if role == Role::Tool && self.tool_call_id.is_none() {
            return Err(ApiError::field(
                field("tool_call_id"),
                "expected the id of the call that this answers",
            ));
        }
        let text = match self.content {
            Some(ContentV2::Text(text)) => text,
            Some(ContentV2::Parts(parts)) => {
                let mut texts = Vec::with_capacity(parts.len());
                for (part_index, part) in parts.into_iter().enumerate() {
                    match (part.kind.as_str(), part.text, part.document) {
                        ("text", Some(text), _) => texts.push(text),
                        ("document", _, Some(found)) => {
                            texts.push(document(found, part_index, "doc:").to_string())
                        }
                        ("thinking", ..) if part.thinking.is_some() => {}
                        (kind, ..) => {
                            let problem = format!("expected a part of type \"text\", found {kind:?}");
                            return Err(ApiError::field(field(&format!("content[{part_index}]")), problem));
                        }
                    }
                }
                texts.join("\n")
            }
            None if role == Role::Assistant => self.tool_plan.unwrap_or_default(),
            None => {
                return Err(ApiError::field(
                    field("content"),
                    "expected a string or a list of parts, found none",
                ));
            }
        };
        let called = |ToolCallV2 { id, function, .. }| Called {
            id,
            name: function.name.unwrap_or_default(),
            arguments: function.arguments.unwrap_or_else(|| "{}".into()),
        };
        let calls = self.tool_calls.unwrap_or_default().into_iter().map(called).collect();
        Ok(Turn { calls, answers: self.tool_call_id.map(Called::by_id), ..Turn::new(role, text) })
    }
}

impl ChatRequestV2 {
    fn ask(self) -> Result<(String, Ask), ApiError> {
        let messages = self.messages.into_iter().enumerate();
        let messages = messages.map(|(index, message)| message.turn(index)).collect::<Result<Vec<_>, _>>()?;
        let documents = self.documents.unwrap_or_default().into_iter().enumerate();
        let documents = documents.map(|(index, value)| document(value, index, "doc:")).collect();
        let mut ask = Ask::new(Prompt::Chat { messages, documents }, FIELDS);
        ask.max_tokens = self.max_tokens;
        ask.sampling = Sampling {
            temperature: self.temperature,
            most_temperature: 1.0,
            k: self.k,
            p: self.p,
            seed: self.seed,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
        }
        .check()?;
        ask.fallback = fallback(0.3);
        ask.stop = stop_sequences(self.stop_sequences, "stop_sequences")?;
        ask.log_probabilities = (self.logprobs == Some(true)).then_some(0);
        if let Some(format) = self.response_format {
            ask.format = format.format()?;
        }
        for (index, tool) in self.tools.unwrap_or_default().into_iter().enumerate() {
            let function =
                tool.function.filter(|_| tool.kind.as_deref().is_none_or(|kind| kind == "function"));
            let function = function.ok_or_else(|| {
                ApiError::field(format!("tools[{index}].function"), "expected a tool of type \"function\"")
            })?;
            ask.tools.push(AskedTool {
                name: function.name,
                description: function.description.unwrap_or_default(),
                parameters: function
                    .parameters
                    .unwrap_or_else(|| json!({"type": "object", "properties": {}})),
            });
        }
        ask.tool_choice = match self.tool_choice.as_deref().map(str::to_ascii_uppercase).as_deref() {
            None => Choice::Auto,
            Some("REQUIRED") => Choice::Required,
            Some("NONE") => Choice::None,
            Some(other) => {
                return Err(ApiError::field(
                    "tool_choice",
                    format!("expected REQUIRED or NONE, found {other:?}"),
                ));
            }
        };
        Ok((self.model, ask))
    }
}

/// A whole answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatResponseV2 {
    id: String,
    /// `COMPLETE`, `STOP_SEQUENCE`, `MAX_TOKENS`, `TOOL_CALL` or `TIMEOUT`.
    finish_reason: &'static str,
    message: AnswerV2,
    usage: UsageV2,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<LogprobV2>>,
}

/// What the model says.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnswerV2 {
    role: &'static str,
    /// What was said before tools were called.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_plan: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Vec<TextBlock>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCallV2>>,
}

/// A block of text.
#[derive(Debug, Serialize, ToSchema)]
pub struct TextBlock {
    #[serde(rename = "type")]
    kind: &'static str,
    text: String,
}

/// What an answer took.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub struct UsageV2 {
    billed_units: TokenCounts,
    tokens: TokenCounts,
    cached_tokens: usize,
}

impl From<AskUsage> for UsageV2 {
    fn from(usage: AskUsage) -> UsageV2 {
        UsageV2 { billed_units: usage.into(), tokens: usage.into(), cached_tokens: usage.cached }
    }
}

/// Log-probabilities of a piece of text.
#[derive(Debug, Serialize, ToSchema)]
pub struct LogprobV2 {
    text: String,
    token_ids: Vec<u32>,
    logprobs: Vec<f32>,
}

impl From<TokenPiece> for LogprobV2 {
    fn from(token: TokenPiece) -> LogprobV2 {
        LogprobV2 {
            text: String::from_utf8_lossy(&token.bytes).into_owned(),
            token_ids: vec![token.id],
            logprobs: vec![finite(token.log_probability)],
        }
    }
}

fn tool_call(call: ToolCall) -> ToolCallV2 {
    ToolCallV2 {
        id: Some(unique(&format!("{}_", call.name))),
        kind: Some("function".into()),
        function: CalledV2 { name: Some(call.name), arguments: Some(call.arguments_text) },
    }
}

/// Answer a conversation.
#[utoipa::path(post, path = "/v2/chat", tag = "Cohere", request_body = ChatRequestV2, responses(
    (status = 200, description = "The answer, whole or as server-sent events", content((ChatResponseV2 = "application/json"), (Object = "text/event-stream"))),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn chat(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    JsonBody(request): JsonBody<ChatRequestV2>,
) -> Result<Response, ApiError> {
    let streamed = request.stream == Some(true);
    let with_logprobs = request.logprobs == Some(true);
    let (model, ask) = request.ask()?;
    let session = Session::begin(&app, &client, &model, ask).await?;
    if streamed {
        return Ok(stream::stream(session, ChatStreamV2 { id: uuid(), begun: false }).await);
    }
    let answers = session.whole().await?;
    let usage = total_usage(&answers, 1).into();
    let answer = answers.into_iter().next().ok_or_else(|| ApiError::internal("there is no answer"))?;
    let finish_reason = finish_reason(&answer.reason());
    let calls: Vec<ToolCallV2> = answer.tool_calls.into_iter().map(tool_call).collect();
    let response = ChatResponseV2 {
        id: uuid(),
        finish_reason,
        message: AnswerV2 {
            role: "assistant",
            tool_plan: (!calls.is_empty() && !answer.text.is_empty()).then(|| answer.text.clone()),
            content: calls.is_empty().then(|| vec![TextBlock { kind: "text", text: answer.text }]),
            tool_calls: (!calls.is_empty()).then_some(calls),
        },
        usage,
        logprobs: with_logprobs.then(|| answer.tokens.into_iter().map(Into::into).collect()),
    };
    Ok(Json(response).into_response())
}

/// Server-sent events, each with its type in the data, where clients look for it.
struct ChatStreamV2 {
    id: String,
    /// Whether a block of text has begun.
    begun: bool,
}

#[derive(Serialize)]
struct ContentDelta {
    #[serde(rename = "type")]
    kind: &'static str,
    index: usize,
    delta: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<LogprobV2>,
}

impl ChatStreamV2 {
    fn end_block(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.begun) {
            event(out, Some("content-end"), &json!({"type": "content-end", "index": 0}));
        }
    }
}

impl stream::Format for ChatStreamV2 {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn begin(&mut self, out: &mut Vec<u8>) {
        let message =
            json!({"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []});
        let data = json!({"type": "message-start", "id": self.id, "delta": {"message": message}});
        event(out, Some("message-start"), &data);
    }

    fn piece(&mut self, _: usize, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Read(_) => {}
            Piece::Text(piece) => {
                if !self.begun {
                    self.begun = true;
                    let delta = json!({"message": {"content": {"type": "text", "text": ""}}});
                    let data = json!({"type": "content-start", "index": 0, "delta": delta});
                    event(out, Some("content-start"), &data);
                }
                let delta = json!({"message": {"content": {"text": piece.text}}});
                let logprobs = piece.token.map(Into::into);
                let data = ContentDelta { kind: "content-delta", index: 0, delta, logprobs };
                event(out, Some("content-delta"), &data);
            }
            Piece::ToolCalls(calls) => {
                self.end_block(out);
                for (index, call) in calls.into_iter().enumerate() {
                    let id = unique(&format!("{}_", call.name));
                    let function = json!({"name": call.name, "arguments": ""});
                    let start = json!({"id": id, "type": "function", "function": function});
                    let delta = json!({"message": {"tool_calls": start}});
                    let data = json!({"type": "tool-call-start", "index": index, "delta": delta});
                    event(out, Some("tool-call-start"), &data);
                    let delta =
                        json!({"message": {"tool_calls": {"function": {"arguments": call.arguments_text}}}});
                    let data = json!({"type": "tool-call-delta", "index": index, "delta": delta});
                    event(out, Some("tool-call-delta"), &data);
                    event(out, Some("tool-call-end"), &json!({"type": "tool-call-end", "index": index}));
                }
            }
            Piece::End(end) => {
                self.end_block(out);
                let usage: UsageV2 = end.usage.into();
                let mut delta = json!({"finish_reason": finish_reason(&end.reason), "usage": usage});
                if let EndReason::Failed(problem) = end.reason {
                    delta["error"] = json!(problem);
                }
                let data = json!({"type": "message-end", "id": self.id, "delta": delta});
                event(out, Some("message-end"), &data);
            }
        }
    }

    fn end(&mut self, _: &mut Vec<u8>) {}
}
