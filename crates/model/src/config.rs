//! `config.json` of a decoder: `LlamaForCausalLM` and `Mamba2ForCausalLM` in the spellings of transformers 4 and 5, and
//! `StrataForCausalLM`, which has the fields of the first and the mixers, for what transformers has no class for.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::mixers::{self, AnyMixer, CacheFormat, Letter, Mixing, SsmShape, UNBOUNDED};
use crate::{ModelError, WeightFormat, names::Names};
use std::sync::Arc;

/// The shape of a decoder: everything needed to compute it but the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream (`hidden_size`).
    pub width: usize,
    /// Number of blocks (`num_hidden_layers`).
    pub layers: usize,
    /// Query heads per block; 0 where no block has attention (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads per block; `heads` is a multiple of it (`num_key_value_heads`).
    pub kv_heads: usize,
    /// Width of one head; even, because rotary embedding turns pairs (`head_dim`).
    pub head_dim: usize,
    /// Width of the SwiGLU inner layer; 0 where blocks have no MLP (`intermediate_size`).
    pub ffn: usize,
    /// Longest sequence in training, in tokens; where positions are limited, [`Config::context`], in all
    /// (`max_position_embeddings`).
    pub max_positions: usize,
    /// Added to the mean square in RMS normalisation (`rms_norm_eps`).
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies (`rope_theta`).
    pub rope_theta: f64,
    /// Llama 3's stretching of the rotary frequencies; `None` is the plain rotary embedding.
    pub rope_scaling: Option<Llama3Scaling>,
    /// Whether the output head is the token embedding (`tie_word_embeddings`).
    pub tied: bool,
    /// Token that begins a document, if the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a document or a turn; may be empty.
    pub eos: Vec<u32>,
    /// What mixes the sequence in each block.
    #[serde(default)]
    pub mixing: Mixing,
}

/// Llama 3's rotary scaling: low frequencies are divided by `factor`, high ones kept, and those
/// between blended (`rope_type` "llama3" of transformers, `modeling_rope_utils.py`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// Divides the frequencies of long wavelengths.
    pub factor: f64,
    /// Wavelengths above `original_max_positions / low_freq_factor` are divided by `factor`.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Longest sequence before the stretching.
    pub original_max_positions: usize,
}

/// The architectures of `config.json`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Family {
    /// `LlamaForCausalLM`: attention and MLPs.
    Llama,
    /// `Mamba2ForCausalLM`: state-space mixers and no MLPs.
    Mamba2,
    /// `StrataForCausalLM`: everything else.
    Strata,
}

impl Family {
    const ALL: [Family; 3] = [Family::Llama, Family::Mamba2, Family::Strata];

    /// Class and `model_type`.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Mamba2 => ("Mamba2ForCausalLM", "mamba2"),
            Family::Strata => ("StrataForCausalLM", "strata"),
        }
    }
}

