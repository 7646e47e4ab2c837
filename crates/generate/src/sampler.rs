//! Choosing a token from logits.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use strata_tensor::Isa;
use strata_tensor::infer::{WEIGHTS, first_largest, log_sum_exp, softmax_weights};

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
    /// Memory for the weights of all tokens, the largest of which is one, and their sums.
    weights: Vec<f32>,
    sums: Vec<f32>,
}

impl Sampler {
    /// A sampler for sequence `index` of a batch: sequences of one batch choose independently.
    pub fn new(isa: Isa, sampling: Sampling, index: u64) -> Sampler {
        let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
        random.set_stream(index);
        Sampler { isa, sampling, random, written: HashMap::new(), weights: Vec::new(), sums: Vec::new() }
    }

    /// The instruction set it computes with.
    pub(crate) fn isa(&self) -> Isa {
        self.isa
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
        // The first of the largest, or token 0 where there is none.
        let Some(likeliest) = first_largest(self.isa, logits) else { return 0 };
        if temperature <= 0.0 || top_k == 1 {
            return likeliest as u32;
        }
        // Shifted by the largest, so that no exponential overflows; the inverse of a tiny temperature must not either.
        let (highest, temperature) = (logits[likeliest], temperature.max(1e-30));
        self.weights.resize(logits.len(), 0.0);
        self.sums.resize(logits.len().div_ceil(WEIGHTS), 0.0);
        softmax_weights(self.isa, logits, highest, 1.0 / temperature, &mut self.weights, &mut self.sums);
        let point = self.random.random::<f64>();
        let most = (top_k > 0 && top_k < logits.len()).then_some(top_k);
        let share = (top_p > 0.0 && top_p < 1.0).then_some(f64::from(top_p));
        let chosen = if most.is_some() || share.is_some() {
            let candidates = self.candidates(logits, (highest, temperature), most, share.unwrap_or(1.0));
            let weights = candidates.iter().map(|c| self.weights[c.0 as usize]);
            let sum: f64 = weights.clone().map(f64::from).sum();
            at(weights, point * sum).map(|place| candidates[place].0)
        } else {
            self.among_all(point)
        };
        chosen.unwrap_or(likeliest as u32)
    }

    /// The token at a point, between 0 and 1, of the weights of all, one after the other.
    fn among_all(&self, point: f64) -> Option<u32> {
        let point = point * self.total();
        let mut below = 0.0;
        for (block, sum) in self.sums.iter().enumerate() {
            if below + f64::from(*sum) > point {
                let start = block * WEIGHTS;
                let weights = &self.weights[start..self.weights.len().min(start + WEIGHTS)];
                let place = at(weights.iter().copied(), point - below);
                return place.map(|place| (start + place) as u32);
            }
            below += f64::from(*sum);
        }
        None
    }

    /// The weights of all tokens together.
    fn total(&self) -> f64 {
        self.sums.iter().map(|sum| f64::from(*sum)).sum()
    }

    /// What may be chosen where not every token may: the `most` likeliest of all, then the likeliest of these whose weights
    /// reach a `share` of theirs. They are looked for among the tokens of the largest logits: mostly few have nearly all weight.
    fn candidates(
        &self,
        logits: &[f32],
        (highest, temperature): (f32, f32),
        most: Option<usize>,
        share: f64,
    ) -> Vec<(u32, f32)> {
        let weight_of = |token: u32| f64::from(self.weights[token as usize]);
        let sum_of = |tokens: &[(u32, f32)]| tokens.iter().map(|c| weight_of(c.0)).sum::<f64>();
        let all = self.total();
        let mut reach = 4.0;
        loop {
            let least = highest - reach * temperature;
            let mut found: Vec<(u32, f32)> =
                (0u32..).zip(logits.iter().copied()).filter(|c| c.1 >= least).collect();
            let enough = match most {
                Some(most) => found.len() >= most,
                None => sum_of(&found) >= all * share,
            };
            // What lies further below weighs nothing in f32.
            if !enough && reach < 128.0 {
                reach *= 2.0;
                continue;
            }
            if let Some(most) = most.filter(|most| *most < found.len()) {
                found.select_nth_unstable_by(most - 1, likelier);
                found.truncate(most);
            }
            if share < 1.0 {
                let all = if most.is_some() { sum_of(&found) } else { all };
                keep_likeliest(&mut found, all * share, weight_of);
            }
            return found;
        }
    }
}

