//! Choosing a token from logits.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_tensor::Isa;
use strata_tensor::infer::first_largest;

/// How tokens are chosen. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Only the `top_k` likeliest tokens are candidates; 0 means all.
    pub top_k: usize,
    /// Only the likeliest tokens whose probabilities reach `top_p` together are candidates; 0 and 1 mean all.
    pub top_p: f32,
    /// Seed of the choices; equal seeds give equal choices.
    pub seed: u64,
    /// Taken off a token's logit for each time it was written already.
    pub frequency_penalty: f32,
    /// Taken off a token's logit once it was written at all.
    pub presence_penalty: f32,
}

/// Chooses tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    isa: Isa,
    sampling: Sampling,
    random: ChaCha8Rng,
    /// How often each token was written; kept only where a penalty asks for it.
    written: HashMap<u32, f32>,
}

impl Sampler {
    /// A sampler for sequence `index` of a batch: sequences of one batch choose independently.
    pub fn new(isa: Isa, sampling: Sampling, index: u64) -> Sampler {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(index);
        Sampler { isa, sampling, random, written: HashMap::new() }
    }

    /// The first of the largest, or token 0 where there is none.
    fn likeliest(&self, logits: &[f32]) -> u32 {
        first_largest(self.isa, logits).map_or(0, |token| token as u32)
    }

    /// The next token; the penalties are taken off `logits`. Of equal logits the lower token wins; a NaN is never
    /// chosen while there is a number.
    pub fn choose(&mut self, logits: &mut [f32]) -> u32 {
        self.penalise(logits);
        let chosen = self.sample(logits);
        self.note(chosen);
        chosen
    }

    /// Takes the penalties off: the first part of [`Sampler::choose`].
    pub(crate) fn penalise(&self, logits: &mut [f32]) {
        let Sampling { frequency_penalty, presence_penalty, .. } = self.sampling;
        for (&token, &count) in &self.written {
            logits[token as usize] -= frequency_penalty * count + presence_penalty;
        }
    }

    /// Remembers for the penalties what was chosen: the last part of [`Sampler::choose`].
    pub(crate) fn note(&mut self, token: u32) {
        if self.sampling.frequency_penalty != 0.0 || self.sampling.presence_penalty != 0.0 {
            *self.written.entry(token).or_default() += 1.0;
        }
    }

    /// Chooses: the middle part of [`Sampler::choose`], which may be repeated with fewer candidates.
    pub(crate) fn sample(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        if temperature <= 0.0 || top_k == 1 {
            return self.likeliest(logits);
        }
        let mut candidates: Vec<(u32, f32)> =
            (0u32..).zip(logits.iter().copied()).filter(|c| !c.1.is_nan()).collect();
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, likelier);
            candidates.truncate(top_k);
        }
        let highest = candidates.iter().map(|c| c.1).fold(f32::NEG_INFINITY, f32::max);
        if highest == f32::NEG_INFINITY {
            return self.likeliest(logits);
        }
        // Shifted by the largest, so that no exponential overflows.
        let weight = |logit: f32| f64::from((logit - highest) / temperature).exp();
        let sum: f64 = candidates.iter().map(|c| weight(c.1)).sum();
        if top_p > 0.0 && top_p < 1.0 {
            keep_likeliest(&mut candidates, sum * f64::from(top_p), weight);
        }
        let mut cumulative = 0.0;
        let sums: Vec<f64> = candidates
            .iter()
            .map(|c| {
                cumulative += weight(c.1);
                cumulative
            })
            .collect();
        let point = self.random.random::<f64>() * cumulative;
        let chosen = sums.partition_point(|below| *below <= point).min(candidates.len() - 1);
        candidates[chosen].0
    }
}

