//! Causal self-attention with rotary positions and grouped heads (Vaswani et al. 2017; Su et al. 2021; Ainslie et
//! al. 2023).

use super::{Carried, Kind, Mixer, Packed, Start, Step, Weight, Whole};
use crate::Config;
use std::sync::{Arc, OnceLock};
use strata_tensor::infer::{self, Cached, KeyValueCache};
use strata_tensor::{Activation, Cpu, Heads, Isa, RotaryTable, Tape, Var};

/// Attention of the heads of a configuration.
#[derive(Debug)]
pub(crate) struct Attention {
    width: usize,
    heads: Heads,
    frequencies: Vec<f64>,
    positions: usize,
    /// Made when first needed: for a long context it is large, and names and shapes are asked for without it.
    rotary: OnceLock<Arc<RotaryTable>>,
}

impl Attention {
    pub fn new(config: &Config) -> Attention {
        let heads =
            Heads { heads: config.heads, key_value_heads: config.kv_heads, dimension: config.head_dim };
        Attention {
            width: config.width,
            heads,
            frequencies: rotary_frequencies(config),
            positions: config.max_positions,
            rotary: OnceLock::new(),
        }
    }

    fn rotary(&self) -> &Arc<RotaryTable> {
        self.rotary.get_or_init(|| Arc::new(RotaryTable::new(&self.frequencies, self.positions)))
    }
}

impl Mixer for Attention {
    fn weights(&self) -> Vec<Weight> {
        let (width, heads) = (self.width, self.heads);
        let (query, key) = (heads.query_row(), heads.key_value_heads * heads.dimension);
        vec![
            Weight {
                shape: (heads.row(), width),
                kind: Kind::Projection,
                tensors: vec![
                    ("self_attn.q_proj.weight", vec![query, width]),
                    ("self_attn.k_proj.weight", vec![key, width]),
                    ("self_attn.v_proj.weight", vec![key, width]),
                ],
                start: Start::Normal,
            },
            Weight::projection("self_attn.o_proj.weight", width, query, Start::Residual),
        ]
    }

    fn forward<E: Activation>(&self, tape: &mut Tape<'_, E>, whole: &Whole<'_>) -> Var {
        let qkv = tape.linear(whole.x, whole.weights[0]);
        let attended = tape.attention(qkv, self.heads, self.rotary(), whole.starts);
        tape.linear_residual(attended, whole.weights[1], whole.residual)
    }

    fn new_state(&self, isa: Isa) -> Carried {
        Carried::Cache { heads: self.heads, cache: KeyValueCache::new(isa, self.heads) }
    }

    fn step(&self, cpu: &Cpu, weights: &[Packed], step: Step<'_, '_>) {
        let (heads, row) = (self.heads, self.heads.row());
        let rows = step.x.len() / self.width;
        let mut qkv = step.buffers.take::<f32>(rows * row);
        infer::project(cpu, step.x, weights[0].projection(), &mut qkv);
        let positions: Vec<usize> =
            step.pieces.iter().flat_map(|piece| piece.position..piece.position + piece.new).collect();
        infer::rotate(cpu, heads, self.rotary(), &positions, &mut qkv);
        let mut rest = &qkv[..];
        for piece in step.pieces.iter_mut() {
            let (own, others) = rest.split_at(piece.new * row);
            let Carried::Cache { cache, .. } = &mut *piece.carried else { unreachable!("checked before") };
            for row in own.chunks_exact(row) {
                cache.push(&row[heads.key_start(0)..heads.value_start(0)], &row[heads.value_start(0)..]);
            }
            rest = others;
        }
        // Behind the last keys and values, only what is wanted is computed.
        let wanted = step.keep_wanted(&mut qkv, row);
        let cached = step.pieces.iter().map(|piece| {
            let Carried::Cache { cache, .. } = &*piece.carried else { unreachable!("checked before") };
            Cached { new: if step.last_only { 1 } else { piece.new }, cache }
        });
        let mut attended = step.buffers.take::<f32>(wanted * heads.query_row());
        infer::attention(cpu, heads, &qkv[..wanted * row], &cached.collect::<Vec<_>>(), &mut attended);
        infer::project(cpu, &attended, weights[1].projection(), step.y);
        step.buffers.give(qkv);
        step.buffers.give(attended);
    }

    fn state_bytes(&self, length: usize) -> usize {
        length * 2 * self.heads.key_value_heads * self.heads.dimension * size_of::<f32>()
    }

    fn flops(&self, length: usize) -> f64 {
        // A token sees half of the sequence on average: a product for its score and one for its value.
        4.0 * self.heads.query_row() as f64 * length as f64 / 2.0
    }

    fn context(&self) -> usize {
        self.positions
    }
}

/// Radians per position of each pair of a head; see [`crate::Llama3Scaling`] for the stretched ones.
fn rotary_frequencies(config: &Config) -> Vec<f64> {
    let half = config.head_dim / 2;
    let plain = (0..half).map(|i| config.rope_theta.powf(-(i as f64) / half as f64));
    let Some(scaling) = config.rope_scaling else { return plain.collect() };
    let original = scaling.original_max_positions as f64;
    plain
        .map(|frequency| {
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            let (low, high) = (scaling.low_freq_factor, scaling.high_freq_factor);
            if wavelength > original / low {
                frequency / scaling.factor
            } else if wavelength < original / high {
                frequency
            } else {
                let blend = (original / wavelength - low) / (high - low);
                (1.0 - blend) * frequency / scaling.factor + blend * frequency
            }
        })
        .collect()
}
