//! Messages, roles, and the example that pairs and dialogues both become.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool answered.
    Tool,
}

impl Role {
    /// All roles, in the order of their special tokens.
    pub const ALL: [Role; 4] = [Role::System, Role::User, Role::Assistant, Role::Tool];

    /// The name in data files and chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role of that name.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// One turn of a dialogue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; never trimmed or changed here.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into() }
    }
}

/// A file and a line of it (a row, for Parquet), both as a person counts: from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The file.
    pub path: Arc<Path>,
    /// The line or row, from 1.
    pub line: u64,
}

impl Origin {
    /// Line `line` of `path`.
    pub fn new(path: impl AsRef<Path>, line: u64) -> Self {
        Origin { path: Arc::from(path.as_ref()), line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.path.display(), self.line)
    }
}

/// Something to learn from: messages, of which the assistant's carry the loss. A pair is a dialogue of
/// two or three messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The messages; at least one is the assistant's.
    pub messages: Vec<Message>,
    /// Factor on the loss of this example, at least 0; 1 unless the data says otherwise.
    pub weight: f32,
    /// Where it stands in the data.
    pub origin: Origin,
}

impl Example {
    /// The messages before the first answer: what makes two examples ask the same thing.
    pub fn prompt(&self) -> &[Message] {
        let end = self.messages.iter().position(|message| message.role == Role::Assistant);
        &self.messages[..end.unwrap_or(self.messages.len())]
    }
}
