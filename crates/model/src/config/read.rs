//! `config.json` read: the fields of `LlamaConfig` and `Mamba2Config` in both spellings.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Config, Family, Llama3Scaling};
use crate::ModelError;
use crate::mixers::{Mixing, SsmShape};

impl Config {
    /// Reads and checks `config.json` in `folder`.
    ///
    /// # Errors
    /// The file is absent or not JSON, or a field asks for something that is not computed here.
    pub fn load(folder: &Path) -> Result<Config, ModelError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(ModelError::io("read", &path))?;
        Config::parse(&text, &path)
    }

    /// Parses the text of a `config.json`; `path` is named in errors. Fields that are left out have the
    /// defaults of `LlamaConfig`, as transformers 4 leaves out what equals them.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Config, ModelError> {
        let text = &quote_infinity(text);
        let map: Map<String, Value> = serde_json::from_str(text).map_err(ModelError::json(path))?;
        let root = Fields { path, prefix: "", map: &map };
        let config = match root.family()? {
            Family::Mamba2 => root.mamba2()?,
            Family::Llama => root.llama()?,
            Family::Strata => {
                let mut config = root.llama()?;
                if let Some(mixing) = root.present("mixing") {
                    let expected = "an object with pattern and shapes of the mixers";
                    config.mixing = serde_json::from_value(mixing.clone())
                        .map_err(|error| root.wrong("mixing", expected, error))?;
                }
                config
            }
        };
        config.check(path)?;
        Ok(config)
    }
}

/// JSON has no infinity, but Python writes one: outside of strings it becomes the object that transformers 5 writes.
pub(super) fn quote_infinity(text: &str) -> std::borrow::Cow<'_, str> {
    const WORD: &str = "Infinity";
    if !text.contains(WORD) {
        return text.into();
    }
    let (mut result, mut inside, mut escaped, mut skip) =
        (String::with_capacity(text.len() + 32), false, false, 0);
    for (at, letter) in text.char_indices() {
        if at < skip {
            continue;
        }
        if !inside && text[at..].starts_with(WORD) {
            result.push_str(r#"{"__float__": "Infinity"}"#);
            skip = at + WORD.len();
            continue;
        }
        inside ^= letter == '"' && !escaped;
        escaped = inside && letter == '\\' && !escaped;
        result.push(letter);
    }
    result.into()
}

