//! The ladder: which sizes and budgets of tokens a law is fitted to, and the larger run that tests it.

use crate::plan::flops_per_token;
use crate::{Overrides, Study, TrainError, Trial, TrialRequest};

/// A ladder for one mixer.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder {
    /// The trials, from the cheapest to the largest. The last is the test of the law.
    pub rungs: Vec<Rung>,
}

/// A trial of a ladder.
#[derive(Debug, Clone, PartialEq)]
pub struct Rung {
    /// The trial.
    pub trial: Trial,
    /// Whether the law that is tested may see it: it takes at most an eighth of the largest's compute.
    pub fitted: bool,
}

/// The law that is tested sees runs of up to this fraction of the largest run's compute.
pub const FITTED_SHARE: f64 = 1.0 / 8.0;
/// Widths of a ladder's models, some four to a doubling.
const WIDTHS: [usize; 26] = [
    16, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536,
    1792, 2048, 2560, 3072, 4096,
];
/// Tokens per parameter of the largest run (Hoffmann et al. 2022), where the corpus has so many.
const TOKENS_PER_PARAMETER: f64 = 20.0;
/// Passes over the corpus of the largest run at most: the law does not know repeats, and a larger model is a better test
/// than the last third of the text.
const PASSES: f64 = 0.7;
/// With less than this part of them the largest run says little but that it had too little text.
const STARVED: f64 = 0.25;
/// The law's runs have at least such a part of the largest run's parameters, and read at least such a part of its tokens. What is
/// much smaller or shorter is another thing: the narrowest models lack directions for their vocabulary, and in a short run
/// a mixer has not yet learnt to look back (docs/decisions/scaling-law.md). Where too few runs are left, the next pair holds.
const LEAST_PARTS: [(f64, f64); 3] = [(0.1, 0.2), (0.05, 0.1), (0.0, 0.0)];
/// Runs of a law that are worth going on with one pair.
const ENOUGH: usize = 10;
/// Sizes below and above that of the largest run: more would take much longer than it does.
const SMALLER: usize = 6;
const LARGER: usize = 1;
/// Tokens that make a run more than its warm-up: some 300 steps of 512, the fewest of the recipe.
const LEAST_TOKENS: f64 = 150_000.0;
/// Budgets of tokens of a width, each a factor of √2 below the one before: five numbers want more than a few points.
const BUDGETS: i32 = 6;

impl Ladder {
    /// A ladder whose largest run takes `flops` operations; all others together take about as many or a little more.
    ///
    /// The largest has the size that is best used by `flops`, and never sees a text twice. The others are
    /// narrower, down to a tenth of its parameters, and have as many tokens as an eighth of `flops` buys, and fewer, down to a
    /// fifth of the largest's; less, where that leaves too few runs.
    ///
    /// # Errors
    /// A setting that cannot be met, or so little compute that no ladder fits under it.
    pub fn of_compute(
        study: &Study,
        overrides: &Overrides,
        seed: u64,
        flops: f64,
    ) -> Result<Ladder, TrainError> {
        let plan = |width: usize, tokens: f64| {
            let overrides = Overrides { width: Some(width), ..overrides.clone() };
            study.plan(&TrialRequest { overrides, tokens: tokens as u64, seed })
        };
        // Not every width suits every mixer.
        let mut shapes = Vec::new();
        for width in WIDTHS {
            if let Ok(trial) = plan(width, 1e6) {
                let per_token = flops_per_token(&trial.model, trial.recipe.sequence);
                shapes.push((width, trial.parameters() as f64, per_token));
            }
        }
        if shapes.is_empty() {
            return plan(WIDTHS[0], 1e6).map(|trial| Ladder::of(vec![trial]));
        }
        let corpus = PASSES * study.corpus_tokens() as f64;
        let distance = |(_, parameters, per_token): &(usize, f64, f64)| {
            let wanted = (TOKENS_PER_PARAMETER * parameters).min(corpus);
            (flops / per_token / wanted).ln().abs()
        };
        let chosen = (0..shapes.len()).min_by(|a, b| distance(&shapes[*a]).total_cmp(&distance(&shapes[*b])));
        let largest = chosen.unwrap_or(0);
        let (width, parameters, per_token) = shapes[largest];
        let test = plan(width, (flops / per_token).min(corpus))?;
        // A little less, because budgets are rounded up to whole steps.
        let share = 0.97 * FITTED_SHARE * test.flops();
        let near = &shapes[largest.saturating_sub(SMALLER)..shapes.len().min(largest + LARGER + 1)];
        let mut ladder = Ladder::of(vec![test.clone()]);
        for (of_parameters, of_tokens) in LEAST_PARTS {
            if ladder.rungs.len() > ENOUGH {
                break;
            }
            let least = LEAST_TOKENS.max(of_tokens * test.tokens() as f64);
            let mut trials = vec![test.clone()];
            for (width, _, per_token) in near.iter().filter(|shape| shape.1 >= of_parameters * parameters) {
                for budget in 0..BUDGETS {
                    let tokens = (share / per_token).min(corpus) / 2f64.powf(f64::from(budget) / 2.0);
                    if tokens >= least {
                        trials.push(plan(*width, tokens)?);
                    }
                }
            }
            ladder = Ladder::of(trials);
        }
        Ok(ladder)
    }

