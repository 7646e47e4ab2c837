//! Decoding: choosing the next token, for one sequence or many at once; answers of a given form.

mod constraint;
mod decode;
pub mod engine;
mod sampler;
mod text;

pub use constraint::{
    CALL_BEGIN, CALL_END, Constraint, ConstraintError, Grammars, Shape, Tool, ToolCall, ToolChoice,
    parse_tool_calls,
};
pub use decode::{Finish, GenerateError, Generated, Limits, generate};
pub use engine::Engine;
pub use sampler::{Sampler, Sampling};
pub use text::TextStream;