/// Typed access to the fields of one JSON object, with errors that name file and field.
struct Fields<'a> {
    path: &'a Path,
    prefix: &'static str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The field's value; `None` when left out or null.
    fn present(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn wrong(&self, field: &str, expected: &str, found: impl std::fmt::Display) -> ModelError {
        ModelError::Field {
            path: self.path.to_path_buf(),
            field: format!("{}{field}", self.prefix),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    fn or_default<T>(&self, field: &str, expected: &str, default: Option<T>) -> Result<T, ModelError> {
        default.ok_or_else(|| self.wrong(field, expected, "nothing"))
    }

    fn size(&self, field: &str, default: Option<usize>) -> Result<usize, ModelError> {
        let expected = "a whole number, 0 or more";
        match self.present(field) {
            None => self.or_default(field, expected, default),
            Some(value) => value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .ok_or_else(|| self.wrong(field, expected, value)),
        }
    }

    fn number(&self, field: &str, default: Option<f64>) -> Result<f64, ModelError> {
        match self.present(field) {
            None => self.or_default(field, "a number", default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(field, "a number", value)),
        }
    }

    fn boolean(&self, field: &str, default: bool) -> Result<bool, ModelError> {
        match self.present(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(field, "true or false", value)),
        }
    }

    /// A token id, a list of them, or null; `default` stands in when the field is left out.
    fn tokens(&self, field: &str, default: u32) -> Result<Vec<u32>, ModelError> {
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.wrong(field, "a token id, a list of them, or null", value))
        };
        match self.map.get(field) {
            None => Ok(vec![default]),
            Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(id) => Ok(vec![one(id)?]),
        }
    }

    fn family(&self) -> Result<Family, ModelError> {
        let expected = Family::ALL.map(|family| format!("[\"{}\"]", family.names().0)).join(" or ");
        let of = |is: &dyn Fn(Family) -> bool| Family::ALL.into_iter().find(|family| is(*family));
        match (self.present("architectures"), self.present("model_type")) {
            (Some(Value::Array(names)), _) => {
                let found = of(&|family| names.iter().any(|name| name == family.names().0));
                found.ok_or_else(|| self.wrong("architectures", &expected, &self.map["architectures"]))
            }
            (Some(other), _) => Err(self.wrong("architectures", &expected, other)),
            (None, Some(kind)) => {
                let expected = Family::ALL.map(|family| format!("\"{}\"", family.names().1)).join(" or ");
                of(&|family| kind == family.names().1)
                    .ok_or_else(|| self.wrong("model_type", &expected, kind))
            }
            (None, None) => Err(self.wrong("architectures", &expected, "nothing")),
        }
    }

    /// The fields of `LlamaConfig`.
    fn llama(&self) -> Result<Config, ModelError> {
        for field in ["attention_bias", "mlp_bias"] {
            if self.boolean(field, false)? {
                return Err(self.wrong(field, "false (biases are not computed)", &self.map[field]));
            }
        }
        if let Some(activation) = self.present("hidden_act")
            && activation != "silu"
        {
            return Err(self.wrong("hidden_act", "\"silu\"", activation));
        }
        let width = self.size("hidden_size", Some(4096))?;
        let heads = self.size("num_attention_heads", Some(32))?;
        let (rope_theta, rope_scaling) = self.rope()?;
        Ok(Config {
            vocab_size: self.size("vocab_size", Some(32000))?,
            width,
            layers: self.size("num_hidden_layers", Some(32))?,
            heads,
            kv_heads: self.size("num_key_value_heads", Some(heads))?,
            head_dim: self.size("head_dim", Some(width / heads.max(1)))?,
            ffn: self.size("intermediate_size", Some(11008))?,
            max_positions: self.size("max_position_embeddings", Some(2048))?,
            norm_epsilon: self.number("rms_norm_eps", Some(1e-6))? as f32,
            rope_theta,
            rope_scaling,
            tied: self.boolean("tie_word_embeddings", false)?,
            bos: self.tokens("bos_token_id", 1)?.first().copied(),
            eos: self.tokens("eos_token_id", 2)?,
            mixing: Mixing::default(),
        })
    }

    /// The fields of `Mamba2Config`.
    fn mamba2(&self) -> Result<Config, ModelError> {
        if self.boolean("use_bias", false)? {
            return Err(self.wrong("use_bias", "false (biases are not computed)", &self.map["use_bias"]));
        }
        if !self.boolean("use_conv_bias", true)? {
            let found = &self.map["use_conv_bias"];
            return Err(self.wrong("use_conv_bias", "true (the convolution is computed with a bias)", found));
        }
        if let Some(activation) = self.present("hidden_act")
            && activation != "silu"
        {
            return Err(self.wrong("hidden_act", "\"silu\"", activation));
        }
        let (shortest, longest) = self.time_step_limit()?;
        let ssm = SsmShape {
            expand: self.size("expand", Some(2))?,
            head_dim: self.size("head_dim", Some(64))?,
            state: self.size("state_size", Some(128))?,
            groups: self.size("n_groups", Some(8))?,
            kernel: self.size("conv_kernel", Some(4))?,
            shortest,
            longest,
        };
        let width = self.size("hidden_size", Some(4096))?;
        let (heads, inner) = (self.size("num_heads", Some(128))?, ssm.expand.saturating_mul(width));
        if heads.saturating_mul(ssm.head_dim) != inner {
            let expected = format!("expand · hidden_size / head_dim = {inner} / {}", ssm.head_dim);
            return Err(self.wrong("num_heads", &expected, heads));
        }
        Ok(Config {
            vocab_size: self.size("vocab_size", Some(32768))?,
            width,
            layers: self.size("num_hidden_layers", Some(64))?,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            ffn: 0,
            max_positions: self.size("max_position_embeddings", Some(2048))?,
            norm_epsilon: self.number("layer_norm_epsilon", Some(1e-5))? as f32,
            rope_theta: 10000.0,
            rope_scaling: None,
            tied: self.boolean("tie_word_embeddings", false)?,
            bos: self.tokens("bos_token_id", 0)?.first().copied(),
            eos: self.tokens("eos_token_id", 2)?,
            mixing: Mixing { pattern: "S".into(), ssm, ..Mixing::default() },
        })
    }

    /// Shortest and longest time step; infinity is written as a number of JSON5 or as an object.
    fn time_step_limit(&self) -> Result<(f64, Option<f64>), ModelError> {
        let Some(value) = self.present("time_step_limit") else { return Ok((0.0, None)) };
        let wrong =
            || self.wrong("time_step_limit", "two numbers, of which the second may be Infinity", value);
        let Some([shortest, longest]) = value.as_array().map(Vec::as_slice) else { return Err(wrong()) };
        let infinite = longest.get("__float__").is_some_and(|number| number == "Infinity");
        let longest = if infinite { None } else { Some(longest.as_f64().ok_or_else(wrong)?) };
        Ok((shortest.as_f64().ok_or_else(wrong)?, longest))
    }

    /// Theta and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).
    fn rope(&self) -> Result<(f64, Option<Llama3Scaling>), ModelError> {
        let theta = self.number("rope_theta", Some(10000.0))?;
        let (prefix, value) = match (self.present("rope_parameters"), self.present("rope_scaling")) {
            (Some(value), _) => ("rope_parameters.", value),
            (None, Some(value)) => ("rope_scaling.", value),
            (None, None) => return Ok((theta, None)),
        };
        let Value::Object(map) = value else {
            return Err(self.wrong(prefix.trim_end_matches('.'), "an object", value));
        };
        let rope = Fields { path: self.path, prefix, map };
        let theta = rope.number("rope_theta", Some(theta))?;
        if rope.number("partial_rotary_factor", Some(1.0))? != 1.0 {
            return Err(rope.wrong("partial_rotary_factor", "1", &map["partial_rotary_factor"]));
        }
        let kind = match rope.present("rope_type").or(rope.present("type")) {
            None => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return Err(rope.wrong("rope_type", "\"default\" or \"llama3\"", other)),
        };
        match kind {
            "default" => Ok((theta, None)),
            "llama3" => {
                let scaling = Llama3Scaling {
                    factor: rope.number("factor", None)?,
                    low_freq_factor: rope.number("low_freq_factor", None)?,
                    high_freq_factor: rope.number("high_freq_factor", None)?,
                    original_max_positions: rope.size("original_max_position_embeddings", None)?,
                };
                Ok((theta, Some(scaling)))
            }
            other => Err(rope.wrong("rope_type", "\"default\" or \"llama3\"", format!("\"{other}\""))),
        }
    }
}
