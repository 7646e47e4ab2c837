//! Blocks of tile products by AVX-512's dot products of bf16 pairs, for processors without AMX. The layout is that
//! of tiles: a row of a tile of B is one register of pairs, and a pair of A is broadcast from memory.

use std::arch::x86_64::*;

use super::tile::{Block, PANEL_STEP_BYTES, TILE_BYTES, TILE_DEPTH, TILE_ROW_BYTES, TILE_ROWS, TileUnit};
use super::vector_avx512::Avx512Vectors;
use crate::isa::Isa;

/// `vdpbf16ps`: two bf16 products added to each of 16 fp32 sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx512Dot(Avx512Vectors);

impl Avx512Dot {
    /// `None` where the instruction is missing.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.has_avx512_bf16().then(|| Avx512Vectors::new(isa)).flatten().map(Avx512Dot)
    }

    /// What moves elements beside it.
    pub fn vectors(self) -> Avx512Vectors {
        self.0
    }
}

/// Pairs of a tile row.
const PAIRS: usize = TILE_DEPTH / 2;

impl TileUnit for Avx512Dot {
    // Rows at a distance known to the compiler need one address register for all of them.
    const READS_A_IN_PLACE: bool = false;
    const READS_A_AS_PAIRS: bool = true;
    // Half of the 1 MiB of a Zen 4; the rows of A, and a panel of B for them, then mostly stay in L1.
    const B_BYTES: usize = 512 << 10;
    const MAX_DEPTH: usize = 1024;

    #[inline(always)]
    unsafe fn block<const R: usize>(self, block: &Block) {
        debug_assert!(block.a_row_bytes == TILE_ROW_BYTES && block.a_step_bytes == PANEL_STEP_BYTES);
        // SAFETY: `new` checked for the instruction; rows of a valid block, as many as `R` says. The tiles of A are
        // packed, since it is not read in place.
        unsafe {
            match (R, block.a_as_pairs) {
                (2, false) => {
                    rows::<0, 11, false>(block);
                    rows::<11, 11, false>(block);
                    rows::<22, 10, false>(block);
                }
                (2, true) => {
                    rows::<0, 11, true>(block);
                    rows::<11, 11, true>(block);
                    rows::<22, 10, true>(block);
                }
                (_, false) => {
                    rows::<0, 8, false>(block);
                    rows::<8, 8, false>(block);
                }
                (_, true) => {
                    rows::<0, 8, true>(block);
                    rows::<8, 8, true>(block);
                }
            }
        }
    }
}

/// `ROWS` rows of a block from row `FIRST` on: two registers of sums each.
///
/// # Safety
/// The CPU has the instructions, the block is valid and has `FIRST + ROWS` rows, and its A is packed, as pairs if
/// `AS_PAIRS` says so.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn rows<const FIRST: usize, const ROWS: usize, const AS_PAIRS: bool>(block: &Block) {
    // SAFETY: all addresses are those of a valid block: rows of C, tiles of B and packed tiles of A.
    unsafe {
        let c = |row: usize, half: usize| block.c.byte_add((FIRST + row) * block.c_row_bytes).add(16 * half);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if block.accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_loadu_ps(c(row, 0)), _mm512_loadu_ps(c(row, 1))];
            }
        }
        let (mut a, mut b) = (block.a[0], block.b);
        for _ in 0..block.k_tiles {
            for pair in 0..PAIRS {
                let right: [__m512bh; 2] = [
                    bf16(_mm512_load_si512(b.add(pair * TILE_ROW_BYTES).cast())),
                    bf16(_mm512_load_si512(b.add(TILE_BYTES + pair * TILE_ROW_BYTES).cast())),
                ];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let at = a.add(place::<AS_PAIRS>(FIRST + row, pair)).cast::<i32>();
                    let left = bf16(_mm512_set1_epi32(at.read_unaligned()));
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

/// Byte of a pair of A in the two tiles of a step.
#[inline(always)]
const fn place<const AS_PAIRS: bool>(row: usize, pair: usize) -> usize {
    let tile = row / TILE_ROWS * TILE_BYTES;
    let row = row % TILE_ROWS;
    if AS_PAIRS { tile + pair * TILE_ROW_BYTES + 4 * row } else { tile + row * TILE_ROW_BYTES + 4 * pair }
}

/// The same bits as pairs.
#[inline(always)]
fn bf16(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of which every pattern is a value.
    unsafe { std::mem::transmute(bits) }
}
