//! How a model is moved: tokens per step, learning rate, and how long AdamW remembers.

use super::{Decisions, Facts, Overrides};
use crate::{Decay, Schedule};

/// Tokens in flight per pass through the model, beyond which activations leave the caches for good.
pub(super) const TOKENS_PER_PASS: usize = 8192;

/// Learning rate that suits a model of the width and the step below; measured, see `docs/decisions/learning-rate.md`.
const REFERENCE_RATE: f64 = 1e-3;
const REFERENCE_WIDTH: f64 = 256.0;
const REFERENCE_STEP: f64 = 1536.0;
/// Tokens of a step, per square root of the tokens of a run; measured, see there too.
const STEP_SHARE: f64 = 0.72;
/// Tokens of a step at least: fewer keep matrix units waiting.
const LEAST_STEP: f64 = 512.0;
/// Tokens after which half of a squared gradient is forgotten.
const HALF_LIFE: f64 = 1e6;

/// Tokens per optimiser step that teach most to a model that sees `tokens` in all. What larger steps gain in smoothness
/// small budgets lose in steps; that the best size grows about as the root of the budget is known of large ones (Zhang et al.
/// 2024, "How Does Critical Batch Size Scale in Pre-training?").
pub(super) fn step_tokens(tokens: f64) -> f64 {
    (STEP_SHARE * tokens.max(0.0).sqrt()).max(LEAST_STEP)
}

/// Rows of `sequence` tokens that make about `tokens`: the nearest multiple of `threads`, at least one for each. Rounded up,
/// a run of few tokens would take half as many steps as one of a little fewer.
pub(super) fn nearest_rows(tokens: f64, sequence: usize, threads: usize) -> usize {
    (tokens / (sequence * threads) as f64).round().max(1.0) as usize * threads
}

/// Rows per pass and passes per step.
pub(super) fn choose_batch(
    compute: f64,
    tokens: f64,
    sequence: usize,
    facts: Facts,
    overrides: &Overrides,
    decisions: &mut Decisions,
) -> (usize, usize) {
    // DeepSeek LLM (Bi et al. 2024), equation 1; small budgets lie far below its measurements.
    let best = step_tokens(tokens).min(0.292 * compute.powf(0.3271)).max(1.0);
    let threads = facts.threads.max(1);
    let all_rows = nearest_rows(best, sequence, threads);
    let per_pass = (TOKENS_PER_PASS / sequence).max(1).next_multiple_of(threads);
    let rows = overrides.rows.unwrap_or(all_rows.min(per_pass));
    let accumulation = overrides.accumulation.unwrap_or(match overrides.rows {
        Some(_) => 1,
        None => all_rows.div_ceil(rows),
    });
    decisions.add("rows", rows, overrides.rows.is_some(), || {
        format!("{best:.0} tokens per step suit this budget; a multiple of the {threads} threads")
    });
    decisions.add("passes per step", accumulation, overrides.accumulation.is_some(), || {
        format!("{TOKENS_PER_PASS} tokens at once keep activations near the cores")
    });
    (rows, accumulation)
}

/// The highest learning rate of the run.
pub(super) fn choose_rate(
    compute: f64,
    width: usize,
    step_tokens: f64,
    overrides: &Overrides,
    decisions: &mut Decisions,
) -> f64 {
    // DeepSeek LLM (Bi et al. 2024), equation 1: what large runs bear. Wide models bear less than narrow ones, and noisy
    // gradients of small steps less than smooth ones.
    let large = (0.3118 * compute.powf(-0.125)).min(4e-3);
    let noise = (step_tokens / REFERENCE_STEP).powf(0.25);
    let bearable = REFERENCE_RATE * (REFERENCE_WIDTH / width as f64).powf(1.5) * noise;
    let peak = overrides.learning_rate.unwrap_or(large.min(bearable).max(5e-5));
    decisions.add("learning rate", format!("{peak:.2e}"), overrides.learning_rate.is_some(), || {
        format!(
            "what width {width} bears in steps of {step_tokens:.0} tokens, at most 0.3118 · operations^-0.125"
        )
    });
    peak
}

/// AdamW's factor of averaging squared gradients. Small steps need long averages: what matters is how many tokens are
/// remembered (Marek et al. 2025, "Small Batch Size Training for Language Models").
pub(super) fn choose_beta2(step_tokens: f64, overrides: &Overrides, decisions: &mut Decisions) -> f64 {
    let half = 0.5f64.powf(step_tokens / HALF_LIFE).clamp(0.95, 0.999);
    let beta2 = overrides.beta2.unwrap_or((half * 1e4).round() / 1e4);
    decisions.add("beta2", beta2, overrides.beta2.is_some(), || {
        format!("half of a squared gradient is forgotten after {HALF_LIFE:.0e} tokens; from 0.95 to 0.999")
    });
    beta2
}

/// Warm-up and decay around the highest rate.
pub(super) fn schedule(peak: f64, overrides: &Overrides) -> Schedule {
    Schedule {
        peak,
        warmup: overrides.warmup.unwrap_or(0.03),
        decay: overrides.decay.unwrap_or(Decay::Cosine),
        floor: overrides.floor.unwrap_or(0.05),
    }
}
