//! Scaling laws: the loss of a model of N parameters after D tokens, fitted to a ladder of finished runs, so that the
//! loss of a larger run is known before it is trained.
//!
//! N counts every trainable number, the embedding once where it is the head too; D counts tokens seen. See
//! `docs/decisions/scaling-law.md`.

mod fit;
mod ladder;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{TrainError, TrialResult};
use fit::Problem;

pub use ladder::{Ladder, Rung};
pub use stored::{Corpus, HeldOutTest, ScalingLaw};

/// What a law is fitted to: one finished run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Trainable numbers.
    pub parameters: f64,
    /// Tokens trained on.
    pub tokens: f64,
    /// Floating-point operations.
    pub flops: f64,
    /// Held-out loss in nats per token.
    pub loss: f64,
}

impl From<&TrialResult> for Sample {
    fn from(result: &TrialResult) -> Sample {
        Sample {
            parameters: result.parameters as f64,
            tokens: result.tokens as f64,
            flops: result.flops,
            loss: result.loss,
        }
    }
}

/// Loss = `e` + `a` / N^`alpha` + `b` / D^`beta`, in nats per token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Law {
    /// What no size and no data take away.
    pub e: f64,
    /// Scale of what more parameters take away.
    pub a: f64,
    /// Scale of what more tokens take away.
    pub b: f64,
    /// How fast more parameters help.
    pub alpha: f64,
    /// How fast more tokens help.
    pub beta: f64,
}

/// Where a budget of compute is spent best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Optimum {
    /// The budget in floating-point operations.
    pub flops: f64,
    /// Trainable numbers.
    pub parameters: f64,
    /// Tokens.
    pub tokens: f64,
    /// The loss that the law gives there.
    pub loss: f64,
}

impl Law {
    /// The loss of a model of `parameters` after `tokens`, in nats per token.
    pub fn loss(&self, parameters: f64, tokens: f64) -> f64 {
        self.e + self.a / parameters.powf(self.alpha) + self.b / tokens.powf(self.beta)
    }

    /// The size and the tokens of lowest loss among those that cost `flops`, where a token costs `rate` operations per
    /// parameter (Hoffmann et al. 2022, equation 4, which has a rate of 6).
    pub fn optimum(&self, flops: f64, rate: f64) -> Optimum {
        let Law { a, b, alpha, beta, .. } = *self;
        let scale = (alpha * a / (beta * b)).powf(1.0 / (alpha + beta));
        let product = flops / rate;
        let parameters = scale * product.powf(beta / (alpha + beta));
        let tokens = product / parameters;
        Optimum { flops, parameters, tokens, loss: self.loss(parameters, tokens) }
    }
}

/// Runs that a law of five numbers needs: those five and one that could contradict.
pub const LEAST_RUNS: usize = 6;
/// Different sizes, and different budgets of tokens: two make a line of any slope and no curve.
pub const LEAST_KINDS: usize = 3;

/// Fits a law.
///
/// # Errors
/// A sample that is not a positive number; too few runs, sizes or budgets, with how many are missing.
pub fn fit(samples: &[Sample]) -> Result<Law, TrainError> {
    check(samples)?;
    Ok(Problem::new(samples).solve())
}

/// Refuses a ladder that will be too short for a law, before it is trained.
///
/// # Errors
/// As [`fit`].
pub fn check_ladder(ladder: &Ladder) -> Result<(), TrainError> {
    let sample = |rung: &Rung| Sample {
        parameters: rung.trial.parameters() as f64,
        tokens: rung.trial.tokens() as f64,
        flops: rung.trial.flops(),
        loss: 1.0,
    };
    check(&ladder.rungs.iter().map(sample).collect::<Vec<_>>())
}

fn check(samples: &[Sample]) -> Result<(), TrainError> {
    for Sample { parameters, tokens, flops, loss } in samples {
        for (what, value) in
            [("parameters", parameters), ("tokens", tokens), ("flops", flops), ("loss", loss)]
        {
            if !(value.is_finite() && *value > 0.0) {
                return Err(TrainError::Request(format!(
                    "a run of {parameters} parameters and {tokens} tokens has {what} = {value}; a law is fitted to \
                     numbers above 0: leave that run out or train it again"
                )));
            }
        }
    }
    let missing = missing(samples);
    if missing.is_empty() {
        return Ok(());
    }
    Err(TrainError::Request(format!(
        "the ladder is too short for a law of five numbers: {} missing (there are {} runs, and {LEAST_RUNS} are needed, \
         of at least {LEAST_KINDS} sizes and {LEAST_KINDS} budgets of tokens); add sizes or budgets, or give the ladder \
         more compute",
        missing.join(", "),
        samples.len()
    )))
}

fn missing(samples: &[Sample]) -> Vec<String> {
    let kinds = |pick: fn(&Sample) -> f64| {
        // Sizes and budgets within 5 % of each other tell the same.
        samples.iter().map(|sample| (pick(sample).ln() / 0.05).round() as i64).collect::<BTreeSet<_>>().len()
    };
    let counts = [
        ("run", samples.len(), LEAST_RUNS),
        ("size", kinds(|sample| sample.parameters), LEAST_KINDS),
        ("budget of tokens", kinds(|sample| sample.tokens), LEAST_KINDS),
    ];
    let missing = counts.into_iter().filter(|(_, found, needed)| found < needed);
    missing
        .map(|(what, found, needed)| match (needed - found, what) {
            (1, what) => format!("1 {what}"),
            (count, "budget of tokens") => format!("{count} budgets of tokens"),
            (count, what) => format!("{count} {what}s"),
        })
        .collect()
}

/// Laws fitted to `count` resamples of the runs (with replacement, the same number): how much the law hangs on which
/// runs were made. Resamples that are too short for a law are drawn again. The same for the same `seed`.
///
/// # Errors
/// As [`fit`].
pub fn bootstrap(samples: &[Sample], count: usize, seed: u64) -> Result<Vec<Law>, TrainError> {
    let law = fit(samples)?;
    let problem = Problem::new(samples);
    let mut random = SplitMix(seed);
    let mut laws = Vec::with_capacity(count);
    // A ladder of just enough runs has few resamples that are long enough; they are found all the same.
    for _ in 0..100 * count {
        let places: Vec<usize> = samples.iter().map(|_| random.below(samples.len())).collect();
        let resampled: Vec<Sample> = places.iter().map(|place| samples[*place]).collect();
        let distinct = places.iter().collect::<BTreeSet<_>>().len();
        if distinct >= LEAST_RUNS.min(samples.len() * 2 / 3).max(5) && missing(&resampled).is_empty() {
            laws.push(problem.resampled(&places).solve_near(&law));
        }
        if laws.len() == count {
            break;
        }
    }
    Ok(laws)
}

/// The share of resamples whose values lie within an [`interval`].
pub const LEVEL: f64 = 0.9;

/// The middle [`LEVEL`] of `values`; NaN of no values.
pub fn interval(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let place = part * (values.len().saturating_sub(1)) as f64;
        let (low, high) = (values.get(place.floor() as usize), values.get(place.ceil() as usize));
        match (low, high) {
            (Some(low), Some(high)) => low + place.fract() * (high - low),
            _ => f64::NAN,
        }
    };
    (at((1.0 - LEVEL) / 2.0), at((1.0 + LEVEL) / 2.0))
}

/// The generator of Steele, Lea and Flood 2014: a few lines that give the same numbers everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }
}
