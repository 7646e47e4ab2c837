//! What a run tells while it goes on. The library reports events; showing them is the caller's.

use std::path::PathBuf;

use serde::Serialize;

/// Receives the events of a run, in order, on the thread that trains.
pub type Progress<'a> = dyn FnMut(Event) + 'a;

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A decision or an observation a person should read, one line.
    Note(String),
    /// Something is not as it should be, but the run goes on.
    Warning(String),
    /// A part of the work begins: reading, tokenizing, training, saving.
    Phase(String),
    /// An optimiser step is done.
    Step(StepReport),
    /// The held-out part was measured.
    Validated {
        /// Optimiser steps done.
        step: u64,
        /// The measurement.
        validation: Validation,
    },
    /// A checkpoint was written.
    Saved {
        /// Optimiser steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
}

/// State of a run after an optimiser step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// Optimiser steps done.
    pub step: u64,
    /// Fraction of the budget that is used, 0 to 1.
    pub fraction: f64,
    /// Tokens seen, padding counted.
    pub tokens: u64,
    /// Mean loss of this step's weighted targets, in nats per token.
    pub loss: f64,
    /// L2 norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Tokens per second, over the last seconds.
    pub tokens_per_second: f64,
    /// Floating-point operations per second, over the last seconds.
    pub flops_per_second: f64,
    /// Seconds of training so far, interruptions not counted.
    pub seconds: f64,
    /// Estimated seconds to the end.
    pub seconds_left: f64,
}

/// A measurement on the held-out part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Validation {
    /// Mean loss in nats per weighted target token.
    pub loss: f64,
    /// Loss in bits per UTF-8 byte of the text the targets stand for; absent when the bytes are unknown.
    pub bits_per_byte: Option<f64>,
}