/// No dimension of a model that fits a machine is larger; keeps every product far from overflow.
const LARGEST_DIMENSION: usize = 1 << 24;

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

    /// Checks that the numbers fit together; `path` is named in errors.
    ///
    /// # Errors
    /// [`ModelError::Field`] naming the first field that does not fit.
    pub fn check(&self, path: &Path) -> Result<(), ModelError> {
        let field = |field: &str, expected: String, found: String| {
            Err(ModelError::Field { path: path.to_path_buf(), field: field.to_string(), expected, found })
        };
        if let Some(expected) = self.mixing.problem() {
            return field("mixing.pattern", expected, self.mixing.pattern.clone());
        }
        let attends = self.mixing.has(Letter::Attention, self.layers);
        // Without an MLP, a block is its mixer alone: only the state-space mixer gates its values by itself.
        let bare = self.mixing.is_all(Letter::Ssm, self.layers);
        for (name, value, needed) in [
            ("vocab_size", self.vocab_size, true),
            ("hidden_size", self.width, true),
            ("num_hidden_layers", self.layers, true),
            ("num_attention_heads", self.heads, attends),
            ("num_key_value_heads", self.kv_heads, attends),
            ("head_dim", self.head_dim, attends),
            ("intermediate_size", self.ffn, !bare),
            ("max_position_embeddings", self.max_positions, true),
        ] {
            if value > LARGEST_DIMENSION || value == 0 && needed {
                return field(name, format!("a number from 1 to {LARGEST_DIMENSION}"), value.to_string());
            }
        }
        if attends && !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of num_attention_heads = {}", self.heads);
            return field("num_key_value_heads", expected, self.kv_heads.to_string());
        }
        if !self.head_dim.is_multiple_of(2) {
            return field("head_dim", "an even number".into(), self.head_dim.to_string());
        }
        if self.mixing.has(Letter::Ssm, self.layers)
            && let Some((name, expected, found)) = self.mixing.ssm.problem(self.width)
        {
            let prefix = if self.family() == Family::Mamba2 { "" } else { "mixing.ssm." };
            return field(&format!("{prefix}{name}"), expected, found);
        }
        if let Some(window) = self.mixing.window
            && !(1..=UNBOUNDED).contains(&window)
        {
            return field("mixing.window", format!("a number from 1 to {UNBOUNDED}"), window.to_string());
        }
        let states = self.mixing.s4d_states;
        if self.mixing.has(Letter::S4d, self.layers)
            && !(states.is_multiple_of(2) && (2..=1 << 14).contains(&states))
        {
            let expected = format!("an even number from 2 to {}", 1 << 14);
            return field("mixing.s4d_states", expected, states.to_string());
        }
        if !(self.norm_epsilon > 0.0 && self.norm_epsilon < 1.0) {
            return field(
                if bare && self.ffn == 0 { "layer_norm_epsilon" } else { "rms_norm_eps" },
                "a number between 0 and 1".into(),
                self.norm_epsilon.to_string(),
            );
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return field("rope_theta", "a number above 1".into(), self.rope_theta.to_string());
        }
        if let Some(scaling) = self.rope_scaling {
            if !(scaling.factor >= 1.0 && scaling.factor.is_finite()) {
                return field("rope_parameters.factor", "1 or more".into(), scaling.factor.to_string());
            }
            let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
            if !(low > 0.0 && high > low && high.is_finite()) {
                let expected = format!("a number above low_freq_factor = {low}");
                return field("rope_parameters.high_freq_factor", expected, high.to_string());
            }
        }
        let bos = self.bos.iter().map(|id| ("bos_token_id", id));
        for (name, id) in bos.chain(self.eos.iter().map(|id| ("eos_token_id", id))) {
            if *id as usize >= self.vocab_size {
                return field(
                    name,
                    format!("a token below vocab_size = {}", self.vocab_size),
                    id.to_string(),
                );
            }
        }
        Ok(())
    }

    /// Hugging Face names and shapes (rows = outputs) of all weights, in the order of the computation.
    /// A tied head has no tensor of its own.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors_with(&self.mixers())
    }

    /// The mixer of every block.
    pub fn mixers(&self) -> Vec<Arc<dyn AnyMixer>> {
        mixers::of(self)
    }

    /// Bytes of a sequence's state after `length` tokens, beside weights in `format`.
    pub fn state_bytes(&self, length: usize, format: WeightFormat) -> usize {
        let format = CacheFormat::beside(format);
        self.mixers().iter().map(|mixer| mixer.state_bytes(length, format)).sum()
    }

    /// As [`Config::tensors`], with these mixers in the blocks.
    pub(crate) fn tensors_with(&self, mixers: &[Arc<dyn AnyMixer>]) -> Vec<(String, Vec<usize>)> {
        let (width, ffn, names) = (self.width, self.ffn, Names::of(self));
        let mut tensors = vec![(names.embedding.to_string(), vec![self.vocab_size, width])];
        for (layer, mixer) in mixers.iter().enumerate() {
            let mut add = |name: &str, shape: Vec<usize>| tensors.push((names.in_block(layer, name), shape));
            let weights = mixer.weights();
            if !weights.is_empty() {
                add(names.mixer_norm, vec![width]);
            }
            weights.into_iter().flat_map(|weight| weight.tensors).for_each(|(name, shape)| add(name, shape));
            if ffn > 0 {
                add(names.mlp_norm, vec![width]);
                add(names.gate, vec![ffn, width]);
                add(names.up, vec![ffn, width]);
                add(names.down, vec![width, ffn]);
            }
        }
        tensors.push((names.norm.to_string(), vec![width]));
        if !self.tied {
            tensors.push((names.head.to_string(), vec![self.vocab_size, width]));
        }
        tensors
    }

    /// Longest sequence in tokens that can be stepped through: `max_positions` where positions are limited, far more
    /// where every mixer carries a state of fixed size.
    pub fn context(&self) -> usize {
        self.mixers().iter().map(|mixer| mixer.context()).min().unwrap_or(UNBOUNDED)
    }

    /// Number of trainable numbers; a tied head counts once.
    pub fn parameter_count(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The architecture that computes this.
    pub(crate) fn family(&self) -> Family {
        if self.mixing.is_all(Letter::Attention, self.layers) && self.mixing.is_plain() {
            Family::Llama
        } else if self.mixing.is_all(Letter::Ssm, self.layers) && self.ffn == 0 {
            Family::Mamba2
        } else {
            Family::Strata
        }
    }

    /// The `config.json` that transformers 4 and 5 both open: each reads the spelling it knows
    /// (`rope_theta`, `rope_scaling`, `torch_dtype` or `rope_parameters`, `dtype`) and ignores the other. Neither has a
    /// class for what is a `StrataForCausalLM`.
    pub fn to_json(&self) -> Value {
        match self.family() {
            Family::Llama => self.llama_json(),
            Family::Mamba2 => self.mamba2_json(),
            Family::Strata => {
                let mut value = self.llama_json();
                let (class, kind) = Family::Strata.names();
                value["architectures"] = json!([class]);
                value["model_type"] = json!(kind);
                value["mixing"] = json!(self.mixing);
                value
            }
        }
    }

    fn eos_json(&self) -> Value {
        match self.eos.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        }
    }

    fn mamba2_json(&self) -> Value {
        let ssm = self.mixing.ssm;
        let mut value = json!({
            "architectures": [Family::Mamba2.names().0],
            "model_type": Family::Mamba2.names().1,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "expand": ssm.expand,
            "num_heads": ssm.inner(self.width) / ssm.head_dim,
            "head_dim": ssm.head_dim,
            "state_size": ssm.state,
            "n_groups": ssm.groups,
            "conv_kernel": ssm.kernel,
            "chunk_size": 256,
            "hidden_act": "silu",
            "use_bias": false,
            "use_conv_bias": true,
            "residual_in_fp32": true,
            "layer_norm_epsilon": shortest(self.norm_epsilon),
            // Not a field of Mamba2Config, which keeps it all the same: the length in training.
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos_json(),
            "pad_token_id": null,
            "use_cache": true,
            "dtype": "float32",
            "torch_dtype": "float32",
        });
        // Without limits the field is left out: the two versions write infinity in ways that the other does not read.
        if ssm.shortest > 0.0 || ssm.longest.is_some() {
            let longest =
                ssm.longest.map_or_else(|| json!({ "__float__": "Infinity" }), |longest| json!(longest));
            value["time_step_limit"] = json!([ssm.shortest, longest]);
        }
        value
    }

    fn llama_json(&self) -> Value {
        let mut rope = Map::new();
        let scaling = self.rope_scaling.map(|scaling| {
            json!({
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            })
        });
        match &scaling {
            Some(Value::Object(scaling)) => rope.extend(scaling.clone()),
            _ => drop(rope.insert("rope_type".into(), "default".into())),
        }
        rope.insert("rope_theta".into(), self.rope_theta.into());
        json!({
            "architectures": [Family::Llama.names().0],
            "model_type": Family::Llama.names().1,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "attention_dropout": 0.0,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": shortest(self.norm_epsilon),
            "rope_parameters": rope,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos,
            "eos_token_id": self.eos_json(),
            "pad_token_id": null,
            "initializer_range": 0.02,
            "use_cache": true,
            "dtype": "float32",
            "torch_dtype": "float32",
        })
    }

    /// Writes `config.json` into `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        crate::folder::write_json(&folder.join("config.json"), &self.to_json())
    }
}

