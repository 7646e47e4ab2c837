//! Trials: many small base models of one corpus, trained by one recipe, to be compared.
//!
//! A [`Study`] has a run's folder, with a tokenizer and shards that all trials share. A [`Trial`] is everything that
//! determines one result; its [`TrialResult`] is a file in the study's `trials/` that appears whole, is named by a hash
//! of the trial, and is never computed twice. Budgets are in tokens, never in seconds, so that a study can be stopped,
//! continued and disturbed without another outcome.

mod result;
mod study;

pub use result::{Point, TrialResult};
pub(crate) use result::{read_whole, write_whole};
pub(crate) use study::hexadecimal;
pub use study::{Study, Trial, TrialRequest};
