//! `POST /v1/chat`

use std::collections::BTreeMap;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use strata_data::Role;
use strata_generate::ToolCall;
use utoipa::ToSchema;

use super::chat_v2::ResponseFormatV2;
use super::{Meta, Sampling, document, fallback, finish_reason_v1, stop_sequences};
use crate::app::{Client, Shared};
use crate::ask::{Ask, AskedTool, EndReason, Fields, Piece, Prompt, Text, Truncate, Whole};
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::ids::uuid;
use crate::session::Session;
use crate::stream::{self, json_line};
use crate::turn::{Called, Turn};

const FIELDS: Fields = Fields { prompt: "message", max_tokens: "max_tokens", format: "response_format" };

/// A message to be answered.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "demo-dialogue", "message": "Hello"}))]
pub struct ChatRequestV1 {
    /// What is said.
    message: String,
    /// Name of the model; without, the best for conversations.
    model: Option<String>,
    /// What the model is told before the conversation.
    preamble: Option<String>,
    /// The turns before.
    chat_history: Option<Vec<TurnV1>>,
    /// Not kept here: send `chat_history`.
    conversation_id: Option<String>,
    /// Send the answer while it is written.
    stream: Option<bool>,
    /// Documents to rely on.
    #[schema(value_type = Option<Vec<Object>>)]
    documents: Option<Vec<Map<String, Value>>>,
    /// Functions that the model may call.
    tools: Option<Vec<ToolV1>>,
    /// What the called functions gave.
    tool_results: Option<Vec<ToolResultV1>>,
    /// What the answer must look like.
    response_format: Option<ResponseFormatV2>,
    /// `OFF`, `AUTO` or `AUTO_PRESERVE_ORDER`: whether the oldest turns may be left out.
    prompt_truncation: Option<String>,
    /// Send the message to the model as it is, without its chat format.
    raw_prompting: Option<bool>,
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
}

/// A turn.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TurnV1 {
    /// `USER`, `CHATBOT`, `SYSTEM` or `TOOL`.
    role: String,
    /// What is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// What the model asked to be called.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCallV1>>,
    /// What the called functions gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_results: Option<Vec<ToolResultV1>>,
}

/// A call of a tool.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ToolCallV1 {
    /// What to call.
    name: String,
    /// With what.
    #[schema(value_type = Object)]
    parameters: Value,
}

impl ToolCallV1 {
    fn called(self) -> Called {
        Called { id: None, name: self.name, arguments: self.parameters.to_string() }
    }
}

/// What a called function gave.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ToolResultV1 {
    /// The call.
    call: ToolCallV1,
    /// What it gave.
    #[schema(value_type = Vec<Object>)]
    outputs: Vec<Value>,
}

/// A tool.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ToolV1 {
    /// Its name.
    name: String,
    /// What it does.
    description: Option<String>,
    /// Its parameters by name.
    parameter_definitions: Option<BTreeMap<String, ParameterV1>>,
}

/// A parameter of a tool.
#[derive(Debug, Deserialize, ToSchema)]
pub struct ParameterV1 {
    /// Name of a type in Python: `str`, `int`, `float`, `bool`, `list`, `dict`.
    #[serde(rename = "type")]
    kind: String,
    /// What it means.
    description: Option<String>,
    /// Whether every call has it.
    required: Option<bool>,
}

impl ToolV1 {
    /// With a JSON schema, as everything else here has it.
    fn tool(self) -> AskedTool {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (name, parameter) in self.parameter_definitions.unwrap_or_default() {
            let mut schema = python_type(&parameter.kind);
            if let Some(description) = parameter.description {
                schema["description"] = json!(description);
            }
            if parameter.required == Some(true) {
                required.push(name.clone());
            }
            properties.insert(name, schema);
        }
        let parameters = json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
        AskedTool { name: self.name, description: self.description.unwrap_or_default(), parameters }
    }
}

fn python_type(name: &str) -> Value {
    let name = name.to_ascii_lowercase();
    match name.split('[').next().unwrap_or("") {
        "int" | "integer" => json!({"type": "integer"}),
        "float" | "number" => json!({"type": "number"}),
        "bool" | "boolean" => json!({"type": "boolean"}),
        "list" | "array" | "tuple" => json!({"type": "array", "items": {"type": "string"}}),
        "dict" | "object" => json!({"type": "object"}),
        _ => json!({"type": "string"}),
    }
}

