//! The loop that all stages share: step, measure, save, until the budget is used or someone says stop.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use strata_model::Config;

use crate::plan::{Budget, Recipe};
use crate::{
    Batch, Batches, Checkpoint, Event, Learner, Metrics, Progress, RunState, StepReport, Stop, TrainError,
    Validation,
};

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Optimiser steps done.
    pub step: u64,
    /// Tokens seen, padding counted.
    pub tokens: u64,
    /// Seconds of training, measuring and saving, interruptions not counted.
    pub seconds: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Mean training loss of about the last 50 steps, in nats per weighted target.
    pub training_loss: f64,
    /// The held-out part at the end; none when there is none.
    pub validation: Option<Validation>,
    /// Tokens per second of the steps alone.
    pub tokens_per_second: f64,
    /// Whether someone stopped the run before its end.
    pub stopped: bool,
}

/// Where a run keeps its files.
#[derive(Debug, Clone)]
pub struct RunFiles {
    /// The run's folder.
    pub folder: PathBuf,
    /// Seconds between checkpoints.
    pub checkpoint_seconds: f64,
}

impl RunFiles {
    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// The file of measurements.
    pub fn metrics(&self) -> PathBuf {
        self.folder.join("metrics.jsonl")
    }
}

/// Held-out measurements per run, spread evenly; the last is at the end.
pub(crate) const VALIDATIONS: f64 = 10.0;
/// Fraction of a time budget that measurements before the last may take.
const VALIDATION_SHARE: f64 = 0.04;
/// Seconds over which the shown rate is averaged.
const RATE_WINDOW: f64 = 10.0;

/// A run under way.
pub struct Trainer<'a> {
    recipe: &'a Recipe,
    learner: &'a mut dyn Learner,
    batches: &'a mut dyn Batches,
    /// Held-out batches and the bytes of text their weighted targets stand for (0: unknown).
    held_out: &'a [Batch],
    held_out_bytes: u64,
    files: Option<&'a RunFiles>,
    metrics: Option<Metrics>,
    state: RunState,
    /// When `state.seconds` was 0, as if the run had never been interrupted.
    began: Instant,
    seconds_before: f64,
    step_seconds: f64,
    validation_seconds: f64,
    smoothed_loss: Smoothed,
    recent: VecDeque<(f64, u64)>,
}

impl<'a> Trainer<'a> {
    /// Sets up a run. With `files`, it continues from the newest whole checkpoint there, if there is one, and
    /// keeps checkpoints and measurements.
    ///
    /// # Errors
    /// The checkpoints cannot be read or belong to another run.
    pub fn new(
        recipe: &'a Recipe,
        learner: &'a mut dyn Learner,
        batches: &'a mut dyn Batches,
        held_out: (&'a [Batch], u64),
        files: Option<&'a RunFiles>,
        progress: &mut Progress<'_>,
    ) -> Result<Trainer<'a>, TrainError> {
        let position = batches.position();
        let mut state = RunState { step: 0, tokens: 0, seconds: 0.0, flops: 0.0, position };
        let mut metrics = None;
        if let Some(files) = files {
            if let Some(checkpoint) = Checkpoint::load_newest(&files.checkpoints(), progress)? {
                if checkpoint.config != *learner.config() {
                    let mixer = |config: &Config| config.mixing.name(config.layers);
                    let reason = format!(
                        "its checkpoints are of a model of another shape ({}, {} parameters) than this run's ({}, {}); \
                         use another name, or --restart to begin anew",
                        mixer(&checkpoint.config),
                        checkpoint.config.parameter_count(),
                        mixer(learner.config()),
                        learner.config().parameter_count()
                    );
                    return Err(TrainError::Run { path: files.checkpoints(), reason });
                }
                learner.restore(checkpoint.tensors, checkpoint.moments)?;
                batches.seek(&checkpoint.state.position)?;
                state = checkpoint.state;
                progress(Event::Note(format!("continuing from step {}", state.step)));
            }
            std::fs::create_dir_all(&files.folder).map_err(TrainError::io("create", &files.folder))?;
            metrics = Some(Metrics::open(&files.metrics(), state.step)?);
        }
        let seconds_before = state.seconds;
        Ok(Trainer {
            recipe,
            learner,
            batches,
            held_out: held_out.0,
            held_out_bytes: held_out.1,
            files,
            metrics,
            state,
            began: Instant::now(),
            seconds_before,
            step_seconds: 0.0,
            validation_seconds: 0.0,
            smoothed_loss: Smoothed::default(),
            recent: VecDeque::new(),
        })
    }

