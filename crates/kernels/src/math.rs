//! Scalar functions that vectorise, and reductions with a fixed order of additions.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m128, _mm_add_ps, _mm_cvtss_f32, _mm_loadu_ps, _mm_max_ps, _mm_movehl_ps, _mm_setzero_ps,
    _mm_shuffle_ps,
};

/// Numbers that a reduction takes side by side: enough to fill the widest registers several times over.
const LANES: usize = 32;

/// `[value(0), value(1), …]`. `std::array::from_fn` (and `map` of an array) may stay a call even for sixteen values, compiled
/// without the instruction set of its caller: a fused multiply-add in it is then a call too.
#[inline(always)]
pub(crate) fn array<T: Copy + Default, const L: usize>(mut value: impl FnMut(usize) -> T) -> [T; L] {
    let mut values = [T::default(); L];
    for (l, to) in values.iter_mut().enumerate() {
        *to = value(l);
    }
    values
}

/// `a · b + c`, rounded once if `FUSED`.
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn exp_by<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // Below it, the power is zero.
    const LEAST: f32 = -87.3;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < LEAST { LEAST } else { clamped };
    let n = multiply_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
    let whole = n - ROUND;
    let r = multiply_add::<FUSED>(whole, -0.693_359_4, clamped);
    let r = multiply_add::<FUSED>(whole, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    p = multiply_add::<FUSED>(p, r * r, r) + 1.0;
    let scale = f32::from_bits(n.to_bits().wrapping_shl(23).wrapping_add(127 << 23));
    if x < LEAST { 0.0 } else { p * scale }
}

#[inline(always)]
fn softplus_by<const FUSED: bool>(x: f32) -> f32 {
    let z = exp_by::<FUSED>(if x > 0.0 { -x } else { x });
    let s = z / (2.0 + z);
    let square = s * s;
    let mut p = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        p = multiply_add::<FUSED>(p, square, 1.0 / odd);
    }
    2.0 * s * p + if x > 0.0 { x } else { 0.0 }
}

macro_rules! functions {
    ($fused:literal) => {
        /// `e^x` in f32, relative error below 2e-7; 0 below -87.3, saturating above 88. NaN stays NaN.
        /// Range reduction by ln 2 in two parts, then a degree-6 polynomial (Cephes `expf`).
        #[inline(always)]
        pub fn exp(x: f32) -> f32 {
            $crate::math::exp_by::<$fused>(x)
        }

        /// The logistic function `1 / (1 + e^-x)`.
        #[inline(always)]
        pub fn sigmoid(x: f32) -> f32 {
            1.0 / (1.0 + exp(-x))
        }

        /// The hyperbolic tangent.
        #[inline(always)]
        pub fn tanh(x: f32) -> f32 {
            2.0 * sigmoid(2.0 * x) - 1.0
        }

        /// `ln(1 + e^x)`, relative error below 5e-7 down to -87.3 and 0 below; NaN stays NaN.
        /// With `z = e^-|x|` it is `max(x, 0) + ln(1 + z)`, and `ln(1 + z) = 2·artanh(z / (2 + z))`, whose series needs eight
        /// terms where its argument is at most a third.
        #[inline(always)]
        pub fn softplus(x: f32) -> f32 {
            $crate::math::softplus_by::<$fused>(x)
        }
    };
}

functions!(false);

/// The same by fused multiply-adds, which the compiler does not make of a product and a sum. [`per_isa`] puts them in place
/// in its body where the instruction set has them; elsewhere each would be a call. What is called from a body gets its functions as
/// arguments.
pub(crate) mod fused {
    functions!(true);
}

/// Sum of `term(a[i])`, in a fixed order that vectorises: whole blocks of the slices, no index that could be out of bounds.
#[inline(always)]
pub fn sum_of<A: Copy>(a: &[A], term: impl Fn(A) -> f32) -> f32 {
    sum_of_pairs(a, a, |a, _| term(a))
}

/// As [`sum_of`], of `term(a[i], b[i])`.
#[inline(always)]
pub fn sum_of_pairs<A: Copy, B: Copy>(a: &[A], b: &[B], term: impl Fn(A, B) -> f32) -> f32 {
    sum_of_triples(a, b, b, |a, b, _| term(a, b))
}

/// As [`sum_of`], of `term(a[i], b[i], c[i])`.
#[inline(always)]
pub fn sum_of_triples<A: Copy, B: Copy, C: Copy>(
    a: &[A],
    b: &[B],
    c: &[C],
    term: impl Fn(A, B, C) -> f32,
) -> f32 {
    assert!(a.len() == b.len() && a.len() == c.len(), "sum: slices of different lengths");
    let ((a, last_a), (b, last_b), (c, last_c)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    let mut lanes = [0.0f32; LANES];
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for lane in 0..LANES {
            lanes[lane] += term(a[lane], b[lane], c[lane]);
        }
    }
    let mut tail = 0.0;
    for ((a, b), c) in last_a.iter().zip(last_b).zip(last_c) {
        tail += term(*a, *b, *c);
    }
    sum_of_lanes(&lanes) + tail
}

