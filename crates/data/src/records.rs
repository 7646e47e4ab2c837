//! Pairs, dialogues and tasks: JSON Lines, one record a line.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::DataError;
use crate::files::{self, FileDigest, Lines, Listing};
use crate::message::{Example, Message, Origin, Role};

/// One curated prompt and response.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Standing instructions, if any.
    pub system: Option<String>,
    /// What is asked.
    pub prompt: String,
    /// What is to be answered.
    pub response: String,
    /// Where the pair was taken from, if said.
    pub source: Option<String>,
    /// Factor on its loss, at least 0.
    pub weight: f32,
    /// File and line.
    pub origin: Origin,
}

/// One dialogue of several turns.
#[derive(Debug, Clone, PartialEq)]
pub struct Dialogue {
    /// At least one of them is the assistant's.
    pub messages: Vec<Message>,
    /// Where the dialogue was taken from, if said.
    pub source: Option<String>,
    /// Factor on its loss, at least 0.
    pub weight: f32,
    /// File and line.
    pub origin: Origin,
}

/// One question with the answer that counts as right.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What is asked; the last message is not the assistant's.
    pub messages: Vec<Message>,
    /// The right answer.
    pub answer: String,
    /// The kind of task, for accuracy per family.
    pub family: Option<String>,
    /// File and line.
    pub origin: Origin,
}

impl From<Pair> for Example {
    fn from(pair: Pair) -> Example {
        let system = pair.system.map(|content| Message::new(Role::System, content));
        let turns = [Message::new(Role::User, pair.prompt), Message::new(Role::Assistant, pair.response)];
        Example {
            messages: system.into_iter().chain(turns).collect(),
            weight: pair.weight,
            origin: pair.origin,
        }
    }
}

impl From<Dialogue> for Example {
    fn from(dialogue: Dialogue) -> Example {
        Example { messages: dialogue.messages, weight: dialogue.weight, origin: dialogue.origin }
    }
}

/// A kind of line that can be read.
pub trait Record: Sized {
    /// What a collection of them is called in messages.
    const WHAT: &'static str;

    /// Checks one line.
    ///
    /// # Errors
    /// [`DataError::Record`] with file, line, field and cure.
    fn from_line(line: &str, origin: Origin) -> Result<Self, DataError>;
}

/// Streams the pairs in `paths`: `.jsonl` files (also `.zst`, `.gz`) or folders of them.
///
/// # Errors
/// Paths that do not exist or hold no such file; each item may be an error with file, line and field,
/// and the stream ends after the first.
pub fn pairs(paths: &[PathBuf]) -> Result<Records<Pair>, DataError> {
    Records::open(paths)
}

/// Streams the dialogues in `paths`; see [`pairs`].
///
/// # Errors
/// As [`pairs`].
pub fn dialogues(paths: &[PathBuf]) -> Result<Records<Dialogue>, DataError> {
    Records::open(paths)
}

/// Streams the tasks in `paths`; see [`pairs`].
///
/// # Errors
/// As [`pairs`].
pub fn tasks(paths: &[PathBuf]) -> Result<Records<Task>, DataError> {
    Records::open(paths)
}

/// The records of some files, in order.
pub struct Records<T> {
    listing: Listing,
    next_file: usize,
    current: Option<(Lines, Arc<Path>)>,
    yielded: u64,
    finished: bool,
    kind: std::marker::PhantomData<fn() -> T>,
}

impl<T: Record> Records<T> {
    fn open(paths: &[PathBuf]) -> Result<Self, DataError> {
        Ok(Records {
            listing: files::list_files(paths, &["jsonl"], T::WHAT)?,
            next_file: 0,
            current: None,
            yielded: 0,
            finished: false,
            kind: std::marker::PhantomData,
        })
    }

    /// The files, in reading order.
    pub fn files(&self) -> &[PathBuf] {
        &self.listing.files
    }

    /// How many files in the given folders have another ending and are not read.
    pub fn ignored_files(&self) -> u64 {
        self.listing.ignored
    }

    /// Hashes all files, for the lineage of a model.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file cannot be read.
    pub fn digests(&self) -> Result<Vec<FileDigest>, DataError> {
        files::digests(self.files().iter().map(PathBuf::as_path))
    }

