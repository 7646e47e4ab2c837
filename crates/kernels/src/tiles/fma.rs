//! Blocks of tile products by multiply-adds of f32, for processors without AMX whose dot products of bf16 are missing or
//! slower. Operands stay bf16 in memory and are widened on the way, which is exact.

use half::bf16;

use super::tile::{BLOCK, Block, TILE_BYTES, TILE_COLS, TILE_DEPTH, TILE_ROW_BYTES, TileUnit};
use crate::isa::Isa;

/// Bytes of a row of a widened step: 32 columns of B, or rows of A.
const ROW_BYTES: usize = 2 * TILE_ROW_BYTES;
/// The second of a pair of bf16, which lies where an f32 with the same value has its bits.
const HIGH_HALF: i32 = 0xffff_0000_u32 as i32;
/// Steps after which a block turns to its next part: 16 KiB of A and of B, which stay in an L1 cache of 32 KiB.
const STEPS: usize = 4;
/// Bytes of a widened step.
const STEP_BYTES: usize = TILE_DEPTH * ROW_BYTES;

/// Defines a unit for one width of registers. A block is computed in parts of two registers of columns and of as many
/// rows as the lists say, so that all sums of a part stay in registers.
macro_rules! fma_unit {
    (
        $(#[$meta:meta])*
        $unit:ident, $name:ident, moved by $vectors:ty, features $features:literal,
        $lanes:literal lanes: $zero:path, $load:path, $load_any:path, $store_any:path, $multiply_add:path,
        $broadcast:expr,
        words $words:path, $store:path, $shift:expr, $cut:expr, $extend:expr;
        32 rows: $($first:literal + $rows:literal),+; 16 rows: $($few_first:literal + $few_rows:literal),+
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) struct $unit($vectors);

        impl $unit {
            /// `None` where the instructions are missing.
            pub fn new(isa: Isa) -> Option<Self> {
                <$vectors>::new(isa).map($unit)
            }

            /// What moves elements beside it.
            pub fn vectors(self) -> $vectors {
                self.0
            }
        }

        impl TileUnit for $unit {
            const CONVERTS: bool = true;
            const GROUP_BYTES: usize = STEP_BYTES;
            const CONVERTS_ROWS: bool = true;
            // Widened twice as much, which is half of the L2 of a processor whose tiles a hypervisor hides.
            const B_BYTES: usize = 512 << 10;
            const MAX_DEPTH: usize = 1024;

            unsafe fn convert_group(self, pairs: *const u8, _steps: usize, to: *mut u8) {
                // SAFETY: `new` checked for the instructions; the rest is the caller's promise.
                unsafe { $name::widen_pairs(pairs, to) }
            }

            unsafe fn convert_rows(self, rows: *const bf16, row_stride: usize, to: *mut u8) {
                // SAFETY: as above.
                unsafe { $name::widen_rows(rows, row_stride, to) }
            }

            #[inline(always)]
            unsafe fn block<const R: usize>(self, block: &Block) {
                // SAFETY: `new` checked for the instructions; the block is valid for `R`.
                unsafe { $name::block::<R>(block) }
            }
        }

        /// Functions compiled for the instructions.
        mod $name {
            use std::arch::x86_64::*;

            use half::bf16;

            use super::{
                BLOCK, Block, HIGH_HALF, ROW_BYTES, STEP_BYTES, STEPS, TILE_BYTES, TILE_COLS, TILE_DEPTH,
                TILE_ROW_BYTES,
            };

            /// # Safety
            /// As [`TileUnit::convert_group`], on a CPU with the instructions.
            #[target_feature(enable = $features)]
            pub unsafe fn widen_pairs(pairs: *const u8, wide: *mut u8) {
                for pair in 0..TILE_DEPTH / 2 {
                    for column in (0..BLOCK).step_by($lanes) {
                        // SAFETY: so many pairs of a row of one of the two tiles, and values of two rows of the step.
                        unsafe {
                            let (tile, word) = (column / TILE_COLS, column % TILE_COLS);
                            let words = $words(pairs.add(tile * TILE_BYTES + pair * TILE_ROW_BYTES + 4 * word).cast());
                            let to = wide.add(2 * pair * ROW_BYTES + 4 * column);
                            $store(to.cast(), $shift(words));
                            $store(to.add(ROW_BYTES).cast(), $cut(words));
                        }
                    }
                }
            }

            /// # Safety
            /// As [`TileUnit::convert_rows`], on a CPU with the instructions.
            #[target_feature(enable = $features)]
            pub unsafe fn widen_rows(rows: *const bf16, row_stride: usize, wide: *mut u8) {
                for row in 0..TILE_DEPTH {
                    for column in (0..BLOCK).step_by($lanes) {
                        // SAFETY: so many elements of a row, and values of a row of the step.
                        unsafe {
                            let words = $extend(rows.add(row * row_stride + column));
                            $store(wide.add(row * ROW_BYTES + 4 * column).cast(), $shift(words));
                        }
                    }
                }
            }

            /// A block, some steps of depth at a time, which stay in the L1 cache from one part to the next.
            ///
            /// # Safety
            /// The CPU has the instructions and the block is valid for `R`; its operands are widened.
            #[target_feature(enable = $features)]
            pub unsafe fn block<const R: usize>(block: &Block) {
                let mut now = *block;
                for first in (0..block.k_tiles).step_by(STEPS) {
                    now.k_tiles = STEPS.min(block.k_tiles - first);
                    for column in (0..BLOCK).step_by(2 * $lanes) {
                        // SAFETY: a valid block has these steps and columns, and as many rows as `R` says.
                        unsafe {
                            now.a[0] = block.a[0].add(first * STEP_BYTES);
                            now.b = block.b.add(first * STEP_BYTES + 4 * column);
                            now.c = block.c.add(column);
                            if R == 2 {
                                $(part::<$first, $rows>(&now);)+
                            } else {
                                $(part::<$few_first, $few_rows>(&now);)+
                            }
                        }
                    }
                    now.accumulate = true;
                }
            }

            /// `ROWS` rows from row `FIRST` on, and the first columns of a block: two registers of sums for each row.
            ///
            /// # Safety
            /// The CPU has the instructions, the block is valid and has `FIRST + ROWS` rows; its operands are widened.
            #[target_feature(enable = $features)]
            unsafe fn part<const FIRST: usize, const ROWS: usize>(block: &Block) {
                // SAFETY: all addresses are those of a valid block.
                unsafe {
                    let c = |row: usize, half: usize| {
                        block.c.byte_add((FIRST + row) * block.c_row_bytes).add($lanes * half)
                    };
                    let mut sums = [[$zero(); 2]; ROWS];
                    if block.accumulate {
                        for (row, sums) in sums.iter_mut().enumerate() {
                            *sums = [$load_any(c(row, 0)), $load_any(c(row, 1))];
                        }
                    }
                    let (mut a, mut b) = (block.a[0], block.b);
                    for _ in 0..block.k_tiles {
                        for k in 0..TILE_DEPTH {
                            let right = b.add(k * ROW_BYTES).cast::<f32>();
                            let right = [$load(right), $load(right.add($lanes))];
                            for (row, sums) in sums.iter_mut().enumerate() {
                                let left = $broadcast(&*a.add(k * ROW_BYTES).cast::<f32>().add(FIRST + row));
                                sums[0] = $multiply_add(left, right[0], sums[0]);
                                sums[1] = $multiply_add(left, right[1], sums[1]);
                            }
                        }
                        a = a.add(STEP_BYTES);
                        b = b.add(STEP_BYTES);
                    }
                    for (row, sums) in sums.iter().enumerate() {
                        $store_any(c(row, 0), sums[0]);
                        $store_any(c(row, 1), sums[1]);
                    }
                }
            }
        }
    };
}

