//! Weights in bf16. With AVX-512's bf16 dot products, inputs are rounded to bf16 too, for any number of rows; other
//! instruction sets widen the weights and multiply f32 inputs.

use super::{Family, Operands, prefetch};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::element::Element;
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[inline(always)]
fn round(value: f32) -> u32 {
    u32::from(<bf16 as Element>::from_f32(value).to_bits())
}

per_isa! {
    /// Rows of f32 as pairs of bf16; a missing last half is zero.
    pub(super) fn prepare_pairs(inputs: usize, x: &[f32], words: &mut [u32]) {
        for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(inputs.div_ceil(2))) {
            let (pairs, rest) = row.as_chunks::<2>();
            for (word, [low, high]) in words.iter_mut().zip(pairs) {
                *word = round(*low) | round(*high) << 16;
            }
            if let ([last], Some(word)) = (rest, words.last_mut()) {
                *word = round(*last);
            }
        }
    }
}

/// Rows of f32, filled up with a zero to an even length.
pub(super) fn prepare_floats(inputs: usize, x: &[f32], words: &mut [u32]) {
    for (row, words) in x.chunks_exact(inputs).zip(words.chunks_exact_mut(inputs.next_multiple_of(2))) {
        words[inputs..].fill(0);
        words.iter_mut().zip(row).for_each(|(word, value)| *word = value.to_bits());
    }
}

per_isa! {
    /// Packs up to `columns` rows of a weight into a panel; missing ones are zero.
    pub(super) fn fill(rows: &[f32], inputs: usize, columns: usize, panel: &mut [u32]) {
        if rows.len() < columns * inputs {
            panel.fill(0);
        }
        for (column, row) in rows.chunks_exact(inputs).enumerate() {
            let (pairs, rest) = row.as_chunks::<2>();
            for ([low, high], words) in pairs.iter().zip(panel.chunks_exact_mut(columns)) {
                words[column] = round(*low) | round(*high) << 16;
            }
            if let [last] = rest {
                panel[pairs.len() * columns + column] = round(*last);
            }
        }
    }
}

/// Reads a column of a panel.
pub(super) fn read(panel: &[u32], columns: usize, column: usize, row: &mut [f32]) {
    for (k, to) in row.iter_mut().enumerate() {
        let word = panel[k / 2 * columns + column];
        *to = f32::from_bits(if k % 2 == 0 { word << 16 } else { word & 0xffff_0000 });
    }
}

