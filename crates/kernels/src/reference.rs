//! What the tests compare against: float64 formulas, finite differences, seeded random numbers.

use crate::{Element, Isa};

/// A small seeded generator (SplitMix64), so that a failing case can be run again.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -1..1.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn elements<T: Element>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::from_f32(self.uniform())).collect()
    }
}

pub(crate) fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

/// Fails, also for NaN, unless `|got - expected| <= absolute + relative * |expected|`.
#[track_caller]
pub(crate) fn assert_close(got: f64, expected: f64, absolute: f64, relative: f64, what: &str) {
    let difference = (got - expected).abs();
    assert!(difference <= absolute + relative * expected.abs(), "{what}: got {got}, expected {expected}");
}

#[track_caller]
pub(crate) fn assert_all_close(got: &[f32], expected: &[f64], absolute: f64, relative: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: lengths");
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        assert_close(g as f64, e, absolute, relative, &format!("{what}[{i}]"));
    }
}

/// The gradient of `Σ weights · f(x)` by central differences in float64: the truth that a backward is held to.
pub(crate) fn numeric_gradient(x: &[f64], weights: &[f32], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    // The cube root of the float64 epsilon balances truncation against rounding: errors near 1e-10.
    let step = 6e-6;
    let objective = |x: &[f64]| f(x).iter().zip(weights).map(|(y, &w)| y * w as f64).sum::<f64>();
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            moved[i] = x[i] + step;
            let above = objective(&moved);
            moved[i] = x[i] - step;
            let below = objective(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * step)
        })
        .collect()
}

/// How much a sum of `k` products of bf16 in -1..1 may err where every addition rounds, `chain` of them in fp16 one after the
/// other where such sums begin in it.
pub(crate) fn sum_error(isa: Isa, k: usize, chain: usize) -> f64 {
    if !isa.sums_in_fp16() {
        return 1e-4;
    }
    // Of n random products of variance 1/9, partial sums grow as sqrt(i)/3, and rounding them to 11 bits errs by some
    // 0.42 · 2^-11 of each: 2^-11 · 0.1 · n of n added one after the other. Up to `chain` are, in k/chain independent
    // chains; six deviations of all of them, and a last bit.
    let chains = (k as f64 / chain as f64).max(1.0);
    2f64.powi(-11) * (0.6 * k.min(chain) as f64 * chains.sqrt() + 1.0)
}
