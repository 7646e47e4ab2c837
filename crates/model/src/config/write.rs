//! `config.json` written, so that transformers 4 and 5 both open it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Config, Family};
use crate::ModelError;

impl Config {
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
