//! Training: the stages base, command and dialogue, and what they share.
//!
//! A stage (one file each) reads its data, asks the [`plan`] for a recipe, and hands both to the
//! [`trainer`], which steps, measures and saves. Nothing here prints: a run tells [`Event`]s.

pub mod base;
mod batches;
pub mod checkpoint;
pub mod command;
pub mod compare;
pub mod contestants;
pub mod dialogue;
pub mod error;
pub mod examples;
pub mod learner;
pub mod machine;
pub mod metrics;
pub mod plan;
pub mod positions;
pub mod progress;
pub mod recall;
pub mod run;
pub mod scaling;
pub mod schedule;
pub mod speed;
pub mod stop;
pub mod trainer;
pub mod trials;

pub use base::{BaseRequest, train_base};
pub use checkpoint::{Checkpoint, Moments, RunState};
pub use command::train_command;
pub use contestants::{Contestant, Size, matched_shapes};
pub use dialogue::train_dialogue;
pub use error::TrainError;
pub use examples::ExamplesRequest;
pub use learner::{Batches, Learner};
pub use machine::Machine;
pub use metrics::Metrics;
pub use plan::{Budget, Dial, Overrides, Recipe};
pub use progress::{Event, Progress, StepReport, Validation};
pub use recall::{RecallLesson, RecallResult, run_recall};
pub use run::{Finished, Workplace};
pub use schedule::{Decay, Schedule};
pub use stop::Stop;
pub use strata_data::Batch;
pub use trainer::{Outcome, RunFiles, Trainer};
pub use trials::{Study, Trial, TrialRequest, TrialResult};
