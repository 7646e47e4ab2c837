//! One form for what every API asks of a model, and one for what comes back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strata_generate::{Shape, Tool, ToolCall, ToolChoice};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::error::ApiError;
use crate::local::LocalAnswers;
use crate::turn::Turn;
use crate::unfinished::Unfinished;

/// What a model is asked to write.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What it continues or answers.
    pub prompt: Prompt,
    /// How many continuations of each prompt.
    pub count: usize,
    /// Most tokens of each; without, as many as the context has room for.
    pub max_tokens: Option<usize>,
    /// Sampling; what is absent is as the model's folder says.
    pub sampling: AskedSampling,
    /// Where that says nothing either: what the API promises.
    pub fallback: AskedSampling,
    /// Text that ends an answer.
    pub stop: Vec<String>,
    /// What the answer must look like.
    pub format: Format,
    /// Functions that the model may ask to be called.
    pub tools: Vec<AskedTool>,
    /// Whether it may, must, or must not.
    pub tool_choice: Choice,
    /// Log-probabilities, with those of so many likeliest tokens.
    pub log_probabilities: Option<usize>,
    /// Those of the prompt's tokens too, where there is the field that asks for them.
    pub prompt_log_probabilities: Option<&'static str>,
    /// Added to logits.
    pub bias: Vec<(u32, f32)>,
    /// What happens to a prompt that is too long.
    pub truncate: Truncate,
    /// Names of the request's fields, for errors.
    pub fields: Fields,
}

/// What happens to a prompt that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncate {
    /// It is an error.
    No,
    /// The oldest turns are left out, but for instructions and the last one.
    Turns,
    /// Its beginning is left out.
    Start,
    /// Its end is left out.
    End,
}

/// What an API calls its fields.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    /// The prompt.
    pub prompt: &'static str,
    /// The most tokens.
    pub max_tokens: &'static str,
    /// The format or schema.
    pub format: &'static str,
}

/// Bytes of a prompt that are encoded in a fraction of a millisecond.
pub const LIGHT_BYTES: usize = 1024;

/// What to continue.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// A conversation to answer, with documents to rely on.
    Chat {
        /// The turns.
        messages: Vec<Turn>,
        /// Documents as JSON objects.
        documents: Vec<Value>,
    },
    /// Texts to continue.
    Texts(Vec<Text>),
}

impl Prompt {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Prompt::Chat { .. } => 1,
            Prompt::Texts(texts) => texts.len(),
        }
    }
}

/// A text to continue.
#[derive(Debug, Clone)]
pub enum Text {
    /// Characters.
    Plain(String),
    /// Tokens of the model.
    Tokens(Vec<u32>),
}

/// Sampling as asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskedSampling {
    /// See [`strata_generate::Sampling`].
    pub temperature: Option<f32>,
    /// Likewise.
    pub top_k: Option<usize>,
    /// Likewise.
    pub top_p: Option<f32>,
    /// Without one, choices differ from request to request.
    pub seed: Option<u64>,
    /// Likewise.
    pub frequency_penalty: f32,
    /// Likewise.
    pub presence_penalty: f32,
}

/// A function that the model may ask to be called.
#[derive(Debug, Clone)]
pub struct AskedTool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

impl AskedTool {
    /// As the OpenAI API, and chat templates, describe it.
    pub fn for_openai(&self) -> Value {
        let AskedTool { name, description, parameters } = self;
        json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}})
    }
}

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// Anything.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema(Value),
}

/// Whether tools are called.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// As the model likes.
    Auto,
    /// Never.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

impl Ask {
    /// A chat with the API's defaults.
    pub fn chat(messages: Vec<Turn>, fields: Fields) -> Ask {
        Ask::new(Prompt::Chat { messages, documents: Vec::new() }, fields)
    }

    /// Any prompt with the API's defaults.
    pub fn new(prompt: Prompt, fields: Fields) -> Ask {
        Ask {
            prompt,
            count: 1,
            max_tokens: None,
            sampling: AskedSampling::default(),
            fallback: AskedSampling::default(),
            stop: Vec::new(),
            format: Format::Text,
            tools: Vec::new(),
            tool_choice: Choice::Auto,
            log_probabilities: None,
            prompt_log_probabilities: None,
            bias: Vec::new(),
            truncate: Truncate::No,
            fields,
        }
    }

    /// Whether the answer may call tools.
    pub fn calls_tools(&self) -> bool {
        !self.tools.is_empty() && self.tool_choice != Choice::None
    }

    /// Whether it takes no time worth mentioning to encode the prompt: short texts, and no grammar to compile.
    pub fn is_light(&self) -> bool {
        let bytes = match &self.prompt {
            Prompt::Chat { documents, .. } if !documents.is_empty() => return false,
            Prompt::Chat { messages, .. } => messages.iter().map(Turn::bytes).sum(),
            Prompt::Texts(texts) => texts
                .iter()
                .map(|text| match text {
                    Text::Plain(text) => text.len(),
                    Text::Tokens(tokens) => tokens.len(),
                })
                .sum::<usize>(),
        };
        bytes <= LIGHT_BYTES && self.format == Format::Text && !self.calls_tools()
    }