    /// Trains until the budget is used or `stop` is asked for; then measures once more, and saves.
    ///
    /// # Errors
    /// The loss is no longer a number, data cannot be read, or a file cannot be written.
    pub fn run(mut self, stop: &Stop, progress: &mut Progress<'_>) -> Result<Outcome, TrainError> {
        let (first_step, first_tokens) = (self.state.step, self.state.tokens);
        let mut validation = self.validate(progress)?;
        let mut saved_at = self.seconds();
        // The rate counts from here: what was trained before an interruption took none of this process's time.
        self.recent.push_back((saved_at, self.state.tokens));
        let mut stepping = 0.0;
        while !self.finished() && !stop.asked() {
            let before = self.fraction();
            let started = Instant::now();
            self.step(progress)?;
            let seconds = started.elapsed().as_secs_f64();
            stepping += seconds;
            let steps = (self.state.step - first_step) as f64;
            self.step_seconds += (seconds - self.step_seconds) / steps.min(20.0);
            let validations = self.validations();
            let due = (self.fraction() * validations).floor() > (before * validations).floor();
            if due && !self.finished() {
                validation = self.validate(progress)?;
            }
            if let Some(files) = self.files
                && self.seconds() - saved_at >= files.checkpoint_seconds
                && !self.finished()
            {
                self.save(files, progress)?;
                saved_at = self.seconds();
            }
        }
        let stopped = !self.finished();
        if self.state.step > first_step {
            if !stopped {
                validation = self.validate(progress)?;
            }
            if let Some(files) = self.files {
                self.save(files, progress)?;
            }
        }
        self.state.seconds = self.seconds();
        Ok(Outcome {
            step: self.state.step,
            tokens: self.state.tokens,
            seconds: self.state.seconds,
            flops: self.state.flops,
            training_loss: self.smoothed_loss.mean(),
            validation,
            tokens_per_second: (self.state.tokens - first_tokens) as f64 / stepping.max(f64::MIN_POSITIVE),
            stopped,
        })
    }

