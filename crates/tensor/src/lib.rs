//! Tensors on a tape: parameters, differentiable operations as big as they can be, and the optimiser.
//!
//! A forward pass is a sequence of calls on a [`Tape`]; each records how its gradient is computed, and
//! [`Tape::backward`] replays them in reverse. Activations are matrices of tokens by features in f32 or bf16
//! ([`Activation`]); parameters, their gradients and the optimiser's state are f32 in flat buffers
//! ([`Parameters`], [`Gradients`]). Buffers come from a pool ([`Buffers`]) and go back to it.
//!
//! Hardware is reached through [`Cpu`] alone.

mod buffers;
mod cpu;
pub mod infer;
pub mod ops;
mod optimizer;
mod parameters;
pub mod recurrent;
mod tape;

pub use buffers::Buffers;
pub use cpu::Cpu;
pub use optimizer::{AdamW, OptimizerState};
pub use parameters::{Activation, Gradients, Layout, ParameterId, Parameters};
pub use strata_kernels::attention::Heads;
pub use strata_kernels::rotary::RotaryTable;
pub use strata_kernels::{Element, Isa, bf16};
pub use tape::{Tape, Var};

/// What activations are stored as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Precision {
    /// f32 throughout: the reference, and the faster one where the CPU has no bf16 arithmetic.
    #[default]
    F32,
    /// bf16 activations and weight copies; sums, statistics and master weights stay f32.
    Bf16,
}

/// A small seeded generator for the tests of this crate (SplitMix64), uniform in -1..1.
#[cfg(test)]
pub(crate) fn random_values(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
