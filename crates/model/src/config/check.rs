//! Whether the numbers of a configuration fit together.

use std::path::Path;

use super::{Config, Family};
use crate::ModelError;
use crate::mixers::{Letter, UNBOUNDED};

/// No dimension of a model that fits a machine is larger; keeps every product far from overflow.
const LARGEST_DIMENSION: usize = 1 << 24;

impl Config {
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
}
