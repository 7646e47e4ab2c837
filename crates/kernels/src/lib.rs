//! Pure functions on slices: the arithmetic of a language model, one implementation per instruction set.
//!
//! Every function takes an [`Isa`] value, which proves that the CPU has the instructions, and works on one
//! thread; splitting work among threads is the business of the crate above. Matrices are row-major slices
//! with explicit strides ([`MatrixRef`], [`MatrixMut`]). Elements are `f32` or `bf16` ([`Element`]); sums,
//! statistics and exponentials are computed in `f32` (but see [`Isa::sums_in_fp16`] and [`Isa::attends_in_fp16`]).
//!
//! Each `name_forward` has a `name_backward` beside it, and each is tested against a float64 reference on
//! odd shapes for every instruction set that the machine has.

#[macro_use]
mod multiversion;

pub mod attention;
pub mod attention_step;
mod attention_tiled;
pub mod buffer;
pub mod cache;
pub mod conv;
pub mod cross_entropy;
pub mod element;
pub mod embedding;
pub mod gated_norm;
pub mod grid;
mod grouped;
pub mod isa;
pub mod local_attention;
pub mod lstm;
pub mod math;
pub mod matmul;
pub mod matrix;

pub mod norm;
pub mod optimizer;
pub mod peak;
mod prefetch;
pub mod projection;
pub mod rotary;
pub mod s4d;
pub mod ssm;
pub mod swiglu;
pub mod team;
pub(crate) mod tile;
pub mod tiles;

#[cfg(test)]
pub(crate) mod reference;

pub use element::Element;
pub use grid::BlockMut;
pub use half::bf16;
pub use isa::{AmxStatus, Isa, IsaError, Level};
pub use matmul::{Store, matmul};
pub use matrix::{MatrixMut, MatrixRef};
