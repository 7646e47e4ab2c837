//! How fast a shape trains here, and what it takes of the machine.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use strata_data::Batch;
use strata_model::{Config, Decoder, Training};
use strata_tensor::AdamW;

use crate::plan::flops_per_token;
use crate::{Learner, Machine, TrainError};

/// A speed of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens of a sequence.
    pub length: usize,
    /// Sequences of a pass.
    pub rows: usize,
    /// Tokens per second, the middle of several passes.
    pub tokens_per_second: f64,
    /// Operations per token of training.
    pub flops_per_token: f64,
    /// Operations per second as a fraction of the peak right before and after each pass, the middle one.
    pub utilisation: f64,
    /// The peak: operations per second, the middle one.
    pub peak_flops: f64,
    /// Threads that computed.
    pub threads: usize,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// Forward and backward.
    Passes,
    /// Whole steps, with clipping and the optimiser.
    Steps,
}

/// Measures training of a model of `config` on `rows` sequences of `length` made-up tokens, `repeats` times after one that
/// is not counted. `peak` measures the peak of the machine in operations per second.
///
/// # Errors
/// The shape is none, or has no room for the length.
pub fn training_speed(
    machine: &Machine,
    config: &Config,
    (length, rows): (usize, usize),
    timed: Timed,
    repeats: usize,
    peak: &dyn Fn(&Machine) -> f64,
) -> Result<Speed, TrainError> {
    let mut config = config.clone();
    config.max_positions = config.max_positions.max(length);
    let count = rows * length;
    // Numbers that look random: what the tokens are does not matter, but that they are many different ones.
    let tokens: Vec<u32> =
        (0..count).map(|i| (i as u64 * 2_654_435_761 % config.vocab_size as u64) as u32).collect();
    let batch = Batch {
        targets: tokens.iter().rev().copied().collect(),
        weights: vec![1.0; count],
        starts: (0..rows).map(|row| (row * length) as u32).collect(),
        bytes: 0,
        tokens,
    };
    let flops = flops_per_token(&config, length);
    let decoder = Decoder::new(&config, 1)?;
    let mut learner = Training::new(decoder, machine.cpu.clone(), machine.precision, AdamW::default());
    let mut pass = || -> Result<(), TrainError> {
        Learner::loss_and_gradients(&mut learner, &batch, count as f32)?;
        if timed == Timed::Steps {
            let norm = Learner::gradient_norm(&learner);
            Learner::optimizer_step(&mut learner, 1e-4, 1.0 / norm.max(1.0));
        }
        Ok(())
    };
    pass()?;
    let (mut seconds, mut shares, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = peak(machine);
    for _ in 0..repeats.max(1) {
        let started = Instant::now();
        pass()?;
        let elapsed = started.elapsed().as_secs_f64();
        let after = peak(machine);
        let beside = (before + after) / 2.0;
        before = after;
        seconds.push(elapsed);
        shares.push(count as f64 * flops / elapsed / beside);
        peaks.push(beside);
    }
    Ok(Speed {
        length,
        rows,
        tokens_per_second: count as f64 / median(seconds),
        flops_per_token: flops,
        utilisation: median(shares),
        peak_flops: median(peaks),
        threads: machine.cpu.threads(),
    })
}

/// The middle value; the upper one of two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