/// The f64 that prints as the f32 does: 1e-5 stays 1e-5 and does not become 9.99999974e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// JSON has no infinity, but Python writes one: outside of strings it becomes the object that transformers 5 writes.
fn quote_infinity(text: &str) -> std::borrow::Cow<'_, str> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixers::Positions;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Config, ModelError> {
        Config::parse(text, Path::new("config.json"))
    }

    fn fixture(family: &str, file: &str) -> Option<String> {
        let shared = std::env::var("STRATA_SHARED")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").to_string());
        let path = Path::new(&shared).join("fixtures/hf").join(family).join(file);
        let text = std::fs::read_to_string(&path).ok();
        if text.is_none() {
            eprintln!("SKIPPED: no fixture at {}", path.display());
        }
        text
    }

    #[test]
    fn both_spellings_of_the_fixtures_give_one_config() {
        for family in ["llama", "llama3"] {
            let (Some(new), Some(old)) =
                (fixture(family, "config.json"), fixture(family, "config.legacy.json"))
            else {
                return;
            };
            let (new, old) = (parse(&new).unwrap(), parse(&old).unwrap());
            assert_eq!(new, old, "{family}");
            assert_eq!((new.width, new.kv_heads, new.rope_scaling.is_some()), (64, 2, family == "llama3"));
        }
    }

    #[test]
    fn other_families_are_refused_by_the_field_that_tells() {
        for family in ["gpt2", "cohere"] {
            let Some(text) = fixture(family, "config.json") else { return };
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains("architectures"), "{family}: {message}");
        }
    }

    #[test]
    fn left_out_fields_have_the_defaults_of_llama() {
        let config = parse(r#"{"model_type": "llama", "vocab_size": 128256}"#).unwrap();
        assert_eq!((config.width, config.heads, config.kv_heads, config.head_dim), (4096, 32, 32, 128));
        assert_eq!((config.bos, config.eos.as_slice()), (Some(1), &[2][..]));
        assert_eq!((config.rope_theta, config.norm_epsilon), (10000.0, 1e-6));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (field, value) in [
            ("attention_bias", "true"),
            ("mlp_bias", "true"),
            ("hidden_act", "\"gelu\""),
            ("rope_scaling.rope_type", "{\"rope_type\": \"yarn\"}"),
            ("rope_parameters.factor", "{\"rope_type\": \"llama3\"}"),
            ("num_key_value_heads", "5"),
            ("num_hidden_layers", "-1"),
            ("num_hidden_layers", "0"),
            ("num_attention_heads", "0"),
            ("head_dim", "3"),
            ("vocab_size", "1e30"),
            ("eos_token_id", "[2, \"x\"]"),
            ("eos_token_id", "[2, 40000]"),
            ("rms_norm_eps", "0"),
        ] {
            let key = field.split('.').next().unwrap();
            let text = format!(r#"{{"architectures": ["LlamaForCausalLM"], "{key}": {value}}}"#);
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(&format!("\"{field}\"")), "{field}: {message}");
        }
    }

    #[test]
    fn mamba2_is_read_in_both_spellings_and_written_so_that_it_is_read_back() {
        let (Some(new), Some(old)) =
            (fixture("mamba2", "config.json"), fixture("mamba2", "config.legacy.json"))
        else {
            return;
        };
        let (new, old) = (parse(&new).unwrap(), parse(&old).unwrap());
        assert_eq!(new, old);
        assert_eq!((new.mixing.ssm.groups, new.mixing.ssm.longest, new.norm_epsilon), (2, None, 1e-3));
        assert_eq!(parse(&new.to_json().to_string()).unwrap(), new);
        let mut limited = new;
        (limited.mixing.ssm.shortest, limited.mixing.ssm.longest) = (0.01, None);
        assert_eq!(parse(&limited.to_json().to_string()).unwrap(), limited);
    }

    #[test]
    fn infinity_inside_a_string_stays_what_it_is() {
        let text = r#"{"a": "Infinity \" Infinity", "b": [Infinity, "\\"], "c": Infinity}"#;
        let value: Value = serde_json::from_str(&quote_infinity(text)).unwrap();
        assert_eq!(value["a"], "Infinity \" Infinity");
        assert_eq!(value["b"][0]["__float__"], "Infinity");
        assert_eq!(value["c"]["__float__"], "Infinity");
    }

    #[test]
    fn mixers_that_do_not_fit_are_refused_by_name() {
        for (class, field, value) in [
            ("Mamba2ForCausalLM", "num_heads", "7"),
            ("Mamba2ForCausalLM", "n_groups", "3"),
            ("Mamba2ForCausalLM", "state_size", "0"),
            ("Mamba2ForCausalLM", "use_bias", "true"),
            ("Mamba2ForCausalLM", "use_conv_bias", "false"),
            ("Mamba2ForCausalLM", "time_step_limit", "[1.0, 0.5]"),
            ("Mamba2ForCausalLM", "time_step_limit", "[0.0, \"x\"]"),
            ("StrataForCausalLM", "mixing", "{\"patern\": \"S\"}"),
            ("StrataForCausalLM", "mixing.pattern", "{\"pattern\": \"SXA\"}"),
            ("StrataForCausalLM", "mixing.pattern", "{\"pattern\": \"\"}"),
            ("StrataForCausalLM", "mixing.window", "{\"window\": 0}"),
            ("StrataForCausalLM", "mixing", "{\"positions\": \"sine\"}"),
            ("StrataForCausalLM", "mixing.s4d_states", "{\"pattern\": \"D\", \"s4d_states\": 7}"),
            (
                "StrataForCausalLM",
                "mixing.ssm.head_dim",
                "{\"pattern\": \"SA\", \"ssm\": {\"head_dim\": 60}}",
            ),
        ] {
            let key = if class.starts_with("Strata") { "mixing" } else { field };
            let text = format!(r#"{{"architectures": ["{class}"], "{key}": {value}}}"#);
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(&format!("\"{field}\"")), "{field}: {message}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            (kv_heads, group, half) in (1usize..5, 1usize..5, 1usize..40),
            (layers, width, ffn, tied) in (1usize..9, 1usize..300, 1usize..300, any::<bool>()),
            bos in proptest::option::of(0u32..300),
            eos in proptest::collection::vec(0u32..300, 0..3),
            epsilon in 1e-8f32..1e-2,
            llama3 in any::<bool>(),
            pattern in "[ASLDN]{1,5}",
            window in proptest::option::of(1usize..100),
            longest in proptest::option::of((2u32..36).prop_map(|quarters| f64::from(quarters) / 4.0)),
        ) {
            let config = Config {
                vocab_size: 300, width, layers, heads: kv_heads * group, kv_heads, head_dim: 2 * half, ffn,
                max_positions: 77, norm_epsilon: epsilon, rope_theta: 12345.5,
                rope_scaling: llama3.then_some(Llama3Scaling {
                    factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.5, original_max_positions: 64,
                }),
                tied, bos, eos,
                mixing: Mixing {
                    pattern,
                    ssm: SsmShape { head_dim: 2, expand: 2, longest, ..SsmShape::default() },
                    positions: [Positions::Rotary, Positions::Alibi, Positions::None][layers % 3],
                    window,
                    ..Mixing::default()
                },
            };
            let read = parse(&config.to_json().to_string()).unwrap();
            // What no block of the family has is not written.
            let mut expected = config;
            if expected.family() == Family::Llama {
                expected.mixing = Mixing::default();
            }
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = parse(&text);
        }
    }
}