    fn advance(&mut self) -> Result<Option<T>, DataError> {
        loop {
            let Some((lines, path)) = &mut self.current else {
                let Some(path) = self.listing.files.get(self.next_file) else {
                    if self.yielded == 0 {
                        return Err(DataError::Empty {
                            what: T::WHAT,
                            paths: self.listing.given.clone(),
                            files: self.listing.files.len(),
                        });
                    }
                    return Ok(None);
                };
                self.next_file += 1;
                self.current = Some((Lines::open(path)?, Arc::from(path.as_path())));
                continue;
            };
            let line_number = lines.line() + 1;
            match lines.next_line()? {
                None => self.current = None,
                Some(line) if line.trim().is_empty() => {}
                Some(line) => {
                    self.yielded += 1;
                    return T::from_line(line, Origin { path: path.clone(), line: line_number }).map(Some);
                }
            }
        }
    }
}

impl<T: Record> Iterator for Records<T> {
    type Item = Result<T, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.advance().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Record for Pair {
    const WHAT: &'static str = "pairs";

    fn from_line(line: &str, origin: Origin) -> Result<Pair, DataError> {
        let object = json_object(line, &origin)?;
        Ok(Pair {
            system: optional_text(&object, "system", &origin)?,
            prompt: filled_text(&object, "prompt", &origin)?,
            response: filled_text(&object, "response", &origin)?,
            source: optional_text(&object, "source", &origin)?,
            weight: weight(&object, &origin)?,
            origin,
        })
    }
}

impl Record for Dialogue {
    const WHAT: &'static str = "dialogues";

    fn from_line(line: &str, origin: Origin) -> Result<Dialogue, DataError> {
        let object = json_object(line, &origin)?;
        let messages = messages(&object, &origin)?;
        if !messages.iter().any(|message| message.role == Role::Assistant) {
            return Err(bad(
                &origin,
                "messages",
                "no message has the role \"assistant\"".into(),
                "add the answer that is to be learned",
            ));
        }
        Ok(Dialogue {
            messages,
            source: optional_text(&object, "source", &origin)?,
            weight: weight(&object, &origin)?,
            origin,
        })
    }
}

impl Record for Task {
    const WHAT: &'static str = "tasks";

    fn from_line(line: &str, origin: Origin) -> Result<Task, DataError> {
        let object = json_object(line, &origin)?;
        let messages = match (object.contains_key("prompt"), object.contains_key("messages")) {
            (true, true) => {
                return Err(bad(
                    &origin,
                    "messages",
                    "the line has both \"prompt\" and \"messages\"".into(),
                    "keep one of them",
                ));
            }
            (_, false) => vec![Message::new(Role::User, filled_text(&object, "prompt", &origin)?)],
            (false, true) => messages(&object, &origin)?,
        };
        if messages.last().is_some_and(|message| message.role == Role::Assistant) {
            return Err(bad(
                &origin,
                "messages",
                "the last message is the assistant's, expected a question".into(),
                "move its content to \"answer\"",
            ));
        }
        if !object.contains_key("answer") && object.contains_key("response") {
            let problem = "is missing (there is a \"response\")".to_string();
            return Err(bad(&origin, "answer", problem, "rename \"response\" to \"answer\""));
        }
        Ok(Task {
            messages,
            answer: filled_text(&object, "answer", &origin)?,
            family: optional_text(&object, "family", &origin)?,
            origin,
        })
    }
}

fn bad(origin: &Origin, field: &str, problem: String, cure: &str) -> DataError {
    DataError::Record {
        origin: origin.clone(),
        field: format!("field \"{field}\""),
        problem,
        cure: cure.into(),
    }
}

fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Parses a line that must be one JSON object.
pub(crate) fn json_object(line: &str, origin: &Origin) -> Result<Map<String, Value>, DataError> {
    let problem = match serde_json::from_str::<Value>(line.trim_end()) {
        Ok(Value::Object(object)) => return Ok(object),
        Ok(other) => format!("is {}, expected a JSON object", kind_name(&other)),
        Err(error) => {
            // The parser counts lines of its own input, which is one line of the file.
            let text = error.to_string();
            let cause = text.split(" at line ").next().unwrap_or_default().to_string();
            format!("is not JSON at column {}: {cause}", error.column())
        }
    };
    let cure =
        "write one JSON object a line, such as {\"text\": \"…\"} or {\"prompt\": \"…\", \"response\": \"…\"}";
    Err(DataError::Record { origin: origin.clone(), field: "line".into(), problem, cure: cure.into() })
}

/// A string field that must be there and may be empty.
pub(crate) fn text_field(
    object: &Map<String, Value>,
    field: &str,
    origin: &Origin,
) -> Result<String, DataError> {
    match object.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(bad(
            origin,
            field,
            format!("is {}, expected a string", kind_name(other)),
            "put the text in quotes",
        )),
        None => Err(missing(object, field, origin)),
    }
}

