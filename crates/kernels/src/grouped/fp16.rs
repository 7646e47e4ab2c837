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
pub(crate) const STEPS: usize = GROUP / ELEMENTS;
/// Values are scaled to less than 2^(`TOP` + 1), so that a sum of 128 products is at most half of what fp16 holds.
const TOP: u32 = 3;

/// Rounds up to [`GROUP`] values, two to a word, and returns the scale that undoes theirs. The last word is filled up with a zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn round(values: &[f32], words: &mut [u32]) -> f32 {
    let (factor, inverse) = scale(largest(values));
    let narrow = |mask, from: *const f32| {
        // SAFETY: the elements of the mask are there to be read.
        let values = unsafe { _mm512_maskz_loadu_ps(mask, from) };
        let scaled = _mm512_mul_ps(values, _mm512_set1_ps(factor));
        _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled)
    };
    let words = &mut words[..values.len().div_ceil(ELEMENTS)];
    let (whole, rest) = values.as_chunks::<16>();
    let (vectors, last) = words.split_at_mut(8 * whole.len());
    for (values, words) in whole.iter().zip(vectors.as_chunks_mut::<8>().0) {
        // SAFETY: eight words can be written.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), narrow(u16::MAX, values.as_ptr())) };
    }
    if !rest.is_empty() {
        let mask = u8::MAX >> (8 - last.len());
        // SAFETY: the words of the mask can be written.
        unsafe {
            let narrow = narrow(first(rest.len()), rest.as_ptr());
            _mm256_mask_storeu_epi32(last.as_mut_ptr().cast(), mask, narrow);
        }
    }
    inverse
}

/// The mask of the first of sixteen elements.
#[inline(always)]
pub(crate) fn first(count: usize) -> u16 {
    u16::MAX >> (16 - count)
}

/// The bits of the largest magnitude; of one that is not a number, if there is one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn largest(values: &[f32]) -> u32 {
    let mut largest = _mm512_setzero_si512();
    let mut take = |values: __m512| {
        // Without their signs, numbers are ordered as the integers of their bits, and what is none is above them.
        largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(values)));
    };
    let (whole, rest) = values.as_chunks::<16>();
    // SAFETY: the elements are there to be read.
    whole.iter().for_each(|values| take(unsafe { _mm512_loadu_ps(values.as_ptr()) }));
    if !rest.is_empty() {
        // SAFETY: as above.
        take(unsafe { _mm512_maskz_loadu_ps(first(rest.len()), rest.as_ptr()) });
    }
    _mm512_reduce_max_epu32(largest)
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
                let scale = match <&[f32; GROUP]>::try_from(group) {
                    Ok(whole) => round(whole, elements),
                    Err(_) => round(group, elements),
                };
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
    if rows.len() < columns * inputs {
        panel.fill(0);
    }
    for (column, row) in rows.chunks_exact(inputs).enumerate() {
        fill_column(isa, row, columns, column, panel);
    }
}

/// Writes one column of a panel.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(crate) fn fill_column(isa: Isa, row: &[f32], columns: usize, column: usize, panel: &mut [u32]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn pack(row: &[f32], columns: usize, column: usize, panel: &mut [u32]) {
        for (group, to) in row.chunks(GROUP).zip(panel.chunks_mut((STEPS + 1) * columns)) {
            let mut words = [0; STEPS];
            let scale = round(group, &mut words);
            let mut to = to.chunks_exact_mut(columns);
            to.next().into_iter().for_each(|scales| scales[column] = scale.to_bits());
            words.iter().zip(to).for_each(|(word, to)| to[column] = *word);
        }
    }
    assert!(Fp16::usable(isa));
    // SAFETY: checked right before.
    unsafe { pack(row, columns, column, panel) };
}

/// The bits of a whole number in fp16, of up to eleven bits.
pub(crate) fn whole(number: i16) -> u16 {
    // f32 has three more bits of exponents, and digits that are zero.
    let bits = f32::from(number).to_bits();
    let magnitude = ((bits & 0x7fff_ffff).saturating_sub(112 << 23)) >> 13;
    ((bits >> 16) & 0x8000 | magnitude) as u16
}

