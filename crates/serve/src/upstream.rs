//! Another engine underneath: a server that speaks the OpenAI API, whose models are served here under the same APIs,
//! keys and limits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::RETRY_AFTER;
use serde_json::{Map, Value, json};
use strata_generate::ToolCall;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::ask::{
    Ask, AskUsage, AskedTool, Asker, Choice, End, EndReason, Format, Piece, Prompt, Text, TextPiece,
    TokenPiece,
};
use crate::error::ApiError;
use crate::turn::{Turn, for_openai};

/// How long the list of models is believed.
const LIST_LIFETIME: Duration = Duration::from_secs(10);

/// A server that speaks the OpenAI API.
pub struct Upstream {
    client: reqwest::Client,
    /// Up to and with `/v1`.
    url: String,
    key: Option<String>,
    models: Mutex<Option<List>>,
    /// Held while the list is asked for: once for all who want it.
    listing: tokio::sync::Mutex<()>,
}

/// What is known of the server's models.
#[derive(Clone)]
struct List {
    asked: Instant,
    names: Arc<Vec<String>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        formatter.debug_struct("Upstream").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Upstream {
    /// The server at `url`, which ends with `/v1` or gets it; `key` is sent as a bearer token.
    ///
    /// # Errors
    /// The URL is none, as text.
    pub fn new(url: &str, key: Option<String>) -> Result<Upstream, String> {
        let url = url.trim_end_matches('/');
        let url = if url.ends_with("/v1") { url.to_string() } else { format!("{url}/v1") };
        let parsed = reqwest::Url::parse(&url).map_err(|error| format!("{url}: {error}"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(format!("{url}: expected a URL that begins with http:// or https://"));
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Upstream { client, url, key, models: Mutex::default(), listing: tokio::sync::Mutex::default() })
    }

    /// Names of its models: those known last, while it is asked again where that is a while ago. Only whoever asks first waits for it.
    pub async fn models(self: &Arc<Self>) -> Arc<Vec<String>> {
        match self.known() {
            Some(list) if list.asked.elapsed() < LIST_LIFETIME => list.names,
            Some(list) => {
                let upstream = self.clone();
                tokio::spawn(async move { upstream.list().await });
                list.names
            }
            None => self.list().await.names,
        }
    }

    /// Whether it has a model of that name, asked again where that is not known.
    pub async fn has(&self, name: &str) -> bool {
        self.knows(name) || self.list().await.names.iter().any(|known| known == name)
    }

    /// Whether it had a model of that name when it was asked last.
    pub fn knows(&self, name: &str) -> bool {
        self.known().is_some_and(|list| list.names.iter().any(|known| known == name))
    }

    /// The list, asked for unless it just was.
    async fn list(&self) -> List {
        let _guard = self.listing.lock().await;
        if let Some(list) = self.known()
            && list.asked.elapsed() < LIST_LIFETIME
        {
            return list;
        }
        let names = match self.fetch_models().await {
            Ok(names) => Arc::new(names),
            Err(problem) => {
                tracing::warn!(problem, "the upstream server does not list its models");
                self.known().map(|list| list.names).unwrap_or_default()
            }
        };
        let list = List { asked: Instant::now(), names };
        *self.models.lock().unwrap_or_else(PoisonError::into_inner) = Some(list.clone());
        list
    }

    fn known(&self) -> Option<List> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn fetch_models(&self) -> Result<Vec<String>, String> {
        let request = self.authorised(self.client.get(format!("{}/models", self.url)));
        let response = request.timeout(Duration::from_secs(10)).send().await.map_err(without_url)?;
        let status = response.status();
        if !status.is_success() {
            return Err(format!("it answers {status}"));
        }
        let list: Value = response.json().await.map_err(without_url)?;
        let data = list["data"].as_array().ok_or("it answers without a list of models")?;
        Ok(data.iter().filter_map(|model| model["id"].as_str()).map(str::to_string).collect())
    }

    fn authorised(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Asks its model `name`.
    ///
    /// # Errors
    /// The server refuses the request or does not answer.
    pub async fn ask(
        &self,
        name: &str,
        ask: Ask,
        asker: Asker,
    ) -> Result<UnboundedReceiver<(usize, Piece)>, ApiError> {
        if let Some(field) = ask.prompt_log_probabilities {
            let problem = "log-probabilities of a prompt are not had from the server behind this model";
            return Err(ApiError::field(field, problem));
        }
        let chat = matches!(ask.prompt, Prompt::Chat { .. });
        let path = if chat { "chat/completions" } else { "completions" };
        let request =
            self.authorised(self.client.post(format!("{}/{path}", self.url)).json(&body(name, &ask)));
        let patience = asker.deadline.saturating_duration_since(Instant::now());
        let response = request.timeout(patience).send().await.map_err(|error| {
            let problem = without_url(error);
            tracing::warn!(model = name, problem, "the upstream server does not answer");
            ApiError::unavailable(format!("the server behind model '{name}' does not answer: {problem}"))
        })?;
        let status = response.status();
        if !status.is_success() {
            let wait =
                response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let text = response.text().await.unwrap_or_default();
            let problem: Value = serde_json::from_str(&text).unwrap_or_default();
            let message = problem["error"]["message"].as_str().or(problem["message"].as_str());
            let told = message.unwrap_or("its server refuses the request");
            let (param, code) = (problem["error"]["param"].as_str(), problem["error"]["code"].as_str());
            let field = param.unwrap_or(ask.fields.prompt);
            // Servers of this kind begin with the field, as the error made of it does.
            let told = told.strip_prefix(field).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(told);
            let message = format!("model '{name}': {told}");
            return Err(match status.as_u16() {
                429 if code == Some("queue_full") => ApiError::busy(message, wait.unwrap_or(1)),
                429 => ApiError::limited(message, wait.unwrap_or(1)),
                400 if code == Some("context_length_exceeded") => ApiError::context(field, message),
                400 | 404 | 422 => ApiError::field(field, message),
                // That the server behind does not take this one's key is no fault of the client, and what it says of the key not its business.
                _ => {
                    tracing::error!(model = name, %status, problem = told, "the upstream server refuses");
                    ApiError::unavailable(format!(
                        "the server behind model '{name}' refuses; the log of this one says why"
                    ))
                }
            });
        }
        let (pieces, receiver) = unbounded_channel();
        tokio::spawn(relay(response, chat, ask.prompt.count() * ask.count, pieces));
        Ok(receiver)
    }
}

fn without_url(error: reqwest::Error) -> String {
    error.without_url().to_string()
}

/// The request as the OpenAI API wants it.
fn body(name: &str, ask: &Ask) -> Value {
    let (sampling, fallback) = (&ask.sampling, &ask.fallback);
    let mut body = Map::new();
    body.insert("model".into(), json!(name));
    body.insert("stream".into(), json!(true));
    body.insert("stream_options".into(), json!({"include_usage": true}));
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(key.into(), value);
        }
    };
    match &ask.prompt {
        Prompt::Chat { messages, documents } => {
            set("messages", Some(json!(with_documents(messages, documents))));
            set("logprobs", ask.log_probabilities.map(|_| json!(true)));
            set("top_logprobs", ask.log_probabilities.filter(|n| *n > 0).map(|n| json!(n)));
        }
        Prompt::Texts(texts) => {
            let texts: Vec<Value> = texts
                .iter()
                .map(|text| match text {
                    Text::Plain(text) => json!(text),
                    Text::Tokens(ids) => json!(ids),
                })
                .collect();
            set("prompt", Some(json!(texts)));
            set("logprobs", ask.log_probabilities.map(|n| json!(n)));
        }
    }
    set("n", (ask.count > 1).then(|| json!(ask.count)));
    set("max_tokens", ask.max_tokens.map(|n| json!(n)));
    set("temperature", sampling.temperature.or(fallback.temperature).map(|value| json!(value)));
    set("top_p", sampling.top_p.or(fallback.top_p).map(|value| json!(value)));
    // Not of the OpenAI API, but vLLM, llama.cpp and mistral.rs know it.
    set("top_k", sampling.top_k.filter(|k| *k > 0).map(|value| json!(value)));
    // Negative ones come as what they are in two's complement.
    set("seed", sampling.seed.map(|value| json!(value as i64)));
    set("frequency_penalty", (sampling.frequency_penalty != 0.0).then(|| json!(sampling.frequency_penalty)));
    set("presence_penalty", (sampling.presence_penalty != 0.0).then(|| json!(sampling.presence_penalty)));
    set("stop", (!ask.stop.is_empty()).then(|| json!(ask.stop)));
    let bias: Map<String, Value> =
        ask.bias.iter().map(|(token, bias)| (token.to_string(), json!(bias))).collect();
    set("logit_bias", (!bias.is_empty()).then(|| Value::Object(bias)));
    set(
        "response_format",
        match &ask.format {
            Format::Text => None,
            Format::JsonObject => Some(json!({"type": "json_object"})),
            Format::JsonSchema(schema) => {
                let schema = json!({"name": "answer", "schema": schema, "strict": true});
                Some(json!({"type": "json_schema", "json_schema": schema}))
            }
        },
    );
    if !ask.tools.is_empty() {
        set("tools", Some(ask.tools.iter().map(AskedTool::for_openai).collect()));
        set(
            "tool_choice",
            Some(match &ask.tool_choice {
                Choice::Auto => json!("auto"),
                Choice::None => json!("none"),
                Choice::Required => json!("required"),
                Choice::Named(name) => json!({"type": "function", "function": {"name": name}}),
            }),
        );
    }
    Value::Object(body)
}

fn with_documents(turns: &[Turn], documents: &[Value]) -> Vec<Value> {
    let mut messages = for_openai(turns);
    if !documents.is_empty() {
        let text = documents.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        messages.insert(0, json!({"role": "system", "content": format!("Documents:\n{text}")}));
    }
    messages
}

/// What is known of one answer so far.
#[derive(Default)]
struct Progress {
    /// Names and arguments of tool calls, by their number.
    calls: BTreeMap<u64, (String, String)>,
    reason: Option<EndReason>,
    /// Parts of text that came.
    parts: usize,
}

/// Turns the server's events into parts of answers until it ends, or until nobody wants them any more.
async fn relay(
    response: reqwest::Response,
    chat: bool,
    count: usize,
    pieces: UnboundedSender<(usize, Piece)>,
) {
    let mut answers: BTreeMap<usize, Progress> =
        (0..count).map(|index| (index, Progress::default())).collect();
    let mut usage: Option<AskUsage> = None;
    let (mut failure, mut late) = (None, false);
    let mut stream = response.bytes_stream();
    let mut pending: Vec<u8> = Vec::new();
    'reading: loop {
        let bytes = tokio::select! {
            next = stream.next() => match next {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => {
                    late = error.is_timeout();
                    failure = Some(without_url(error));
                    break;
                }
                None => break,
            },
            // Dropping the connection tells the server to stop.
            () = pieces.closed() => return,
        };
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let Some(data) = line.strip_prefix(b"data:") else { continue };
            if data.trim_ascii() == b"[DONE]" {
                break 'reading;
            }
            let Ok(event) = serde_json::from_slice::<Value>(data) else { continue };
            if let Some(problem) = event["error"]["message"].as_str() {
                failure = Some(problem.to_string());
                break 'reading;
            }
            if let Some(told) = event["usage"].as_object() {
                let number = |key: &str| told.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
                let cached = event["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
                usage = Some(AskUsage {
                    prompt: number("prompt_tokens"),
                    cached: cached as usize,
                    completion: number("completion_tokens"),
                });
            }
            for choice in event["choices"].as_array().into_iter().flatten() {
                let index = choice["index"].as_u64().unwrap_or(0) as usize;
                // What was not asked for is left out.
                let Some(progress) = answers.get_mut(&index) else { continue };
                for piece in parts(choice, chat, progress) {
                    progress.parts += 1;
                    if pieces.send((index, piece)).is_err() {
                        return;
                    }
                }
            }
        }
    }
    for (index, progress) in answers {
        let called = !progress.calls.is_empty();
        if called {
            let calls = progress.calls.into_values().map(tool_call).collect();
            let _ = pieces.send((index, Piece::ToolCalls(calls)));
        }
        let reason = match (&failure, progress.reason) {
            (Some(_), reason) if late => reason.unwrap_or(EndReason::Timeout),
            (Some(problem), _) => EndReason::Failed(problem.clone()),
            // Some servers end a call as they end a text.
            (None, Some(EndReason::Stop)) if called => EndReason::ToolCalls,
            (None, Some(reason)) => reason,
            (None, None) => EndReason::Failed("the server behind the model ended early".into()),
        };
        // The server tells the tokens of all answers together.
        let usage = match usage {
            Some(usage) if index == 0 => usage,
            Some(_) => AskUsage::default(),
            // It could not tell any more, and they are about as many.
            None => AskUsage { completion: progress.parts.max(usize::from(called)), ..AskUsage::default() },
        };
        let _ = pieces.send((index, Piece::End(End { reason, usage })));
    }
}

