//! Names of weights on disk, except those of the mixers, which name their own.

use crate::Config;
use crate::config::Family;

/// The names of one family of checkpoints; those of a block stand behind its prefix.
#[derive(Debug)]
pub(crate) struct Names {
    pub embedding: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    blocks: &'static str,
    pub mixer_norm: &'static str,
    pub mlp_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

const LLAMA: Names = Names {
    embedding: "model.embed_tokens.weight",
    norm: "model.norm.weight",
    head: "lm_head.weight",
    blocks: "model.layers",
    mixer_norm: "input_layernorm.weight",
    mlp_norm: "post_attention_layernorm.weight",
    gate: "mlp.gate_proj.weight",
    up: "mlp.up_proj.weight",
    down: "mlp.down_proj.weight",
};

/// Without MLPs: their names are not used.
const MAMBA2: Names = Names {
    embedding: "backbone.embeddings.weight",
    norm: "backbone.norm_f.weight",
    blocks: "backbone.layers",
    mixer_norm: "norm.weight",
    ..LLAMA
};

impl Names {
    /// The names of the family that `config` belongs to.
    pub fn of(config: &Config) -> &'static Names {
        match config.family() {
            Family::Llama | Family::Strata => &LLAMA,
            Family::Mamba2 => &MAMBA2,
        }
    }

    /// The name of a tensor of block `layer`.
    pub fn in_block(&self, layer: usize, name: &str) -> String {
        format!("{}.{layer}.{name}", self.blocks)
    }
}