    /// Every one of these sizes with every one of these budgets of tokens.
    ///
    /// # Errors
    /// A setting that cannot be met.
    pub fn of_grid(
        study: &Study,
        overrides: &Overrides,
        seed: u64,
        parameters: &[u64],
        tokens: &[u64],
    ) -> Result<Ladder, TrainError> {
        let mut trials = Vec::new();
        for wanted in parameters {
            let mut nearest: Option<(f64, Overrides)> = None;
            for width in (1..=128).map(|step| 16 * step) {
                let overrides =
                    Overrides { width: Some(overrides.width.unwrap_or(width)), ..overrides.clone() };
                // Not every width suits every mixer.
                let request = TrialRequest { overrides: overrides.clone(), tokens: 1 << 20, seed };
                let Ok(trial) = study.plan(&request) else { continue };
                let distance = (trial.parameters() as f64 / *wanted as f64).ln().abs();
                if nearest.as_ref().is_none_or(|(best, _)| distance < *best) {
                    nearest = Some((distance, overrides));
                }
            }
            let Some((_, overrides)) = nearest else {
                let request = TrialRequest { overrides: overrides.clone(), tokens: 1 << 20, seed };
                return study.plan(&request).map(|trial| Ladder::of(vec![trial]));
            };
            for tokens in tokens {
                trials.push(study.plan(&TrialRequest {
                    overrides: overrides.clone(),
                    tokens: *tokens,
                    seed,
                })?);
            }
        }
        Ok(Ladder::of(trials))
    }

    /// Sorts the trials by compute and says which the tested law may see.
    fn of(mut trials: Vec<Trial>) -> Ladder {
        trials.sort_by(|a, b| a.flops().total_cmp(&b.flops()));
        trials.dedup();
        let largest = trials.last().map_or(0.0, Trial::flops);
        let rung = |trial: Trial| {
            let fitted = trial.flops() <= FITTED_SHARE * largest;
            Rung { trial, fitted }
        };
        Ladder { rungs: trials.into_iter().map(rung).collect() }
    }

    /// Tokens for each parameter of the largest run, where that is too few for a run to tell much about the law: the corpus
    /// is short for so much compute.
    pub fn starved(&self) -> Option<f64> {
        let largest = &self.rungs.last()?.trial;
        let share = largest.tokens() as f64 / largest.parameters() as f64;
        (share < STARVED * TOKENS_PER_PARAMETER).then_some(share)
    }

    /// Operations of all trials together.
    pub fn flops(&self) -> f64 {
        self.rungs.iter().map(|rung| rung.trial.flops()).sum()
    }
}
