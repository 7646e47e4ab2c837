//! The one dial: from minutes (or tokens, or parameters) to everything else, each choice with its reason.

mod optimizer;
mod overrides;
mod shape;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use strata_model::Config;

use crate::{Schedule, TrainError};

use optimizer::{
    TOKENS_PER_PASS, choose_batch, choose_beta2, choose_rate, nearest_rows, schedule, step_tokens,
};
pub use overrides::Overrides;
use shape::choose_shape;
pub use shape::{flops_per_token, matmul_parameters, predicted_loss, shape_of_width, vocab_size};

/// When a run ends: after so many tokens or seconds of training, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Tokens to see, padding and repeats counted.
    pub tokens: Option<u64>,
    /// Seconds of training, measuring and saving included, interruptions not.
    pub seconds: Option<f64>,
}

/// Every number a run of any stage needs besides its data and its model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of weights and data order.
    pub seed: u64,
    /// Tokens per row.
    pub sequence: usize,
    /// Rows per pass through the model.
    pub rows: usize,
    /// Passes per optimiser step.
    pub accumulation: usize,
    /// Longest L2 norm of the gradient; longer ones are scaled down to it.
    pub clip: f64,
    /// AdamW's decay of weights per step, times the learning rate.
    pub weight_decay: f64,
    /// AdamW's two averaging factors.
    pub betas: (f64, f64),
    /// When the run ends.
    pub budget: Budget,
    /// The learning rate over the run.
    pub schedule: Schedule,
}

/// The dial, as a person sets it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Dial {
    /// Seconds for training.
    pub seconds: Option<f64>,
    /// Tokens to see.
    pub tokens: Option<u64>,
    /// Parameters, embeddings counted.
    pub parameters: Option<u64>,
}

/// What is known before a base run begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Floating-point operations per second that training reaches on this machine.
    pub flops_per_second: f64,
    /// Threads that train; each carries rows of its own.
    pub threads: usize,
    /// Tokens of the corpus, each counted once.
    pub corpus_tokens: u64,
    /// Size of the vocabulary.
    pub vocab_size: usize,
}

/// One choice with its reason, for a person to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What was chosen.
    pub what: String,
    /// The value.
    pub value: String,
    /// Why.
    pub why: String,
}

/// A base run, decided.
#[derive(Debug, Clone, PartialEq)]
pub struct BasePlan {
    /// The model's shape, without its special tokens.
    pub shape: Config,
    /// The run.
    pub recipe: Recipe,
    /// Every choice with its reason, in the order of the choosing.
    pub decisions: Vec<Decision>,
}

/// Tokens per parameter at which training compute is best spent (Hoffmann et al. 2022, "Training
/// Compute-Optimal Large Language Models").
const TOKENS_PER_PARAMETER: f64 = 20.0;
/// Chooses shape and recipe of a base model.
///
/// # Errors
/// A setting that cannot be: more heads than fit the width, no data.
pub fn plan_base(dial: Dial, facts: Facts, overrides: &Overrides, seed: u64) -> Result<BasePlan, TrainError> {
    if facts.corpus_tokens == 0 {
        return Err(TrainError::Request("the corpus has no tokens; give one with text in it".into()));
    }
    let mut decisions = Decisions(Vec::new());
    let mixing = overrides.mixing(0)?;
    decisions.add("mixer", mixing.name(mixing.pattern.len()), overrides.mixer.is_some(), || {
        "the default; --mixer takes another".to_string()
    });
    let compute = match (dial.seconds, dial.tokens, dial.parameters) {
        (Some(seconds), _, _) => seconds * facts.flops_per_second,
        (None, Some(tokens), Some(parameters)) => 6.0 * tokens as f64 * parameters as f64,
        (None, Some(tokens), None) => 6.0 * (tokens as f64).powi(2) / TOKENS_PER_PARAMETER,
        (None, None, Some(parameters)) => 6.0 * TOKENS_PER_PARAMETER * (parameters as f64).powi(2),
        (None, None, None) => {
            return Err(TrainError::Request("say how long: minutes, tokens or parameters".into()));
        }
    };
    let sequence = overrides.sequence.unwrap_or(match compute {
        c if c < 1e15 => 256,
        c if c < 1e18 => 512,
        _ => 1024,
    });
    decisions.add("sequence", sequence, overrides.sequence.is_some(), || {
        format!("tokens of context that {compute:.1e} operations can teach to use")
    });
    let shape = choose_shape(dial, facts, compute, sequence, overrides, &mut decisions)?;
    let flops_per_token = flops_per_token(&shape, sequence);
    let tokens = match (dial.tokens, dial.seconds) {
        (Some(tokens), _) => tokens as f64,
        (None, Some(_)) => compute / flops_per_token,
        (None, None) => TOKENS_PER_PARAMETER * matmul_parameters(&shape),
    };
    decisions.add("tokens", tokens.round(), dial.tokens.is_some(), || {
        format!(
            "{:.1} per parameter, {:.1} passes over the corpus of {} tokens",
            tokens / shape.parameter_count() as f64,
            tokens / facts.corpus_tokens as f64,
            facts.corpus_tokens
        )
    });
    let (rows, accumulation) = choose_batch(compute, tokens, sequence, facts, overrides, &mut decisions);
    let step_tokens = (sequence * rows * accumulation) as f64;
    let peak = choose_rate(compute, shape.width, step_tokens, overrides, &mut decisions);
    let beta2 = choose_beta2(step_tokens, overrides, &mut decisions);
    let recipe = Recipe {
        seed,
        sequence,
        rows,
        accumulation,
        clip: overrides.clip.unwrap_or(1.0),
        weight_decay: overrides.weight_decay.unwrap_or(0.1),
        betas: (0.9, beta2),
        budget: Budget {
            tokens: if dial.seconds.is_some() { dial.tokens } else { Some(tokens.round() as u64) },
            seconds: dial.seconds,
        },
        schedule: schedule(peak, overrides),
    };
    Ok(BasePlan { shape, recipe, decisions: decisions.0 })
}

