//! Choosing a token from logits.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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
}

/// Chooses tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// A sampler for sequence `index` of a batch: sequences of one batch choose independently.
    pub fn new(sampling: Sampling, index: u64) -> Sampler {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(index);
        Sampler { sampling, random }
    }

    /// The next token. Of equal logits the lower token wins; a NaN is never chosen while there is a number.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        if temperature <= 0.0 || top_k == 1 {
            return likeliest(logits);
        }
        let mut candidates: Vec<(u32, f32)> =
            (0u32..).zip(logits.iter().copied()).filter(|c| !c.1.is_nan()).collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if top_k > 0 {
            candidates.truncate(top_k);
        }
        let Some((_, highest)) = candidates.first().copied() else { return likeliest(logits) };
        // Shifted by the largest, so that no exponential overflows.
        let mut sum = 0.0f64;
        let mut cumulative = Vec::with_capacity(candidates.len());
        for (_, logit) in &candidates {
            sum += f64::from((logit - highest) / temperature).exp();
            cumulative.push(sum);
        }
        let mut kept = candidates.len();
        if top_p > 0.0 && top_p < 1.0 {
            let wanted = sum * f64::from(top_p);
            kept = cumulative.partition_point(|below| *below < wanted) + 1;
            kept = kept.min(candidates.len());
        }
        let point = self.random.random::<f64>() * cumulative[kept - 1];
        let chosen = cumulative[..kept].partition_point(|below| *below <= point).min(kept - 1);
        candidates[chosen].0
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0u32..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(temperature: f32, top_k: usize, top_p: f32) -> Sampler {
        Sampler::new(Sampling { temperature, top_k, top_p, seed: 3 }, 0)
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sampler(0.0, 0, 0.0).choose(&[1.0, 5.0, f32::NAN, 5.0]), 1);
        assert_eq!(sampler(1.0, 1, 0.0).choose(&[1.0, 5.0, 2.0]), 1);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let mut sampler = sampler(1.0, 0, 1.0);
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let mut counts = [0; 3];
        for _ in 0..20_000 {
            counts[sampler.choose(&logits) as usize] += 1;
        }
        // Five standard deviations of a count of 20,000 at most: 5 · sqrt(20000 / 4) < 360.
        for (count, expected) in counts.into_iter().zip([12_000i32, 6_000, 2_000]) {
            assert!((count - expected).abs() < 360, "{counts:?}");
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let mut sampler = sampler(1.0, 0, 0.7);
        let logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let mut seen: Vec<u32> = (0..500).map(|_| sampler.choose(&logits)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [1, 2]);
    }

    proptest! {
        #[test]
        fn the_choice_is_a_candidate(
            logits in proptest::collection::vec(-50.0f32..50.0, 1..40),
            temperature in 0.0f32..3.0, top_k in 0usize..50, top_p in 0.0f32..1.2,
        ) {
            let chosen = sampler(temperature, top_k, top_p).choose(&logits) as usize;
            let better = logits.iter().filter(|logit| **logit > logits[chosen]).count();
            prop_assert!(top_k == 0 || better < top_k);
        }
    }
}
