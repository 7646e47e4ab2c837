//! What a run needs: a model that learns and batches to learn from.

use serde_json::Value;
use strata_model::{Config, NamedTensor};

use crate::{Batch, Moments, TrainError};

/// A model that can be trained. The trainer knows no more of it than this, so that architectures can be
/// exchanged and the trainer tested with a model that a person can compute by hand.
pub trait Learner {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// Runs the model forward and backward. Gradients of the weighted loss, divided by `normalizer`, are added
    /// to those already there. Returns the weighted sum of the losses in nats.
    ///
    /// # Errors
    /// The batch does not fit the model.
    fn loss_and_gradients(&mut self, batch: &Batch, normalizer: f32) -> Result<f64, TrainError>;

    /// The weighted sum of the losses in nats, without gradients.
    ///
    /// # Errors
    /// The batch does not fit the model.
    fn loss(&mut self, batch: &Batch) -> Result<f64, TrainError>;

    /// L2 norm of all gradients together.
    fn gradient_norm(&self) -> f64;

    /// One optimiser step with the gradients times `gradient_scale`; the gradients are zero afterwards.
    fn optimizer_step(&mut self, learning_rate: f64, gradient_scale: f64);

    /// Floating-point operations of training on one token in rows of `sequence`.
    fn flops_per_token(&self, sequence: usize) -> f64;

    /// The weights.
    fn tensors(&self) -> Vec<NamedTensor>;

    /// The optimiser's state.
    fn moments(&self) -> Moments;

    /// Puts weights and optimiser where a checkpoint has them.
    ///
    /// # Errors
    /// They belong to another shape.
    fn restore(&mut self, tensors: Vec<NamedTensor>, moments: Moments) -> Result<(), TrainError>;
}

/// An endless, repeatable stream of batches.
pub trait Batches {
    /// The next batch.
    ///
    /// # Errors
    /// The data cannot be read.
    fn next_batch(&mut self) -> Result<Batch, TrainError>;

    /// Where the stream stands, for [`Batches::seek`].
    fn position(&self) -> Value;

    /// Continues at `position`, exactly.
    ///
    /// # Errors
    /// The position is not one of this stream.
    fn seek(&mut self, position: &Value) -> Result<(), TrainError>;
}