/// What is known before a run on examples begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExampleFacts {
    /// Peak learning rate of the run that made the model, where its lineage tells.
    pub parent_rate: Option<f64>,
    /// Tokens of one pass over the packed examples.
    pub tokens: u64,
    /// Threads that train; each carries rows of its own.
    pub threads: usize,
    /// Tokens per second that training reaches; needed where the dial is in seconds.
    pub tokens_per_second: f64,
}

/// Passes over the examples when nothing says how long.
const EXAMPLE_EPOCHS: u64 = 3;

/// The recipe of a stage that teaches a finished model new behaviour from examples.
pub fn plan_examples(
    dial: Dial,
    config: &Config,
    facts: ExampleFacts,
    overrides: &Overrides,
    seed: u64,
) -> (Recipe, Vec<Decision>) {
    let mut decisions = Decisions(Vec::new());
    let sequence = overrides.sequence.unwrap_or(config.max_positions);
    decisions.add("sequence", sequence, overrides.sequence.is_some(), || "the model's context".to_string());
    let given = dial.tokens.is_some() || dial.seconds.is_some();
    let passes = facts.tokens.saturating_mul(EXAMPLE_EPOCHS).max(1);
    let budget = Budget { tokens: if given { dial.tokens } else { Some(passes) }, seconds: dial.seconds };
    decisions.add("tokens", describe(budget), given, || {
        format!("{EXAMPLE_EPOCHS} passes over the {} tokens of the examples", facts.tokens)
    });
    let by_time = budget.seconds.map_or(f64::INFINITY, |seconds| seconds * facts.tokens_per_second);
    let seen = by_time.min(budget.tokens.map_or(f64::INFINITY, |tokens| tokens as f64));
    let threads = facts.threads.max(1);
    let most = (TOKENS_PER_PASS / sequence.max(1)).max(1).next_multiple_of(threads);
    let best = step_tokens(seen);
    let rows = overrides.rows.unwrap_or(nearest_rows(best, sequence.max(1), threads).min(most));
    decisions.add("rows", rows, overrides.rows.is_some(), || {
        format!("{best:.0} tokens per step suit this budget; a multiple of the {threads} threads")
    });
    let inherited = facts.parent_rate.map(|rate| rate * 0.5);
    let peak = overrides.learning_rate.or(inherited).unwrap_or(2e-4);
    decisions.add("learning rate", format!("{peak:.2e}"), overrides.learning_rate.is_some(), || {
        match inherited {
            Some(_) => "half the peak of the run that made the model".to_string(),
            None => "small: the model comes from elsewhere and its own rate is not known".to_string(),
        }
    });
    let accumulation = overrides.accumulation.unwrap_or(1);
    let beta2 = choose_beta2((sequence * rows * accumulation) as f64, overrides, &mut decisions);
    let recipe = Recipe {
        seed,
        sequence,
        rows,
        accumulation,
        clip: overrides.clip.unwrap_or(1.0),
        weight_decay: overrides.weight_decay.unwrap_or(0.01),
        betas: (0.9, beta2),
        budget,
        schedule: schedule(peak, overrides),
    };
    (recipe, decisions.0)
}

fn describe(budget: Budget) -> String {
    match budget {
        Budget { tokens: Some(tokens), seconds: Some(seconds) } => format!("{tokens} or {seconds:.0} s"),
        Budget { tokens: Some(tokens), seconds: None } => tokens.to_string(),
        Budget { tokens: None, seconds: Some(seconds) } => format!("as many as {seconds:.0} s allow"),
        Budget { tokens: None, seconds: None } => "no end".to_string(),
    }
}

struct Decisions(Vec<Decision>);

impl Decisions {
    fn add(&mut self, what: &str, value: impl ToString, given: bool, why: impl FnOnce() -> String) {
        let why = if given { "as asked for".to_string() } else { why() };
        self.0.push(Decision { what: what.to_string(), value: value.to_string(), why });
    }
}
