//! Keys and values as int8, for AVX-512.

use super::fp16::exponent_below;
use crate::Isa;
use crate::grouped::fp16::{first, largest};
use crate::grouped::int8::{ELEMENTS, scale};
use crate::grouped::{Family, GROUP, fp16::Fp16};
use std::arch::x86_64::*;

/// Values are scaled to at most two to the power of this.
pub(crate) const VALUES_BELOW: i16 = 7;

/// The nearest integers, ties to even.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// Writes up to [`GROUP`] dimensions of a key as one column of a panel, four to a word, 128 added to each as dot products of bytes want it. Returns
/// the scale, which is not a number where one of them is not finite.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(super) fn set_column(isa: Isa, key: &[f32], columns: usize, column: usize, panel: &mut [u32]) -> f32 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn set(key: &[f32], columns: usize, column: usize, panel: &mut [u32]) -> f32 {
        let (scale, inverse) = scale(f32::from_bits(largest(key)));
        let mut words = [0u32; GROUP / ELEMENTS];
        for (values, words) in key.chunks(16).zip(words.as_chunks_mut::<4>().0) {
            // SAFETY: the elements of the mask are there to be read, and four words can be written.
            unsafe {
                let values = _mm512_maskz_loadu_ps(first(values.len()), values.as_ptr());
                let scaled = _mm512_mul_ps(values, _mm512_set1_ps(inverse));
                let bytes = _mm512_cvtepi32_epi8(_mm512_cvt_roundps_epi32::<NEAREST>(scaled));
                let shifted = _mm_xor_si128(bytes, _mm_set1_epi8(i8::MIN));
                _mm_storeu_si128(words.as_mut_ptr().cast(), shifted);
            }
        }
        let words = &words[..key.len().div_ceil(ELEMENTS)];
        words.iter().zip(panel.chunks_exact_mut(columns)).for_each(|(word, to)| to[column] = *word);
        scale
    }
    assert!(Fp16::usable(isa) && key.len() <= GROUP);
    // SAFETY: checked right before.
    unsafe { set(key, columns, column, panel) }
}

/// Writes a value by one power of two for all dimensions: a byte of each half of a word for each, the first or the second. Returns, as fp16, the
/// exponent of the power that undoes it; of what is not finite, and of zeros, as [`set_halves`](super::fp16::set_halves) does.
///
/// # Panics
/// Where the CPU lacks the instructions or `words` are too few.
pub(super) fn set_values(isa: Isa, values: &[f32], second: bool, words: &mut [u32]) -> u16 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn set(values: &[f32], second: bool, words: &mut [u32]) -> u16 {
        let largest = largest(values);
        let (power, exponent) = exponent_below(largest, VALUES_BELOW);
        let down = _mm512_set1_ps((-power).into());
        let keep = _mm256_set1_epi16(if second { 0x00ff } else { 0 });
        let shift = _mm_cvtsi32_si128(if second { 8 } else { 0 });
        for (values, words) in values.chunks(16).zip(words.chunks_mut(8)) {
            let mask = first(values.len());
            let taken = if largest < f32::INFINITY.to_bits() { mask } else { 0 };
            // SAFETY: loads and stores are of the elements that the masks stand for: a chunk of words has as many halves.
            unsafe {
                let scaled =
                    _mm512_maskz_scalef_ps(taken, _mm512_maskz_loadu_ps(taken, values.as_ptr()), down);
                // Bytes go down to -128.
                let rounded =
                    _mm512_min_epi32(_mm512_cvt_roundps_epi32::<NEAREST>(scaled), _mm512_set1_epi32(127));
                let bytes = _mm512_and_si512(rounded, _mm512_set1_epi32(0xff));
                let halves = _mm256_sll_epi16(_mm512_cvtepi32_epi16(bytes), shift);
                let to: *mut i16 = words.as_mut_ptr().cast();
                let others = _mm256_and_si256(_mm256_maskz_loadu_epi16(mask, to), keep);
                _mm256_mask_storeu_epi16(to, mask, _mm256_or_si256(others, halves));
            }
        }
        exponent
    }
    assert!(Fp16::usable(isa) && 2 * words.len() >= values.len());
    // SAFETY: checked right before.
    unsafe { set(values, second, words) }
}
