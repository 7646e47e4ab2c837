//! Comparing mixers: models of matched size, by one recipe, on one corpus, with the same time or the same tokens.
//!
//! A [`Comparison`] is a run's folder with a plan in it. The plan is made once, from speeds measured on a quiet machine, and
//! kept: from then on everything is counted in tokens, so that what else the machine does changes no result. Every result
//! is a file of its own that appears whole and is never computed twice; what is missing is made by the parts
//! ([`train`], [`lengths`], [`recall`], [`speed`]), each of which can be stopped and run again.

mod files;
mod plan;
mod summary;
mod work;

pub use files::Comparison;
pub use plan::{CompareRequest, Entry, Plan};
pub use summary::{LossRun, Row, Spread, Summary, summary};
pub use work::{Told, lengths, recall, speed, train};
