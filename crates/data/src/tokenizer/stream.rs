//! Decoding token by token, for streaming.

use super::Tokenizer;
use crate::error::DataError;

/// Turns ids into text as they come. What [`StreamDecoder::push`] and at last [`StreamDecoder::finish`]
/// return is, put together, what [`Tokenizer::decode`] gives for all ids at once; no part ends inside a
/// character.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// Byte-level: the start of a character that is not yet whole.
    Bytes(Vec<u8>),
    /// Any other decoder: a window of ids, the text of its first `done` ids, and that number.
    Window { ids: Vec<u32>, done: usize },
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let state = if tokenizer.is_byte_level() {
            State::Bytes(Vec::new())
        } else {
            State::Window { ids: Vec::new(), done: 0 }
        };
        StreamDecoder { tokenizer: tokenizer.clone(), skip_special, state }
    }

    /// Takes the next id; returns the text that is now certain, if any.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>, DataError> {
        let text = match &mut self.state {
            State::Bytes(pending) => {
                if !(self.skip_special && self.tokenizer.is_special(id)) {
                    pending.extend(self.tokenizer.token_bytes(id));
                }
                take_whole_characters(pending)
            }
            State::Window { ids, done } => {
                ids.push(id);
                let before = self.tokenizer.decode(&ids[..*done], self.skip_special)?;
                let text = self.tokenizer.decode(ids, self.skip_special)?;
                // A replacement character at the end may become a character with the next id.
                if text.ends_with('\u{fffd}') {
                    return Ok(None);
                }
                let new = text.strip_prefix(before.as_str()).unwrap_or_default().to_string();
                // Decoders look at most at the text before, for a space between the two; so the window
                // moves on only when there is new text to stand before the next.
                if !new.is_empty() {
                    ids.drain(..*done);
                }
                *done = ids.len();
                new
            }
        };
        Ok((!text.is_empty()).then_some(text))
    }

    /// Ends the text: what was held back for want of its last bytes.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<Option<String>, DataError> {
        let text = match &mut self.state {
            State::Bytes(pending) => String::from_utf8_lossy(&std::mem::take(pending)).into_owned(),
            State::Window { ids, done } => {
                let before = self.tokenizer.decode(&ids[..*done], self.skip_special)?;
                let text = self.tokenizer.decode(ids, self.skip_special)?;
                ids.clear();
                *done = 0;
                text.strip_prefix(before.as_str()).unwrap_or_default().to_string()
            }
        };
        Ok((!text.is_empty()).then_some(text))
    }
}

/// Takes everything from `bytes` but the start of a character that may still be completed; what can
/// never become a character turns into U+FFFD, as `String::from_utf8_lossy` has it.
fn take_whole_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                rest = after;
                let Some(bad) = error.error_len() else { break };
                text.push('\u{fffd}');
                rest = &rest[bad..];
            }
        }
    }
    *bytes = rest.to_vec();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_cuts_give_the_lossy_text(
            parts in proptest::collection::vec(proptest::collection::vec(proptest::prop_oneof![
                proptest::num::u8::ANY,
                proptest::sample::select("é🎉日".as_bytes().to_vec()),
            ], 0..4), 0..24)
        ) {
            let mut pending = Vec::new();
            let mut text = String::new();
            for part in &parts {
                pending.extend_from_slice(part);
                text += &take_whole_characters(&mut pending);
                proptest::prop_assert!(pending.len() < 4);
            }
            text += &String::from_utf8_lossy(&pending);
            let all = parts.concat();
            proptest::prop_assert_eq!(text, String::from_utf8_lossy(&all));
        }
    }
}
