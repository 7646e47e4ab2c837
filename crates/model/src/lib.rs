//! Models: their configuration, their weights, and the Hugging Face folders they live in.
//!
//! A Strata model on disk *is* a Hugging Face folder; nothing has to be exported. This crate reads and
//! writes the parts that belong to the model (`config.json`, `model.safetensors`,
//! `generation_config.json`, `lineage.json`) and knows where models and runs live ([`Home`]).

pub mod config;
pub mod decoder;
pub mod error;
pub mod folder;
pub mod home;
pub mod inference;
pub mod lineage;
pub mod mixers;
mod names;
pub mod training;
pub mod weights;

pub use config::{Config, Llama3Scaling};
pub use decoder::Decoder;
pub use error::ModelError;
pub use home::Home;
pub use inference::{Inference, Input, State, Wanted, WeightFormat};
pub use lineage::{DataFile, Lineage, Parent};
pub use mixers::{Mixing, Positions, SsmShape};
pub use training::{Batch, Training};
pub use weights::{NamedTensor, read_weights, write_weights};