/// The parts of an answer that one event brings.
fn parts(choice: &Value, chat: bool, progress: &mut Progress) -> Vec<Piece> {
    for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
        let (name, arguments) = progress.calls.entry(call["index"].as_u64().unwrap_or(0)).or_default();
        *name += call["function"]["name"].as_str().unwrap_or("");
        *arguments += call["function"]["arguments"].as_str().unwrap_or("");
    }
    match choice["finish_reason"].as_str() {
        Some("length") => progress.reason = Some(EndReason::Length),
        Some("tool_calls") => progress.reason = Some(EndReason::ToolCalls),
        // Which stop string it was is told by some servers only.
        Some(_) => {
            progress.reason = Some(match choice["stop_reason"].as_str() {
                Some(stop) => EndReason::StopString(stop.to_string()),
                None => EndReason::Stop,
            });
        }
        None => {}
    }
    let text = if chat { &choice["delta"]["content"] } else { &choice["text"] };
    let text = text.as_str().unwrap_or("");
    let tokens: Vec<TokenPiece> = if chat {
        choice["logprobs"]["content"].as_array().into_iter().flatten().map(token_piece).collect()
    } else {
        completion_tokens(&choice["logprobs"])
    };
    if text.is_empty() && tokens.is_empty() {
        return Vec::new();
    }
    let mut pieces: Vec<Piece> = tokens
        .into_iter()
        .map(|token| Piece::Text(TextPiece { text: String::new(), token: Some(token) }))
        .collect();
    match pieces.first_mut() {
        Some(Piece::Text(first)) => first.text = text.to_string(),
        _ => pieces.push(Piece::Text(TextPiece { text: text.to_string(), token: None })),
    }
    pieces
}

