//! The loop with a model of a few numbers: what a token is followed by, one logit per pair.

use serde_json::Value;
use strata_model::{Config, NamedTensor};

use super::*;
use crate::{Decay, Moments, Schedule};
use std::time::Duration;

const VOCAB: usize = 5;

/// Logits of the next token are a row of a table. Trained by plain gradient descent; the moments are there
/// to see that they are carried through a checkpoint.
struct Bigram {
    config: Config,
    table: Vec<f32>,
    gradients: Vec<f32>,
    moments: Moments,
    fail_at: Option<u64>,
    /// How long a pass takes.
    pause: Duration,
}

fn config() -> Config {
    Config {
        vocab_size: VOCAB,
        width: VOCAB,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        ffn: 1,
        max_positions: 8,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: true,
        bos: None,
        eos: vec![],
        mixing: strata_model::Mixing::default(),
    }
}

impl Bigram {
    fn new() -> Bigram {
        let config = config();
        let count = config.parameter_count();
        let moments = Moments { step: 0, first: vec![0.0; count], second: vec![0.0; count] };
        Bigram {
            config,
            table: vec![0.0; VOCAB * VOCAB],
            gradients: vec![0.0; VOCAB * VOCAB],
            moments,
            fail_at: None,
            pause: Duration::ZERO,
        }
    }

    fn probabilities(&self, token: u32) -> Vec<f64> {
        let row = &self.table[token as usize * VOCAB..][..VOCAB];
        let exponentials: Vec<f64> = row.iter().map(|logit| f64::from(*logit).exp()).collect();
        let sum: f64 = exponentials.iter().sum();
        exponentials.iter().map(|value| value / sum).collect()
    }
}

impl Learner for Bigram {
    fn config(&self) -> &Config {
        &self.config
    }
    fn loss_and_gradients(&mut self, batch: &Batch, normalizer: f32) -> Result<f64, TrainError> {
        std::thread::sleep(self.pause);
        for ((token, target), weight) in batch.tokens.iter().zip(&batch.targets).zip(&batch.weights) {
            let probabilities = self.probabilities(*token);
            for (next, probability) in probabilities.iter().enumerate() {
                let error = *probability as f32 - f32::from(next == *target as usize);
                self.gradients[*token as usize * VOCAB + next] += weight * error / normalizer;
            }
        }
        if self.fail_at == Some(self.moments.step) { Ok(f64::NAN) } else { self.loss(batch) }
    }
    fn loss(&mut self, batch: &Batch) -> Result<f64, TrainError> {
        let each = batch.tokens.iter().zip(&batch.targets).zip(&batch.weights);
        Ok(each
            .map(|((token, target), weight)| {
                -f64::from(*weight) * self.probabilities(*token)[*target as usize].ln()
            })
            .sum())
    }
    fn gradient_norm(&self) -> f64 {
        self.gradients.iter().map(|gradient| f64::from(*gradient).powi(2)).sum::<f64>().sqrt()
    }
    fn optimizer_step(&mut self, learning_rate: f64, gradient_scale: f64) {
        for ((weight, gradient), first) in
            self.table.iter_mut().zip(&mut self.gradients).zip(&mut self.moments.first)
        {
            *first = 0.9 * *first + *gradient * gradient_scale as f32;
            *weight -= learning_rate as f32 * *first;
            *gradient = 0.0;
        }
        self.moments.step += 1;
    }
    fn flops_per_token(&self, _sequence: usize) -> f64 {
        10.0
    }
    fn tensors(&self) -> Vec<NamedTensor> {
        let tensors = self.config.tensors().into_iter();
        tensors
            .map(|(name, shape)| {
                let count = shape.iter().product();
                let data = if name.contains("embed") { self.table.clone() } else { vec![0.0; count] };
                NamedTensor { name, shape, data }
            })
            .collect()
    }
    fn moments(&self) -> Moments {
        self.moments.clone()
    }
    fn restore(&mut self, tensors: Vec<NamedTensor>, moments: Moments) -> Result<(), TrainError> {
        self.table = tensors[0].data.clone();
        self.moments = moments;
        Ok(())
    }
}

/// Batches by number: token `i` is followed by `2 i + 1`, with some noise that depends on the number.
struct Counting {
    next: u64,
}

impl Counting {
    fn batch(number: u64) -> Batch {
        let tokens: Vec<u32> = (0..8).map(|i| ((i + number) % VOCAB as u64) as u32).collect();
        let targets =
            tokens.iter().map(|token| (2 * token + 1 + u32::from(number.is_multiple_of(7))) % VOCAB as u32);
        Batch {
            targets: targets.collect(),
            weights: vec![1.0; tokens.len()],
            starts: vec![0],
            bytes: 16,
            tokens,
        }
    }
}

impl Batches for Counting {
    fn next_batch(&mut self) -> Result<Batch, TrainError> {
        self.next += 1;
        Ok(Counting::batch(self.next - 1))
    }
    fn position(&self) -> Value {
        self.next.into()
    }
    fn seek(&mut self, position: &Value) -> Result<(), TrainError> {
        self.next = position.as_u64().ok_or_else(|| TrainError::Request("not a number".into()))?;
        Ok(())
    }
}

