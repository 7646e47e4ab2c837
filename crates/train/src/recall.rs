//! Trials of recall: a small model learns one task of [`strata_data::recall`] and nothing else, and is asked.
//!
//! Every mixer learns by the same recipe, from short sequences to full ones (a curriculum: attention finds out how to look
//! something up sooner where there is little to look through).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strata_data::recall::{CHANCE, VOCABULARY, needle_depth};
use strata_data::world::Part;
use strata_data::{Batch, RecallTask};
use strata_model::{Config, Decoder, Inference, Input, Wanted};
use strata_tensor::Cpu;

use crate::contestants::{Contestant, Size, matched_shapes};
use crate::plan::{Budget, Recipe};
use crate::{Batches, Decay, Machine, Progress, RunFiles, Schedule, Stop, TrainError, Trainer};

/// What a model has to learn, and how long it has for that.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RecallLesson {
    /// The task.
    pub task: RecallTask,
    /// Items of a full sequence; see [`RecallTask::positions`].
    pub items: usize,
    /// Width of the models; their size is that of an attention model of this width and depth.
    pub width: usize,
    /// Blocks of a mixer and an MLP.
    pub layers: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens per optimiser step, about.
    pub step_tokens: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
}

impl RecallLesson {
    /// The lesson of a task as comparisons give it.
    pub fn of(task: RecallTask) -> RecallLesson {
        let lesson = RecallLesson {
            task,
            items: 32,
            width: 64,
            layers: 4,
            steps: 1_000,
            step_tokens: 2_048,
            learning_rate: 1e-3,
        };
        match task {
            // With a quarter of the tokens per step, or from more than two pairs on, a hybrid stays where it knows which values
            // there were and not whose they are.
            RecallTask::Associative => {
                RecallLesson { steps: 1_500, step_tokens: 8_192, learning_rate: 2e-3, ..lesson }
            }
            RecallTask::Copy => RecallLesson { items: 48, ..lesson },
            RecallTask::Needle => RecallLesson { items: 253, ..lesson },
        }
    }

    /// The shape of a contestant's model.
    ///
    /// # Errors
    /// As [`matched_shapes`].
    pub fn shape(&self, contestant: &Contestant) -> Result<Config, TrainError> {
        let size = Size::Shape { width: self.width, layers: self.layers };
        let positions = self.task.positions(self.items);
        let mut shapes = matched_shapes(std::slice::from_ref(contestant), size, positions, VOCABULARY)?;
        shapes.pop().ok_or_else(|| TrainError::Request("no shape fits".into()))
    }

    /// Items of the sequences of step `step`: two for a while, then twice as many again and again until all are there.
    fn items_at(&self, step: u64) -> usize {
        let done = step as f64 / self.steps.max(1) as f64;
        let doublings = ((done - SHORT) / GROWING * (self.items.max(2) as f64 / 2.0).log2()).ceil();
        let items = if doublings > 0.0 { 2.0 * doublings.exp2() } else { 2.0 };
        (items as usize).min(self.items)
    }

    fn rows(&self, items: usize) -> usize {
        (self.step_tokens / self.task.positions(items)).max(1)
    }

    fn recipe(&self, seed: u64) -> Recipe {
        let tokens = |step| {
            let items = self.items_at(step);
            (self.rows(items) * self.task.positions(items)) as u64
        };
        Recipe {
            seed,
            sequence: self.task.positions(self.items),
            rows: self.rows(self.items),
            accumulation: 1,
            clip: 1.0,
            weight_decay: 0.01,
            // Longer memory of squares than in text: once a task is solved gradients all but vanish, and a short one then lets
            // a single step undo everything (seen with 0.95).
            betas: (0.9, 0.99),
            budget: Budget { tokens: Some((0..self.steps).map(tokens).sum()), seconds: None },
            schedule: Schedule { peak: self.learning_rate, warmup: 0.03, decay: Decay::Cosine, floor: 0.05 },
        }
    }
}

/// What a trial of recall came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecallResult {
    /// What was learnt.
    pub lesson: RecallLesson,
    /// The mixer.
    pub mixer: String,
    /// Seed of weights and sequences.
    pub seed: u64,
    /// Trainable numbers of the model.
    pub parameters: usize,
    /// Tokens that it learnt from.
    pub tokens: u64,
    /// Right answers, as a fraction of all.
    pub accuracy: f64,
    /// What a model without memory gets right.
    pub chance: f64,
    /// Answers asked for.
    pub answers: usize,
    /// For needles: right answers by depth, from the first fifth of the sequence to the last.
    pub by_depth: Vec<f64>,
    /// Bytes of the state that the model carries at the end of a sequence.
    pub state_bytes: usize,
    /// Training loss at the end, nats per answer.
    pub training_loss: f64,
}

