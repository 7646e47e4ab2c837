//! Attention of new tokens over a cache of keys and values: decoding, and prompts read in pieces.

use crate::attention::Heads;
use crate::math::{exp, max, sum_by};
use crate::{BlockMut, Isa, MatrixMut, MatrixRef, Store, matmul};
use std::cell::RefCell;

/// From this many new tokens on, matrix products pay for the packing of the cache.
const MATMUL_ROWS: usize = 8;
/// New tokens whose scores exist at one time.
const QUERY_BLOCK: usize = 64;

thread_local! {
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Attention of `queries` (tokens x `heads · dimension`, already turned to their positions) over `keys` and
/// `values` (positions x `key_value_heads · dimension`, keys turned), for one key/value head. Token i stands at
/// position `first + i` and sees the positions up to its own. `output` is tokens x `group · dimension`.
#[allow(clippy::too_many_arguments, reason = "a cache is keys, values and a position")]
pub fn attention_step(
    isa: Isa,
    heads: Heads,
    key_value_head: usize,
    queries: &[f32],
    keys: &[f32],
    values: &[f32],
    first: usize,
    output: &mut BlockMut<'_, f32>,
) {
    let d = heads.dimension;
    let tokens = queries.len() / heads.query_row();
    let stride = heads.key_value_heads * d;
    let (keys, values) = (&keys[key_value_head * d..], &values[key_value_head * d..]);
    SCRATCH.with_borrow_mut(|(scores, out)| {
        for member in 0..heads.group() {
            let column = (key_value_head * heads.group() + member) * d;
            for start in (0..tokens).step_by(QUERY_BLOCK) {
                let block = QUERY_BLOCK.min(tokens - start);
                let seen = first + start + block;
                scores.clear();
                scores.resize(block * seen, 0.0);
                out.clear();
                out.resize(block * d, 0.0);
                let queries = &queries[start * heads.query_row() + column..];
                if tokens < MATMUL_ROWS {
                    let limits = (first + start, seen);
                    few(isa, queries, heads.query_row(), keys, values, stride, d, limits, scores, out);
                } else {
                    let queries = MatrixRef::with_stride(queries, block, d, heads.query_row());
                    let keys = MatrixRef::with_stride(keys, seen, d, stride).transposed();
                    matmul(isa, queries, keys, MatrixMut::new(scores, block, seen), Store::Overwrite);
                    probabilities(isa, d, first + start, seen, scores);
                    let values = MatrixRef::with_stride(values, seen, d, stride);
                    let scores = MatrixRef::new(scores, block, seen);
                    matmul(isa, scores, values, MatrixMut::new(out, block, d), Store::Overwrite);
                }
                for i in 0..block {
                    output.row_mut(start + i)[member * d..][..d].copy_from_slice(&out[i * d..][..d]);
                }
            }
        }
    });
}

per_isa! {
    /// Row i of `scores` sees columns `0..=first + i`: softmax of the scaled scores, 0 elsewhere.
    fn probabilities(dimension: usize, first: usize, columns: usize, scores: &mut [f32]) {
        for (i, row) in scores.chunks_exact_mut(columns).enumerate() {
            let (seen, hidden) = row.split_at_mut(first + i + 1);
            softmax(seen, 1.0 / (dimension as f32).sqrt());
            hidden.fill(0.0);
        }
    }
}

per_isa! {
    /// The same for few tokens, key by key and value by value.
    fn few(
        queries: &[f32],
        query_stride: usize,
        keys: &[f32],
        values: &[f32],
        stride: usize,
        dimension: usize,
        limits: (usize, usize),
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let (first, columns) = limits;
        for (i, (row, out)) in scores.chunks_exact_mut(columns).zip(out.chunks_exact_mut(dimension)).enumerate() {
            let query = &queries[i * query_stride..][..dimension];
            let seen = &mut row[..first + i + 1];
            for (j, score) in seen.iter_mut().enumerate() {
                let key = &keys[j * stride..][..dimension];
                *score = sum_by(dimension, |k| query[k] * key[k]);
            }
            softmax(seen, 1.0 / (dimension as f32).sqrt());
            for (j, &p) in seen.iter().enumerate() {
                for (o, v) in out.iter_mut().zip(&values[j * stride..][..dimension]) {
                    *o += p * v;
                }
            }
        }
    }
}

#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    let largest = max(scores);
    for s in scores.iter_mut() {
        *s = exp((*s - largest) * scale);
    }
    let inverse = 1.0 / sum_by(scores.len(), |j| scores[j]);
    for s in scores.iter_mut() {
        *s *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::split;
    use crate::reference::{Random, assert_close};

    #[test]
    fn new_tokens_attend_to_the_cache_as_the_float64_formula_says() {
        let mut random = Random::new(19);
        for isa in Isa::available() {
            for (tokens, first) in [(1, 0), (1, 9), (3, 4), (9, 0), (70, 5)] {
                let heads = Heads { heads: 4, key_value_heads: 2, dimension: 6 };
                let total = first + tokens;
                let queries: Vec<f32> = random.elements(tokens * heads.query_row());
                let keys: Vec<f32> = random.elements(total * 12);
                let values: Vec<f32> = random.elements(total * 12);
                let mut output = vec![0.0; queries.len()];
                let rows = 0..tokens;
                let blocks =
                    split(&mut output, heads.query_row(), std::slice::from_ref(&rows), &[0..12, 12..24]);
                for (g, mut block) in blocks.into_iter().enumerate() {
                    attention_step(isa, heads, g, &queries, &keys, &values, first, &mut block);
                }
                for t in 0..tokens {
                    for head in 0..4 {
                        let shared = head / 2 * 6;
                        let q = &queries[t * 24 + head * 6..][..6];
                        let weight = |j: usize| {
                            let k = &keys[j * 12 + shared..][..6];
                            (q.iter().zip(k).map(|(a, b)| (a * b) as f64).sum::<f64>() / 6f64.sqrt()).exp()
                        };
                        let sum: f64 = (0..=first + t).map(weight).sum();
                        for i in 0..6 {
                            let value = |j: usize| values[j * 12 + shared + i] as f64;
                            let expected = (0..=first + t).map(|j| weight(j) / sum * value(j)).sum();
                            assert_close(
                                output[t * 24 + head * 6 + i] as f64,
                                expected,
                                2e-6,
                                1e-5,
                                "output",
                            );
                        }
                    }
                }
            }
        }
    }
}
