//! Weights in fp16: powers of two of scores, 32 positions in a vector.

use super::scores::LOWEST;
use super::vector::{VECTOR, all, greater, keep, load, reduce_max, store};
use crate::Isa;
use crate::grouped::fp16::{ELEMENTS, Fp16, widen};
use crate::grouped::{self, Family, GROUP};
use crate::tile::power_of_two_up_to;
use std::arch::x86_64::*;

/// Positions of a vector, and vectors of a group.
const LANES: usize = Fp16::COLUMNS;
const PER_GROUP: usize = GROUP / LANES;

/// A row's weights times the scales of their values are scaled to at most 1.5 · 2^(`TOP` - `values_below`),
/// so that 128 products with values add up to less than what fp16 holds. Beside values below 2^2 what is 2^-20 of the largest still has
/// its eleven bits, beside those below 2^7 what is 2^-15.
const TOP: i16 = 8;

/// Rows of scores, `width` words apart and used up, become weights: `2^(score - largest)` times the scale of the position's values,
/// where it is visible, else zero. Their sums, without the scales, become `inverses`, one over each. Every head has a row for each of
/// `visible`; `exponents` are those of its values' scales: of the first panel, and how far the next are. The values themselves are at most two
/// to the power of `values_below`.
///
/// # Panics
/// Where the CPU lacks the instructions or the lengths do not fit together.
pub(super) fn weigh<'a>(
    isa: Isa,
    (scores, width): (&mut [u32], usize),
    visible: &[usize],
    (exponents, values_below): (impl Fn(usize) -> (&'a [u32], usize), i16),
    words: &mut [u32],
    inverses: &mut [f32],
) {
    let (rows, all) = (visible.len(), inverses.len());
    let row_words = grouped::row_words(width * ELEMENTS, ELEMENTS);
    assert!(Fp16::usable(isa) && width.is_multiple_of(VECTOR));
    assert!(scores.len() == all * width && words.len() == all * row_words);
    assert!(visible.iter().all(|visible| (1..=width * ELEMENTS).contains(visible)));
    let (_, stride) = exponents(0);
    let exponents = |head: usize, last: usize| {
        let (words, of_head) = exponents(head);
        assert!(of_head == stride && words.len() >= last * stride + VECTOR);
        words.as_ptr()
    };
    let mut row = 0;
    while row < all {
        let (head, start) = (row / rows, row % rows);
        let last = (visible[start] - 1) / LANES;
        // Rows of one head that see as many vectors, or heads of one row.
        let alike = match rows {
            1 => all - row,
            _ => visible[start..].iter().take_while(|visible| (**visible - 1) / LANES == last).count(),
        };
        let take = power_of_two_up_to(MOST, alike);
        let mut side = Side {
            scores: scores[row * width..].as_mut_ptr(),
            width,
            words: words[row * row_words..].as_mut_ptr(),
            row_words,
            exponents: [exponents(head, last); MOST],
            exponents_stride: stride,
            top: TOP - values_below,
            last,
            visible: [0; MOST],
        };
        for at in 0..take {
            if rows == 1 {
                side.exponents[at] = exponents(head + at, last);
            }
            side.visible[at] = u32::MAX >> ((last + 1) * LANES - visible[(start + at) % rows]);
        }
        let inverses = &mut inverses[row..row + take];
        // SAFETY: the CPU has the instructions, and the lengths were checked above.
        unsafe {
            match take {
                4 => weigh_side::<4>(&side, inverses),
                2 => weigh_side::<2>(&side, inverses),
                _ => weigh_side::<1>(&side, inverses),
            }
        }
        row += take;
    }
}

/// Most rows that are taken side by side: one alone waits for itself.
const MOST: usize = 4;

/// Rows that see as many vectors, bounds checked.
struct Side {
    /// Those of the first row, and how far those of the next are.
    scores: *mut u32,
    width: usize,
    words: *mut u32,
    row_words: usize,
    /// The exponents of every row, and how far those of the next panel are.
    exponents: [*const u32; MOST],
    exponents_stride: usize,
    /// The exponent of the largest weights times scales.
    top: i16,
    /// The last vector that they see, and what each of them sees of it.
    last: usize,
    visible: [u32; MOST],
}

/// Weighs up rows.
///
/// # Safety
/// The CPU has the instructions, and all that [`Side`] tells of can be read and written.
#[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
unsafe fn weigh_side<const ROWS: usize>(side: &Side, inverses: &mut [f32]) {
    let &Side { width, row_words, exponents_stride, top, last, .. } = side;
    // SAFETY: see the caller's contract.
    let scores = |row: usize, at: usize| unsafe { load(side.scores.add(row * width + at * VECTOR)) };
    // SAFETY: as above.
    let exponents = |row: usize, at: usize| unsafe { load(side.exponents[row].add(at * exponents_stride)) };

    let mut largest = [all(LOWEST); ROWS];
    for at in 0..last {
        for row in 0..ROWS {
            largest[row] = greater(scores(row, at), largest[row]);
        }
    }
    for row in 0..ROWS {
        let found = _mm512_mask_max_ph(largest[row], side.visible[row], scores(row, last), largest[row]);
        largest[row] = reduce_max(found);
    }

    // Scores below the largest, and what is largest together with values: one without weight must take no room from others.
    let scaled = |row: usize, at: usize| {
        let below = greater(all(LEAST), _mm512_sub_ph(scores(row, at), largest[row]));
        // SAFETY: see the caller's contract.
        unsafe { store(side.scores.add(row * width + at * VECTOR), below) };
        _mm512_add_ph(below, exponents(row, at))
    };
    let mut up = [all(LOWEST); ROWS];
    for at in 0..last {
        for row in 0..ROWS {
            up[row] = greater(scaled(row, at), up[row]);
        }
    }
    for row in 0..ROWS {
        let most = _mm512_mask_max_ph(up[row], side.visible[row], scaled(row, last), up[row]);
        // Below that f32 has no scale.
        let most = greater(round(reduce_max(most)), all(top - 126));
        up[row] = _mm512_sub_ph(all(top), most);
        let [down, _] = widen(_mm512_sub_ph(most, all(top)));
        let scale = _mm512_cvtss_f32(_mm512_scalef_ps(_mm512_set1_ps(1.0), down)).to_bits();
        for group in 0..(width / VECTOR).div_ceil(PER_GROUP) {
            // SAFETY: a scale and a zero for each group follow the weights.
            unsafe {
                side.words.add(row * row_words + width + 2 * group).cast::<[u32; 2]>().write([scale, 0])
            };
        }
    }

    let weigh = |row: usize, at: usize| {
        let (power, exponent) = power_of_two(scores(row, at));
        let scale = _mm512_add_ph(exponent, _mm512_add_ph(exponents(row, at), up[row]));
        (_mm512_scalef_ph(power, exponent), _mm512_scalef_ph(power, scale))
    };
    // SAFETY: see the caller's contract.
    let put = |row: usize, at: usize, weights| unsafe {
        store(side.words.add(row * row_words + at * VECTOR), weights);
    };
    let mut totals = [_mm512_setzero_ps(); ROWS];
    for start in (0..=last).step_by(PER_GROUP) {
        let mut sums = [_mm512_setzero_ph(); ROWS];
        for at in start..last.min(start + PER_GROUP) {
            for row in 0..ROWS {
                let (weight, scaled) = weigh(row, at);
                sums[row] = _mm512_add_ph(sums[row], weight);
                put(row, at, scaled);
            }
        }
        if last < start + PER_GROUP {
            for row in 0..ROWS {
                let (weight, scaled) = weigh(row, last);
                sums[row] = _mm512_add_ph(sums[row], keep(side.visible[row], weight));
                put(row, last, keep(side.visible[row], scaled));
            }
        }
        for row in 0..ROWS {
            let [first, second] = widen(sums[row]);
            totals[row] = _mm512_add_ps(totals[row], _mm512_add_ps(first, second));
        }
    }
    for row in 0..ROWS {
        for at in last + 1..width / VECTOR {
            put(row, at, _mm512_setzero_ph());
        }
        inverses[row] = 1.0 / _mm512_reduce_add_ps(totals[row]);
    }
}

/// Of the third, second and first power of r in `2^r` for what is between -1/2 and 1/2: the least squares of relative errors among
/// coefficients of fp16 that leave 1 at zero. Its errors have 1.04 times the size of those that rounding makes.
const COEFFICIENTS: [u16; 3] = [0x2afc, 0x33be, 0x398c];

/// Scores this far below the largest leave nothing of any value that f32 holds, and what is further below counts as this.
const LEAST: i16 = -400;

/// Whole numbers next to numbers between -500 and 500.
#[inline]
#[target_feature(enable = "avx512fp16")]
fn round(t: __m512h) -> __m512h {
    // Where numbers of fp16 are whole, rounding is adding.
    let whole = all(1_536);
    _mm512_sub_ph(_mm512_add_ph(t, whole), whole)
}

/// `2^t` for what is between [`LEAST`] and zero, as a number near 1 and the exponent of the power of two that it is to be multiplied with.
#[inline]
#[target_feature(enable = "avx512fp16")]
fn power_of_two(t: __m512h) -> (__m512h, __m512h) {
    let coefficient = |bits: u16| _mm512_castsi512_ph(_mm512_set1_epi16(bits as i16));
    let n = round(t);
    let r = _mm512_sub_ph(t, n);
    let [third, second, first] = COEFFICIENTS.map(coefficient);
    let p = _mm512_fmadd_ph(_mm512_fmadd_ph(third, r, second), r, first);
    (_mm512_fmadd_ph(p, r, all(1)), n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_those_of_float64_to_a_unit_in_the_last_place() {
        if !Fp16::usable(Isa::best()) {
            return eprintln!("SKIPPED: this CPU has no arithmetic of fp16");
        }
        // All numbers of fp16 from zero down to -25.
        for start in (0x8000..0xce40_u16).step_by(LANES) {
            let words: [u32; VECTOR] = crate::math::array(|i| {
                let at = u32::from(start) + 2 * i as u32;
                at | (at + 1) << 16
            });
            let mut powers = [0; VECTOR];
            #[target_feature(enable = "avx512fp16")]
            fn powers_of(words: &[u32; VECTOR], powers: &mut [u32; VECTOR]) {
                // SAFETY: both are vectors.
                unsafe {
                    let (power, exponent) = power_of_two(load(words.as_ptr()));
                    store(powers.as_mut_ptr(), _mm512_scalef_ph(power, exponent));
                }
            }
            // SAFETY: the CPU has arithmetic of fp16.
            unsafe { powers_of(&words, &mut powers) };
            let elements = |words: &[u32; VECTOR]| {
                words.map(|word| [word as u16, (word >> 16) as u16]).concat().into_iter().map(value).collect()
            };
            let (exponents, powers): (Vec<f64>, Vec<f64>) = (elements(&words), elements(&powers));
            for (t, power) in exponents.into_iter().zip(powers) {
                let unit = 2f64.powi((t.floor() as i32 - 10).max(-24));
                let error = (power - t.exp2()).abs() / unit;
                assert!(error <= 1.0, "2^{t} = {power}, {error} units from {}", t.exp2());
            }
        }
    }

    #[test]
    fn powers_far_below_vanish_and_what_is_not_a_number_stays_that() {
        if !Fp16::usable(Isa::best()) {
            return eprintln!("SKIPPED: this CPU has no arithmetic of fp16");
        }
        #[target_feature(enable = "avx512fp16")]
        fn powers_of(words: &mut [u32; VECTOR]) {
            // SAFETY: it is a vector.
            unsafe {
                let (power, exponent) = power_of_two(greater(all(LEAST), load(words.as_ptr())));
                store(words.as_mut_ptr(), _mm512_scalef_ph(power, exponent));
            }
        }
        // -26, -65, -400, -500, -32,768 and minus infinity.
        for bits in [0xce80, 0xd410, 0xde40, 0xdfd0, 0xf800, 0xfc00] {
            let mut words = [bits | 0x7e00_0000; VECTOR];
            // SAFETY: the CPU has arithmetic of fp16.
            unsafe { powers_of(&mut words) };
            assert!(
                words.iter().all(|word| word & 0xffff == 0 && word >> 16 & 0x7fff > 0x7c00),
                "{words:x?}"
            );
        }
    }

    /// The number that bits of fp16 stand for, if it is finite.
    fn value(bits: u16) -> f64 {
        let (exponent, digits) = (i32::from(bits >> 10 & 31), f64::from(bits & 1_023));
        let magnitude = match exponent {
            0 => digits * 2f64.powi(-24),
            _ => (1.0 + digits / 1_024.0) * 2f64.powi(exponent - 15),
        };
        if bits >> 15 == 1 { -magnitude } else { magnitude }
    }
}