fn tool_call((name, arguments_text): (String, String)) -> ToolCall {
    let arguments = serde_json::from_str(&arguments_text).unwrap_or_else(|_| json!({}));
    ToolCall { name, arguments, arguments_text }
}

fn token_piece(told: &Value) -> TokenPiece {
    let bytes = |token: &Value| match token["bytes"].as_array() {
        Some(bytes) => bytes.iter().filter_map(|byte| byte.as_u64().map(|byte| byte as u8)).collect(),
        None => token["token"].as_str().unwrap_or("").as_bytes().to_vec(),
    };
    let likelihood = |token: &Value| token["logprob"].as_f64().unwrap_or(f64::NEG_INFINITY) as f32;
    let alternatives = told["top_logprobs"].as_array().into_iter().flatten();
    TokenPiece {
        id: 0,
        bytes: bytes(told),
        log_probability: likelihood(told),
        alternatives: alternatives.map(|token| (bytes(token), likelihood(token))).collect(),
    }
}

/// Tokens as the older completions API tells them: parallel lists.
fn completion_tokens(told: &Value) -> Vec<TokenPiece> {
    let (Some(tokens), Some(values)) = (told["tokens"].as_array(), told["token_logprobs"].as_array()) else {
        return Vec::new();
    };
    tokens
        .iter()
        .zip(values)
        .enumerate()
        .map(|(at, (token, value))| TokenPiece {
            id: 0,
            bytes: token.as_str().unwrap_or("").as_bytes().to_vec(),
            log_probability: value.as_f64().unwrap_or(f64::NEG_INFINITY) as f32,
            alternatives: told["top_logprobs"][at]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(token, value)| (token.as_bytes().to_vec(), value.as_f64().unwrap_or(0.0) as f32))
                .collect(),
        })
        .collect()
}
