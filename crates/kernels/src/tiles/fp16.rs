//! Blocks of tile products by AVX-512's multiply-adds of fp16, for processors without AMX: they do twice as many operations
//! as those of f32.
//!
//! bf16 has the range of f32, fp16 has 30 binades and three more bits. So the operands of a group of depth are scaled by a
//! power of two for each row of A and column of B, which is exact but for what lies more than 17 binades below the largest
//! value of the row: there bits are lost one by one, and what lies more than 28 below becomes zero. Up to 32 products are
//! added up in fp16, two such sums are added to one, and from there on sums are f32. Rows whose values all have the largest
//! magnitude do not overflow.

use std::arch::x86_64::*;

use super::tile::{Block, PANEL_STEP_BYTES, TILE_BYTES, TILE_DEPTH, TILE_ROW_BYTES, TILE_ROWS, TileUnit};
use super::vector_avx512::Avx512Vectors;
use crate::isa::Isa;
use crate::prefetch;

/// `vfmadd231ph`: 32 products of fp16 added to as many sums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx512Fp16(Avx512Vectors);

impl Avx512Fp16 {
    /// `None` where the instructions are missing.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.has_avx512_fp16().then(|| Avx512Vectors::new(isa)).flatten().map(Avx512Fp16)
    }

    /// What moves elements beside it.
    pub fn vectors(self) -> Avx512Vectors {
        self.0
    }
}

/// Steps of a group: with two depths in each lane, 32 additions of fp16 follow each other. Twice as many cost 4 % less time,
/// and err twice as much where large sums cancel each other, as in gradients they do.
const STEPS: usize = 2;
/// A group is the factors that undo the scales of its 32 rows (of A) or columns (of B), then steps of two tiles of pairs.
const HEADER_BYTES: usize = 32 * size_of::<f32>();
const GROUP_BYTES: usize = HEADER_BYTES + STEPS * PANEL_STEP_BYTES;
/// Pairs of a tile row.
const PAIRS: usize = TILE_DEPTH / 2;
/// Scaled values are less than 2^(`TOP` + 1), so that a sum is at most 64 · 2^8, a quarter of what fp16 holds.
const TOP: u32 = 3;
/// Pairs between what is multiplied and what is fetched.
const AHEAD: usize = 5;
/// Selects the second of each pair.
const SECOND: u32 = 0xaaaa_aaaa;

impl TileUnit for Avx512Fp16 {
    const CONVERTS: bool = true;
    const GROUP_STEPS: usize = STEPS;
    const GROUP_BYTES: usize = GROUP_BYTES;
    const MAX_DEPTH: usize = 1024;

    unsafe fn convert_group(self, pairs: *const u8, steps: usize, to: *mut u8) {
        // SAFETY: `new` checked for the instructions; the rest is the caller's promise.
        unsafe { convert_group(pairs, steps, to) }
    }

    #[inline(always)]
    unsafe fn block<const R: usize>(self, block: &Block) {
        // SAFETY: `new` checked for the instructions; the block is valid for `R`.
        unsafe { groups::<R>(block) }
    }
}

/// # Safety
/// As [`TileUnit::convert_group`], on a CPU with the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn convert_group(pairs: *const u8, steps: usize, to: *mut u8) {
    // SAFETY: all lines are those of the steps, on cache lines; the header comes before them.
    unsafe {
        let word = |bits: u32| _mm512_set1_epi32(bits as i32);
        let order = _mm512_load_si512(TOGETHER.0.as_ptr().cast());
        // Lines of one tile, with the same columns, come every other sixteen.
        for tile in [0, TILE_BYTES] {
            let lines = (0..steps).flat_map(|step| {
                (0..PAIRS).map(move |pair| step * PANEL_STEP_BYTES + tile + pair * TILE_ROW_BYTES)
            });
            // Without their signs, bf16 are ordered as the integers of their bits.
            let mut largest = _mm512_setzero_si512();
            for line in lines.clone() {
                let line = _mm512_load_si512(pairs.add(line).cast());
                largest = _mm512_max_epu16(largest, _mm512_and_si512(line, word(0x7fff_7fff)));
            }
            let largest =
                _mm512_max_epu32(_mm512_srli_epi32::<16>(largest), _mm512_and_si512(largest, word(0xffff)));
            // The powers of two, by their bits, that bring each to 2^TOP or just above, and back. Tiny values are
            // brought as far as f32 has powers of two, and zeros nowhere.
            let exponent = _mm512_max_epu32(_mm512_srli_epi32::<7>(largest), word(TOP + 1));
            let exponent =
                _mm512_mask_mov_epi32(exponent, _mm512_testn_epi32_mask(largest, largest), word(127 + TOP));
            let factor = _mm512_slli_epi32::<23>(_mm512_sub_epi32(word(254 + TOP), exponent));
            let inverse = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponent, word(TOP)));
            _mm512_store_si512(to.add(tile / TILE_BYTES * 64).cast(), inverse);
            let factor = _mm512_castsi512_ps(factor);
            for line in lines {
                let words = _mm512_load_si512(pairs.add(line).cast());
                let first = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words));
                let second = _mm512_castsi512_ps(_mm512_and_si512(words, word(0xffff_0000)));
                let [first, second] = [first, second].map(|x| {
                    _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
                        x, factor,
                    ))
                });
                let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
                _mm512_store_si512(to.add(HEADER_BYTES + line).cast(), _mm512_permutexvar_epi16(order, both));
            }
        }
    }
}

