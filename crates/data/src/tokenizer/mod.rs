//! The tokenizer: text to ids and back, special tokens, chat templates.
//!
//! On disk it is a Hugging Face tokenizer (`tokenizer.json`, `tokenizer_config.json`), ours and those
//! of others alike. Text that people wrote goes through [`Tokenizer::encode_plain`] and can never
//! become a special token, whatever it spells.

mod bpe;
mod chat;
mod fast;
mod folder;
mod stream;
mod template;
#[cfg(test)]
pub(crate) mod tests;
mod words;

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::DecoderWrapper;

use crate::error::DataError;
use crate::hash;
use crate::message::Role;

pub use chat::{ChatOptions, ChatTokens};
pub use stream::StreamDecoder;
pub use template::ChatTemplate;

/// End of a text and of a turn.
pub const END: &str = "<|end|>";
/// Start of a text and of a dialogue.
pub const BEGIN: &str = "<|begin|>";
/// Filler; no text contains it and no loss falls on it.
pub const PAD: &str = "<|pad|>";

/// The special tokens of our tokenizers, with their ids: the first of the vocabulary.
pub const SPECIAL_TOKENS: [&str; 7] =
    [END, BEGIN, PAD, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"];

/// Our chat template: one token before and one after each message, nothing trimmed. Content follows a space, so
/// that its first word is the token that the same word is in running text: small models copy tokens, not letters.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
{{ '<|' + message['role'] + '|> ' + message['content'] + eos_token }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A tokenizer with its special tokens and chat templates. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    /// Finds special tokens in text.
    marked: tokenizers::Tokenizer,
    /// Takes special tokens in text for ordinary characters.
    plain: tokenizers::Tokenizer,
    /// Does what `plain` does, for tokenizers of our form.
    fast: Option<fast::FastEncoder>,
    /// `tokenizer_config.json`.
    config: Map<String, Value>,
    bos: Option<u32>,
    pad: Option<u32>,
    eos: Vec<u32>,
    /// Special tokens and their ids, longest first, so that no prefix of one is taken for another.
    special: Vec<(String, u32)>,
    /// By id.
    is_special: Vec<bool>,
    templates: template::Templates,
    own_chat: Option<chat::OwnChat>,
    vocab_size: usize,
    byte_lengths: OnceLock<Vec<u32>>,
    /// What each id adds to a text.
    spellings: OnceLock<Vec<Box<[u8]>>>,
    sha256: [u8; 32],
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("eos_ids", &self.eos_ids())
            .finish_non_exhaustive()
    }
}

fn failed(error: impl std::fmt::Display) -> DataError {
    DataError::Tokenizer { path: None, problem: error.to_string() }
}

impl Tokenizer {
    /// Trains a byte-level BPE tokenizer of at most `vocab_size` tokens on `texts`: the special tokens
    /// first, then the 256 bytes, then merges. It is smaller than asked when no pair of tokens occurs
    /// twice any more. Equal texts give equal tokenizers.
    ///
    /// # Errors
    /// A vocabulary too small for bytes and special tokens, no text at all, or an error of `texts`.
    pub fn train<S: AsRef<str>>(
        texts: impl IntoIterator<Item = Result<S, DataError>>,
        vocab_size: usize,
    ) -> Result<Tokenizer, DataError> {
        let least = 256 + SPECIAL_TOKENS.len();
        if vocab_size < least {
            return Err(failed(format!(
                "a vocabulary of {vocab_size} is too small; expected at least {least} (256 bytes and {} special tokens)",
                SPECIAL_TOKENS.len()
            )));
        }
        let counts = bpe::WordCounts::of(texts.into_iter())?;
        if counts.is_empty() {
            return Err(failed("cannot be trained on no text; give it a corpus"));
        }
        let vocabulary = bpe::learn(counts, vocab_size - SPECIAL_TOKENS.len());
        Tokenizer::from_parts(&own_json(&vocabulary), own_config(), template::Sources::default(), Vec::new())
    }

