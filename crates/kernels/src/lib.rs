//! Pure functions on slices, one implementation per instruction set.
//!
//! [`Isa`] says which instruction set a function runs on; a value of it exists only where its
//! instructions do, so functions that take one are safe to call.

pub mod amx;
pub mod buffer;
pub mod isa;
pub mod matrix;
pub mod peak;

pub use isa::{AmxStatus, Isa, IsaError, Level};
pub use matrix::MatrixRef;
