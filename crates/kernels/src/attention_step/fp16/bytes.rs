//! Keys and values in int8: keys are multiplied by dot products of bytes, values become fp16 on their way.

use super::scores::{Held, Operands};
use crate::Isa;
use crate::cache::{self, CacheFormat};
use crate::grouped::Family;
use crate::grouped::fp16::{Fp16, Fp16OfBytes};
use crate::grouped::int8;
use std::arch::x86_64::*;

/// Keys and values in int8.
pub(in crate::attention_step) struct Bytes;

/// Positions of a half of a panel.
const HALF: usize = Fp16::COLUMNS / 2;

impl Held for Bytes {
    const ELEMENTS: usize = int8::ELEMENTS;
    const SCALE_WORDS: usize = Fp16::COLUMNS;
    const VALUES_BELOW: i16 = cache::int8::VALUES_BELOW;
    type Values = Fp16OfBytes;

    fn usable(isa: Isa) -> bool {
        CacheFormat::Int8.usable(isa)
    }

    fn prepare_queries(isa: Isa, dimension: usize, queries: &[f32], words: &mut [u32]) {
        int8::prepare(isa, dimension, queries, words);
    }

    /// Sums are exact integers; scores are their scaled values, rounded to fp16.
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16,avx512vnni")]
    unsafe fn tile<const ROWS: usize, const PANELS: usize, const HALVES: usize, const SINGLES: bool>(
        operands: &Operands,
    ) {
        let &Operands { mut queries, ends, queries_stride, mut keys, scales, keys_stride, .. } = operands;
        // SAFETY: see the caller's contract.
        unsafe {
            // The row of a panel, which is its own where every panel has one.
            let row_of = |row: usize, panel: usize| if SINGLES { panel } else { row };
            let end = |row: usize, panel: usize| ends.add(row_of(row, panel) * queries_stride);
            let mut sums = [[[_mm512_setzero_si512(); HALVES]; PANELS]; ROWS];
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    sums[row][panel] = [_mm512_set1_epi32(end(row, panel).add(1).read() as i32); HALVES];
                }
            }
            for _ in 0..operands.steps {
                let mut vectors = [[_mm512_setzero_si512(); HALVES]; PANELS];
                for panel in 0..PANELS {
                    for half in 0..HALVES {
                        vectors[panel][half] =
                            _mm512_loadu_si512(keys.add(panel * keys_stride + half * HALF).cast());
                    }
                }
                for row in 0..ROWS {
                    for panel in 0..PANELS {
                        let query = queries.add(row_of(row, panel) * queries_stride).read();
                        let query = _mm512_set1_epi32(query as i32);
                        for half in 0..HALVES {
                            sums[row][panel][half] =
                                _mm512_dpbusd_epi32(sums[row][panel][half], vectors[panel][half], query);
                        }
                    }
                }
                queries = queries.wrapping_add(1);
                keys = keys.wrapping_add(Fp16::COLUMNS);
            }
            for panel in 0..PANELS {
                let mut of_keys = [_mm512_setzero_ps(); HALVES];
                for half in 0..HALVES {
                    of_keys[half] = _mm512_loadu_ps(scales.add(panel * keys_stride + half * HALF).cast());
                }
                for row in 0..ROWS {
                    let of_row = _mm512_set1_ps(end(row, panel).cast::<f32>().read());
                    let mut narrow = [_mm256_setzero_si256(); 2];
                    for half in 0..HALVES {
                        let sum = _mm512_cvtepi32_ps(sums[row][panel][half]);
                        // Finite, so that nothing times it is nothing; what is not a number stays that.
                        let scale =
                            _mm512_min_ps(_mm512_set1_ps(f32::MAX), _mm512_mul_ps(of_row, of_keys[half]));
                        let score = _mm512_mul_ps(sum, scale);
                        narrow[half] =
                            _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(score);
                    }
                    let score = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(narrow[0]), narrow[1]);
                    let column = if SINGLES { 0 } else { panel };
                    operands.put(row_of(row, panel), column, _mm512_castsi512_ph(score));
                }
            }
        }
    }
}
