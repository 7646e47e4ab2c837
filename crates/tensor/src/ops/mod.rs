//! The differentiable operations, one file each: a method of [`Tape`](crate::Tape) that computes and records,
//! and the gradient beside it.

mod attention;
mod cross_entropy;
mod embedding;
mod linear;
mod rms_norm;
mod swiglu;

pub use cross_entropy::Loss;

#[cfg(test)]
pub(crate) mod check;
