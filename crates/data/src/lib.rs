//! Data in: corpora, tokenizers, pairs, dialogues and tasks, token shards and packing.
//!
//! The way of a corpus is `Corpus` → `Tokenizer::train` → [`shards::build`] → [`packing::BaseBatches`];
//! the way of pairs and dialogues is [`records`] → [`packing::tokenise_examples`] →
//! [`packing::ExampleBatches`]. `docs/data-formats.md` describes the formats. A line that does not fit
//! is an error with file, line and field: nothing is skipped in silence, and what is dropped on
//! request is counted.

pub mod corpus;
mod error;
pub mod files;
pub mod hash;
pub mod message;
pub mod packing;
pub mod recall;
pub mod records;
pub mod shards;
pub mod split;
pub mod tokenizer;
pub mod world;

pub use corpus::{Corpus, Document};
pub use error::DataError;
pub use files::FileDigest;
pub use message::{Example, Message, Origin, Role};
pub use packing::{BaseBatches, Batch, ExampleBatches};
pub use recall::RecallTask;
pub use records::{Dialogue, Pair, Task};
pub use shards::Shard;
pub use tokenizer::{StreamDecoder, Tokenizer};