fn missing(object: &Map<String, Value>, field: &str, origin: &Origin) -> DataError {
    let names: Vec<&str> = object.keys().take(8).map(String::as_str).collect();
    let problem = if names.is_empty() {
        "is missing (the object is empty)".into()
    } else {
        format!("is missing (the line has: {})", names.join(", "))
    };
    bad(origin, field, problem, "add it or rename the field that holds it")
}

fn filled_text(object: &Map<String, Value>, field: &str, origin: &Origin) -> Result<String, DataError> {
    let text = text_field(object, field, origin)?;
    if text.trim().is_empty() {
        return Err(bad(origin, field, "is empty".into(), "write its text or remove the line"));
    }
    Ok(text)
}

fn optional_text(
    object: &Map<String, Value>,
    field: &str,
    origin: &Origin,
) -> Result<Option<String>, DataError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => text_field(object, field, origin).map(Some),
    }
}

fn weight(object: &Map<String, Value>, origin: &Origin) -> Result<f32, DataError> {
    let value = match object.get("weight") {
        None | Some(Value::Null) => return Ok(1.0),
        Some(value) => value,
    };
    let weight =
        value.as_f64().map(|weight| weight as f32).filter(|weight| *weight >= 0.0 && weight.is_finite());
    weight.ok_or_else(|| {
        let shown = if value.is_number() { value.to_string() } else { kind_name(value).to_string() };
        bad(origin, "weight", format!("is {shown}, expected a number of 0 or more"), "leave it out for 1")
    })
}

fn messages(object: &Map<String, Value>, origin: &Origin) -> Result<Vec<Message>, DataError> {
    let shape =
        "write [{\"role\": \"user\", \"content\": \"…\"}, {\"role\": \"assistant\", \"content\": \"…\"}]";
    let list = match object.get("messages") {
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(bad(origin, "messages", "is an empty list".into(), shape));
        }
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(bad(origin, "messages", format!("is {}, expected a list", kind_name(other)), shape));
        }
        None => return Err(missing(object, "messages", origin)),
    };
    list.iter().enumerate().map(|(index, value)| message(value, index, origin)).collect()
}

fn message(value: &Value, index: usize, origin: &Origin) -> Result<Message, DataError> {
    let at = |field: &str| format!("messages[{index}]{field}");
    let Value::Object(object) = value else {
        let problem = format!("is {}, expected an object", kind_name(value));
        return Err(bad(origin, &at(""), problem, "write {\"role\": …, \"content\": …}"));
    };
    let text = |field: &'static str| match object.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(bad(
            origin,
            &at(&format!(".{field}")),
            format!("is {}, expected a string", kind_name(other)),
            "put the text in quotes",
        )),
        None => Err(bad(origin, &at(&format!(".{field}")), "is missing".into(), "add it")),
    };
    let role_name = text("role")?;
    let Some(role) = Role::from_name(&role_name) else {
        return Err(bad(
            origin,
            &at(".role"),
            format!("is {role_name:?}, expected system, user, assistant or tool"),
            "rename the role",
        ));
    };
    let content = text("content")?;
    // A tool may rightly answer nothing; a person or the model may not.
    if matches!(role, Role::User | Role::Assistant) && content.trim().is_empty() {
        return Err(bad(origin, &at(".content"), "is empty".into(), "write its text or remove the message"));
    }
    Ok(Message { role, content })
}