    /// Ids of `text`, in which special tokens are recognised; with `add_special` also what the tokenizer
    /// puts around a text (ours: [`BEGIN`] before it).
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer has no token for some character; never with ours.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.marked.encode_fast(text, add_special).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of `text` as plain text: none of them is a special token, even where the text spells one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let Some(fast) = &self.inner.fast else { return self.encode_by_crate(text) };
        let mut ids = Vec::with_capacity(text.len() / 3);
        fast.encode(text, &mut ids, |text| self.encode_by_crate(text))?;
        Ok(ids)
    }

    /// [`Tokenizer::encode_plain`] of many texts, on all cores.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], of the first text that fails.
    pub fn encode_plain_batch(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, DataError> {
        let all: Vec<Result<Vec<u32>, DataError>> =
            texts.par_iter().map(|text| self.encode_plain(text)).collect();
        all.into_iter().collect()
    }

    fn encode_by_crate(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.plain.encode_fast(text, false).map_err(failed)?;
        self.without_special(text, encoding.get_ids().to_vec())
    }

    /// Models that look a whole word up in the vocabulary can find a special token even in plain text.
    /// Then the text is cut inside every such spelling.
    fn without_special(&self, text: &str, ids: Vec<u32>) -> Result<Vec<u32>, DataError> {
        if !ids.iter().any(|id| self.is_special(*id)) {
            return Ok(ids);
        }
        let mut cuts = vec![0, text.len()];
        for (token, _) in &self.inner.special {
            let first = token.chars().next().map_or(1, char::len_utf8);
            cuts.extend(text.match_indices(token.as_str()).map(|(at, _)| at + first));
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut ids = Vec::new();
        for piece in cuts.windows(2) {
            let encoding = self.inner.plain.encode_fast(&text[piece[0]..piece[1]], false).map_err(failed)?;
            ids.extend(encoding.get_ids().iter().filter(|id| !self.is_special(**id)));
        }
        Ok(ids)
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD and ids outside the vocabulary nothing.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`] when the tokenizer's decoder fails; never with a byte-level one.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.inner.marked.decode(ids, skip_special).map_err(failed)
    }

    /// The id of a token by its spelling in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.marked.token_to_id(token)
    }

    /// The spelling of a token in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.marked.id_to_token(id)
    }

    /// The token that begins a text, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The token that ends a text, if there is one.
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.eos.first().copied()
    }

    /// All tokens at which generation stops; [`Tokenizer::eos_id`] first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos
    }

    /// The filler token; where none is defined, the one that ends a text.
    pub fn pad_id(&self) -> Option<u32> {
        self.inner.pad.or(self.eos_id())
    }

    /// True for tokens that are marks and not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.is_special.get(id as usize).copied().unwrap_or(false)
    }

    /// One more than the greatest id: how many rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// UTF-8 bytes that each id stands for, 0 for special tokens: for bits per byte.
    pub fn byte_lengths(&self) -> &[u32] {
        self.inner.byte_lengths.get_or_init(|| {
            (0..self.vocab_size() as u32)
                .map(|id| if self.is_special(id) { 0 } else { self.token_bytes(id).len() as u32 })
                .collect()
        })
    }

    /// SHA-256 of `tokenizer.json` as saved: names the tokenizer that made a shard.
    pub fn sha256(&self) -> [u8; 32] {
        self.inner.sha256
    }

    fn is_byte_level(&self) -> bool {
        matches!(self.inner.marked.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }

    /// True when the text of ids is the bytes of its tokens, one after the other: byte-level tokenizers, and those of
    /// SentencePiece, whose decoders may only take one space off the beginning.
    pub fn spells_bytes(&self) -> bool {
        self.is_byte_level() || self.inner.marked.get_decoder().is_some_and(spells_pieces)
    }

    /// The bytes that one token adds to a text; of special tokens their spelling. Where [`Tokenizer::spells_bytes`] is
    /// false, what the token decodes to alone. Nothing outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let spellings = self.inner.spellings.get_or_init(|| {
            let pieces = self.inner.marked.get_decoder().is_some_and(spells_pieces);
            (0..self.vocab_size() as u32).map(|id| self.spell(id, pieces).into_boxed_slice()).collect()
        });
        spellings.get(id as usize).map_or(&[], |spelling| spelling)
    }

    fn spell(&self, id: u32, pieces: bool) -> Vec<u8> {
        if !self.is_byte_level() && !pieces {
            return self.decode(&[id], false).unwrap_or_default().into_bytes();
        }
        let Some(token) = self.id_to_token(id) else { return Vec::new() };
        if self.is_special(id) {
            return token.into_bytes();
        }
        if pieces {
            let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            let byte = hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            return byte.map_or_else(|| token.replace('▁', " ").into_bytes(), |byte| vec![byte]);
        }
        let bytes: Option<Vec<u8>> = token.chars().map(character_byte).collect();
        // Added tokens are plain text, not in the byte-level alphabet.
        bytes.unwrap_or_else(|| token.into_bytes())
    }

    fn from_parts(
        json: &[u8],
        config: Map<String, Value>,
        sources: template::Sources,
        more_eos: Vec<u32>,
    ) -> Result<Tokenizer, DataError> {
        let mut marked = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        folder::complete(&mut marked, &config)?;
        let mut plain = marked.clone();
        plain.set_encode_special_tokens(true);

        let id_of =
            |name: &str| folder::token_name(config.get(name)).and_then(|token| marked.token_to_id(&token));
        let (bos, pad) = (id_of("bos_token"), id_of("pad_token"));
        let vocab_size = marked.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let mut eos: Vec<u32> = Vec::new();
        for id in id_of("eos_token").into_iter().chain(more_eos) {
            if !eos.contains(&id) && (id as usize) < vocab_size {
                eos.push(id);
            }
        }
        let mut special: Vec<(String, u32)> = marked
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content, id))
            .collect();
        special.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        let mut is_special = vec![false; vocab_size];
        for (_, id) in &special {
            is_special[*id as usize] = true;
        }
        let sha256 = hash::sha256(marked.to_string(false).map_err(failed)?.as_bytes());
        let templates = template::Templates::new(&config, sources)?;
        let fast = fast::FastEncoder::of(json);
        let own_chat = chat::OwnChat::of(&marked, &templates);
        Ok(Tokenizer {
            inner: Arc::new(Inner {
                marked,
                plain,
                fast,
                config,
                bos,
                pad,
                eos,
                special,
                is_special,
                templates,
                own_chat,
                vocab_size,
                byte_lengths: OnceLock::new(),
                spellings: OnceLock::new(),
                sha256,
            }),
        })
    }
}

/// Whether a decoder is one of SentencePiece: pieces with `▁` for a space, and bytes as `<0x0A>`.
fn spells_pieces(decoder: &DecoderWrapper) -> bool {
    fn parts(decoder: &Value) -> Vec<&Value> {
        let inner = decoder["decoders"].as_array().map(|inner| inner.iter().flat_map(parts).collect());
        inner.unwrap_or_else(|| vec![decoder])
    }
    let Ok(decoder) = serde_json::to_value(decoder) else { return false };
    let mut spaces = false;
    let known = parts(&decoder).into_iter().all(|part| match part["type"].as_str() {
        Some("Replace") => {
            let replaced = part["pattern"]["String"] == "▁" && part["content"] == " ";
            spaces |= replaced;
            replaced
        }
        Some("Metaspace") => {
            spaces = true;
            part["replacement"] == "▁"
        }
        Some("Strip") => part["content"] == " " && part["stop"] == 0,
        Some("ByteFallback" | "Fuse") => true,
        _ => false,
    });
    known && spaces
}

/// The byte that a character of the byte-level alphabet stands for.
fn character_byte(character: char) -> Option<u8> {
    static BYTES: OnceLock<std::collections::HashMap<char, u8>> = OnceLock::new();
    let bytes = BYTES.get_or_init(|| {
        bpe::byte_characters()
            .into_iter()
            .enumerate()
            .map(|(byte, character)| (character, byte as u8))
            .collect()
    });
    bytes.get(&character).copied()
}

fn own_config() -> Map<String, Value> {
    let config = json!({
        "bos_token": BEGIN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "eos_token": END,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    config.as_object().cloned().unwrap_or_default()
}

/// `tokenizer.json` of a vocabulary.
fn own_json(vocabulary: &bpe::Vocabulary) -> Vec<u8> {
    let characters = bpe::byte_characters();
    let spell =
        |token: &[u8]| -> String { token.iter().map(|byte| characters[usize::from(*byte)]).collect() };
    let tokens: Vec<String> = vocabulary.tokens.iter().map(|token| spell(token)).collect();
    let merges: Vec<Value> = vocabulary
        .merges
        .iter()
        .map(|(left, right)| json!([tokens[*left as usize], tokens[*right as usize]]))
        .collect();
    let names = SPECIAL_TOKENS.iter().map(|token| (*token).to_string()).chain(tokens.iter().cloned());
    let vocab: Map<String, Value> = names.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            })
        })
        .collect();
    let begin = SPECIAL_TOKENS.iter().position(|token| *token == BEGIN);
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": fast::pre_tokenizer(),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": BEGIN, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}}
            ],
            "special_tokens": {BEGIN: {"id": BEGIN, "ids": [begin], "tokens": [BEGIN]}}
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges
        }
    })
    .to_string()
    .into_bytes()
}

/// The mark before a message of `role` in our chat template.
fn role_token(role: Role) -> String {
    format!("<|{}|>", role.name())
}