/// Part of a lesson with the shortest sequences.
const SHORT: f64 = 0.3;
/// Part of a lesson in which sequences grow.
const GROWING: f64 = 0.3;
/// Parts of a sequence that needles are counted by.
const DEPTHS: usize = 5;
/// Answers that a model is asked for, where that takes no more than [`MOST_ASKED`] sequences.
const ANSWERS: usize = 1024;
/// Sequences that a model is asked about at most.
const MOST_ASKED: usize = 512;
/// Sequences that are read at once.
const TOGETHER: usize = 32;

/// Teaches a contestant's model the lesson and asks it about sequences that were held out. With `files`, an interrupted
/// trial goes on where it was. `None` where a stop was asked for before the end.
///
/// # Errors
/// As [`Trainer::run`].
pub fn run_recall(
    lesson: &RecallLesson,
    contestant: &Contestant,
    seed: u64,
    machine: &Machine,
    files: Option<&RunFiles>,
    stop: &Stop,
    progress: &mut Progress<'_>,
) -> Result<Option<RecallResult>, TrainError> {
    let config = lesson.shape(contestant)?;
    let recipe = lesson.recipe(seed);
    let mut batches = Lessons { lesson: *lesson, seed, step: 0 };
    let mut learner = machine.training(Decoder::new(&config, seed)?, &recipe);
    let trainer = Trainer::new(&recipe, &mut learner, &mut batches, (&[], 0), files, progress)?;
    let outcome = trainer.run(stop, progress)?;
    if outcome.stopped {
        return Ok(None);
    }
    let model = Inference::new(learner.into_decoder(), &machine.cpu);
    let (accuracy, by_depth, answers) = ask(lesson, &model, &machine.cpu, seed)?;
    Ok(Some(RecallResult {
        lesson: *lesson,
        mixer: contestant.name().to_string(),
        seed,
        parameters: config.parameter_count(),
        tokens: outcome.tokens,
        accuracy,
        chance: CHANCE,
        answers,
        by_depth,
        state_bytes: model.state_bytes(lesson.task.positions(lesson.items)),
        training_loss: outcome.training_loss,
    }))
}

/// The fraction of right answers to held-out sequences, by depth too where there are needles, and how many there were.
fn ask(
    lesson: &RecallLesson,
    model: &Inference,
    cpu: &Cpu,
    seed: u64,
) -> Result<(f64, Vec<f64>, usize), TrainError> {
    let (mut right, mut all) = ([0usize; DEPTHS], [0usize; DEPTHS]);
    let mut needles = false;
    let sequences = ANSWERS.div_ceil(lesson.task.answers(lesson.items)).min(MOST_ASKED);
    for index in 0..sequences.div_ceil(TOGETHER) as u64 {
        let batch = lesson.task.batch(lesson.items, TOGETHER, seed, index, Part::HeldOut)?;
        let length = batch.tokens.len() / TOGETHER;
        let mut states = vec![model.new_state(); TOGETHER];
        let mut inputs: Vec<Input<'_>> = states
            .iter_mut()
            .zip(batch.tokens.chunks_exact(length))
            .map(|(state, tokens)| Input { state, tokens })
            .collect();
        let logits = model.step(cpu, &mut inputs, Wanted::All)?;
        for (at, logits) in logits.chunks_exact(VOCABULARY).enumerate() {
            if batch.weights[at] == 0.0 {
                continue;
            }
            let row = &batch.tokens[at / length * length..][..length];
            let depth = needle_depth(row);
            needles |= depth.is_some();
            let part = ((depth.unwrap_or(0.0) * DEPTHS as f64) as usize).min(DEPTHS - 1);
            all[part] += 1;
            right[part] += usize::from(largest(logits) == Some(batch.targets[at] as usize));
        }
    }
    let fraction = |right: usize, all: usize| right as f64 / all.max(1) as f64;
    let answers = all.iter().sum();
    let by_depth = right.iter().zip(&all).map(|(right, all)| fraction(*right, *all)).collect();
    Ok((fraction(right.iter().sum(), answers), if needles { by_depth } else { Vec::new() }, answers))
}

/// Where the largest number is; nowhere where one is none.
fn largest(logits: &[f32]) -> Option<usize> {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))?;
    (!best.1.is_nan()).then_some(best.0)
}

/// The batches of a lesson; each is made from its number alone.
struct Lessons {
    lesson: RecallLesson,
    seed: u64,
    step: u64,
}

impl Batches for Lessons {
    fn next_batch(&mut self) -> Result<Batch, TrainError> {
        let items = self.lesson.items_at(self.step);
        let batch =
            self.lesson.task.batch(items, self.lesson.rows(items), self.seed, self.step, Part::Training)?;
        self.step += 1;
        Ok(batch)
    }

    fn position(&self) -> Value {
        json!({ "step": self.step })
    }

    fn seek(&mut self, position: &Value) -> Result<(), TrainError> {
        self.step = position["step"].as_u64().ok_or_else(|| {
            TrainError::Request("the checkpoint's place in the lesson cannot be read".to_string())
        })?;
        Ok(())
    }
}
