//! Causal self-attention with grouped heads (Vaswani et al. 2017; Ainslie et al. 2023): with rotary positions (Su et al.
//! 2021), a penalty on distance (ALiBi: Press et al. 2022) or no positions, over everything or a sliding window.

use super::{
    CacheFormat, Carried, Kind, Mixer, Packed, Piece, Positions, Start, Step, UNBOUNDED, Weight, Whole,
};
use crate::Config;
use std::sync::{Arc, OnceLock};
use strata_tensor::infer::{self, Attending, KeyValueCache};
use strata_tensor::ops::Sight;
use strata_tensor::recurrent::{self, Sighted};
use strata_tensor::{Activation, Cpu, Heads, Isa, RotaryTable, Tape, Var};

/// Attention of the heads of a configuration.
#[derive(Debug)]
pub(crate) struct Attention {
    width: usize,
    heads: Heads,
    frequencies: Vec<f64>,
    positions: usize,
    /// Rotary or not, and what a token sees; `None` is rotary and everything, which has a cache of its own when decoding.
    local: Option<Local>,
    /// Made when first needed: for a long context it is large, and names and shapes are asked for without it.
    rotary: OnceLock<Arc<RotaryTable>>,
}

/// Attention that is not a Llama's.
#[derive(Clone, Copy, Debug)]
struct Local {
    rotary: bool,
    sight: Sight,
}

impl Local {
    fn of(config: &Config) -> Option<Local> {
        let (positions, window) = (config.mixing.positions, config.mixing.window);
        let sight = Sight { window: window.unwrap_or(usize::MAX), alibi: positions == Positions::Alibi };
        let rotary = positions == Positions::Rotary;
        (!rotary || window.is_some()).then_some(Local { rotary, sight })
    }
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
            local: Local::of(config),
            rotary: OnceLock::new(),
        }
    }

    fn rotary(&self) -> &Arc<RotaryTable> {
        self.rotary.get_or_init(|| Arc::new(RotaryTable::new(&self.frequencies, self.positions)))
    }

    /// The table for segments of which the longest has so many tokens: within a window, more than in training are no
    /// matter.
    fn table_for(&self, longest: usize) -> Arc<RotaryTable> {
        match longest <= self.positions {
            true => self.rotary().clone(),
            false => Arc::new(RotaryTable::new(&self.frequencies, longest)),
        }
    }

    /// Elements of the keys and values of a token.
    fn shared_row(&self) -> usize {
        2 * self.heads.key_value_heads * self.heads.dimension
    }

    fn local_step(&self, cpu: &Cpu, local: Local, weights: &[Packed], step: Step<'_, '_>) {
        let (row, query_row) = (self.heads.row(), self.heads.query_row());
        let rows = step.x.len() / self.width;
        let mut qkv = step.buffers.take::<f32>(rows * row);
        infer::project(cpu, step.x, weights[0].projection(), step.words, &mut qkv);
        let mut sequences = Vec::with_capacity(step.pieces.len());
        for Piece { carried, new, position } in step.pieces.iter_mut() {
            let rows = match &mut **carried {
                Carried::Rows { width, values } => {
                    values.resize((*position + *new) * *width, 0.0);
                    values.as_mut_slice()
                }
                fixed => fixed.fixed(),
            };
            sequences.push(Sighted { new: *new, position: *position, rows });
        }
        let mut attended = step.buffers.take::<f32>(rows * query_row);
        let frequencies = local.rotary.then_some(&self.frequencies[..]);
        recurrent::local_attention(cpu, self.heads, frequencies, local.sight, &qkv, sequences, &mut attended);
        let wanted = step.keep_wanted(&mut attended, query_row);
        infer::project(cpu, &attended[..wanted * query_row], weights[1].projection(), step.words, step.y);
        step.buffers.give(qkv);
        step.buffers.give(attended);
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
        let (table, sight) = match self.local {
            None => (Some(self.rotary().clone()), Sight::ALL),
            Some(Local { rotary, sight }) => {
                let ends = whole.starts.iter().skip(1).map(|&start| start as usize).chain([tape.rows(qkv)]);
                let lengths =
                    whole.starts.iter().zip(ends).map(|(&start, end)| end.saturating_sub(start as usize));
                (rotary.then(|| self.table_for(lengths.max().unwrap_or(0))), sight)
            }
        };
        let attended = tape.attention(qkv, self.heads, table, sight, whole.starts);
        tape.linear_residual(attended, whole.weights[1], whole.residual)
    }

    fn new_state(&self, isa: Isa, format: CacheFormat) -> Carried {
        match self.local {
            None => Carried::Cache(KeyValueCache::new(isa, self.heads, format)),
            Some(Local { sight: Sight { window: usize::MAX, .. }, .. }) => {
                Carried::Rows { width: self.shared_row(), values: Vec::new() }
            }
            Some(Local { sight, .. }) => Carried::Fixed(vec![0.0; sight.window * self.shared_row()]),
        }
    }

    fn step(&self, cpu: &Cpu, weights: &[Packed], step: Step<'_, '_>) {
        if let Some(local) = self.local {
            return self.local_step(cpu, local, weights, step);
        }
        let (heads, row) = (self.heads, self.heads.row());
        let rows = step.x.len() / self.width;
        let mut qkv = step.buffers.take::<f32>(rows * row);
        let positions: Vec<usize> =
            step.pieces.iter().flat_map(|piece| piece.position..piece.position + piece.new).collect();
        let (table, turned) = (self.rotary(), heads.heads + heads.key_value_heads);
        infer::project_then(cpu, step.x, weights[0].projection(), step.words, &mut qkv, |rows, qkv| {
            infer::rotate_rows(cpu.isa(), table, &positions[rows], turned, row, qkv);
        });
        // Behind the last keys and values, only what is wanted is computed.
        let last_only = step.last_only;
        let sequences = step.pieces.iter_mut().map(|piece| {
            let Carried::Cache(cache) = &mut *piece.carried else { unreachable!("checked before") };
            Attending { new: piece.new, wanted: if last_only { 1 } else { piece.new }, cache }
        });
        let sequences: Vec<_> = sequences.collect();
        let wanted: usize = sequences.iter().map(|sequence| sequence.wanted).sum();
        let mut attended = step.buffers.take::<f32>(wanted * heads.query_row());
        infer::attention(cpu, heads, &qkv, sequences, &mut attended);
        infer::project(cpu, &attended, weights[1].projection(), step.words, step.y);
        step.buffers.give(qkv);
        step.buffers.give(attended);
    }

    fn state_bytes(&self, length: usize, format: CacheFormat) -> usize {
        let bytes = |kept: usize| kept * self.shared_row() * size_of::<f32>();
        match self.local {
            None => bytes(length) / format.elements(),
            Some(Local { sight, .. }) if sight.window < usize::MAX => bytes(sight.window),
            Some(_) => bytes(length),
        }
    }

    fn flops(&self, length: usize) -> f64 {
        // A token sees half of the sequence on average, or its window where it begins behind that: a product for each
        // score and one for each value.
        let window = self.local.map_or(length, |local| local.sight.window.min(length)) as f64;
        let length = length.max(1) as f64;
        let seen = (window * window / 2.0 + (length - window) * window) / length;
        4.0 * self.heads.query_row() as f64 * seen
    }

    fn context(&self) -> usize {
        // Without rotary positions, or with a window, distances are all that matters.
        if self.local.is_some() { UNBOUNDED } else { self.positions }
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
