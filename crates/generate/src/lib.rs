//! Decoding: choosing the next token, for one sequence or many at once.

mod decode;
mod sampler;
mod text;

pub use decode::{Finish, GenerateError, Generated, Limits, generate};
pub use sampler::{Sampler, Sampling};
pub use text::TextStream;
