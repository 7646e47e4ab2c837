//! Weights in bf16. On AMX, which multiplies them by [`panels`], and where AVX-512's bf16 dot products are faster than
//! multiply-adds, inputs are rounded to bf16 too, for any number of rows; elsewhere the weights are widened and multiply f32
//! inputs.

use super::{Four, tiles, with_tile};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::element::Element;
use crate::math::array;
use crate::tile::{Operands, Tile};
use crate::tiles::panels;
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[inline(always)]
fn round(value: f32) -> u32 {
    u32::from(<bf16 as Element>::from_f32(value).to_bits())
}

/// A word of two neighbours in depth.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    round(low) | round(high) << 16
}

per_isa! {
    /// Sets one half of each word: the first, which clears the other, or the second.
    pub(crate) fn set_halves(values: &[f32], high: bool, words: &mut [u32]) {
        for (word, value) in words.iter_mut().zip(values) {
            *word = if high { *word & 0xffff | round(*value) << 16 } else { round(*value) };
        }
    }
}

per_isa! {
    /// Neighbours as words: `values.len() / 2` of them, rounded up; a missing last half is zero.
    pub(crate) fn set_pairs(values: &[f32], words: &mut [u32]) {
        let (pairs, rest) = values.as_chunks::<2>();
        words.iter_mut().zip(pairs).for_each(|(word, [low, high])| *word = pair(*low, *high));
        rest.iter().for_each(|last| words[pairs.len()] = round(*last));
    }
}

/// Rows of f32 as pairs of bf16; a missing last half is zero.
#[cfg(target_arch = "x86_64")]
fn pairs(isa: Isa, inputs: usize, x: &[f32], words: &mut [u32]) {
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn sixteen(block: &[f32; 32]) -> [u32; 16] {
        // SAFETY: the block has what is read, and a register has the bytes of sixteen words.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(block.as_ptr()), _mm512_loadu_ps(block.as_ptr().add(16)));
            std::mem::transmute::<__m512bh, [u32; 16]>(_mm512_cvtne2ps_pbh(high, low))
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn convert(inputs: usize, x: &[f32], words: &mut [u32]) {
        for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(inputs.div_ceil(2))) {
            let (blocks, rest) = row.as_chunks::<32>();
            let (vectors, last) = words.split_at_mut(16 * blocks.len());
            for (block, words) in blocks.iter().zip(vectors.as_chunks_mut::<16>().0) {
                *words = sixteen(block);
            }
            if !rest.is_empty() {
                let mut block = [0.0; 32];
                block[..rest.len()].copy_from_slice(rest);
                last.copy_from_slice(&sixteen(&block)[..last.len()]);
            }
        }
    }
    assert!(isa.has_avx512_bf16());
    // SAFETY: checked right before.
    unsafe { convert(inputs, x, words) };
}

/// Rows of f32, filled up with a zero to an even length.
fn floats(_: Isa, inputs: usize, x: &[f32], words: &mut [u32]) {
    for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(inputs.next_multiple_of(2))) {
        words[inputs..].fill(0);
        words.iter_mut().zip(row).for_each(|(word, value)| *word = value.to_bits());
    }
}

/// Rows of pairs of a panel of so many inputs: filled up to whole steps where AMX multiplies them.
pub(crate) fn panel_rows(isa: Isa, inputs: usize) -> usize {
    let pairs = inputs.div_ceil(2);
    if isa.amx().is_some() { pairs.next_multiple_of(panels::STEP_PAIRS) } else { pairs }
}

/// Words of a row of inputs as the tiles of `isa` read it.
pub(crate) fn row_words(isa: Isa, inputs: usize) -> usize {
    if isa.amx().is_some() {
        return panel_rows(isa, inputs);
    }
    fn of<K: Tile>(inputs: usize) -> usize {
        K::row_words(inputs)
    }
    with_tile!(bf16 isa, of(inputs))
}

/// Writes rows of inputs as the tiles of `isa` read them.
pub(crate) fn prepare(isa: Isa, inputs: usize, x: &[f32], words: &mut [u32]) {
    if isa.amx().is_some() {
        for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(row_words(isa, inputs))) {
            words[inputs / 2..].fill(0);
            set_pairs(isa, row, words);
        }
        return;
    }
    fn of<K: Tile>(isa: Isa, inputs: usize, x: &[f32], words: &mut [u32]) {
        K::prepare(isa, inputs, x, words);
    }
    with_tile!(bf16 isa, of(isa, inputs, x, words));
}