    /// One optimiser step over `accumulation` batches. The loss is divided by the weight of all of them
    /// together, so that the way they are divided among passes does not matter.
    fn step(&mut self, progress: &mut Progress<'_>) -> Result<(), TrainError> {
        let batches: Vec<Batch> =
            (0..self.recipe.accumulation).map(|_| self.batches.next_batch()).collect::<Result<_, _>>()?;
        let weight: f64 = batches.iter().map(weight).sum();
        let tokens: u64 = batches.iter().map(|batch| batch.tokens.len() as u64).sum();
        let learning_rate = self.recipe.schedule.learning_rate(self.fraction_within_step(tokens));
        let diverged = |what| TrainError::Diverged { what, step: self.state.step + 1, learning_rate };
        let mut nats = 0.0;
        for batch in &batches {
            nats += self.learner.loss_and_gradients(batch, weight.max(1.0) as f32)?;
        }
        let loss = nats / weight.max(1.0);
        if !loss.is_finite() {
            return Err(diverged("loss"));
        }
        let gradient_norm = self.learner.gradient_norm();
        if !gradient_norm.is_finite() {
            return Err(diverged("gradient"));
        }
        let scale = if gradient_norm > self.recipe.clip { self.recipe.clip / gradient_norm } else { 1.0 };
        self.learner.optimizer_step(learning_rate, scale);
        self.state.step += 1;
        self.state.tokens += tokens;
        self.state.flops += tokens as f64 * self.learner.flops_per_token(self.recipe.sequence);
        self.state.position = self.batches.position();
        self.smoothed_loss.add(loss);
        let report = self.report(loss, gradient_norm, learning_rate);
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&report)?;
        }
        progress(Event::Step(report));
        Ok(())
    }

    /// Measures the held-out part, if there is one.
    fn validate(&mut self, progress: &mut Progress<'_>) -> Result<Option<Validation>, TrainError> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let started = Instant::now();
        let validation = measure(self.learner, self.held_out, self.held_out_bytes)?;
        self.validation_seconds = started.elapsed().as_secs_f64();
        let step = self.state.step;
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&json!({ "step": step, "validation": validation }))?;
        }
        progress(Event::Validated { step, validation });
        Ok(Some(validation))
    }

    /// How many measurements the run has time for.
    fn validations(&self) -> f64 {
        let affordable =
            |seconds: f64| (VALIDATION_SHARE * seconds / self.validation_seconds.max(1e-9)).floor();
        self.recipe.budget.seconds.map_or(VALIDATIONS, |seconds| affordable(seconds).clamp(1.0, VALIDATIONS))
    }

    fn save(&mut self, files: &RunFiles, progress: &mut Progress<'_>) -> Result<(), TrainError> {
        self.state.seconds = self.seconds();
        let checkpoint = Checkpoint {
            state: self.state.clone(),
            config: self.learner.config().clone(),
            tensors: self.learner.tensors(),
            moments: self.learner.moments(),
        };
        let path = checkpoint.save(&files.checkpoints())?;
        progress(Event::Saved { step: self.state.step, path });
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.began.elapsed().as_secs_f64()
    }

    /// Seconds for steps: the budget less what the last measurement and the saving will take.
    fn usable_seconds(&self, seconds: f64) -> f64 {
        let ending = if self.files.is_some() { 2.0 } else { 1.0 } * self.validation_seconds;
        (seconds - ending.min(0.2 * seconds)).max(f64::MIN_POSITIVE)
    }

    /// Fraction of the budget that is used, 0 to 1.
    fn fraction(&self) -> f64 {
        self.fraction_within_step(0)
    }

    /// The fraction at the middle of a step of `tokens`. It depends on the clock only where the budget does.
    fn fraction_within_step(&self, tokens: u64) -> f64 {
        let Budget { tokens: all, seconds } = self.recipe.budget;
        let by_tokens =
            all.map_or(0.0, |all| (self.state.tokens as f64 + tokens as f64 / 2.0) / (all as f64).max(1.0));
        let ahead = if tokens > 0 { self.step_seconds / 2.0 } else { 0.0 };
        let by_seconds =
            seconds.map_or(0.0, |seconds| (self.seconds() + ahead) / self.usable_seconds(seconds));
        by_tokens.max(by_seconds).min(1.0)
    }

    fn finished(&self) -> bool {
        let Budget { tokens, seconds } = self.recipe.budget;
        let by_tokens = tokens.is_some_and(|tokens| self.state.tokens >= tokens);
        let by_seconds = seconds
            .is_some_and(|seconds| self.seconds() + self.step_seconds / 2.0 >= self.usable_seconds(seconds));
        by_tokens || by_seconds || (tokens.is_none() && seconds.is_none())
    }

    fn report(&mut self, loss: f64, gradient_norm: f64, learning_rate: f64) -> StepReport {
        let seconds = self.seconds();
        self.recent.push_back((seconds, self.state.tokens));
        while self.recent.len() > 2 && seconds - self.recent[0].0 > RATE_WINDOW {
            self.recent.pop_front();
        }
        let (since, tokens) = self.recent[0];
        let rate = (self.state.tokens - tokens) as f64 / (seconds - since).max(1e-9);
        let fraction = self.fraction();
        StepReport {
            step: self.state.step,
            fraction,
            tokens: self.state.tokens,
            loss,
            gradient_norm,
            learning_rate,
            tokens_per_second: rate,
            flops_per_second: rate * self.learner.flops_per_token(self.recipe.sequence),
            seconds,
            seconds_left: if fraction > 0.0 { seconds * (1.0 - fraction) / fraction } else { 0.0 },
        }
    }
}

/// Measures `learner` on `batches`; `bytes` of text stand behind their weighted targets (0: unknown).
///
/// # Errors
/// A batch does not fit the model.
pub fn measure(learner: &mut dyn Learner, batches: &[Batch], bytes: u64) -> Result<Validation, TrainError> {
    let mut nats = 0.0;
    for batch in batches {
        nats += learner.loss(batch)?;
    }
    let weight: f64 = batches.iter().map(weight).sum();
    let bits_per_byte = (bytes > 0).then(|| nats / std::f64::consts::LN_2 / bytes as f64);
    Ok(Validation { loss: nats / weight.max(f64::MIN_POSITIVE), bits_per_byte })
}

/// The newest whole checkpoint of a run, if there is one: whether a run can be continued.
///
/// # Errors
/// As [`Checkpoint::load_newest`].
pub fn resumable(folder: &Path, progress: &mut Progress<'_>) -> Result<Option<u64>, TrainError> {
    let newest = Checkpoint::load_newest(&folder.join("checkpoints"), progress)?;
    Ok(newest.map(|checkpoint| checkpoint.state.step))
}

fn weight(batch: &Batch) -> f64 {
    batch.weights.iter().map(|weight| f64::from(*weight)).sum()
}

/// A mean over about the last 50 values, right from the first one on.
#[derive(Default)]
struct Smoothed {
    sum: f64,
    weight: f64,
}

impl Smoothed {
    fn add(&mut self, value: f64) {
        const KEEP: f64 = 0.98;
        self.sum = KEEP * self.sum + value;
        self.weight = KEEP * self.weight + 1.0;
    }

    fn mean(&self) -> f64 {
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests;