fn turns(turn: TurnV1, index: usize) -> Result<Vec<Turn>, ApiError> {
    let text = turn.message.unwrap_or_default();
    let field = format!("chat_history[{index}].role");
    Ok(match turn.role.to_ascii_uppercase().as_str() {
        // Cohere's own history has results with what the user said.
        "USER" => {
            let said = (!text.is_empty() || turn.tool_results.is_none()).then(|| Turn::new(Role::User, text));
            said.into_iter().chain(results(turn.tool_results.unwrap_or_default())).collect()
        }
        "SYSTEM" => vec![Turn::new(Role::System, text)],
        "CHATBOT" => {
            let calls = turn.tool_calls.unwrap_or_default().into_iter().map(ToolCallV1::called).collect();
            vec![Turn { calls, ..Turn::new(Role::Assistant, text) }]
        }
        "TOOL" => results(turn.tool_results.unwrap_or_default()),
        other => {
            return Err(ApiError::field(
                field,
                format!("expected USER, CHATBOT, SYSTEM or TOOL, found {other:?}"),
            ));
        }
    })
}

fn results(results: Vec<ToolResultV1>) -> Vec<Turn> {
    let turn = |ToolResultV1 { call, outputs }| Turn {
        answers: Some(call.called()),
        ..Turn::new(Role::Tool, json!(outputs).to_string())
    };
    results.into_iter().map(turn).collect()
}

impl ChatRequestV1 {
    fn ask(self) -> Result<Ask, ApiError> {
        let results_given = self.tool_results.as_ref().is_some_and(|results| !results.is_empty());
        if self.message.is_empty() && !results_given {
            return Err(ApiError::field("message", "expected some text, found none"));
        }
        let mut messages: Vec<Turn> =
            self.preamble.into_iter().map(|text| Turn::new(Role::System, text)).collect();
        for (index, history) in self.chat_history.unwrap_or_default().into_iter().enumerate() {
            messages.extend(turns(history, index)?);
        }
        if !self.message.is_empty() {
            messages.push(Turn::new(Role::User, self.message.clone()));
        }
        messages.extend(results(self.tool_results.unwrap_or_default()));
        let documents =
            self.documents.unwrap_or_default().into_iter().enumerate().map(|(index, mut fields)| {
                if let Some(Value::Array(hidden)) = fields.remove("_excludes") {
                    fields.retain(|key, _| hidden.iter().all(|name| name != key));
                }
                document(Value::Object(fields), index, "doc_")
            });
        let documents = documents.collect();
        let prompt = match self.raw_prompting {
            Some(true) => Prompt::Texts(vec![Text::Plain(self.message)]),
            _ => Prompt::Chat { messages, documents },
        };
        let mut ask = Ask::new(prompt, FIELDS);
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
        if let Some(format) = self.response_format {
            ask.format = format.format()?;
        }
        ask.tools = self.tools.unwrap_or_default().into_iter().map(ToolV1::tool).collect();
        ask.truncate = match self.prompt_truncation.as_deref().map(str::to_ascii_uppercase).as_deref() {
            None | Some("OFF") => Truncate::No,
            Some("AUTO" | "AUTO_PRESERVE_ORDER") => Truncate::Turns,
            Some(other) => {
                let problem = format!("expected OFF, AUTO or AUTO_PRESERVE_ORDER, found {other:?}");
                return Err(ApiError::field("prompt_truncation", problem));
            }
        };
        Ok(ask)
    }
}

/// A whole answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatResponseV1 {
    text: String,
    generation_id: String,
    response_id: String,
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Vec<ToolCallV1>>,
    chat_history: Vec<TurnV1>,
    meta: Meta,
}

fn calls_v1(calls: &[ToolCall]) -> Option<Vec<ToolCallV1>> {
    let call = |call: &ToolCall| ToolCallV1 { name: call.name.clone(), parameters: call.arguments.clone() };
    (!calls.is_empty()).then(|| calls.iter().map(call).collect())
}

