//! What is compared, decided before anything is trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strata_model::Config;

use crate::contestants::{Contestant, Size, matched_shapes};
use crate::plan::{Budget, Dial, Facts, Overrides, Recipe, matmul_parameters, plan_base};
use crate::speed::{Speed, Timed, training_speed};
use crate::trials::Study;
use crate::{Machine, TrainError};

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareRequest {
    /// Files and folders of text.
    pub corpus: Vec<PathBuf>,
    /// The mixers.
    pub mixers: Vec<Contestant>,
    /// Parameters of each model, about, embeddings counted.
    pub parameters: u64,
    /// Seconds of training steps per model, on a quiet machine.
    pub seconds: Option<f64>,
    /// Tokens per model, where no seconds are given.
    pub tokens: Option<u64>,
    /// Seeds: 1, 2 and so on.
    pub seeds: u64,
    /// Tokens of a sequence in training.
    pub sequence: usize,
    /// Tokens of the vocabulary; what suits the corpus where none is given.
    pub vocab_size: Option<usize>,
    /// Threads that train one model.
    pub threads: usize,
    /// Precision of training: "f32" or "bf16".
    pub precision: String,
    /// Optimiser steps of each lesson of recall; the lesson's own where none is given.
    pub recall_steps: Option<u64>,
    /// Lengths at which the speed of training is measured.
    pub lengths: Vec<usize>,
}

impl CompareRequest {
    /// Checks that it can be met.
    ///
    /// # Errors
    /// What cannot be, and what could.
    pub fn check(&self) -> Result<(), TrainError> {
        let wrong = |what: String| Err(TrainError::Request(what));
        if self.mixers.is_empty() {
            return wrong("no mixers to compare; name one or more".into());
        }
        for (at, mixer) in self.mixers.iter().enumerate() {
            let same = |other: &Contestant| other.file_name() == mixer.file_name();
            if self.mixers[..at].iter().any(same) {
                return wrong(format!("the mixer \"{}\" is named twice", mixer.name()));
            }
        }
        if self.seeds == 0 {
            return wrong("0 seeds: expected one or more".into());
        }
        if self.lengths.iter().any(|length| !(16..=1 << 17).contains(length)) {
            return wrong("a length to measure speed at: expected 16 to 131072 tokens".into());
        }
        if !(16..=1 << 16).contains(&self.sequence) {
            return wrong(format!("sequences of {} tokens: expected 16 to 65536", self.sequence));
        }
        match (self.seconds, self.tokens) {
            (Some(seconds), None) if seconds > 0.0 => Ok(()),
            (None, Some(tokens)) if tokens > 0 => Ok(()),
            _ => wrong("say how long, by minutes or by tokens, above 0".into()),
        }
    }

    /// The shapes of the models, in the order of the mixers.
    ///
    /// # Errors
    /// As [`matched_shapes`].
    pub fn shapes(&self, vocab_size: usize) -> Result<Vec<Config>, TrainError> {
        matched_shapes(&self.mixers, Size::Parameters(self.parameters), self.sequence, vocab_size)
    }
}

/// A mixer with its model and its budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The mixer.
    pub mixer: Contestant,
    /// Its model.
    pub model: Config,
    /// How it is trained; the seed is put in for each trial.
    pub recipe: Recipe,
    /// Trainable numbers.
    pub parameters: usize,
    /// The speed of training steps when the plan was made, on as many threads as train one model.
    pub speed: Speed,
}

/// Everything that is decided before anything is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What was asked for.
    pub request: CompareRequest,
    /// Instruction set of the machine that the plan was made on.
    pub isa: String,
    /// Tokens of the corpus that are trained on, each counted once.
    pub corpus_tokens: u64,
    /// The models, in the order of the mixers; none before the plan is made.
    pub entries: Vec<Entry>,
}

/// Tokens of a training step whose speed is measured.
const MEASURED_TOKENS: usize = 2048;
/// Steps that are measured.
const MEASURED_STEPS: usize = 7;

/// Decides shapes, speeds and budgets. `machine` has as many threads as train one model; `peak` measures its operations per
/// second.
///
/// # Errors
/// Something asked for cannot be met.
pub(super) fn decide(
    request: &CompareRequest,
    study: &Study,
    machine: &Machine,
    peak: &dyn Fn(&Machine) -> f64,
    tell: &mut dyn FnMut(String),
) -> Result<Plan, TrainError> {
    let mut models = request.shapes(study.vocab_size())?;
    let threads = machine.cpu.threads();
    let rows = (MEASURED_TOKENS / request.sequence).max(1).next_multiple_of(threads);
    let mut speeds = Vec::new();
    for (mixer, model) in request.mixers.iter().zip(&mut models) {
        model.bos = study.tokenizer().bos_id();
        model.eos = study.tokenizer().eos_ids().to_vec();
        let shape = (request.sequence, rows);
        let speed = training_speed(machine, model, shape, Timed::Steps, MEASURED_STEPS, peak)?;
        tell(format!(
            "{}: {} parameters, {:.0} tokens/s, {:.0} % of the peak",
            mixer.name(),
            model.parameter_count(),
            speed.tokens_per_second,
            100.0 * speed.utilisation
        ));
        speeds.push(speed);
    }
    let budget = |speed: &Speed| match (request.tokens, request.seconds) {
        (Some(tokens), _) => tokens,
        (None, seconds) => (seconds.unwrap_or(0.0) * speed.tokens_per_second).max(1.0) as u64,
    };
    let mut budgets: Vec<u64> = speeds.iter().map(budget).collect();
    let recipe = recipe(request, study, &models[0], &budgets, threads)?;
    let entries = request.mixers.iter().zip(models).zip(&speeds).zip(budgets.drain(..));
    let entries = entries.map(|(((mixer, model), speed), tokens)| Entry {
        mixer: mixer.clone(),
        parameters: model.parameter_count(),
        recipe: Recipe { budget: Budget { tokens: Some(tokens), seconds: None }, ..recipe.clone() },
        model,
        speed: *speed,
    });
    Ok(Plan {
        request: request.clone(),
        isa: machine.cpu.isa().name().to_string(),
        corpus_tokens: study.corpus_tokens(),
        entries: entries.collect(),
    })
}

/// One recipe for all: the dial's for the middle budget, so that no mixer gets another learning rate or batch than the
/// others for the speed it has.
fn recipe(
    request: &CompareRequest,
    study: &Study,
    model: &Config,
    budgets: &[u64],
    threads: usize,
) -> Result<Recipe, TrainError> {
    let mut sorted = budgets.to_vec();
    sorted.sort_unstable();
    let overrides = Overrides {
        sequence: Some(request.sequence),
        width: Some(model.width),
        layers: Some(model.layers),
        ..Overrides::default()
    };
    let facts = Facts {
        flops_per_second: 0.0,
        threads,
        corpus_tokens: study.corpus_tokens(),
        vocab_size: study.vocab_size(),
    };
    let dial = Dial {
        seconds: None,
        tokens: Some(sorted[sorted.len() / 2]),
        parameters: Some(matmul_parameters(model) as u64),
    };
    Ok(plan_base(dial, facts, &overrides, 0)?.recipe)
}