/// The exponent of the scale of a group as fp16; what is not a number where one of its values is not finite.
pub(crate) fn exponent(scale: f32) -> u16 {
    // Their largest is 2^TOP times the scale, or up to twice that.
    match (scale.to_bits() >> 23) as i16 - 127 {
        finite @ ..=LARGEST_EXPONENT => whole(finite),
        _ => NOT_A_NUMBER,
    }
}

const LARGEST_EXPONENT: i16 = 127 - TOP as i16;

/// Bits of fp16.
pub(crate) const MINUS_INFINITY: u16 = 0xfc00;
pub(crate) const NOT_A_NUMBER: u16 = 0x7e00;

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
        let lines = panel.chunks_exact(columns).skip(1).take(steps);
        words.iter_mut().zip(lines).for_each(|(word, line)| *word = line[column]);
        let scale = f32::from_bits(panel[column]);
        // SAFETY: checked above.
        group.copy_from_slice(&unsafe { widen(&words, scale) }[..group.len()]);
    }
}

/// The sums of both elements of the words of two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512fp16")]
pub(crate) fn join(sums: [__m512h; 2]) -> __m512h {
    let [first, second] = sums.map(|sums| _mm512_castph_si512(sums));
    let [of_first, of_second] = ELEMENTS_OF_WORDS.each_ref().map(|places| {
        // SAFETY: as many places as a vector has elements.
        let places = unsafe { _mm512_loadu_si512(places.as_ptr().cast()) };
        _mm512_castsi512_ph(_mm512_permutex2var_epi16(first, places, second))
    });
    _mm512_add_ph(of_first, of_second)
}

/// Where the first and the second elements of the words of two vectors are.
static ELEMENTS_OF_WORDS: [[u16; 32]; ELEMENTS] = {
    let mut places = [[0; 32]; ELEMENTS];
    let mut word = 0;
    while word < 32 {
        (places[0][word], places[1][word]) = (2 * word as u16, 2 * word as u16 + 1);
        word += 1;
    }
    places
};

/// A vector of fp16 as two of f32.
#[inline]
#[target_feature(enable = "avx512f,avx512fp16")]
pub(crate) fn widen(vector: __m512h) -> [__m512; 2] {
    let vector = _mm512_castph_si512(vector);
    let halves = [_mm512_castsi512_si256(vector), _mm512_extracti64x4_epi64::<1>(vector)];
    halves.map(|half| _mm512_cvtph_ps(half))
}

// Of twelve rows' 24 sums the compiler keeps some in memory, which costs more than half of the speed.
macro_rules! family_of_fp16 {
    ($family:ident, $function:ident, vectors in $words:literal words by $right:expr) => {
        family! {
            $family, $function, usable Isa::has_avx512_fp16,
            features "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16",
            2 elements a word,
            vectors of 16 in $words words: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
                |from: *const u32| _mm512_castsi512_ph(_mm512_set1_epi32(from.read() as i32)),
                $right,
                |from: *const u32| _mm512_castsi512_ph(_mm512_set1_epi32(from.read() as i32)),
                |sum, x, right| _mm512_fmadd_ph(x, right, sum),
                |sums| widen(join(sums)),
                |total, sum, x: f32, scales| {
                    _mm512_fmadd_ps(sum, _mm512_mul_ps(_mm512_set1_ps(x), scales), total)
                };
            11 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
            1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1
        }
    };
}

family_of_fp16!(Fp16, fp16, vectors in 16 words by |from: *const u32| {
    _mm512_castsi512_ph(_mm512_loadu_si512(from.cast()))
});
// Panels of bytes, which become fp16 on their way.
family_of_fp16!(Fp16OfBytes, fp16_of_bytes, vectors in 8 words by |from: *const u32| {
    _mm512_cvtepi16_ph(_mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())))
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::Random;

    #[test]
    fn whole_numbers_of_fp16_are_those_that_its_bits_stand_for() {
        assert_eq!((whole(0), whole(1), whole(-2), whole(1_536)), (0, 0x3c00, 0xc000, 0x6600));
        for number in 1..=2_047_i16 {
            let (digits, exponent) = (whole(number) & 0x3ff | 0x400, i32::from(whole(number) >> 10) - 25);
            assert_eq!(f64::from(digits) * 2f64.powi(exponent), f64::from(number));
            assert_eq!(whole(-number), whole(number) | 0x8000);
        }
    }

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