/// Defines the inner loops of one instruction set. `words` of inputs are read per step.
macro_rules! family {
    (
        $(#[$meta:meta])* $family:ident, $function:ident, usable $usable:expr, $(features $features:literal,)?
        vectors of $lanes:literal: $zero:expr, $load:expr, $store:expr, $right:expr, $left:expr, $step:expr;
        $words:literal words, $rows:literal rows, side by side ($($most:literal for $few:pat),+);
        $($shape_rows:literal x $shape_panels:literal),+
    ) => {
        $(#[$meta])*
        pub(super) struct $family;

        $(#[$meta])*
        impl Family for $family {
            const ROWS: usize = $rows;
            const COLUMNS: usize = 2 * $lanes;

            fn usable(isa: Isa) -> bool {
                $usable(isa)
            }

            fn side_by_side(rows: usize) -> usize {
                match rows {
                    $($few => $most,)+
                }
            }

            #[inline(always)]
            unsafe fn run(rows: usize, panels: usize, operands: &Operands) {
                match (rows, panels) {
                    // SAFETY: the caller's contract is that of the family.
                    $(($shape_rows, $shape_panels) => unsafe { $function::<$shape_rows, $shape_panels>(operands) },)+
                    _ => unreachable!("no tile of {rows} rows and {panels} panels"),
                }
            }
        }

        /// # Safety
        /// That of [`Family::run`].
        $(#[$meta])*
        $(#[target_feature(enable = $features)])?
        unsafe fn $function<const ROWS: usize, const PANELS: usize>(operands: &Operands) {
            let &Operands { left, left_stride, first, steps, right, right_stride, c, c_stride, .. } = operands;
            // SAFETY: see the caller's contract.
            unsafe {
                let at = |row: usize, panel: usize, half: usize| {
                    c.add(row * c_stride + panel * 2 * $lanes + half * $lanes)
                };
                let mut sums = [[[$zero; 2]; PANELS]; ROWS];
                if first > 0 {
                    for row in 0..ROWS {
                        for panel in 0..PANELS {
                            sums[row][panel] = [$load(at(row, panel, 0)), $load(at(row, panel, 1))];
                        }
                    }
                }
                let mut a = left.add(first * $words);
                let mut b = right.add(first * 2 * $lanes);
                for _ in 0..steps {
                    let mut vectors = [[$right(b); 2]; PANELS];
                    for panel in 0..PANELS {
                        let b = b.add(panel * right_stride);
                        prefetch(ROWS, b);
                        vectors[panel] = [$right(b), $right(b.add($lanes))];
                    }
                    for row in 0..ROWS {
                        let x = $left(a.add(row * left_stride));
                        for panel in 0..PANELS {
                            for half in 0..2 {
                                sums[row][panel][half] = $step(sums[row][panel][half], x, vectors[panel][half]);
                            }
                        }
                    }
                    a = a.wrapping_add($words);
                    b = b.wrapping_add(2 * $lanes);
                }
                for row in 0..ROWS {
                    for panel in 0..PANELS {
                        $store(at(row, panel, 0), sums[row][panel][0]);
                        $store(at(row, panel, 1), sums[row][panel][1]);
                    }
                }
            }
        }
    };
}

type Four = [f32; 4];

family! {
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Portable, portable, usable |_: Isa| true,
    vectors of 4: [0.0f32; 4],
        |from: *const f32| from.cast::<Four>().read_unaligned(),
        |to: *mut f32, four: Four| to.cast::<Four>().write_unaligned(four),
        |from: *const u32| {
            let words = from.cast::<[u32; 4]>().read_unaligned();
            [words.map(|word| f32::from_bits(word << 16)), words.map(|word| f32::from_bits(word & 0xffff_0000))]
        },
        |from: *const u32| from.cast::<[f32; 2]>().read_unaligned(),
        |sum: Four, x: [f32; 2], right: [Four; 2]| {
            std::array::from_fn::<f32, 4, _>(|i| (sum[i] + x[0] * right[0][i]) + x[1] * right[1][i])
        };
    2 words, 4 rows, side by side (2 for 1 | 2, 1 for _);
    1 x 1, 1 x 2, 2 x 1, 2 x 2, 3 x 1, 4 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Avx2, avx2, usable |isa: Isa| isa.level() >= Level::Avx2, features "avx2,fma",
    vectors of 8: _mm256_setzero_ps(), _mm256_loadu_ps, _mm256_storeu_ps,
        |from: *const u32| {
            let words = _mm256_loadu_si256(from.cast());
            let high = _mm256_and_si256(words, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), _mm256_castsi256_ps(high)]
        },
        |from: *const u32| {
            [_mm256_broadcast_ss(&*from.cast::<f32>()), _mm256_broadcast_ss(&*from.add(1).cast::<f32>())]
        },
        |sum, x: [__m256; 2], right: [__m256; 2]| {
            _mm256_fmadd_ps(x[1], right[1], _mm256_fmadd_ps(x[0], right[0], sum))
        };
    2 words, 4 rows, side by side (2 for 1, 1 for _);
    1 x 1, 1 x 2, 2 x 1, 3 x 1, 4 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Avx512, avx512, usable |isa: Isa| isa.level() >= Level::Avx512, features "avx512f",
    vectors of 16: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| {
            let words = _mm512_loadu_si512(from.cast());
            let high = _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)), _mm512_castsi512_ps(high)]
        },
        |from: *const u32| {
            [_mm512_set1_ps(*from.cast::<f32>()), _mm512_set1_ps(*from.add(1).cast::<f32>())]
        },
        |sum, x: [__m512; 2], right: [__m512; 2]| {
            _mm512_fmadd_ps(x[1], right[1], _mm512_fmadd_ps(x[0], right[0], sum))
        };
    2 words, 12 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}

family! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Dot, dot, usable Isa::has_avx512_bf16, features "avx512f,avx512bf16",
    vectors of 16: _mm512_setzero_ps(), _mm512_loadu_ps, _mm512_storeu_ps,
        |from: *const u32| _mm512_loadu_si512(from.cast()),
        |from: *const u32| _mm512_set1_epi32(from.read() as i32),
        |sum, x: __m512i, right: __m512i| {
            _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(right))
        };
    1 words, 12 rows, side by side (4 for 1 | 2, 2 for 3..=5, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 2 x 4, 3 x 1, 3 x 2, 4 x 1, 4 x 2, 5 x 1, 5 x 2,
    6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}
