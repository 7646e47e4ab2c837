//! From tokens as they come to text as it may be shown: whole characters only, nothing of a stop string.

use strata_data::{DataError, StreamDecoder, Tokenizer};

/// The text of one sequence, piece by piece. A piece is given out once it is certain that it is not the beginning of
/// a stop string.
#[derive(Debug, Clone)]
pub struct TextStream {
    decoder: StreamDecoder,
    stops: Vec<String>,
    held: String,
    trim_space: bool,
    stopped_by: Option<usize>,
}

impl TextStream {
    /// A stream that ends before the first of `stops` (empty ones are ignored). With `answer`, one space at the very
    /// beginning is left out: chat templates put it between the role and the words.
    pub fn new(tokenizer: &Tokenizer, stops: &[String], answer: bool) -> TextStream {
        TextStream {
            decoder: StreamDecoder::new(tokenizer, true),
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            trim_space: answer,
            stopped_by: None,
        }
    }

    /// Whether a stop string has ended the text; nothing follows then.
    pub fn stopped(&self) -> bool {
        self.stopped_by.is_some()
    }

    /// The stop string that has ended the text.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.map(|index| self.stops[index].as_str())
    }

    /// Takes the next token; returns the text that is now certain, perhaps empty.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn push(&mut self, token: u32) -> Result<String, DataError> {
        let text = self.decoder.push(token)?;
        Ok(self.take(text, false))
    }

    /// What was held back, at the end of the tokens.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn finish(&mut self) -> Result<String, DataError> {
        let text = self.decoder.finish()?;
        Ok(self.take(text, true))
    }

    fn take(&mut self, text: Option<String>, last: bool) -> String {
        if self.stopped() {
            return String::new();
        }
        let mut text = text.unwrap_or_default();
        if self.trim_space && !text.is_empty() {
            self.trim_space = false;
            if text.starts_with(' ') {
                text.remove(0);
            }
        }
        if self.stops.is_empty() {
            // Nothing is ever held back.
            return text;
        }
        self.held.push_str(&text);
        // Where several begin at the same place, the first one given ends it.
        let found = |(index, stop): (usize, &String)| self.held.find(stop.as_str()).map(|at| (at, index));
        if let Some((at, index)) = self.stops.iter().enumerate().filter_map(found).min() {
            self.stopped_by = Some(index);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep =
            if last { 0 } else { self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0) };
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes at the end of `text` that may be the beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn tokenizer() -> &'static Tokenizer {
        static TOKENIZER: LazyLock<Tokenizer> =
            LazyLock::new(|| Tokenizer::train([Ok("the water and the land, the bar")], 280).unwrap());
        &TOKENIZER
    }

    fn run(text: &str, stops: &[&str], answer: bool) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut stream = TextStream::new(tokenizer(), &stops, answer);
        let mut out = String::new();
        for token in tokenizer().encode_plain(text).unwrap() {
            out += &stream.push(token).unwrap();
        }
        out += &stream.finish().unwrap();
        (out, stream.stopped())
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        assert_eq!(run("the water and the bar", &["bar", "and"], false), ("the water ".into(), true));
        assert_eq!(run("the water", &["wax", ""], false), ("the water".into(), false));
        assert_eq!(run("a\n\nb", &["\n\n"], false), ("a".into(), true));
    }

    #[test]
    fn an_answer_loses_the_one_space_of_the_template() {
        assert_eq!(run(" water", &[], true).0, "water");
        assert_eq!(run("  water", &[], true).0, " water");
        assert_eq!(run(" water", &[], false).0, " water");
    }

    proptest! {
        #[test]
        fn the_stream_is_the_whole_text_cut_at_the_first_stop(text in "[abé🎉]{0,12}", stop in "[abé🎉]{1,3}") {
            let expected = text.find(&stop).map_or(text.as_str(), |at| &text[..at]);
            let (got, stopped) = run(&text, &[&stop], false);
            prop_assert_eq!(got, expected);
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
