//! What a comparison came to so far: means over seeds of what is there.

use serde::{Deserialize, Serialize};
use strata_data::RecallTask;
use strata_model::mixers::CacheFormat;

use super::files::Comparison;
use super::plan::Plan;
use super::work::{loss_name, trial_name};
use crate::TrainError;
use crate::contestants::Contestant;
use crate::positions::{ByPosition, MULTIPLES};
use crate::recall::RecallResult;
use crate::speed::Speed;
use crate::trials::TrialResult;

/// A trained model's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossRun {
    /// The mixer.
    pub mixer: Contestant,
    /// The seed.
    pub seed: u64,
    /// What its training came to.
    pub trial: TrialResult,
}

/// A speed of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedRun {
    /// The mixer.
    pub mixer: Contestant,
    /// Forward and backward, without the optimiser.
    pub speed: Speed,
}

/// The memory of decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The mixer.
    pub mixer: Contestant,
    /// Bytes of a sequence's state at the trained length.
    pub state_bytes: usize,
    /// Bytes by which it grows with every further token.
    pub growth_per_token: f64,
    /// Tokens of a stream that was read; 0 where the state grows.
    pub streamed: usize,
    /// Bytes of the state after the stream's first thousand tokens.
    pub state_before: usize,
    /// Bytes of the state after the last.
    pub state_after: usize,
    /// Bytes that the process held after the stream's first thousand tokens, where that is known.
    pub process_before: Option<u64>,
    /// Bytes that it held after the last.
    pub process_after: Option<u64>,
}

/// A mean over seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// Standard deviation of single seeds (n - 1); none of one seed.
    pub deviation: Option<f64>,
    /// The values.
    pub values: Vec<f64>,
}

impl Spread {
    /// Of some values; `None` of none.
    pub fn of(values: Vec<f64>) -> Option<Spread> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt());
        (!values.is_empty()).then_some(Spread { mean, deviation, values })
    }
}

/// A line of the table: a mixer, and what is known of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The mixer.
    pub mixer: String,
    /// Trainable numbers.
    pub parameters: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the inner layer; 0 where blocks have none.
    pub ffn: usize,
    /// Tokens that each model is trained on.
    pub tokens: u64,
    /// Operations of one training.
    pub flops: f64,
    /// Tokens per second of training steps when the plan was made.
    pub tokens_per_second: f64,
    /// The same in operations per second, as a fraction of the measured peak.
    pub utilisation: f64,
    /// Bytes of a sequence's state at the trained length.
    pub state_bytes: usize,
    /// Bytes by which it grows with every further token.
    pub growth_per_token: f64,
    /// Held-out bits per byte.
    pub bits_per_byte: Option<Spread>,
    /// Bits per byte by multiples of the trained length.
    pub by_multiple: Vec<(usize, Spread)>,
    /// The same text, the model beginning anew after every trained length.
    pub cut: Option<Spread>,
    /// Right answers by task.
    pub recall: Vec<(RecallTask, Spread)>,
}

/// Everything that is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// What was decided.
    pub plan: Plan,
    /// A line per mixer.
    pub rows: Vec<Row>,
    /// Every trained model.
    pub losses: Vec<LossRun>,
    /// Loss by position of every trained model: mixer, seed, measurement.
    pub positions: Vec<(Contestant, u64, ByPosition)>,
    /// Every lesson of recall.
    pub recall: Vec<RecallResult>,
    /// Speeds by length.
    pub speeds: Vec<SpeedRun>,
    /// Memory of decoding.
    pub memory: Vec<Memory>,
}

/// Reads all results that are there.
///
/// # Errors
/// A file is damaged.
pub fn summary(comparison: &Comparison) -> Result<Summary, TrainError> {
    let plan = comparison.plan();
    let mut all = Summary {
        plan: plan.clone(),
        rows: Vec::new(),
        losses: Vec::new(),
        positions: Vec::new(),
        recall: Vec::new(),
        speeds: Vec::new(),
        memory: Vec::new(),
    };
    for entry in &plan.entries {
        let name = entry.mixer.file_name();
        let mut losses = Vec::new();
        let mut positions: Vec<ByPosition> = Vec::new();
        for seed in 1..=plan.request.seeds {
            losses.extend(comparison.result::<LossRun>(&loss_name(entry, seed))?);
            if let Some(found) =
                comparison.result::<ByPosition>(&format!("length-{}", trial_name(entry, seed)))?
            {
                all.positions.push((entry.mixer.clone(), seed, found.clone()));
                positions.push(found);
            }
        }
        let mut recall = Vec::new();
        for task in RecallTask::ALL {
            let mut right = Vec::new();
            for seed in 1..=plan.request.seeds {
                let found: Option<RecallResult> =
                    comparison.result(&format!("recall-{}-{name}-{seed}", task.name()))?;
                right.extend(found.iter().map(|result| result.accuracy));
                all.recall.extend(found);
            }
            recall.extend(Spread::of(right).map(|spread| (task, spread)));
        }
        for length in &plan.request.lengths {
            all.speeds.extend(comparison.result::<SpeedRun>(&format!("speed-{name}-{length}"))?);
        }
        all.memory.extend(comparison.result::<Memory>(&format!("memory-{name}"))?);
        let multiple = |multiple: usize| {
            let values = positions.iter().filter_map(|by| {
                by.by_multiple().into_iter().find(|(known, _)| *known == multiple).map(|(_, bits)| bits)
            });
            Some((multiple, Spread::of(values.collect())?))
        };
        let state_bytes = |length| entry.model.state_bytes(length, CacheFormat::Bf16);
        let trained = plan.request.sequence;
        let tokens = entry.recipe.budget.tokens.unwrap_or(0);
        all.rows.push(Row {
            mixer: entry.mixer.name().to_string(),
            parameters: entry.parameters,
            width: entry.model.width,
            layers: entry.model.layers,
            ffn: entry.model.ffn,
            tokens,
            flops: tokens as f64 * entry.speed.flops_per_token,
            tokens_per_second: entry.speed.tokens_per_second,
            utilisation: entry.speed.utilisation,
            state_bytes: state_bytes(trained),
            growth_per_token: (state_bytes(9 * trained) - state_bytes(8 * trained)) as f64 / trained as f64,
            bits_per_byte: Spread::of(losses.iter().map(|run| run.trial.bits_per_byte).collect()),
            by_multiple: MULTIPLES.into_iter().filter_map(multiple).collect(),
            cut: Spread::of(positions.iter().map(|by| by.cut).collect()),
            recall,
        });
        all.losses.extend(losses);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_that_of_single_seeds() {
        assert_eq!(Spread::of(Vec::new()), None);
        assert_eq!(Spread::of(vec![2.0]).unwrap().deviation, None);
        let spread = Spread::of(vec![1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.mean, spread.deviation), (2.0, Some(1.0)));
    }
}