/// The first place up to which the weights add up to more than `point`; the last that has a weight where they never do, which
/// rounding makes possible.
fn at(weights: impl Iterator<Item = f32>, point: f64) -> Option<usize> {
    let (mut sum, mut last) = (0.0, None);
    for (place, weight) in weights.enumerate() {
        sum += f64::from(weight);
        if weight > 0.0 {
            last = Some(place);
        }
        if sum > point {
            break;
        }
    }
    last
}

/// Likelier first; of equal ones the lower token.
fn likelier(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the fewest likeliest candidates whose weights reach `wanted` together. Sorting a whole vocabulary for each
/// token would cost more than a small model's arithmetic, so ever larger heads of the order are made until one is enough.
fn keep_likeliest(candidates: &mut Vec<(u32, f32)>, wanted: f64, weight_of: impl Fn(u32) -> f64) {
    let mut head = 32;
    loop {
        head = head.min(candidates.len());
        if head < candidates.len() {
            candidates.select_nth_unstable_by(head, likelier);
        }
        candidates[..head].sort_unstable_by(likelier);
        let mut sum = 0.0;
        for kept in 0..head {
            sum += weight_of(candidates[kept].0);
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

/// What is said of a model whose logits are no numbers.
pub(crate) const NOT_NUMBERS: &str =
    "the model computes no numbers; its weights are damaged, or were when it was trained";

/// Whether all logits are numbers: a token chosen among others would be chosen by chance, and the text look like an answer.
pub(crate) fn are_numbers(logits: &[f32]) -> bool {
    !logits.iter().any(|logit| logit.is_nan())
}

/// The natural logarithm of the probability of a token, `logit - ln Σ exp(logits)`, and so many likeliest tokens with theirs, likeliest first; of equal ones the first.
pub(crate) fn likelihoods(
    isa: Isa,
    logits: &[f32],
    token: u32,
    count: Option<usize>,
) -> (f32, Vec<(u32, f32)>) {
    let shift = log_sum_exp(isa, logits);
    let likelihood = |logit: f32| (f64::from(logit) - shift) as f32;
    let count = count.unwrap_or(0).min(logits.len());
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (id, &logit) in (0u32..).zip(logits) {
        if best.len() == count && best.last().is_none_or(|(_, least)| logit <= *least) {
            continue;
        }
        let place = best.partition_point(|(_, better)| *better >= logit);
        best.insert(place, (id, logit));
        best.truncate(count);
    }
    best.iter_mut().for_each(|(_, value)| *value = likelihood(*value));
    (likelihood(logits[token as usize]), best)
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
    fn every_part_of_a_large_vocabulary_has_its_share_whatever_restricts_the_choice() {
        // Token i weighs i + 1, in another order; every hundredth has no probability.
        let token = |i: usize| i * 7 % 701;
        let mut logits = vec![f32::NAN; 701];
        (0..700).for_each(|i| logits[token(i)] = ((i + 1) as f32).ln());
        (0..700).step_by(100).for_each(|i| logits[token(i)] = f32::NEG_INFINITY);
        let weight = |i: usize| if i.is_multiple_of(100) { 0.0 } else { (i + 1) as f64 };
        let draws = 30_000;
        for (top_k, top_p) in [(0, 0.0), (0, 0.9), (650, 0.0), (650, 0.9), (700, 1.0)] {
            let mut sampler = sampler(1.0, top_k, top_p);
            let mut counts = [0usize; 701];
            (0..draws).for_each(|_| counts[sampler.choose(&mut logits.clone()) as usize] += 1);
            // The likeliest first: what is kept is the end of the numbers, less six that have no probability.
            let by_count = if top_k == 650 { 700 - 650 - 6 } else { 0 };
            let sum = |from: usize| (from..700).map(weight).sum::<f64>();
            let wanted = if top_p == 0.9 { 0.9 * sum(by_count) } else { sum(by_count) };
            let from = (by_count..700).rev().find(|&i| sum(i) >= wanted).unwrap();
            for part in (0..700).step_by(50).map(|start| start..start + 50) {
                let count: usize = part.clone().map(|i| counts[token(i)]).sum();
                let share = part.filter(|&i| i >= from).map(weight).sum::<f64>() / sum(from);
                // Five deviations of a count.
                let expected = share * draws as f64;
                let allowed = 5.0 * (expected * (1.0 - share)).sqrt();
                assert!(
                    (count as f64 - expected).abs() <= allowed,
                    "{top_k} {top_p}: {count} not {expected}"
                );
            }
            assert!((0..701).all(|i| logits[i] > f32::NEG_INFINITY || counts[i] == 0), "{top_k} {top_p}");
        }
    }

    #[test]
    fn a_tiny_temperature_takes_the_likeliest() {
        for temperature in [f32::from_bits(1), 1e-38, 1e-6] {
            for (top_k, top_p) in [(0, 0.0), (2, 0.0), (0, 0.5)] {
                assert_eq!(sampler(temperature, top_k, top_p).choose(&mut [1.0, 5.0, f32::NAN, 4.9]), 1);
            }
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
        let logits = [1.0, 3.0, 2.0, f32::NEG_INFINITY];
        // exp(-2) / (1 + exp(-1) + exp(-2)); f32 rounding of numbers below three.
        let expected = [0.09003057f32, 0.66524096, 0.24472847, 0.0].map(f32::ln);
        for (token, expected) in (0u32..).zip(expected) {
            let (got, best) = likelihoods(Isa::best(), &logits, token, Some(2));
            assert!(got == expected || (got - expected).abs() < 1e-6, "{token}: {got}");
            assert_eq!(best.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
            assert!(best.iter().all(|(other, value)| *other != token || *value == got));
        }
        assert_eq!(likelihoods(Isa::best(), &logits, 0, None).1, []);
        assert_eq!(likelihoods(Isa::best(), &logits, 0, Some(9)).1.len(), 4);
    }

    proptest! {
        #[test]
        fn the_likeliest_are_those_of_a_whole_sort(
            logits in proptest::collection::vec((-4i8..4).prop_map(f32::from), 1..60), count in 0usize..20,
        ) {
            let mut order: Vec<u32> = (0u32..).take(logits.len()).collect();
            // Stable, so that of equal ones the first stays the first.
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            order.truncate(count);
            let (_, best) = likelihoods(Isa::best(), &logits, 0, Some(count));
            prop_assert_eq!(best.iter().map(|(token, _)| *token).collect::<Vec<_>>(), order);
        }

        #[test]
        fn top_p_keeps_what_a_whole_sort_would_keep(
            logits in proptest::collection::vec(-9.0f32..9.0, 1..600), top_p in 0.01f64..1.0,
        ) {
            let weight = |token: u32| f64::from(logits[token as usize]).exp();
            let mut sorted: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
            let mut kept = sorted.clone();
            sorted.sort_by(likelier);
            let wanted = top_p * sorted.iter().map(|c| weight(c.0)).sum::<f64>();
            keep_likeliest(&mut kept, wanted, weight);
            prop_assert_eq!(&kept, &sorted[..kept.len()]);
            let sum = |candidates: &[(u32, f32)]| candidates.iter().map(|c| weight(c.0)).sum::<f64>();
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
