//! Who moves elements into tiles and sums out of them: plain Rust, or vectors with the same contract.

use half::bf16;

use super::tile::{BLOCK, TILE_COLS, TILE_DEPTH, TILE_ROWS};
use crate::element::Element;

/// Elements of bf16 in a tile.
pub(crate) const TILE_ELEMENTS: usize = TILE_ROWS * TILE_DEPTH;

/// The sums of one block on their way from tiles to C: row-major, 32 columns.
#[repr(C, align(64))]
pub(crate) struct BlockSums(pub [f32; BLOCK * BLOCK]);

/// Moves whole tiles and finished blocks. Strides are in elements.
pub(crate) trait VectorUnit: Copy {
    /// A tile of A from rows of A: 16 rows of 32 elements, one after another.
    ///
    /// # Safety
    /// 16 rows of 32 elements, `row_stride` apart, can be read at `src`; a tile can be written at `dst`,
    /// which is 64-byte aligned; they do not overlap.
    unsafe fn copy_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16);

    /// A tile of B from rows of B: of 32 rows of 16 elements, rows 2p and 2p + 1 become row p, interleaved.
    ///
    /// # Safety
    /// 32 rows of 16 elements, `row_stride` apart, can be read at `src`; a tile can be written at `dst`,
    /// which is 64-byte aligned; they do not overlap.
    unsafe fn interleave_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16);

    /// Two tiles of B side by side from rows of B, one after the other, each as [`VectorUnit::interleave_tile`] makes
    /// it. Rows are read a cache line at a time: where they lie a multiple of 4 KiB apart, a line may be gone from the
    /// L1 cache before its second half is asked for.
    ///
    /// # Safety
    /// 32 rows of 32 elements, `row_stride` apart, can be read at `src`; two tiles can be written at `dst`,
    /// which is 64-byte aligned; they do not overlap.
    unsafe fn interleave_tiles(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        // SAFETY: the caller's promise covers both halves.
        unsafe {
            self.interleave_tile(src, row_stride, dst);
            self.interleave_tile(src.add(TILE_COLS), row_stride, dst.add(TILE_ELEMENTS));
        }
    }

    /// A tile of B from columns of B: of 16 rows of 16 pairs, pair p of row n becomes pair n of row p.
    ///
    /// # Safety
    /// 16 rows of 32 elements, `row_stride` apart, can be read at `src`; a tile can be written at `dst`,
    /// which is 64-byte aligned; they do not overlap.
    unsafe fn transpose_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16);

    /// C = sums, or C += sums, for the first `rows` × `cols` of a block.
    ///
    /// # Safety
    /// `rows` and `cols` are at most 32; that many elements, `c_row_stride` apart, can be written at `c`
    /// and, with `accumulate`, read.
    unsafe fn write_f32(
        self,
        sums: &BlockSums,
        rows: usize,
        cols: usize,
        c: *mut f32,
        c_row_stride: usize,
        accumulate: bool,
    );

    /// C = sums, or C += sums, rounded once to the nearest bf16, ties to even.
    ///
    /// # Safety
    /// As [`VectorUnit::write_f32`].
    unsafe fn write_bf16(
        self,
        sums: &BlockSums,
        rows: usize,
        cols: usize,
        c: *mut bf16,
        c_row_stride: usize,
        accumulate: bool,
    );
}

/// Plain Rust: the reference, and what packs weights where AVX-512 is missing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortableVectors;

impl VectorUnit for PortableVectors {
    #[inline(always)]
    unsafe fn copy_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        for row in 0..TILE_ROWS {
            // SAFETY: the row is one of the 16 that the caller vouches for, on both sides.
            unsafe {
                dst.add(row * TILE_DEPTH).copy_from_nonoverlapping(src.add(row * row_stride), TILE_DEPTH)
            };
        }
    }

    #[inline(always)]
    unsafe fn interleave_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        for pair in 0..TILE_DEPTH / 2 {
            for col in 0..TILE_ROWS {
                for half in 0..2 {
                    // SAFETY: row 2·15 + 1 and column 15 are the last that the caller vouches for.
                    unsafe {
                        *dst.add(pair * TILE_DEPTH + 2 * col + half) =
                            *src.add((2 * pair + half) * row_stride + col)
                    };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        for pair in 0..TILE_DEPTH / 2 {
            for row in 0..TILE_ROWS {
                // SAFETY: row 15 and pair 15 are the last that the caller vouches for.
                unsafe {
                    let word = src.add(row * row_stride + 2 * pair).cast::<u32>().read_unaligned();
                    dst.add(pair * TILE_DEPTH + 2 * row).cast::<u32>().write(word);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn write_f32(
        self,
        sums: &BlockSums,
        rows: usize,
        cols: usize,
        c: *mut f32,
        c_row_stride: usize,
        accumulate: bool,
    ) {
        for (row, sums) in sums.0.chunks_exact(BLOCK).take(rows).enumerate() {
            for (col, &sum) in sums.iter().take(cols).enumerate() {
                // SAFETY: `row` and `col` are below what the caller vouches for.
                unsafe {
                    let c = c.add(row * c_row_stride + col);
                    *c = if accumulate { *c + sum } else { sum };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn write_bf16(
        self,
        sums: &BlockSums,
        rows: usize,
        cols: usize,
        c: *mut bf16,
        c_row_stride: usize,
        accumulate: bool,
    ) {
        for (row, sums) in sums.0.chunks_exact(BLOCK).take(rows).enumerate() {
            for (col, &sum) in sums.iter().take(cols).enumerate() {
                // SAFETY: `row` and `col` are below what the caller vouches for.
                unsafe {
                    let c = c.add(row * c_row_stride + col);
                    *c =
                        <bf16 as Element>::from_f32(if accumulate { Element::to_f32(*c) + sum } else { sum });
                }
            }
        }
    }
}
