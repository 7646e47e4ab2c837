//! Answers that are sent while they are written.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;

use crate::ask::{Piece, TextPiece};
use crate::session::Session;

/// How one API writes the parts of its answers.
pub trait Format: Send + 'static {
    /// Its content type.
    const CONTENT_TYPE: &'static str;
    /// What stands before all answers.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// A part of the answer with this index.
    fn piece(&mut self, index: usize, piece: Piece, out: &mut Vec<u8>);
    /// What stands after all answers.
    fn end(&mut self, out: &mut Vec<u8>);
}

/// Least time between two writes of one answer while many are being written: too short to be seen, and long enough
/// that the machine makes tokens instead of sending them.
const PAUSE: Duration = Duration::from_millis(8);

/// How long an answer's beginning waits for the first token, to be sent with it in one piece.
const TOGETHER: Duration = Duration::from_millis(50);

/// Sends a session's answers as they come. When the client goes away the session is dropped, and with it its place in
/// the engine.
pub async fn stream<F: Format>(session: Session, mut format: F) -> Response {
    let mut first = Vec::new();
    format.begin(&mut first);
    let mut sending = Sending { session, format, sent: None };
    if let Ok(Some(bytes)) = tokio::time::timeout(TOGETHER, sending.next()).await {
        first.extend_from_slice(&bytes);
    }
    let first = (!first.is_empty()).then(|| Bytes::from(first));
    let body = futures_util::stream::unfold((sending, first), |(mut sending, first)| async move {
        let bytes = match first {
            Some(first) => first,
            None => sending.next().await?,
        };
        Some((Ok::<_, std::convert::Infallible>(bytes), (sending, None)))
    });
    // Proxies that hold an answer back until it is whole would make a stream useless.
    let headers = [
        (CONTENT_TYPE.as_str(), F::CONTENT_TYPE),
        (CACHE_CONTROL.as_str(), "no-cache"),
        ("x-accel-buffering", "no"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// Answers on their way to a client.
struct Sending<F> {
    session: Session,
    format: F,
    /// When tokens were sent last.
    sent: Option<Instant>,
}

impl<F: Format> Sending<F> {
    /// What is to be sent next: all that has come since. None at the end. Nothing is lost where the caller stops waiting.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        while out.is_empty() {
            if self.session.is_done() {
                return None;
            }
            if let Some(sent) = self.sent
                && self.session.is_crowded()
            {
                // Who has the whole answer asks again the sooner.
                tokio::select! {
                    () = tokio::time::sleep_until(sent + PAUSE) => {}
                    () = self.session.an_end() => {}
                }
            }
            for (index, piece) in merged(self.session.next().await) {
                self.format.piece(index, piece, &mut out);
            }
            if self.session.is_done() {
                self.format.end(&mut out);
            }
        }
        self.sent = Some(Instant::now());
        Some(out.into())
    }
}

/// What came at the same time is one piece for each answer: an event for every token costs a small model as much as the
/// token. Tokens with log-probabilities stay apart.
fn merged(pieces: Vec<(usize, Piece)>) -> Vec<(usize, Piece)> {
    let mut out: Vec<(usize, Piece)> = Vec::with_capacity(pieces.len());
    for (index, piece) in pieces {
        if let Piece::Text(TextPiece { text, token: None }) = &piece
            && let Some((_, Piece::Text(before))) = out.iter_mut().rfind(|(of, _)| *of == index)
            && before.token.is_none()
        {
            before.text.push_str(text);
        } else {
            out.push((index, piece));
        }
    }
    out
}

/// A server-sent event.
pub fn event(out: &mut Vec<u8>, name: Option<&str>, data: &impl Serialize) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    // Text and numbers always are JSON, and line breaks in text are escaped there.
    let _ = serde_json::to_writer(&mut *out, data);
    out.extend_from_slice(b"\n\n");
}

/// A line of JSON in which no character but the last one ends a line, for readers that know more line ends than `\n`.
pub fn json_line(out: &mut Vec<u8>, data: &impl Serialize) {
    let text = serde_json::to_string(data).unwrap_or_default();
    for character in text.chars() {
        match character {
            '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{7f}'..='\u{9f}' => {
                out.extend_from_slice(format!("\\u{:04x}", character as u32).as_bytes());
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::TokenPiece;

    #[test]
    fn tokens_that_come_together_are_one_piece_of_their_answer() {
        let text = |text: &str| Piece::Text(TextPiece { text: text.into(), token: None });
        let end = || Piece::ToolCalls(Vec::new());
        let token = || {
            let token = TokenPiece { id: 1, bytes: vec![], log_probability: -1.0, alternatives: vec![] };
            Piece::Text(TextPiece { text: "x".into(), token: Some(token) })
        };
        let pieces = vec![
            (0, text("a")),
            (1, text("b")),
            (0, text("c")),
            (1, end()),
            (0, text("d")),
            (2, token()),
            (2, token()),
        ];
        let merged: Vec<String> = merged(pieces)
            .into_iter()
            .map(|(index, piece)| match piece {
                Piece::Text(piece) => format!("{index}{}", piece.text),
                _ => format!("{index}!"),
            })
            .collect();
        assert_eq!(merged, ["0acd", "1b", "1!", "2x", "2x"]);
    }

    #[test]
    fn a_line_of_json_has_one_line_end_by_anybodys_rules() {
        let text = "a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\u{1c}g\nh\ri é🎉";
        let mut out = Vec::new();
        json_line(&mut out, &text);
        let line = String::from_utf8(out).unwrap();
        let ends =
            ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
        assert_eq!(line.find(ends), Some(line.len() - 1), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
    }
}
