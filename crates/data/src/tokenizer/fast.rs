//! A quicker way to the same ids, for tokenizers of our own form.
//!
//! The `tokenizers` crate keeps for every byte where it came from, which no one asks here, and runs an
//! expression engine over the text. For byte-level BPE with our expression this takes text apart by
//! hand ([`super::words`]), looks up words that are one token, and merges the rest. Lines
//! with characters of which it is not sure, and very long words, go to the crate.

use std::collections::HashMap;

use serde_json::Value;

use super::{bpe, character_byte, words};
use crate::error::DataError;

/// Merging takes a time that grows with the square of the length; longer words go to the crate.
const LONGEST_WORD: usize = 400;

/// Vocabulary and merges in the form that encoding needs.
pub(super) struct FastEncoder {
    /// Tokens of single bytes.
    bytes: [u32; 256],
    /// Words that BPE makes one token of.
    whole: HashMap<Box<[u8]>, u32>,
    /// Rank and result of merging two tokens.
    merges: HashMap<(u32, u32), (u32, u32)>,
}

impl FastEncoder {
    /// An encoder for `tokenizer.json`, if it has our form.
    pub fn of(json: &[u8]) -> Option<FastEncoder> {
        let json: Value = serde_json::from_slice(json).ok()?;
        let model = &json["model"];
        let plain = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
        let options = [
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "fuse_unk",
            "byte_fallback",
        ];
        // Tokens that are added and not special are found in plain text, which is the crate's business.
        let added = json["added_tokens"].as_array()?;
        let ours = model["type"] == "BPE"
            && options.iter().all(|name| plain(&model[*name]))
            && plain(&model["ignore_merges"])
            && plain(&json["normalizer"])
            && json["pre_tokenizer"] == pre_tokenizer()
            && added.iter().all(|token| token["special"] == true);
        if !ours {
            return None;
        }
        let mut by_bytes: HashMap<Vec<u8>, u32> = HashMap::new();
        for (token, id) in model["vocab"].as_object()? {
            let bytes: Option<Vec<u8>> = token.chars().map(character_byte).collect();
            let special = added.iter().any(|added| added["content"] == token.as_str());
            if let (Some(bytes), false) = (bytes, special) {
                by_bytes.insert(bytes, u32::try_from(id.as_u64()?).ok()?);
            }
        }
        let mut bytes = [0; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            *id = *by_bytes.get([byte as u8].as_slice())?;
        }
        let mut merges = HashMap::new();
        for (rank, merge) in model["merges"].as_array()?.iter().enumerate() {
            let part = |index: usize| -> Option<Vec<u8>> {
                let text = match merge {
                    Value::Array(parts) => parts.get(index)?.as_str()?,
                    Value::String(both) => both.split(' ').nth(index)?,
                    _ => return None,
                };
                text.chars().map(character_byte).collect()
            };
            let (left, right) = (part(0)?, part(1)?);
            let pair = (*by_bytes.get(&left)?, *by_bytes.get(&right)?);
            let id = *by_bytes.get(&[left, right].concat())?;
            merges.insert(pair, (rank as u32, id));
        }
        let mut encoder = FastEncoder { bytes, whole: HashMap::new(), merges };
        let mut ids = Vec::new();
        for (word, id) in by_bytes {
            ids.clear();
            encoder.merge(&word, &mut ids);
            // A token that no merges lead to is never used for a word that spells it.
            if ids == [id] {
                encoder.whole.insert(word.into_boxed_slice(), id);
            }
        }
        Some(encoder)
    }

    /// Appends the ids of `text`; `crate_encode` does the parts that are left to the crate.
    pub fn encode(
        &self,
        text: &str,
        ids: &mut Vec<u32>,
        crate_encode: impl Fn(&str) -> Result<Vec<u32>, DataError>,
    ) -> Result<(), DataError> {
        // Neighbouring lines for the crate go there together: each call costs.
        let (mut slow_from, mut at) = (0, 0);
        for line in words::lines(text) {
            let start = at;
            at += line.len();
            let before = ids.len();
            if !words::all_known(line) {
                continue;
            }
            if slow_from < start {
                ids.extend(crate_encode(&text[slow_from..start])?);
            }
            let kept = if slow_from < start { ids.len() } else { before };
            slow_from = at;
            if !self.encode_line(line, ids) {
                ids.truncate(kept);
                slow_from = start;
            }
        }
        if slow_from < text.len() {
            ids.extend(crate_encode(&text[slow_from..])?);
        }
        Ok(())
    }

    /// Appends the ids of a line of known characters; false, with some appended, for too long words.
    fn encode_line(&self, line: &str, ids: &mut Vec<u32>) -> bool {
        let mut rest = line;
        while !rest.is_empty() {
            let (word, tail) = rest.split_at(words::next_word(rest));
            rest = tail;
            if let Some(id) = self.whole.get(word.as_bytes()) {
                ids.push(*id);
            } else if word.len() > LONGEST_WORD {
                return false;
            } else {
                self.merge(word.as_bytes(), ids);
            }
        }
        true
    }

    /// Appends the ids of one word: of the neighbours that can be merged always the pair that was
    /// learned first, the leftmost of equal ones.
    fn merge(&self, word: &[u8], ids: &mut Vec<u32>) {
        let start = ids.len();
        ids.extend(word.iter().map(|byte| self.bytes[usize::from(*byte)]));
        loop {
            let symbols = &ids[start..];
            let found = symbols.windows(2).enumerate().filter_map(|(at, pair)| {
                self.merges.get(&(pair[0], pair[1])).map(|(rank, id)| (*rank, at, *id))
            });
            let Some((_, at, id)) = found.min() else { return };
            ids[start + at] = id;
            ids.remove(start + at + 1);
        }
    }
}

/// Our `pre_tokenizer` in `tokenizer.json`.
pub(super) fn pre_tokenizer() -> Value {
    serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": bpe::SPLIT}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
    ]})
}