fn recipe(tokens: Option<u64>, seconds: Option<f64>) -> Recipe {
    Recipe {
        seed: 1,
        sequence: 8,
        rows: 1,
        accumulation: 2,
        clip: 1.0,
        weight_decay: 0.0,
        betas: (0.9, 0.95),
        budget: Budget { tokens, seconds },
        schedule: Schedule { peak: 0.5, warmup: 0.1, decay: Decay::Cosine, floor: 0.1 },
    }
}

fn files(folder: &Path) -> RunFiles {
    RunFiles { folder: folder.to_path_buf(), checkpoint_seconds: 1e9 }
}

fn train(
    recipe: &Recipe,
    learner: &mut Bigram,
    files: Option<&RunFiles>,
    stop: &Stop,
    progress: &mut Progress<'_>,
) -> Result<Outcome, TrainError> {
    let held_out = [Counting::batch(1), Counting::batch(2)];
    let mut batches = Counting { next: 0 };
    Trainer::new(recipe, learner, &mut batches, (&held_out, 32), files, progress)?.run(stop, progress)
}

#[test]
fn training_learns_and_counts() {
    let mut learner = Bigram::new();
    let recipe = recipe(Some(16 * 100), None);
    let mut losses = Vec::new();
    let mut validations = 0;
    let outcome = train(&recipe, &mut learner, None, &Stop::default(), &mut |event| match event {
        Event::Step(report) => losses.push(report.loss),
        Event::Validated { .. } => validations += 1,
        _ => {}
    })
    .unwrap();
    assert_eq!((outcome.step, outcome.tokens, outcome.flops, outcome.stopped), (100, 1600, 16000.0, false));
    // An untrained table is uniform: ln 5.
    assert!((losses[0] - 5f64.ln()).abs() < 1e-6);
    assert!(losses[99] < 0.5 * losses[0], "{}", losses[99]);
    let validation = outcome.validation.unwrap();
    // 16 targets stand for 32 bytes, so bits per byte are half the bits per target.
    let bits = validation.loss / std::f64::consts::LN_2 / 2.0;
    assert!((validation.bits_per_byte.unwrap() - bits).abs() < 1e-12);
    assert_eq!(validations, 11, "once before, then ten spread over the run");
}

#[test]
fn a_run_that_was_stopped_continues_to_the_same_numbers() {
    let recipe = recipe(Some(16 * 60), None);
    let whole_folder = tempfile::tempdir().unwrap();
    let mut whole = Bigram::new();
    let whole_files = files(whole_folder.path());
    train(&recipe, &mut whole, Some(&whole_files), &Stop::default(), &mut |_| ()).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    let stop = Stop::default();
    let asked = stop.clone();
    let outcome = train(&recipe, &mut Bigram::new(), Some(&files), &stop, &mut |event| {
        if matches!(event, Event::Step(report) if report.step == 23) {
            asked.ask();
        }
    })
    .unwrap();
    assert!(outcome.stopped && outcome.step == 23);

    // A fresh process: nothing but the folder is left.
    let mut resumed = Bigram { pause: Duration::from_millis(1), ..Bigram::new() };
    let mut rates = Vec::new();
    let outcome = train(&recipe, &mut resumed, Some(&files), &Stop::default(), &mut |event| {
        if let Event::Step(report) = event {
            rates.push(report.tokens_per_second);
        }
    })
    .unwrap();
    // 16 tokens in two passes of a millisecond, not those of 23 steps before.
    assert!(rates[0] <= 8000.0, "{} tokens per second", rates[0]);
    assert_eq!((outcome.step, outcome.stopped), (60, false));
    assert_eq!(resumed.table, whole.table, "bit for bit");
    assert_eq!(resumed.moments, whole.moments);
    let steps = |files: &RunFiles| -> Vec<u64> {
        let text = std::fs::read_to_string(files.metrics()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line.get("loss").is_some()).map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps(&files), (1..=60).collect::<Vec<u64>>());
    assert_eq!(steps(&files), steps(&whole_files));
}

#[test]
fn a_time_budget_is_kept_and_the_rate_falls_to_its_floor() {
    let recipe = recipe(None, Some(0.3));
    let mut last = 1.0;
    let started = Instant::now();
    let outcome = train(&recipe, &mut Bigram::new(), None, &Stop::default(), &mut |event| {
        if let Event::Step(report) = event {
            last = report.learning_rate;
            // So that steps are long enough to be timed.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    })
    .unwrap();
    // Generous for a busy machine; the schedule itself ends at 0.3 s.
    assert!(started.elapsed().as_secs_f64() < 0.6 && outcome.step > 5);
    assert!((0.05..0.1).contains(&last), "{last}");
}

#[test]
fn a_loss_that_is_not_a_number_ends_the_run_with_its_step() {
    let mut learner = Bigram { fail_at: Some(4), ..Bigram::new() };
    let result = train(&recipe(Some(1600), None), &mut learner, None, &Stop::default(), &mut |_| ());
    assert!(matches!(result, Err(TrainError::Diverged { what: "loss", step: 5, .. })), "{result:?}");
}

#[test]
fn a_budget_without_end_trains_nothing() {
    let outcome =
        train(&recipe(None, None), &mut Bigram::new(), None, &Stop::default(), &mut |_| ()).unwrap();
    assert_eq!(outcome.step, 0);
}