/// Answer a message (version 1).
#[utoipa::path(post, path = "/v1/chat", tag = "Cohere", request_body = ChatRequestV1, responses(
    (status = 200, description = "The answer, whole or as lines of JSON", content((ChatResponseV1 = "application/json"), (Object = "application/stream+json"))),
    (status = "4XX", description = "The request cannot be served", body = ErrorBody),
))]
pub async fn chat(
    State(app): State<Shared>,
    Extension(client): Extension<Client>,
    JsonBody(mut request): JsonBody<ChatRequestV1>,
) -> Result<Response, ApiError> {
    let streamed = request.stream == Some(true);
    if request.conversation_id.take().is_some_and(|id| !id.is_empty()) {
        let problem = "conversations are not kept on this server; send the turns as chat_history";
        return Err(ApiError::field("conversation_id", problem));
    }
    let model = match request.model.take() {
        Some(model) => model,
        None => app.catalog.default_name().await?,
    };
    let mut history = request.chat_history.clone().unwrap_or_default();
    let turn = |role: &str| TurnV1 { role: role.into(), message: None, tool_calls: None, tool_results: None };
    if !request.message.is_empty() {
        history.push(TurnV1 { message: Some(request.message.clone()), ..turn("USER") });
    }
    if let Some(results) = request.tool_results.clone().filter(|results| !results.is_empty()) {
        history.push(TurnV1 { tool_results: Some(results), ..turn("TOOL") });
    }
    let ask = request.ask()?;
    let session = Session::begin(&app, &client, &model, ask).await?;
    let format = ChatStreamV1 { id: uuid(), history, answer: Whole::default() };
    if streamed {
        return Ok(stream::stream(session, format).await);
    }
    let answers = session.whole().await?;
    let answer = answers.into_iter().next().ok_or_else(|| ApiError::internal("there is no answer"))?;
    Ok(Json(ChatStreamV1 { answer, ..format }.response()).into_response())
}

/// Lines of JSON; the last one is the whole answer.
struct ChatStreamV1 {
    id: String,
    history: Vec<TurnV1>,
    answer: Whole,
}

impl ChatStreamV1 {
    fn response(mut self) -> ChatResponseV1 {
        let tool_calls = calls_v1(&self.answer.tool_calls);
        self.history.push(TurnV1 {
            role: "CHATBOT".into(),
            message: Some(self.answer.text.clone()),
            tool_calls: tool_calls.clone(),
            tool_results: None,
        });
        ChatResponseV1 {
            finish_reason: finish_reason_v1(&self.answer.reason()),
            meta: Meta::new(Some(self.answer.usage())),
            text: self.answer.text,
            generation_id: self.id,
            response_id: uuid(),
            tool_calls,
            chat_history: self.history,
        }
    }
}

impl stream::Format for ChatStreamV1 {
    const CONTENT_TYPE: &'static str = "application/stream+json";

    fn begin(&mut self, out: &mut Vec<u8>) {
        json_line(
            out,
            &json!({"event_type": "stream-start", "is_finished": false, "generation_id": self.id}),
        );
    }

    fn piece(&mut self, _: usize, piece: Piece, out: &mut Vec<u8>) {
        match piece {
            Piece::Read(_) => {}
            Piece::Text(piece) => {
                self.answer.text += &piece.text;
                let line = json!({"event_type": "text-generation", "is_finished": false, "text": piece.text});
                json_line(out, &line);
            }
            Piece::ToolCalls(calls) => {
                let tool_calls = calls_v1(&calls);
                let line = json!({"event_type": "tool-calls-generation", "is_finished": false, "tool_calls": tool_calls});
                json_line(out, &line);
                self.answer.tool_calls = calls;
            }
            Piece::End(end) => {
                if let EndReason::Failed(problem) = &end.reason {
                    tracing::debug!(problem, "a stream ends with an error");
                }
                self.answer.end = Some(end);
                let format = ChatStreamV1 {
                    id: self.id.clone(),
                    history: std::mem::take(&mut self.history),
                    answer: std::mem::take(&mut self.answer),
                };
                let response = format.response();
                let line = json!({"event_type": "stream-end", "is_finished": true, "finish_reason": response.finish_reason, "response": response});
                json_line(out, &line);
            }
        }
    }

    fn end(&mut self, _: &mut Vec<u8>) {}
}
