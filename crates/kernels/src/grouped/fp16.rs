//! fp16, two to a word, for AVX-512's multiply-adds of fp16. Scales are powers of two, so that nothing is lost but by
//! rounding to 11 bits; what is 2^-17 of a group's largest value or less loses more. Two sums of a group, of 64 products
//! each, are added up in fp16, and do not overflow.

use super::loops::family;
use super::{Family, GROUP, Operands};
use crate::Isa;
use std::arch::x86_64::*;

/// Elements of a word.
pub(crate) const ELEMENTS: usize = 2;
/// Words of a group.
const STEPS: usize = GROUP / ELEMENTS;
/// Values are scaled to less than 2^(`TOP` + 1), so that a sum of 128 products is at most half of what fp16 holds.
const TOP: u32 = 3;

/// A group in fp16, two in a word, and the scale that undoes its own.
struct Rounded {
    words: [u32; STEPS],
    scale: f32,
}

/// Rounds up to [`GROUP`] values; missing ones are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn rounded(values: &[f32]) -> Rounded {
    let mut filled = [0.0; GROUP];
    let values: &[f32; GROUP] = values.try_into().unwrap_or_else(|_| {
        filled[..values.len()].copy_from_slice(values);
        &filled
    });
    // SAFETY: all loads and stores are of sixteen elements within the arrays.
    unsafe {
        let vector = |at: usize| _mm512_loadu_ps(values.as_ptr().add(at));
        let mut largest = _mm512_setzero_si512();
        for at in (0..GROUP).step_by(16) {
            // Without their signs, numbers are ordered as the integers of their bits, and what is none is above them.
            largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(vector(at))));
        }
        let (factor, scale) = scale(_mm512_reduce_max_epu32(largest));
        let mut words = [0; STEPS];
        for at in (0..GROUP).step_by(16) {
            let scaled = _mm512_mul_ps(vector(at), _mm512_set1_ps(factor));
            let narrow = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled);
            _mm256_storeu_si256(words.as_mut_ptr().add(at / ELEMENTS).cast(), narrow);
        }
        Rounded { words, scale }
    }
}

/// The power of two that brings a magnitude, given by its bits, to 2^[`TOP`] or just above, and its inverse. What is tiny is
/// brought as far as f32 has powers of two, and zero nowhere.
fn scale(largest: u32) -> (f32, f32) {
    let exponent = if largest == 0 { 127 + TOP } else { (largest >> 23).max(TOP + 1) };
    (f32::from_bits((254 + TOP - exponent) << 23), f32::from_bits((exponent - TOP) << 23))
}

/// Rounds rows of inputs.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(crate) fn prepare(isa: Isa, inputs: usize, x: &[f32], words: &mut [u32]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn rows(inputs: usize, x: &[f32], words: &mut [u32]) {
        let (steps, row_words) = (inputs.div_ceil(ELEMENTS), super::row_words(inputs, ELEMENTS));
        for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(row_words)) {
            let (elements, ends) = words.split_at_mut(steps);
            let groups = row.chunks(GROUP).zip(elements.chunks_mut(STEPS));
            for ((group, elements), end) in groups.zip(ends.as_chunks_mut::<2>().0) {
                let Rounded { words, scale } = rounded(group);
                elements.copy_from_slice(&words[..elements.len()]);
                *end = [scale.to_bits(), 0];
            }
        }
    }
    assert!(Fp16::usable(isa));
    // SAFETY: checked right before.
    unsafe { rows(inputs, x, words) };
}

/// Packs up to `columns` rows of a weight into a panel. Missing rows have the scale zero.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(crate) fn fill(isa: Isa, rows: &[f32], inputs: usize, columns: usize, panel: &mut [u32]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn pack(rows: &[f32], inputs: usize, columns: usize, panel: &mut [u32]) {
        for (column, row) in rows.chunks_exact(inputs).enumerate() {
            for (group, to) in row.chunks(GROUP).zip(panel.chunks_mut((STEPS + 1) * columns)) {
                let Rounded { words, scale } = rounded(group);
                let elements = words.into_iter().take(group.len().div_ceil(ELEMENTS));
                let words = elements.chain([scale.to_bits()]);
                words.zip(to.chunks_exact_mut(columns)).for_each(|(word, to)| to[column] = word);
            }
        }
    }
    assert!(Fp16::usable(isa));
    if rows.len() < columns * inputs {
        panel.fill(0);
    }
    // SAFETY: checked right before.
    unsafe { pack(rows, inputs, columns, panel) };
}

