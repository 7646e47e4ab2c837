//! Vectors of fp16, as two elements to a word.

use crate::grouped::Family;
use crate::grouped::fp16::{ELEMENTS, Fp16};
use std::arch::x86_64::*;

/// Words of a vector: of as many positions as a panel has.
pub(super) const VECTOR: usize = Fp16::COLUMNS / ELEMENTS;

/// A whole number everywhere.
#[inline]
#[target_feature(enable = "avx512fp16")]
pub(super) fn all(number: i16) -> __m512h {
    _mm512_cvtepi16_ph(_mm512_set1_epi16(number))
}

/// The greater of two, or the second where the first is not a number.
#[inline]
#[target_feature(enable = "avx512f,avx512fp16")]
pub(super) fn greater(first: __m512h, second: __m512h) -> __m512h {
    _mm512_max_ph(first, second)
}

/// # Safety
/// A vector can be read.
#[inline]
#[target_feature(enable = "avx512fp16")]
pub(super) unsafe fn load(words: *const u32) -> __m512h {
    // SAFETY: the caller's contract.
    unsafe { _mm512_castsi512_ph(_mm512_loadu_si512(words.cast())) }
}

/// # Safety
/// A vector can be written.
#[inline]
#[target_feature(enable = "avx512fp16")]
pub(super) unsafe fn store(words: *mut u32, vector: __m512h) {
    // SAFETY: the caller's contract.
    unsafe { _mm512_storeu_si512(words.cast(), _mm512_castph_si512(vector)) };
}

/// The elements of the mask, and zeros.
#[inline]
#[target_feature(enable = "avx512bw,avx512fp16")]
pub(super) fn keep(mask: u32, vector: __m512h) -> __m512h {
    _mm512_castsi512_ph(_mm512_maskz_mov_epi16(mask, _mm512_castph_si512(vector)))
}

/// The largest of all elements, everywhere.
#[inline]
#[target_feature(enable = "avx512f,avx512fp16")]
pub(super) fn reduce_max(vector: __m512h) -> __m512h {
    let bits = |vector| _mm512_castph_si512(vector);
    let take = |vector, other| _mm512_max_ph(vector, _mm512_castsi512_ph(other));
    let vector = take(vector, _mm512_shuffle_i64x2::<0b01_00_11_10>(bits(vector), bits(vector)));
    let vector = take(vector, _mm512_shuffle_i64x2::<0b10_11_00_01>(bits(vector), bits(vector)));
    let vector = take(vector, _mm512_shuffle_epi32::<0b01_00_11_10>(bits(vector)));
    let vector = take(vector, _mm512_shuffle_epi32::<0b10_11_00_01>(bits(vector)));
    take(vector, _mm512_rol_epi32::<16>(bits(vector)))
}
