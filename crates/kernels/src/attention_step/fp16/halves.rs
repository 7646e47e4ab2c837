//! Keys and values in fp16, each with a power of two to itself.

use super::scores::{Held, Operands};
use super::vector::{VECTOR, load};
use crate::Isa;
use crate::cache;
use crate::grouped::fp16::{self, Fp16, exponent, join, prepare};
use crate::grouped::{Family, row_words};
use std::arch::x86_64::*;

/// Keys and values in fp16.
pub(in crate::attention_step) struct Halves;

impl Held for Halves {
    const ELEMENTS: usize = fp16::ELEMENTS;
    const SCALE_WORDS: usize = VECTOR;
    const VALUES_BELOW: i16 = cache::fp16::VALUES_BELOW;
    type Values = Fp16;

    fn usable(isa: Isa) -> bool {
        Fp16::usable(isa)
    }

    /// What undoes the scaling of queries are exponents of powers of two, as fp16, in both halves of their word. That of a group that is not finite
    /// is not a number.
    fn prepare_queries(isa: Isa, dimension: usize, queries: &[f32], words: &mut [u32]) {
        prepare(isa, dimension, queries, words);
        let (steps, row_words) = (dimension.div_ceil(Self::ELEMENTS), row_words(dimension, Self::ELEMENTS));
        for row in words.chunks_exact_mut(row_words) {
            for [end, _] in row[steps..].as_chunks_mut::<2>().0 {
                *end = u32::from(exponent(f32::from_bits(*end))) * 0x1_0001;
            }
        }
    }

    /// Products are summed up in fp16, as those of weights are, so that nothing is lost by keeping scores in it.
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
    unsafe fn tile<const ROWS: usize, const PANELS: usize, const HALVES: usize, const SINGLES: bool>(
        operands: &Operands,
    ) {
        let &Operands { mut queries, ends, queries_stride, mut keys, scales, keys_stride, .. } = operands;
        // SAFETY: see the caller's contract.
        unsafe {
            // The row of a panel, which is its own where every panel has one.
            let row_of = |row: usize, panel: usize| if SINGLES { panel } else { row };
            let mut sums = [[[_mm512_setzero_ph(); 2]; PANELS]; ROWS];
            for _ in 0..operands.steps {
                let mut vectors = [[_mm512_setzero_ph(); HALVES]; PANELS];
                for panel in 0..PANELS {
                    for half in 0..HALVES {
                        vectors[panel][half] = load(keys.add(panel * keys_stride + half * VECTOR));
                    }
                }
                for row in 0..ROWS {
                    for panel in 0..PANELS {
                        let query = queries.add(row_of(row, panel) * queries_stride).read();
                        let query = _mm512_castsi512_ph(_mm512_set1_epi32(query as i32));
                        for half in 0..HALVES {
                            sums[row][panel][half] =
                                _mm512_fmadd_ph(query, vectors[panel][half], sums[row][panel][half]);
                        }
                    }
                }
                queries = queries.wrapping_add(1);
                keys = keys.wrapping_add(Fp16::COLUMNS);
            }
            for panel in 0..PANELS {
                let exponents = load(scales.add(panel * keys_stride));
                for row in 0..ROWS {
                    let of_row = ends.add(row_of(row, panel) * queries_stride).read();
                    let of_row = _mm512_castsi512_ph(_mm512_set1_epi32(of_row as i32));
                    let score = _mm512_scalef_ph(join(sums[row][panel]), _mm512_add_ph(exponents, of_row));
                    operands.put(row_of(row, panel), if SINGLES { 0 } else { panel }, score);
                }
            }
        }
    }
}
