//! Blocks of tile products by AVX-512's dot products of bf16 pairs, for processors without AMX. The layout is that
//! of tiles: a row of a tile of B is one register of pairs, and a pair of A is broadcast from memory.

use std::arch::x86_64::*;

use super::tile::{
    BLOCK, Block, PANEL_STEP_BYTES, TILE_BYTES, TILE_DEPTH, TILE_ROW_BYTES, TILE_ROWS, TileUnit,
};
use crate::isa::Isa;

/// `vdpbf16ps`: two bf16 products added to each of 16 fp32 sums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512Dot(());

impl Avx512Dot {
    /// `None` where the instruction is missing.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.has_avx512_bf16().then_some(Avx512Dot(()))
    }
}

/// Pairs of a tile row.
const PAIRS: usize = TILE_DEPTH / 2;

impl TileUnit for Avx512Dot {
    // Rows at a distance known to the compiler need one address register for all of them.
    const READS_A_IN_PLACE: bool = false;

    fn open(self) {}

    fn close(self) {}

    #[inline(always)]
    unsafe fn block<const R: usize>(self, block: &Block) {
        debug_assert!(block.a_row_bytes == TILE_ROW_BYTES && block.a_step_bytes == PANEL_STEP_BYTES);
        // SAFETY: `new` checked for the instruction; rows of a valid block, as many as `R` says. The tiles of A are
        // packed, so its rows follow each other.
        unsafe {
            if R == 2 {
                rows::<11>(block, 0);
                rows::<11>(block, 11);
                rows::<10>(block, 22);
            } else {
                rows::<8>(block, 0);
                rows::<8>(block, 8);
            }
        }
    }
}

/// `ROWS` rows of a block from row `first` on: two registers of sums each.
///
/// # Safety
/// The CPU has the instructions, the block is valid and has `first + ROWS` rows, and its A is packed.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn rows<const ROWS: usize>(block: &Block, first: usize) {
    // SAFETY: all addresses are those of a valid block: rows of C, tiles of B, and rows of A that lie 64 bytes apart.
    unsafe {
        let c = |row: usize, half: usize| block.c.byte_add((first + row) * block.c_row_bytes).add(16 * half);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if block.accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_loadu_ps(c(row, 0)), _mm512_loadu_ps(c(row, 1))];
            }
        }
        let mut a = block.a[0].add(first * TILE_ROW_BYTES);
        let mut b = block.b;
        for _ in 0..block.k_tiles {
            for pair in 0..PAIRS {
                let right: [__m512bh; 2] = [
                    bf16(_mm512_load_si512(b.add(pair * TILE_ROW_BYTES).cast())),
                    bf16(_mm512_load_si512(b.add(TILE_BYTES + pair * TILE_ROW_BYTES).cast())),
                ];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let pair = a.add(row * TILE_ROW_BYTES + 4 * pair).cast::<i32>().read_unaligned();
                    let left = bf16(_mm512_set1_epi32(pair));
                    sums[0] = _mm512_dpbf16_ps(sums[0], left, right[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], left, right[1]);
                }
            }
            a = a.add(PANEL_STEP_BYTES);
            b = b.add(PANEL_STEP_BYTES);
        }
        for (row, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(c(row, 0), sums[0]);
            _mm512_storeu_ps(c(row, 1), sums[1]);
        }
    }
}

/// The same bits as pairs.
#[inline(always)]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of which every pattern is a value.
    unsafe { std::mem::transmute(bits) }
}

// Two tiles of 16 rows are 32 rows 64 bytes apart.
const _: () = assert!(BLOCK == 2 * TILE_ROWS && TILE_BYTES == TILE_ROWS * TILE_ROW_BYTES);