/// Largest element; negative infinity for none.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (m, &v) in lanes.iter_mut().zip(chunk) {
            *m = if v > *m { v } else { *m };
        }
    }
    let mut best = largest_of_lanes(&lanes);
    for &v in chunks.remainder() {
        best = if v > best { v } else { best };
    }
    best
}

per_isa! {
    /// Place of the first of the largest elements; a NaN is never larger. None where there is no element above negative
    /// infinity.
    pub fn first_largest(values: &[f32]) -> Option<usize> {
        let largest = max(values);
        let (blocks, _) = values.as_chunks::<LANES>();
        let holds = |block: &[f32; LANES]| block.iter().fold(false, |found, value| found | (*value == largest));
        let before = LANES * blocks.iter().position(holds).unwrap_or(blocks.len());
        let place = || values[before..].iter().position(|value| *value == largest);
        if largest > f32::NEG_INFINITY { place().map(|place| before + place) } else { None }
    }
}

/// Exponentials that are added up in f32 at one time.
pub const WEIGHTS: usize = 256;

per_isa! {
    /// `ln Σ e^value`; negative infinity where no value is above that. Blocks of [`WEIGHTS`] are added up in f32, their sums in f64:
    /// the relative error of the sum is below 5e-7, however long the slice.
    pub fn log_sum_exp(values: &[f32]) -> f64 {
        let largest = max(values);
        if largest == f32::NEG_INFINITY {
            return f64::NEG_INFINITY;
        }
        let of_block = |block: &[f32]| f64::from(sum_of(block, |value| exp(value - largest)));
        f64::from(largest) + values.chunks(WEIGHTS).map(of_block).sum::<f64>().ln()
    }
}

per_isa! {
    /// `weights[i] = e^((values[i] - largest) · factor)`, or 0 where that is not a number, and their sums, one for every
    /// [`WEIGHTS`] that begin.
    ///
    /// # Panics
    /// Where there are not as many weights as values, or too few sums.
    pub fn softmax_weights(values: &[f32], largest: f32, factor: f32, weights: &mut [f32], sums: &mut [f32]) {
        assert!(weights.len() == values.len() && sums.len() == values.len().div_ceil(WEIGHTS), "weights: lengths");
        let blocks = values.chunks(WEIGHTS).zip(weights.chunks_mut(WEIGHTS));
        for ((values, weights), sum) in blocks.zip(sums) {
            for (weight, value) in weights.iter_mut().zip(values) {
                let power = exp((value - largest) * factor);
                *weight = if power > 0.0 { power } else { 0.0 };
            }
            *sum = sum_of(weights, |weight| weight);
        }
    }
}

/// The sum of 16 or 32 lanes: the upper half added to the lower until one is left.
#[inline(always)]
pub(crate) fn sum_of_lanes<const L: usize>(lanes: &[f32; L]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE.
    return fold(lanes, |a, b| unsafe { _mm_add_ps(a, b) });
    #[cfg(not(target_arch = "x86_64"))]
    fold(lanes, |a, b| a + b)
}

/// The largest of 16 or 32 lanes. One that is not a number may be kept or lost.
#[inline(always)]
pub(crate) fn largest_of_lanes<const L: usize>(lanes: &[f32; L]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE.
    return fold(lanes, |a, b| unsafe { _mm_max_ps(a, b) });
    #[cfg(not(target_arch = "x86_64"))]
    fold(lanes, |a, b| if a > b { a } else { b })
}