/// Reads a column of a panel.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(crate) fn read(isa: Isa, panel: &[u32], columns: usize, column: usize, row: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn widen(words: &[u32; STEPS], scale: f32) -> [f32; GROUP] {
        let mut values = [0.0; GROUP];
        for at in (0..GROUP).step_by(16) {
            // SAFETY: sixteen elements within both arrays.
            unsafe {
                let narrow = _mm256_loadu_si256(words.as_ptr().add(at / ELEMENTS).cast());
                let wide = _mm512_mul_ps(_mm512_cvtph_ps(narrow), _mm512_set1_ps(scale));
                _mm512_storeu_ps(values.as_mut_ptr().add(at), wide);
            }
        }
        values
    }
    assert!(Fp16::usable(isa));
    for (group, panel) in row.chunks_mut(GROUP).zip(panel.chunks((STEPS + 1) * columns)) {
        let steps = group.len().div_ceil(ELEMENTS);
        let mut words = [0; STEPS];
        words.iter_mut().zip(panel.chunks_exact(columns)).for_each(|(word, row)| *word = row[column]);
        let scale = f32::from_bits(panel[steps * columns + column]);
        // SAFETY: checked above.
        group.copy_from_slice(&unsafe { widen(&words, scale) }[..group.len()]);
    }
}

// Of twelve rows' 24 sums the compiler keeps some in memory, which costs more than half of the speed.
family! {
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Fp16, fp16, usable Isa::has_avx512_fp16, features "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16",
    2 elements a word,
    vectors of 16: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| _mm512_castsi512_ph(_mm512_set1_epi32(from.read() as i32)),
        |from: *const u32| _mm512_castsi512_ph(_mm512_loadu_si512(from.cast())),
        |from: *const u32| _mm512_castsi512_ph(_mm512_set1_epi32(from.read() as i32)),
        |sum, x, right| _mm512_fmadd_ph(x, right, sum),
        |total, sum, x: f32, scales| {
            let second = _mm512_castsi512_ph(_mm512_srli_epi32::<16>(_mm512_castph_si512(sum)));
            let both = _mm512_castph_si512(_mm512_add_ph(sum, second));
            let sum = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both));
            _mm512_fmadd_ps(sum, _mm512_mul_ps(_mm512_set1_ps(x), scales), total)
        };
    11 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Random;

    #[test]
    fn a_row_keeps_eleven_bits_of_whatever_is_not_far_below_the_largest_of_its_group() {
        let isa = Isa::best();
        if !Fp16::usable(isa) {
            return eprintln!("SKIPPED: this CPU has no arithmetic of fp16");
        }
        let mut random = Random::new(7);
        for inputs in [1, 2, 31, 127, 128, 129, 300] {
            // Groups of very different sizes, with values down to nothing in each.
            let magnitude = |k: usize| 2f32.powi((k / GROUP) as i32 * 40 - 30 - (k % 40) as i32);
            let mut row: Vec<f32> = (0..inputs).map(|k| random.uniform() * magnitude(k)).collect();
            row[inputs / 2] = 0.0;
            let mut panel = vec![u32::MAX; super::super::panel_words(inputs, ELEMENTS, 2)];
            fill(isa, &row, inputs, 2, &mut panel);
            let mut held = vec![f32::NAN; inputs];
            read(isa, &panel, 2, 0, &mut held);
            for (group, held) in row.chunks(GROUP).zip(held.chunks(GROUP)) {
                let largest = group.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                for (value, held) in group.iter().zip(held) {
                    let allowed = (2f32.powi(-11) * value.abs()).max(2f32.powi(-28) * largest);
                    assert!((value - held).abs() <= allowed, "{inputs}: {value} became {held}");
                }
            }
            read(isa, &panel, 2, 1, &mut held);
            assert!(held.iter().all(|value| *value == 0.0), "{inputs}: a row that is missing");
        }
    }
}
