//! Reading and writing tokenizers as Hugging Face folders.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{Tokenizer, failed, template};
use crate::error::DataError;
use crate::files::write_atomic;

impl Tokenizer {
    /// Reads a Hugging Face tokenizer folder: `tokenizer.json`, and where they are there
    /// `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`,
    /// `additional_chat_templates/*.jinja` and the ends of text in `generation_config.json`.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::Tokenizer`] naming the file; [`DataError::Template`].
    pub fn load(folder: &Path) -> Result<Tokenizer, DataError> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read(&path).map_err(DataError::io(&path, "read"))?;
        let mut config = read_object(&folder.join("tokenizer_config.json"))?;
        for (name, value) in read_object(&folder.join("special_tokens_map.json"))? {
            config.entry(name).or_insert(value);
        }
        let generation = read_object(&folder.join("generation_config.json"))?;
        let ends = match generation.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).collect(),
            Some(id) => id.as_u64().into_iter().collect::<Vec<_>>(),
            None => Vec::new(),
        };
        let ends = ends.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
        let sources = template::Sources::read(folder)?;
        Tokenizer::from_parts(&json, config, sources, ends).map_err(|error| match error {
            DataError::Tokenizer { path: None, problem } => {
                DataError::Tokenizer { path: Some(path), problem }
            }
            other => other,
        })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into `folder`, which is made where it is
    /// missing. Each file appears whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), DataError> {
        let json = self.inner.marked.to_string(true).map_err(failed)?;
        let mut config = self.inner.config.clone();
        if let Some(template) = self.inner.templates.to_config() {
            config.insert("chat_template".into(), template);
        }
        let config = serde_json::to_string_pretty(&config).map_err(failed)?;
        for (name, text) in [("tokenizer.json", json), ("tokenizer_config.json", config + "\n")] {
            write_atomic(&folder.join(name), |writer| std::io::Write::write_all(writer, text.as_bytes()))?;
        }
        Ok(())
    }
}

/// The object in a JSON file, empty where there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>, DataError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(DataError::io(path, "read")(error)),
    };
    serde_json::from_slice(&bytes).map_err(|error| DataError::Tokenizer {
        path: Some(path.to_path_buf()),
        problem: format!("expected a JSON object: {error}"),
    })
}

/// A special token in a configuration: a string, or an object with `content`.
pub(super) fn token_name(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(name) => Some(name.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(String::from),
        _ => None,
    }
}

/// Brings `tokenizer` to what the configuration beside it says: added tokens it lacks, named tokens
/// that are special; and takes truncation and padding away, which are the caller's business.
pub(super) fn complete(
    tokenizer: &mut tokenizers::Tokenizer,
    config: &Map<String, Value>,
) -> Result<(), DataError> {
    tokenizer.with_truncation(None).map_err(failed)?.with_padding(None);
    let mut missing: Vec<(u32, AddedToken)> = Vec::new();
    if let Some(Value::Object(added)) = config.get("added_tokens_decoder") {
        for (id, token) in added {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool);
            let (Ok(id), Some(content)) = (id.parse::<u32>(), token_name(Some(token))) else {
                return Err(failed(format!(
                    "added_tokens_decoder: expected numbers with tokens, got {id:?}: {token}"
                )));
            };
            if tokenizer.id_to_token(id).is_some() {
                continue;
            }
            let special = flag("special").unwrap_or(false);
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special));
            missing.push((id, token));
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        tokenizer.add_tokens(std::slice::from_ref(&token));
        let got = tokenizer.token_to_id(&token.content);
        if got != Some(id) {
            return Err(failed(format!(
                "added_tokens_decoder gives {:?} the id {id}, and tokenizer.json has room for it at {got:?}; \
                 the two files do not belong together",
                token.content
            )));
        }
    }
    let known = tokenizer.get_added_tokens_decoder();
    for name in ["bos_token", "eos_token", "pad_token", "unk_token"] {
        let Some(content) = token_name(config.get(name)) else { continue };
        let marked = known.values().any(|token| token.content == content && token.special);
        if !marked && tokenizer.token_to_id(&content).is_some() {
            tokenizer.add_special_tokens(&[AddedToken::from(content, true).normalized(false)]);
        }
    }
    Ok(())
}