/// An argument of `vpermw`: where each element of the result comes from.
#[repr(align(64))]
struct Order([u16; 32]);

/// The first sixteen elements and the last, one of each by turns.
static TOGETHER: Order = Order({
    let mut order = [0; 32];
    let mut at = 0;
    while at < 32 {
        order[at] = (at / 2 + at % 2 * 16) as u16;
        at += 1;
    }
    order
});

/// The elements at even places, then those at odd ones.
static APART: Order = Order({
    let mut order = [0; 32];
    let mut at = 0;
    while at < 32 {
        order[at] = (at % 16 * 2 + at / 16) as u16;
        at += 1;
    }
    order
});

/// A block, group by group, so that both operands of one stay in the L1 cache from one part of the rows to the next.
///
/// # Safety
/// The CPU has the instructions and the block is valid for `R`; its operands are converted.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
unsafe fn groups<const R: usize>(block: &Block) {
    let mut now = *block;
    for first in (0..block.k_tiles).step_by(STEPS) {
        now.k_tiles = STEPS.min(block.k_tiles - first);
        // SAFETY: a valid block has these groups, and as many rows as `R` says.
        unsafe {
            if R == 2 {
                part::<0, 11>(&now);
                part::<11, 11>(&now);
                part::<22, 10>(&now);
            } else {
                part::<0, 8>(&now);
                part::<8, 8>(&now);
            }
        }
        now.a[0] = now.a[0].wrapping_add(GROUP_BYTES);
        now.b = now.b.wrapping_add(GROUP_BYTES);
        now.accumulate = true;
    }
}

/// `ROWS` rows of a block from row `FIRST` on, over one group: for each row two registers of sums of pairs.
///
/// # Safety
/// The CPU has the instructions, the block is valid and has `FIRST + ROWS` rows; its operands are converted.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
unsafe fn part<const FIRST: usize, const ROWS: usize>(block: &Block) {
    // SAFETY: all addresses are those of a valid block: rows of C and a group of each operand.
    unsafe {
        let load = |from: *const u8| _mm512_castsi512_ph(_mm512_load_si512(from.cast()));
        let mut sums = [[_mm512_setzero_ph(); 2]; ROWS];
        let (mut a, mut b) = (block.a[0].add(HEADER_BYTES), block.b.add(HEADER_BYTES));
        for _ in 0..block.k_tiles {
            for pair in 0..PAIRS {
                if FIRST == 0 {
                    // The first part finds B in the L2 cache.
                    let next = pair + AHEAD;
                    let next =
                        b.wrapping_add(next / PAIRS * PANEL_STEP_BYTES + next % PAIRS * TILE_ROW_BYTES);
                    prefetch::read(next);
                    prefetch::read(next.wrapping_add(TILE_BYTES));
                }
                let right =
                    [load(b.add(pair * TILE_ROW_BYTES)), load(b.add(TILE_BYTES + pair * TILE_ROW_BYTES))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let row = FIRST + row;
                    let at = row / TILE_ROWS * TILE_BYTES + pair * TILE_ROW_BYTES + 4 * (row % TILE_ROWS);
                    let left = _mm512_castsi512_ph(_mm512_set1_epi32(a.add(at).cast::<i32>().read()));
                    sums[0] = _mm512_fmadd_ph(left, right[0], sums[0]);
                    sums[1] = _mm512_fmadd_ph(left, right[1], sums[1]);
                }
            }
            a = a.add(PANEL_STEP_BYTES);
            b = b.add(PANEL_STEP_BYTES);
        }
        let scales = [0, 64].map(|half| _mm512_load_ps(block.b.add(half).cast()));
        let apart = _mm512_load_si512(APART.0.as_ptr().cast());
        for (row, sums) in sums.iter().enumerate() {
            let [left, right] = sums.map(|sums| _mm512_castph_si512(sums));
            // The sums of the first of each pair, columns of both registers by turns, and those of the second.
            let first = _mm512_mask_blend_epi16(SECOND, left, _mm512_slli_epi32::<16>(right));
            let second = _mm512_mask_blend_epi16(SECOND, _mm512_srli_epi32::<16>(left), right);
            let sums = _mm512_add_ph(_mm512_castsi512_ph(first), _mm512_castsi512_ph(second));
            let sums = _mm512_permutexvar_epi16(apart, _mm512_castph_si512(sums));
            let wide = [
                _mm512_cvtph_ps(_mm512_castsi512_si256(sums)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(sums)),
            ];
            let c = block.c.byte_add((FIRST + row) * block.c_row_bytes);
            let scale = _mm512_set1_ps(block.a[0].cast::<f32>().add(FIRST + row).read());
            for half in 0..2 {
                let (c, wide) = (c.add(16 * half), _mm512_mul_ps(wide[half], scale));
                let sum = match block.accumulate {
                    true => _mm512_fmadd_ps(wide, scales[half], _mm512_loadu_ps(c)),
                    false => _mm512_mul_ps(wide, scales[half]),
                };
                _mm512_storeu_ps(c, sum);
            }
        }
    }
}
