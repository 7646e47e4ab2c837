//! The differentiable operations, one file each: a method of [`Tape`](crate::Tape) that computes and records,
//! and the gradient beside it.

mod attention;
mod conv;
mod cross_entropy;
mod embedding;
mod gated_norm;
mod linear;
pub(crate) mod lstm;
mod rms_norm;
mod s4d;
pub(crate) mod segments;
mod ssm_scan;
mod swiglu;

pub use attention::Sight;
pub use cross_entropy::Loss;
pub use s4d::{S4dNumbers, S4dParameters};
pub use ssm_scan::{ScanParameters, ScanShape};
pub use strata_kernels::ssm::CHUNK;

#[cfg(test)]
pub(crate) mod check;
