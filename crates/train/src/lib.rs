//! Training: the stages base, command and dialogue, and what they share.
//!
//! A stage (one file each) reads its data, asks the [`plan`] for a recipe, and hands both to the
//! [`trainer`], which steps, measures and saves. Nothing here prints: a run tells [`Event`]s.

mod batch;
pub mod checkpoint;
pub mod error;
pub mod learner;
pub mod metrics;
pub mod plan;
pub mod progress;
pub mod schedule;
pub mod stop;
pub mod trainer;

pub use batch::Batch;
pub use checkpoint::{Checkpoint, Moments, RunState};
pub use error::TrainError;
pub use learner::{Batches, Learner};
pub use metrics::Metrics;
pub use plan::{Budget, Dial, Overrides, Recipe};
pub use progress::{Event, Progress, StepReport, Validation};
pub use schedule::{Decay, Schedule};
pub use stop::Stop;
pub use trainer::{Outcome, RunFiles, Trainer};
