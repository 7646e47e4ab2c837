//! Keys and values as fp16, for AVX-512.

use crate::Isa;
use crate::grouped::fp16::{
    Fp16, MINUS_INFINITY, NOT_A_NUMBER, STEPS, exponent, first, largest, round, whole,
};
use crate::grouped::{Family, GROUP};
use std::arch::x86_64::*;

/// Values of attention are scaled to less than two to the power of this. Their own eleven bits then go down to 2^-15 of the largest of
/// a position; what is left of the range of fp16 is for their weights, which are never below zero.
pub(crate) const VALUES_BELOW: i16 = 2;

/// Writes one column of a group of a panel, and returns the exponent, as fp16, of the power of two that undoes the scale of its values.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(super) fn set_column(isa: Isa, values: &[f32], columns: usize, column: usize, group: &mut [u32]) -> u16 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn set(values: &[f32], columns: usize, column: usize, group: &mut [u32]) -> u16 {
        let mut words = [0; STEPS];
        let scale = round(values, &mut words);
        words.iter().zip(group.chunks_exact_mut(columns)).for_each(|(word, to)| to[column] = *word);
        exponent(scale)
    }
    assert!(Fp16::usable(isa) && values.len() <= GROUP);
    // SAFETY: checked right before.
    unsafe { set(values, columns, column, group) }
}

/// The power of two that brings a magnitude, given by its bits, from below two to the power of `below`, and the same as fp16: not a number where
/// the magnitude is none or infinite, and minus infinity where it is zero, since what that is multiplied into takes no room from others.
pub(super) fn exponent_below(largest: u32, below: i16) -> (i16, u16) {
    let power = (largest >> 23) as i16 - 126 - below;
    match largest {
        0 => (power, MINUS_INFINITY),
        _ if largest < f32::INFINITY.to_bits() => (power, whole(power)),
        _ => (power, NOT_A_NUMBER),
    }
}

/// Rounds values by one power of two for all, and sets one half of a word for each: the first, or the second. Returns, as fp16, the
/// exponent of the power that undoes it ([`exponent_below`]). Where one of the values is not finite the halves are zero.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(super) fn set_halves(isa: Isa, values: &[f32], second: bool, words: &mut [u32]) -> u16 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn set(values: &[f32], second: bool, words: &mut [u32]) -> u16 {
        let largest = largest(values);
        let (power, exponent) = exponent_below(largest, VALUES_BELOW);
        let down = _mm512_set1_ps((-power).into());
        let keep = _mm512_set1_epi32(if second { 0xffff } else { 0 });
        let shift = _mm_cvtsi32_si128(if second { 16 } else { 0 });
        for (values, words) in values.chunks(16).zip(words.chunks_mut(16)) {
            let mask = first(values.len());
            let taken = if largest < f32::INFINITY.to_bits() { mask } else { 0 };
            // SAFETY: loads and stores are of the elements that the masks stand for: a chunk of words has as many.
            unsafe {
                let scaled =
                    _mm512_maskz_scalef_ps(taken, _mm512_maskz_loadu_ps(taken, values.as_ptr()), down);
                let narrow = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(scaled);
                let halves = _mm512_sll_epi32(_mm512_cvtepu16_epi32(narrow), shift);
                let others = _mm512_and_si512(_mm512_maskz_loadu_epi32(mask, words.as_ptr().cast()), keep);
                _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), mask, _mm512_or_si512(others, halves));
            }
        }
        exponent
    }
    assert!(Fp16::usable(isa) && words.len() == values.len());
    // SAFETY: checked right before.
    unsafe { set(values, second, words) }
}
