//! `config.json` of a decoder: `LlamaForCausalLM` and `Mamba2ForCausalLM` in the spellings of transformers 4 and 5, and
//! `StrataForCausalLM`, which has the fields of the first and the mixers, for what transformers has no class for.

mod check;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::mixers::{self, AnyMixer, CacheFormat, Letter, Mixing, UNBOUNDED};
use crate::names::Names;

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

impl Config {
    /// Hugging Face names and shapes (rows = outputs) of all weights, in the order of the computation.
    /// A tied head has no tensor of its own.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors_with(&self.mixers())
    }

    /// The mixer of every block.
    pub fn mixers(&self) -> Vec<Arc<dyn AnyMixer>> {
        mixers::of(self)
    }

    /// Bytes of a sequence's state after `length` tokens, with keys and values in `format`.
    pub fn state_bytes(&self, length: usize, format: CacheFormat) -> usize {
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
}
