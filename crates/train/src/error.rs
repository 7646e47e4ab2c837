//! What can go wrong in training, said so that a person can act on it.

use std::path::{Path, PathBuf};

use strata_model::ModelError;

/// Everything a run can fail with.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A model's files.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The data.
    #[error(transparent)]
    Data(#[from] strata_data::DataError),
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the run folder does not say what it should.
    #[error("{}: {reason}", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A checkpoint is not whole.
    #[error("checkpoint {} is not whole: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A request or a setting that cannot be met.
    #[error("{0}")]
    Request(String),
    /// The loss or the gradient stopped being a number.
    #[error(
        "the {what} is not a number at step {step} (learning rate {learning_rate:.1e}); \
         the last checkpoint is intact: continue from it with a lower learning rate"
    )]
    Diverged {
        /// "loss" or "gradient".
        what: &'static str,
        /// The step at which it was seen.
        step: u64,
        /// The learning rate of that step.
        learning_rate: f64,
    },
}

impl TrainError {
    /// For `map_err`: an operating-system error with what was being done to which path.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
        let path = path.to_path_buf();
        move |source| TrainError::Io { doing, path, source }
    }
}