/// Joins lanes, four at a time, as every x86-64 can. They come from memory: in registers, the compiler would take the loop that fills
/// them apart into vectors as narrow as those joined here.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fold<const L: usize>(lanes: &[f32; L], join: impl Fn(__m128, __m128) -> __m128) -> f32 {
    const { assert!(L == 16 || L == 32) };
    let lanes = std::hint::black_box(*lanes);
    // SAFETY: every x86-64 has SSE, and a chunk has four elements.
    unsafe {
        let mut quads = [_mm_setzero_ps(); 8];
        for (quad, lanes) in quads.iter_mut().zip(lanes.as_chunks::<4>().0) {
            *quad = _mm_loadu_ps(lanes.as_ptr());
        }
        let mut count = L / 4;
        while count > 1 {
            count /= 2;
            for i in 0..count {
                quads[i] = join(quads[i], quads[i + count]);
            }
        }
        let pair = join(quads[0], _mm_movehl_ps(quads[0], quads[0]));
        _mm_cvtss_f32(join(pair, _mm_shuffle_ps::<1>(pair, pair)))
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn fold<const L: usize>(lanes: &[f32; L], join: impl Fn(f32, f32) -> f32) -> f32 {
    let (mut lanes, mut count) = (*lanes, L);
    while count > 1 {
        count /= 2;
        for i in 0..count {
            lanes[i] = join(lanes[i], lanes[i + count]);
        }
    }
    lanes[0]
}

per_isa! {
    /// Sum of squares, as f64 over blocks of f32 partial sums: the building block of a gradient's norm.
    pub fn sum_of_squares(values: &[f32]) -> f64 {
        let mut total = 0.0;
        for block in values.chunks(4096) {
            total += sum_of(block, |v| v * v) as f64;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_over_its_whole_range() {
        exp_is_accurate(exp);
        exp_is_accurate(fused::exp);
    }

    fn exp_is_accurate(exp: impl Fn(f32) -> f32) {
        for i in -870..=880 {
            for j in 0..100 {
                let x = i as f32 / 10.0 + j as f32 * 1.0e-3;
                let x = x.clamp(-87.3, 88.0);
                let expected = (x as f64).exp();
                let relative = (exp(x) as f64 - expected).abs() / expected;
                // 2e-7 is under two units in the last place of f32.
                assert!(relative <= 2e-7, "exp({x}) = {} not {expected}", exp(x));
            }
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(1e30).is_finite());
    }

    #[test]
    fn weights_and_sums_of_a_softmax_are_those_of_the_float64_formula() {
        let mut random = crate::reference::Random::new(5);
        for isa in crate::Isa::available() {
            for length in [1, 31, 256, 257, 1000] {
                let mut values: Vec<f32> = (0..length).map(|_| 9.0 * random.uniform()).collect();
                let all: f64 = values.iter().map(|v| f64::from(*v).exp()).sum();
                assert!((log_sum_exp(isa, &values) - all.ln()).abs() < 1e-6, "{isa:?}, {length}");
                values[0] = f32::NAN;
                values[length / 2] = if length > 1 { f32::NEG_INFINITY } else { f32::NAN };
                let (mut weights, mut sums) = (vec![9.0; length], vec![9.0; length.div_ceil(WEIGHTS)]);
                softmax_weights(isa, &values, 9.0, 1.0 / 0.7, &mut weights, &mut sums);
                for (i, (weight, value)) in weights.iter().zip(&values).enumerate() {
                    let expected = ((f64::from(*value) - 9.0) / 0.7).exp();
                    let expected = if value.is_nan() { 0.0 } else { expected };
                    // The argument, down to -26, is rounded to f32 three times.
                    assert!(
                        (f64::from(*weight) - expected).abs() <= 1e-5 * expected,
                        "{isa:?} {i}: {weight}"
                    );
                }
                for (sum, weights) in sums.iter().zip(weights.chunks(WEIGHTS)) {
                    let expected: f64 = weights.iter().map(|w| f64::from(*w)).sum();
                    assert!((f64::from(*sum) - expected).abs() <= 1e-6 * expected, "{isa:?} {length}");
                }
            }
            // Where one term is large and many are small, a single chain of f32 sums would lose 4e-5.
            let mut values = vec![-5.0; 150_000];
            values[7] = 0.0;
            let expected = (149_999.0 * (-5f64).exp() + 1.0).ln();
            assert!((log_sum_exp(isa, &values) - expected).abs() < 5e-7, "{isa:?}");
            assert_eq!(log_sum_exp(isa, &[]), f64::NEG_INFINITY);
            assert_eq!(log_sum_exp(isa, &[f32::NEG_INFINITY; 3]), f64::NEG_INFINITY);
        }
    }

    #[test]
    fn softplus_is_accurate_over_its_whole_range() {
        softplus_is_accurate(softplus);
        softplus_is_accurate(fused::softplus);
    }

    fn softplus_is_accurate(softplus: impl Fn(f32) -> f32) {
        for i in -87_300..=100_000 {
            let x = i as f32 / 1000.0;
            let expected = (x as f64).exp().ln_1p();
            let relative = (softplus(x) as f64 - expected).abs() / expected;
            // exp's 2e-7, a division and a few roundings more.
            assert!(relative <= 5e-7, "softplus({x}) = {} not {expected}", softplus(x));
        }
        assert_eq!(softplus(-1e30), 0.0);
        assert_eq!(softplus(1e30), 1e30);
        assert!(softplus(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_cover_every_element_for_every_length() {
        for n in 0..100 {
            let values: Vec<f32> = (0..n).map(|i| i as f32 - 3.0).collect();
            assert_eq!(sum_of(&values, |v| v), values.iter().sum::<f32>(), "n = {n}");
            let products = sum_of_triples(&values, &values, &values, |a, b, c| a + b * 2.0 - c);
            assert_eq!(products, 2.0 * values.iter().sum::<f32>(), "n = {n}");
            assert_eq!(max(&values), values.iter().copied().fold(f32::NEG_INFINITY, f32::max), "n = {n}");
        }
    }

    #[test]
    fn the_first_of_the_largest_is_found_for_every_length_and_beside_what_is_no_number() {
        for isa in crate::Isa::available_or_trapped() {
            assert_eq!(first_largest(isa, &[f32::NEG_INFINITY, f32::NAN]), None);
            for n in 0..100 {
                assert_eq!(first_largest(isa, &vec![f32::NAN; n]), None);
                for at in 0..n {
                    let mut values = vec![-7.0; n];
                    values[at..].fill(-3.0);
                    values[..at / 2].fill(f32::NAN);
                    assert_eq!(first_largest(isa, &values), Some(at), "{isa:?}: {at} of {n}");
                }
            }
        }
    }
}