per_isa! {
    /// Packs up to `columns` rows of a weight into a panel; missing ones are zero.
    pub(crate) fn fill(rows: &[f32], inputs: usize, columns: usize, panel: &mut [u32]) {
        if rows.len() < columns * inputs {
            panel.fill(0);
        }
        for (column, row) in rows.chunks_exact(inputs).enumerate() {
            let (pairs, rest) = row.as_chunks::<2>();
            for ([low, high], words) in pairs.iter().zip(panel.chunks_exact_mut(columns)) {
                words[column] = pair(*low, *high);
            }
            if let [last] = rest {
                panel[pairs.len() * columns + column] = round(*last);
            }
        }
    }
}

/// Reads a column of a panel.
pub(crate) fn read(panel: &[u32], columns: usize, column: usize, row: &mut [f32]) {
    for (k, to) in row.iter_mut().enumerate() {
        let word = panel[k / 2 * columns + column];
        *to = f32::from_bits(if k % 2 == 0 { word << 16 } else { word & 0xffff_0000 });
    }
}

tiles! {
    Portable, portable, usable |_: Isa| true,
    2 elements and 2 words a step, prepared by floats,
    vectors of 4: [0.0f32; 4],
        |from: *const f32| from.cast::<Four>().read_unaligned(),
        |to: *mut f32, four: Four| to.cast::<Four>().write_unaligned(four),
        |from: *const u32| {
            let words = from.cast::<[u32; 4]>().read_unaligned();
            [words.map(|word| f32::from_bits(word << 16)), words.map(|word| f32::from_bits(word & 0xffff_0000))]
        },
        |from: *const u32| from.cast::<[f32; 2]>().read_unaligned(),
        |x: [f32; 2], right: [Four; 2], sum: Four| {
            array::<f32, 4>(|i| (sum[i] + x[0] * right[0][i]) + x[1] * right[1][i])
        };
    4 rows, side by side (2 for 1 | 2, 1 for _);
    1 x 1, 1 x 2, 2 x 1, 2 x 2, 3 x 1, 4 x 1
}

tiles! {
    #[cfg(target_arch = "x86_64")]
    Avx2, avx2, usable |isa: Isa| isa.level() >= Level::Avx2, features "avx2,fma",
    2 elements and 2 words a step, prepared by floats,
    vectors of 8: _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
        |from: *const u32| {
            let words = _mm256_loadu_si256(from.cast());
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), _mm256_castsi256_ps(high)]
        },
        |from: *const u32| {
            [_mm256_broadcast_ss(&*from.cast::<f32>()), _mm256_broadcast_ss(&*from.add(1).cast::<f32>())]
        },
        |x: [__m256; 2], right: [__m256; 2], sum| {
            _mm256_fmadd_ps(x[1], right[1], _mm256_fmadd_ps(x[0], right[0], sum))
        };
    4 rows, side by side (2 for 1, 1 for _);
    1 x 1, 1 x 2, 2 x 1, 3 x 1, 4 x 1
}

tiles! {
    #[cfg(target_arch = "x86_64")]
    Avx512, avx512, usable |isa: Isa| isa.level() >= Level::Avx512, features "avx512f",
    2 elements and 2 words a step, prepared by floats,
    vectors of 16: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| {
            let words = _mm512_loadu_si512(from.cast());
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_castsi512_ps(high)]
        },
        |from: *const u32| {
            [_mm512_set1_ps(*from.cast::<f32>()), _mm512_set1_ps(*from.add(1).cast::<f32>())]
        },
        |x: [__m512; 2], right: [__m512; 2], sum| {
            _mm512_fmadd_ps(x[1], right[1], _mm512_fmadd_ps(x[0], right[0], sum))
        };
    12 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}

tiles! {
    #[cfg(target_arch = "x86_64")]
    Dot, dot, usable Isa::has_avx512_bf16, features "avx512f,avx512bf16",
    2 elements and 1 words a step, prepared by pairs,
    vectors of 16: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| _mm512_loadu_si512(from.cast()),
        |from: *const u32| _mm512_set1_epi32(from.read() as i32),
        |x: __m512i, right: __m512i, sum| {
            _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(right))
        };
    12 rows, side by side (4 for 1 | 2, 2 for 3..=5, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 2 x 4, 3 x 1, 3 x 2, 4 x 1, 4 x 2, 5 x 1, 5 x 2,
    6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}
