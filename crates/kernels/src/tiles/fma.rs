//! Blocks of tile products by multiply-adds of f32, for processors without AMX whose dot products of bf16 are missing or
//! slower. Operands stay bf16 in memory and are widened on the way, which is exact.

use half::bf16;

use super::tile::{Block, TILE_BYTES, TILE_DEPTH, TILE_ROW_BYTES, TileUnit};
use crate::isa::Isa;

/// Bytes of a row of a widened step: 32 columns of B, or rows of A.
const ROW_BYTES: usize = 2 * TILE_ROW_BYTES;
/// Bytes of a widened step.
const STEP_BYTES: usize = TILE_DEPTH * ROW_BYTES;

/// # Safety
/// As [`TileUnit::widen_pairs`].
#[inline(always)]
unsafe fn widen_pairs(pairs: *const u8, wide: *mut u8) {
    for (pair, half) in (0..TILE_DEPTH / 2).flat_map(|pair| [(pair, 0), (pair, 1)]) {
        // SAFETY: 16 pairs of a tile row, and 16 values in each of two rows of the step; all are aligned.
        unsafe {
            let words = &*pairs.add(half * TILE_BYTES + pair * TILE_ROW_BYTES).cast::<[u32; 16]>();
            let to = wide.add(2 * pair * ROW_BYTES + half * TILE_ROW_BYTES);
            to.cast::<[u32; 16]>().write(words.map(|word| word << 16));
            to.add(ROW_BYTES).cast::<[u32; 16]>().write(words.map(|word| word & 0xffff_0000));
        }
    }
}

/// # Safety
/// As [`TileUnit::widen_rows`].
#[inline(always)]
unsafe fn widen_rows(rows: *const bf16, row_stride: usize, wide: *mut u8) {
    for row in 0..TILE_DEPTH {
        // SAFETY: 32 elements of a row, and a row of the step; both are aligned as their types need.
        unsafe {
            let values = &*rows.add(row * row_stride).cast::<[u16; TILE_DEPTH]>();
            wide.add(row * ROW_BYTES)
                .cast::<[u32; TILE_DEPTH]>()
                .write(values.map(|value| u32::from(value) << 16));
        }
    }
}

/// Defines a unit for one width of registers. A block is computed in parts of `part` columns, two registers, and of as
/// many rows as the lists say, so that all sums of a part stay in registers.
macro_rules! fma_unit {
    (
        $(#[$meta:meta])*
        $unit:ident, $name:ident, moved by $vectors:ty, features $features:literal, $steps:literal steps at a time,
        $lanes:literal lanes: $zero:path, $load:path, $load_any:path, $store_any:path, $multiply_add:path,
        $broadcast:expr;
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
            const WIDENS: bool = true;
            const STEP_BYTES: usize = STEP_BYTES;
            // Widened twice as much, which is half of the L2 of a processor whose tiles a hypervisor hides.
            const B_BYTES: usize = 512 << 10;
            const MAX_DEPTH: usize = 1024;

            fn open(self) {}

            fn close(self) {}

            unsafe fn widen_pairs(self, pairs: *const u8, wide: *mut u8) {
                // SAFETY: `new` checked for the instructions; the rest is the caller's promise.
                unsafe { $name::widen_pairs(pairs, wide) }
            }

            unsafe fn widen_rows(self, rows: *const bf16, row_stride: usize, wide: *mut u8) {
                // SAFETY: as above.
                unsafe { $name::widen_rows(rows, row_stride, wide) }
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

            use super::{Block, ROW_BYTES, STEP_BYTES, TILE_DEPTH};

            /// # Safety
            /// As [`TileUnit::widen_pairs`], on a CPU with the instructions.
            #[target_feature(enable = $features)]
            pub unsafe fn widen_pairs(pairs: *const u8, wide: *mut u8) {
                // SAFETY: the caller's promise.
                unsafe { super::widen_pairs(pairs, wide) }
            }

            /// # Safety
            /// As [`TileUnit::widen_rows`], on a CPU with the instructions.
            #[target_feature(enable = $features)]
            pub unsafe fn widen_rows(rows: *const bf16, row_stride: usize, wide: *mut u8) {
                // SAFETY: the caller's promise.
                unsafe { super::widen_rows(rows, row_stride, wide) }
            }

            /// A block, some steps of depth at a time, which stay in the L1 cache from one part to the next.
            ///
            /// # Safety
            /// The CPU has the instructions and the block is valid for `R`; its operands are widened.
            #[target_feature(enable = $features)]
            pub unsafe fn block<const R: usize>(block: &Block) {
                let mut now = *block;
                for first in (0..block.k_tiles).step_by($steps) {
                    now.k_tiles = $steps.min(block.k_tiles - first);
                    for column in (0..32).step_by(2 * $lanes) {
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
    features "avx512f,avx512bw,avx512dq,avx512vl", 4 steps at a time,
    16 lanes: _mm512_setzero_ps, _mm512_load_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps,
    |value: &f32| _mm512_set1_ps(*value);
    32 rows: 0 + 11, 11 + 11, 22 + 10; 16 rows: 0 + 8, 8 + 8
}

fma_unit! {
    /// 256 bits: 12 of 16 registers are sums.
    Avx2Fma, avx2, moved by super::vector_avx2::Avx2Vectors,
    features "avx2,fma", 4 steps at a time,
    8 lanes: _mm256_setzero_ps, _mm256_load_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps,
    _mm256_broadcast_ss;
    32 rows: 0 + 6, 6 + 6, 12 + 5, 17 + 5, 22 + 5, 27 + 5; 16 rows: 0 + 6, 6 + 5, 11 + 5
}
