//! The world's texts in the project's file formats: plain text and JSON lines.

use std::io::{self, Write};

use serde::Serialize;

use super::{DOCUMENT_SEPARATOR, Dialogue, DialogueTask, Pair, Role, Task};

#[derive(Serialize)]
struct PairLine<'a> {
    prompt: &'a str,
    response: &'a str,
    source: &'a str,
}

#[derive(Serialize)]
struct MessageLine<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct DialogueLine<'a> {
    messages: Vec<MessageLine<'a>>,
}

#[derive(Serialize)]
struct TaskLine<'a> {
    prompt: &'a str,
    answer: &'a str,
    family: &'a str,
}

#[derive(Serialize)]
struct DialogueTaskLine<'a> {
    messages: Vec<MessageLine<'a>>,
    answer: &'a str,
    family: &'a str,
}

fn message_lines(messages: &[(Role, String)]) -> Vec<MessageLine<'_>> {
    messages.iter().map(|(role, content)| MessageLine { role: role.as_str(), content }).collect()
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Writes documents as plain text, two empty lines between them. `out` should be buffered.
///
/// # Errors
/// What `out` reports.
pub fn write_text(mut out: impl Write, documents: impl Iterator<Item = String>) -> io::Result<()> {
    for (index, document) in documents.enumerate() {
        if index > 0 {
            out.write_all(DOCUMENT_SEPARATOR.as_bytes())?;
        }
        out.write_all(document.as_bytes())?;
    }
    out.write_all(b"\n")
}

/// Writes pairs, one `{"prompt","response","source"}` a line; the source is the family.
///
/// # Errors
/// What `out` reports.
pub fn write_pairs(mut out: impl Write, pairs: &[Pair]) -> io::Result<()> {
    pairs.iter().try_for_each(|Pair { prompt, response, family }| {
        write_line(&mut out, &PairLine { prompt, response, source: family })
    })
}

/// Writes dialogues, one `{"messages":[{"role","content"}]}` a line.
///
/// # Errors
/// What `out` reports.
pub fn write_dialogues(mut out: impl Write, dialogues: &[Dialogue]) -> io::Result<()> {
    dialogues.iter().try_for_each(|dialogue| {
        write_line(&mut out, &DialogueLine { messages: message_lines(&dialogue.messages) })
    })
}

/// Writes tasks, one `{"prompt","answer","family"}` a line.
///
/// # Errors
/// What `out` reports.
pub fn write_tasks(mut out: impl Write, tasks: &[Task]) -> io::Result<()> {
    tasks.iter().try_for_each(|Task { prompt, answer, family }| {
        write_line(&mut out, &TaskLine { prompt, answer, family })
    })
}

/// Writes dialogue tasks, one `{"messages","answer","family"}` a line.
///
/// # Errors
/// What `out` reports.
pub fn write_dialogue_tasks(mut out: impl Write, tasks: &[DialogueTask]) -> io::Result<()> {
    tasks.iter().try_for_each(|DialogueTask { messages, answer, family }| {
        write_line(&mut out, &DialogueTaskLine { messages: message_lines(messages), answer, family })
    })
}