    /// The grammar of the answer, if it must have one.
    pub fn shape(&self) -> Option<Shape> {
        if self.calls_tools() {
            let choice = match &self.tool_choice {
                Choice::Required => ToolChoice::Required,
                Choice::Named(name) => ToolChoice::Named(name.clone()),
                Choice::Auto | Choice::None => ToolChoice::Auto,
            };
            let tool =
                |tool: &AskedTool| Tool { name: tool.name.clone(), parameters: tool.parameters.clone() };
            return Some(Shape::ToolCalls { tools: self.tools.iter().map(tool).collect(), choice });
        }
        match &self.format {
            Format::Text => None,
            Format::JsonObject => Some(Shape::JsonObject),
            Format::JsonSchema(schema) => Some(Shape::JsonSchema(schema.clone())),
        }
    }
}

/// A number of a request, where there is one, within what its API promises.
///
/// # Errors
/// It is not.
pub fn in_range(name: &str, value: Option<f32>, least: f32, most: f32) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(ApiError::field(name, format!("expected {least} to {most}, found {value}")))
        }
        value => Ok(value),
    }
}

/// Bytes of a text that ends an answer: each of many answers holds its own.
const STOP_BYTES: usize = 1000;

/// Checks texts that end an answer.
///
/// # Errors
/// One of them is too long.
pub fn check_stops(stops: &[String], field: &str) -> Result<(), ApiError> {
    match stops.iter().position(|stop| stop.len() > STOP_BYTES) {
        None => Ok(()),
        Some(at) => {
            let problem = format!("expected at most {STOP_BYTES} bytes, found {}", stops[at].len());
            Err(ApiError::field(format!("{field}[{at}]"), problem))
        }
    }
}

/// A log-probability as JSON has it, which knows no infinity: OpenAI's API writes -9999 for what cannot come.
pub fn finite(value: f32) -> f32 {
    value.max(-9999.0)
}

/// Who asks, and until when it waits.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// A number of the client's own.
    pub client: u64,
    /// When the answer must be there.
    pub deadline: Instant,
}

impl Asker {
    /// A client that waits so long.
    pub fn new(client: u64, patience: Duration) -> Asker {
        Asker { client, deadline: Instant::now() + patience }
    }
}

/// A part of an answer.
#[derive(Debug, Clone)]
pub enum Piece {
    /// What was read, before anything is written, where log-probabilities of it were asked for.
    Read(ReadPrompt),
    /// More text.
    Text(TextPiece),
    /// Calls of tools, all of them.
    ToolCalls(Vec<ToolCall>),
    /// Its end.
    End(End),
}

impl Piece {
    /// Whether it is of what was written.
    pub fn is_written(&self) -> bool {
        matches!(self, Piece::Text(_) | Piece::ToolCalls(_))
    }
}

/// The tokens of a prompt.
#[derive(Debug, Clone, Default)]
pub struct ReadPrompt {
    /// Bytes of the first, of which nothing is known where nothing stands before it.
    pub first: Option<Vec<u8>>,
    /// The others.
    pub rest: Vec<TokenPiece>,
}

impl ReadPrompt {
    /// Its text.
    pub fn text(&self) -> String {
        let bytes = self.first.iter().chain(self.rest.iter().map(|token| &token.bytes));
        String::from_utf8_lossy(&bytes.flatten().copied().collect::<Vec<u8>>()).into_owned()
    }
}

/// Text of an answer.
#[derive(Debug, Clone, Default)]
pub struct TextPiece {
    /// Characters; empty while it is not certain which ones they are.
    pub text: String,
    /// The token behind it, where log-probabilities were asked for.
    pub token: Option<TokenPiece>,
}

/// A token with its log-probabilities.
#[derive(Debug, Clone)]
pub struct TokenPiece {
    /// Its number; 0 where another engine did not say.
    pub id: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub log_probability: f32,
    /// The likeliest tokens in its place.
    pub alternatives: Vec<(Vec<u8>, f32)>,
}

/// The end of an answer.
#[derive(Debug, Clone)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// What it took.
    pub usage: AskUsage,
}

impl End {
    /// Whether time was over before anything was written.
    pub fn is_nothing_in_time(&self) -> bool {
        self.reason == EndReason::Timeout && self.usage.completion == 0
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// The model ended it.
    Stop,
    /// This stop string came.
    StopString(String),
    /// Most tokens reached.
    Length,
    /// Tools are to be called.
    ToolCalls,
    /// Time was over.
    Timeout,
    /// The engine failed.
    Failed(String),
}

/// Tokens of one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AskUsage {
    /// Of the prompt.
    pub prompt: usize,
    /// Of those, not computed again.
    pub cached: usize,
    /// Written.
    pub completion: usize,
}

