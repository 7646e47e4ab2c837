//! Decoding: choosing the next token, for one sequence or many at once; answers of a given form.

mod constraint;
mod decode;
mod sampler;
mod text;

pub use constraint::{
    Constraint, ConstraintError, Grammars, Shape, Tool, ToolCall, ToolChoice, parse_tool_calls,
};
pub use decode::{Finish, GenerateError, Generated, Limits, generate};
pub use sampler::{Sampler, Sampling};
pub use text::TextStream;