fma_unit! {
    /// 512 bits: 22 of 32 registers are sums.
    Avx512Fma, avx512, moved by super::vector_avx512::Avx512Vectors,
    features "avx512f,avx512bw,avx512dq,avx512vl",
    16 lanes: _mm512_setzero_ps, _mm512_load_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps,
    |value: &f32| _mm512_set1_ps(*value),
    words _mm512_load_si512, _mm512_store_si512, |words| _mm512_slli_epi32::<16>(words),
    |words| _mm512_and_si512(words, _mm512_set1_epi32(HIGH_HALF)),
    |from: *const bf16| _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
    32 rows: 0 + 11, 11 + 11, 22 + 10; 16 rows: 0 + 8, 8 + 8
}

fma_unit! {
    /// 256 bits: 12 of 16 registers are sums.
    Avx2Fma, avx2, moved by super::vector_avx2::Avx2Vectors,
    features "avx2,fma",
    8 lanes: _mm256_setzero_ps, _mm256_load_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps,
    _mm256_broadcast_ss,
    words _mm256_load_si256, _mm256_store_si256, |words| _mm256_slli_epi32::<16>(words),
    |words| _mm256_and_si256(words, _mm256_set1_epi32(HIGH_HALF)),
    |from: *const bf16| _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
    32 rows: 0 + 6, 6 + 6, 12 + 5, 17 + 5, 22 + 5, 27 + 5; 16 rows: 0 + 6, 6 + 5, 11 + 5
}