impl std::ops::AddAssign for AskUsage {
    fn add_assign(&mut self, other: AskUsage) {
        self.prompt += other.prompt;
        self.cached += other.cached;
        self.completion += other.completion;
    }
}

/// The answers of one request as they come. Dropping it cancels them.
#[derive(Debug)]
pub enum Answers {
    /// From an engine of this process.
    Local(LocalAnswers),
    /// From another server, with what is known of the tokens.
    Upstream(UnboundedReceiver<(usize, Piece)>, Unfinished),
}

/// Parts of answers that are taken at once: a slow reader gets several tokens in one write.
const AT_ONCE: usize = 64;

impl Answers {
    /// Messages that were left out for want of room.
    pub fn omitted(&self) -> usize {
        match self {
            Answers::Local(answers) => answers.omitted(),
            Answers::Upstream(..) => 0,
        }
    }

    /// Whether so many are being answered that each had better be sent several tokens at a time.
    pub fn is_crowded(&self) -> bool {
        match self {
            Answers::Local(answers) => answers.is_crowded(),
            Answers::Upstream(..) => false,
        }
    }

    /// Waits until one of the answers has ended; of another server's, which are never crowded, for ever.
    pub async fn an_end(&self) {
        match self {
            Answers::Local(answers) => answers.an_end().await,
            Answers::Upstream(..) => std::future::pending().await,
        }
    }

    /// What those that have not ended took so far.
    pub fn unfinished(&self) -> AskUsage {
        match self {
            Answers::Local(answers) => answers.unfinished(),
            Answers::Upstream(_, unfinished) => unfinished.usage(),
        }
    }

    /// The next parts, each with the index of its answer; none when all answers have ended.
    pub async fn next(&mut self) -> Vec<(usize, Piece)> {
        match self {
            Answers::Local(answers) => answers.next(AT_ONCE).await,
            Answers::Upstream(receiver, unfinished) => {
                let mut pieces = Vec::new();
                receiver.recv_many(&mut pieces, AT_ONCE).await;
                for (index, piece) in &pieces {
                    match piece {
                        Piece::End(_) => drop(unfinished.end(*index)),
                        Piece::Text(_) | Piece::ToolCalls(_) => unfinished.token(*index),
                        Piece::Read(_) => {}
                    }
                }
                pieces
            }
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// Its text.
    pub text: String,
    /// What was read, where log-probabilities of it were asked for.
    pub read: Option<ReadPrompt>,
    /// Its tokens, where log-probabilities were asked for.
    pub tokens: Vec<TokenPiece>,
    /// Its tool calls.
    pub tool_calls: Vec<ToolCall>,
    /// How it ended; always there once [`Session::whole`](crate::session::Session::whole) returns.
    pub end: Option<End>,
}

impl Whole {
    /// Why it ended.
    pub fn reason(&self) -> EndReason {
        self.end.as_ref().map_or(EndReason::Stop, |end| end.reason.clone())
    }

    /// What it took.
    pub fn usage(&self) -> AskUsage {
        self.end.as_ref().map_or(AskUsage::default(), |end| end.usage)
    }
}

/// What all answers took; the prompt of several continuations counts once.
pub fn total_usage(answers: &[Whole], count: usize) -> AskUsage {
    let mut total = AskUsage::default();
    for (index, answer) in answers.iter().enumerate() {
        let usage = answer.usage();
        total.completion += usage.completion;
        if index.is_multiple_of(count.max(1)) {
            total.prompt += usage.prompt;
            total.cached += usage.cached;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use strata_data::Role;

    const FIELDS: Fields = Fields { prompt: "prompt", max_tokens: "max_tokens", format: "format" };

    fn chat(text: &str) -> Ask {
        let messages = vec![Turn::new(Role::User, text)];
        Ask::new(Prompt::Chat { messages, documents: Vec::new() }, FIELDS)
    }

    #[test]
    fn only_a_short_prompt_without_grammar_or_documents_is_light() {
        assert!(chat("What is the opposite of hot?").is_light());
        assert!(!chat(&"hot ".repeat(LIGHT_BYTES / 4)).is_light());

        let plain = |text: &str| Ask::new(Prompt::Texts(vec![Text::Plain(text.into())]), FIELDS);
        assert!(plain("Once").is_light());
        assert!(!plain(&"o".repeat(LIGHT_BYTES + 1)).is_light());

        let messages = vec![Turn::new(Role::User, "Who?")];
        let documents = vec![json!({"text": "Ada"})];
        assert!(!Ask::new(Prompt::Chat { messages, documents }, FIELDS).is_light());

        let mut shaped = chat("Who?");
        shaped.format = Format::JsonObject;
        assert!(!shaped.is_light());

        let mut calling = chat("Who?");
        let (name, description) = ("find".into(), String::new());
        calling.tools = vec![AskedTool { name, description, parameters: json!({}) }];
        assert!(!calling.is_light());
        calling.tool_choice = Choice::None;
        assert!(calling.is_light());
    }
}