/// Likelier first; of equal ones the lower token.
fn likelier(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the fewest likeliest candidates whose weights reach `wanted` together. Sorting a whole vocabulary for each
/// token would cost more than a small model's arithmetic, so ever larger heads of the order are made until one is enough.
fn keep_likeliest(candidates: &mut Vec<(u32, f32)>, wanted: f64, weight: impl Fn(f32) -> f64) {
    let mut head = 32;
    loop {
        head = head.min(candidates.len());
        if head < candidates.len() {
            candidates.select_nth_unstable_by(head, likelier);
        }
        candidates[..head].sort_unstable_by(likelier);
        let mut sum = 0.0;
        for kept in 0..head {
            sum += weight(candidates[kept].1);
            if sum >= wanted {
                candidates.truncate(kept + 1);
                return;
            }
        }
        if head == candidates.len() {
            return;
        }
        head *= 8;
    }
}

/// Natural logarithm of the probability that the model gives each token: `logits - ln Σ exp(logits)`.
pub fn log_probabilities(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - highest).exp()).sum();
    let shift = f64::from(highest) + sum.ln();
    logits.iter().map(|logit| (f64::from(*logit) - shift) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(temperature: f32, top_k: usize, top_p: f32) -> Sampler {
        Sampler::new(Isa::best(), Sampling { temperature, top_k, top_p, seed: 3, ..Sampling::default() }, 0)
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sampler(0.0, 0, 0.0).choose(&mut [1.0, 5.0, f32::NAN, 5.0]), 1);
        assert_eq!(sampler(1.0, 1, 0.0).choose(&mut [1.0, 5.0, 2.0]), 1);
        assert_eq!(sampler(0.0, 0, 0.0).choose(&mut [f32::NEG_INFINITY, f32::NAN]), 0);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let mut sampler = sampler(1.0, 0, 1.0);
        let mut logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let mut counts = [0; 3];
        for _ in 0..20_000 {
            counts[sampler.choose(&mut logits) as usize] += 1;
        }
        // Five standard deviations of a count of 20,000 at most: 5 · sqrt(20000 / 4) < 360.
        for (count, expected) in counts.into_iter().zip([12_000i32, 6_000, 2_000]) {
            assert!((count - expected).abs() < 360, "{counts:?}");
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let mut sampler = sampler(1.0, 0, 0.7);
        let mut logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let mut seen: Vec<u32> = (0..500).map(|_| sampler.choose(&mut logits)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [1, 2]);
    }

    #[test]
    fn penalties_fall_on_what_was_written() {
        let sampling = Sampling { frequency_penalty: 0.5, presence_penalty: 1.0, ..Sampling::default() };
        let mut sampler = Sampler::new(Isa::best(), sampling, 0);
        let chosen: Vec<u32> = (0..5).map(|_| sampler.choose(&mut [4.0, 3.0, 0.0])).collect();
        // 4, then 4 - 1.5 < 3, then 3 - 1.5 < 2.5, then 4 - 2 > 1.5, then 3 - 1.5 = 4 - 2.5, where the lower wins.
        assert_eq!(chosen, [0, 1, 0, 0, 0]);
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logs = log_probabilities(&[1.0, 2.0, 3.0, f32::NEG_INFINITY]);
        // exp(-2) / (1 + exp(-1) + exp(-2)); f32 rounding of numbers below three.
        for (got, expected) in logs.iter().zip([0.09003057f32, 0.24472847, 0.66524096]) {
            assert!((got - expected.ln()).abs() < 1e-6, "{logs:?}");
        }
        assert_eq!(logs[3], f32::NEG_INFINITY);
    }

    proptest! {
        #[test]
        fn top_p_keeps_what_a_whole_sort_would_keep(
            logits in proptest::collection::vec(-9.0f32..9.0, 1..600), top_p in 0.01f64..1.0,
        ) {
            let weight = |logit: f32| f64::from(logit).exp();
            let mut sorted: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
            let mut kept = sorted.clone();
            sorted.sort_by(likelier);
            let wanted = top_p * logits.iter().map(|logit| weight(*logit)).sum::<f64>();
            keep_likeliest(&mut kept, wanted, weight);
            prop_assert_eq!(&kept, &sorted[..kept.len()]);
            let sum = |candidates: &[(u32, f32)]| candidates.iter().map(|c| weight(c.1)).sum::<f64>();
            prop_assert!(sum(&kept[..kept.len() - 1]) < wanted);
            prop_assert!(kept.len() == sorted.len() || sum(&kept) >= wanted);
        }

        #[test]
        fn the_choice_is_a_candidate(
            logits in proptest::collection::vec(-50.0f32..50.0, 1..40),
            temperature in 0.0f32..3.0, top_k in 0usize..50, top_p in 0.0f32..1.2,
        ) {
            let chosen = sampler(temperature, top_k, top_p).choose(&mut logits.clone()) as usize;
            let better = logits.iter().filter(|logit| **logit > logits[chosen]).count();
            prop_assert!(top_k == 0 || better < top_k);
        }
    }
}
