//! Causal self-attention with what [`crate::attention`] does not have: a sliding window, a penalty on distance (ALiBi:
//! Press et al. 2022, "Train Short, Test Long"), or no positions at all. The scheme is the same: scores exist for one
//! block of queries at a time, here only over the keys that the block can see.

use crate::attention::{AttentionSaved, Heads};
use crate::element::convert;
use crate::math::{exp, max, sum_by};
use crate::rotary::RotaryTable;
use crate::{BlockMut, Element, Isa, MatrixMut, MatrixRef, Store, matmul};

/// Queries whose scores exist at one time.
const QUERY_BLOCK: usize = 64;

/// What a token sees of those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sight {
    /// Tokens that a token sees, itself included; at least 1.
    pub window: usize,
    /// Whether scores fall with the distance, in each head at another rate.
    pub alibi: bool,
}

impl Sight {
    /// The first token that token `position` sees.
    fn first(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }

    /// What a score loses per token of distance in head `head` of `heads`: the powers of `2^(−8 / heads)`.
    fn slope(&self, head: usize, heads: usize) -> f32 {
        if self.alibi { (-8.0 * (head + 1) as f32 / heads as f32).exp2() } else { 0.0 }
    }
}

/// The rows of one head, turned to their positions where there is a table.
fn gather<E: Element>(
    isa: Isa,
    qkv: &[E],
    (row, start, dimension): (usize, usize, usize),
    first_position: usize,
    table: Option<&RotaryTable>,
) -> Vec<E> {
    let rows = qkv.len() / row;
    let mut to = vec![E::default(); rows * dimension];
    let mut wide = vec![0.0; dimension];
    for (i, (from, to)) in qkv.chunks_exact(row).zip(to.chunks_exact_mut(dimension)).enumerate() {
        let from = &from[start..start + dimension];
        match table {
            None => to.copy_from_slice(from),
            Some(table) => {
                convert(isa, from, &mut wide);
                table.rotate(&mut wide, first_position + i);
                convert(isa, &wide, to);
            }
        }
    }
    to
}

fn columns<E: Element>(qkv: &[E], row: usize, start: usize, dimension: usize) -> MatrixRef<'_, E> {
    MatrixRef::with_stride(&qkv[start..], qkv.len() / row, dimension, row)
}

/// As [`crate::attention::attention_forward`], within sight; keys and queries are turned where there is a table.
///
/// # Panics
/// Where the shapes do not fit together.
#[allow(clippy::too_many_arguments, reason = "as plain attention, and what is seen")]
pub fn local_attention_forward<E: Element>(
    isa: Isa,
    heads: Heads,
    table: Option<&RotaryTable>,
    sight: Sight,
    key_value_head: usize,
    qkv: &[E],
    output: &mut BlockMut<'_, E>,
    log_sums: &mut BlockMut<'_, f32>,
) {
    let (d, row) = (heads.dimension, heads.row());
    let length = qkv.len() / row;
    if length == 0 {
        return;
    }
    let keys = gather(isa, qkv, (row, heads.key_start(key_value_head), d), 0, table);
    let keys = MatrixRef::new(&keys, length, d);
    let values = columns(qkv, row, heads.value_start(key_value_head), d);
    for start in (0..length).step_by(QUERY_BLOCK) {
        let end = length.min(start + QUERY_BLOCK);
        let (block, low) = (end - start, sight.first(start));
        let seen = end - low;
        let mut scores = vec![0.0; block * seen];
        let mut narrow = vec![E::default(); block * seen];
        let (mut sums, mut out) = (vec![0.0; block], vec![0.0; block * d]);
        for member in 0..heads.group() {
            let head = key_value_head * heads.group() + member;
            let queries = gather(isa, &qkv[start * row..end * row], (row, head * d, d), start, table);
            let queries = MatrixRef::new(&queries, block, d);
            let seen_keys = keys.row_range(low..end).transposed();
            matmul(isa, queries, seen_keys, MatrixMut::new(&mut scores, block, seen), Store::Overwrite);
            let slope = sight.slope(head, heads.heads);
            softmax(isa, &mut scores, (start, low), sight, (heads.scale(), slope), &mut sums);
            convert(isa, &scores, &mut narrow);
            let weights = MatrixRef::new(&narrow, block, seen);
            let to = MatrixMut::new(&mut out, block, d);
            matmul(isa, weights, values.row_range(low..end), to, Store::Overwrite);
            for i in 0..block {
                log_sums.row_mut(start + i)[member] = sums[i];
                convert(isa, &out[i * d..][..d], &mut output.row_mut(start + i)[member * d..][..d]);
            }
        }
    }
}

/// Gradients of [`local_attention_forward`], as [`crate::attention::attention_backward`].
///
/// # Panics
/// Where the shapes do not fit together.
#[allow(clippy::too_many_arguments, reason = "as plain attention, and what is seen")]
pub fn local_attention_backward<E: Element>(
    isa: Isa,
    heads: Heads,
    table: Option<&RotaryTable>,
    sight: Sight,
    key_value_head: usize,
    saved: AttentionSaved<'_, E>,
    d_queries: &mut BlockMut<'_, E>,
    d_keys: &mut BlockMut<'_, E>,
    d_values: &mut BlockMut<'_, E>,
) {
    let AttentionSaved { qkv, output, d_output, log_sums } = saved;
    let (d, row, out_row) = (heads.dimension, heads.row(), heads.query_row());
    let length = qkv.len() / row;
    if length == 0 {
        return;
    }
    let keys = gather(isa, qkv, (row, heads.key_start(key_value_head), d), 0, table);
    let keys = MatrixRef::new(&keys, length, d);
    let values = columns(qkv, row, heads.value_start(key_value_head), d);
    let (mut sum_keys, mut sum_values) = (vec![0.0; length * d], vec![0.0; length * d]);
    for start in (0..length).step_by(QUERY_BLOCK) {
        let end = length.min(start + QUERY_BLOCK);
        let (block, low) = (end - start, sight.first(start));
        let seen = end - low;
        let (mut scores, mut d_scores) = (vec![0.0; block * seen], vec![0.0; block * seen]);
        let (mut narrow, mut d_narrow) = (vec![E::default(); block * seen], vec![E::default(); block * seen]);
        let mut d_q = vec![0.0; block * d];
        for member in 0..heads.group() {
            let head = key_value_head * heads.group() + member;
            let queries = gather(isa, &qkv[start * row..end * row], (row, head * d, d), start, table);
            let queries = MatrixRef::new(&queries, block, d);
            let seen_keys = keys.row_range(low..end);
            let to = MatrixMut::new(&mut scores, block, seen);
            matmul(isa, queries, seen_keys.transposed(), to, Store::Overwrite);
            let d_out = columns(&d_output[start * out_row..end * out_row], out_row, head * d, d);
            let to = MatrixMut::new(&mut d_scores, block, seen);
            matmul(isa, d_out, values.row_range(low..end).transposed(), to, Store::Overwrite);
            let slope = sight.slope(head, heads.heads);
            let out = columns(&output[start * out_row..end * out_row], out_row, head * d, d);
            let sums: Vec<f32> = (start..end).map(|p| log_sums[p * heads.heads + head]).collect();
            let factors = (heads.scale(), slope);
            score_gradient(isa, out, d_out, &sums, (start, low), sight, factors, &mut scores, &mut d_scores);
            convert(isa, &scores, &mut narrow);
            convert(isa, &d_scores, &mut d_narrow);
            let (weights, d_weights) =
                (MatrixRef::new(&narrow, block, seen), MatrixRef::new(&d_narrow, block, seen));
            let to = MatrixMut::new(&mut sum_values[low * d..end * d], seen, d);
            matmul(isa, weights.transposed(), d_out, to, Store::Accumulate);
            let to = MatrixMut::new(&mut sum_keys[low * d..end * d], seen, d);
            matmul(isa, d_weights.transposed(), queries, to, Store::Accumulate);
            matmul(isa, d_weights, seen_keys, MatrixMut::new(&mut d_q, block, d), Store::Overwrite);
            for (i, d_q) in d_q.chunks_exact_mut(d).enumerate() {
                if let Some(table) = table {
                    table.rotate_back(d_q, start + i);
                }
                convert(isa, d_q, &mut d_queries.row_mut(start + i)[member * d..][..d]);
            }
        }
    }
    for (t, (d_key, d_value)) in sum_keys.chunks_exact_mut(d).zip(sum_values.chunks_exact(d)).enumerate() {
        if let Some(table) = table {
            table.rotate_back(d_key, t);
        }
        convert(isa, d_key, d_keys.row_mut(t));
        convert(isa, d_value, d_values.row_mut(t));
    }
}

per_isa! {
    /// Turns raw scores into probabilities: the row of token `start + i` over the keys from `low` on.
    fn softmax(
        scores: &mut [f32],
        from: (usize, usize),
        sight: Sight,
        factors: (f32, f32),
        log_sums: &mut [f32],
    ) {
        let ((start, low), (scale, slope)) = (from, factors);
        let width = scores.len() / log_sums.len();
        for (i, (row, log_sum)) in scores.chunks_exact_mut(width).zip(log_sums).enumerate() {
            let position = start + i;
            let first = sight.first(position).max(low) - low;
            let last = position - low;
            row[..first].fill(0.0);
            row[last + 1..].fill(0.0);
            let seen = &mut row[first..last + 1];
            penalise(seen, scale, slope);
            let largest = max(seen);
            for s in seen.iter_mut() {
                *s = exp(*s - largest);
            }
            let sum = sum_by(seen.len(), |j| seen[j]);
            for s in seen.iter_mut() {
                *s /= sum;
            }
            *log_sum = largest + sum.ln();
        }
    }
}

/// `scale · s − slope · distance`, the last one at distance 0.
#[inline(always)]
fn penalise(seen: &mut [f32], scale: f32, slope: f32) {
    let last = seen.len() - 1;
    for (j, s) in seen.iter_mut().enumerate() {
        *s = *s * scale - slope * (last - j) as f32;
    }
}

per_isa! {
    /// From raw `scores` and the gradient of the probabilities in `d_scores`: leaves the probabilities in `scores` and
    /// the gradient of the raw scores in `d_scores`.
    fn score_gradient<E: Element>(
        out: MatrixRef<'_, E>,
        d_out: MatrixRef<'_, E>,
        log_sums: &[f32],
        from: (usize, usize),
        sight: Sight,
        factors: (f32, f32),
        scores: &mut [f32],
        d_scores: &mut [f32],
    ) {
        let ((start, low), (scale, slope)) = (from, factors);
        let width = scores.len() / log_sums.len();
        let rows = scores.chunks_exact_mut(width).zip(d_scores.chunks_exact_mut(width)).zip(log_sums);
        for (i, ((row, d_row), log_sum)) in rows.enumerate() {
            let position = start + i;
            let first = sight.first(position).max(low) - low;
            let last = position - low;
            let (out, d_out) =
                (&out.data[i * out.row_stride..][..out.columns], &d_out.data[i * d_out.row_stride..][..out.columns]);
            let pull = sum_by(out.len(), |j| out[j].to_f32() * d_out[j].to_f32());
            for hidden in [&mut row[..first], &mut d_row[..first]] {
                hidden.fill(0.0);
            }
            for hidden in [&mut row[last + 1..], &mut d_row[last + 1..]] {
                hidden.fill(0.0);
            }
            let (seen, d_seen) = (&mut row[first..last + 1], &mut d_row[first..last + 1]);
            penalise(seen, scale, slope);
            for (s, d) in seen.iter_mut().zip(d_seen) {
                *s = exp(*s - log_sum);
                *d = *s * (*d - pull) * scale;
            }
        }
    }
}

/// Keys and values of the last tokens of a sequence, that of token `t` in row `t` modulo the number of rows: a row holds all
/// keys, then all values.
#[derive(Debug)]
pub struct Slots<'a> {
    /// The rows.
    pub rows: &'a mut [f32],
    /// Tokens that came before.
    pub position: usize,
}

/// New tokens of one sequence, one after the other: their keys and values go into `slots`, which must have rows for all
/// that is in sight; `qkv` holds a row as [`Heads`] describes it per token. `frequencies` are radians per position of
/// each pair of a head, where positions are rotary.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn local_attention_steps(
    isa: Isa,
    heads: Heads,
    frequencies: Option<&[f64]>,
    sight: Sight,
    qkv: &[f32],
    slots: Slots<'_>,
    y: &mut [f32],
) {
    let (d, row, query_row) = (heads.dimension, heads.row(), heads.query_row());
    let width = row - query_row;
    let capacity = slots.rows.len() / width;
    let (mut turned, mut scores) = (vec![0.0; row], Vec::new());
    for (i, (qkv, y)) in qkv.chunks_exact(row).zip(y.chunks_exact_mut(query_row)).enumerate() {
        let position = slots.position + i;
        let first = sight.first(position);
        assert!(position - first < capacity, "attention: {capacity} rows for what token {position} sees");
        turned.copy_from_slice(qkv);
        if let Some(frequencies) = frequencies {
            // A table of this one position.
            let angles: Vec<f64> = frequencies.iter().map(|f| f * position as f64).collect();
            let table = RotaryTable::new(&angles, 2);
            for head in turned[..heads.value_start(0)].chunks_exact_mut(d) {
                table.rotate(head, 1);
            }
        }
        slots.rows[position % capacity * width..][..width].copy_from_slice(&turned[query_row..]);
        for head in 0..heads.heads {
            let shared = head / heads.group() * d;
            let (query, out) = (&turned[head * d..][..d], &mut y[head * d..][..d]);
            let factors = (heads.scale(), sight.slope(head, heads.heads));
            scores.resize(position + 1 - first, 0.0);
            attend(isa, query, slots.rows, (width, shared), (first, capacity), factors, &mut scores, out);
        }
    }
}

per_isa! {
    fn attend(
        query: &[f32],
        slots: &[f32],
        place: (usize, usize),
        from: (usize, usize),
        factors: (f32, f32),
        scores: &mut [f32],
        out: &mut [f32],
    ) {
        let ((width, start), (first, capacity), (scale, slope)) = (place, from, factors);
        let d = query.len();
        let row = |j: usize| &slots[(first + j) % capacity * width + start..];
        for (j, score) in scores.iter_mut().enumerate() {
            let key = &row(j)[..d];
            *score = sum_by(d, |k| query[k] * key[k]);
        }
        penalise(scores, scale, slope);
        let largest = max(scores);
        for score in scores.iter_mut() {
            *score = exp(*score - largest);
        }
        let sum = sum_by(scores.len(), |j| scores[j]);
        out.fill(0.0);
        for (j, score) in scores.iter().enumerate() {
            // The values follow all the keys.
            let value = &row(j)[width / 2..][..d];
            for (out, value) in out.iter_mut().zip(value) {
                *out += score / sum * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

    const HEADS: Heads = Heads { heads: 4, key_value_heads: 2, dimension: 4 };
    const FREQUENCIES: [f64; 2] = [1.0, 0.3];

    fn turn(head: &[f64], position: usize) -> Vec<f64> {
        let pair = |i: usize| {
            let (sin, cos) = (position as f64 * FREQUENCIES[i]).sin_cos();
            (head[i] * cos - head[i + 2] * sin, head[i + 2] * cos + head[i] * sin)
        };
        let (a, b) = (pair(0), pair(1));
        vec![a.0, b.0, a.1, b.1]
    }

    fn reference(qkv: &[f64], sight: Sight, rotary: bool) -> Vec<f64> {
        let row = HEADS.row();
        let at = |t: usize, start: usize, turned: bool| {
            let head = &qkv[t * row + start..][..4];
            if turned && rotary { turn(head, t) } else { head.to_vec() }
        };
        let mut y = Vec::new();
        for t in 0..qkv.len() / row {
            for head in 0..4 {
                let query = at(t, head * 4, true);
                let slope = if sight.alibi { 2f64.powf(-8.0 * (head + 1) as f64 / 4.0) } else { 0.0 };
                let seen = (t + 1).saturating_sub(sight.window)..t + 1;
                let weights: Vec<f64> = seen
                    .clone()
                    .map(|j| {
                        let key = at(j, HEADS.key_start(head / 2), true);
                        let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                        (dot / 2.0 - slope * (t - j) as f64).exp()
                    })
                    .collect();
                let sum: f64 = weights.iter().sum();
                for k in 0..4 {
                    let values = seen.clone().map(|j| at(j, HEADS.value_start(head / 2), false)[k]);
                    y.push(values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum);
                }
            }
        }
        y
    }

    const SIGHTS: [(Sight, bool); 4] = [
        (Sight { window: usize::MAX, alibi: true }, false),
        (Sight { window: usize::MAX, alibi: false }, false),
        (Sight { window: 5, alibi: false }, true),
        (Sight { window: 70, alibi: true }, false),
    ];

    fn forward(isa: Isa, qkv: &[f32], sight: Sight, rotary: bool) -> (Vec<f32>, Vec<f32>) {
        let length = qkv.len() / HEADS.row();
        let table = RotaryTable::new(&FREQUENCIES, length);
        let (mut y, mut sums) = (vec![f32::NAN; length * 16], vec![f32::NAN; length * 4]);
        let columns = [0..8, 8..16];
        let blocks = crate::grid::split(&mut y, 16, std::slice::from_ref(&(0..length)), &columns);
        let halves = [0..2, 2..4];
        let sum_blocks = crate::grid::split(&mut sums, 4, std::slice::from_ref(&(0..length)), &halves);
        for (group, (mut y, mut sums)) in blocks.into_iter().zip(sum_blocks).enumerate() {
            let table = rotary.then_some(&table);
            local_attention_forward(isa, HEADS, table, sight, group, qkv, &mut y, &mut sums);
        }
        (y, sums)
    }

    #[test]
    fn attention_within_sight_equals_the_float64_reference_whole_and_in_steps() {
        let mut random = Random::new(61);
        for isa in Isa::available() {
            for (sight, rotary) in SIGHTS {
                for length in [1, 7, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 9] {
                    let qkv: Vec<f32> = random.elements(length * HEADS.row());
                    let expected = reference(&to_f64(&qkv), sight, rotary);
                    let (y, _) = forward(isa, &qkv, sight, rotary);
                    assert_all_close(&y, &expected, 2e-6, 1e-5, "y");

                    let run = |cut: usize| {
                        let mut rows = vec![0.0; 16 * sight.window.min(length)];
                        let mut y = vec![f32::NAN; length * 16];
                        for (start, end) in [(0, cut), (cut, length)] {
                            let slots = Slots { rows: &mut rows, position: start };
                            let own = &qkv[start * HEADS.row()..end * HEADS.row()];
                            let to = &mut y[start * 16..end * 16];
                            let frequencies = rotary.then_some(&FREQUENCIES[..]);
                            local_attention_steps(isa, HEADS, frequencies, sight, own, slots, to);
                        }
                        y
                    };
                    let stepped = run(0);
                    assert_all_close(&stepped, &expected, 2e-6, 1e-5, "stepped y");
                    assert_eq!(stepped, run(length / 2), "pieces give the same bits");
                }
            }
        }
    }

    #[test]
    fn the_gradients_within_sight_equal_the_float64_differences() {
        let mut random = Random::new(62);
        let length = QUERY_BLOCK + 6;
        let row = HEADS.row();
        for (sight, rotary) in SIGHTS {
            let qkv: Vec<f32> = random.elements(length * row);
            let d_y: Vec<f32> = random.elements(length * 16);
            let expected = numeric_gradient(&to_f64(&qkv), &d_y, |qkv| reference(qkv, sight, rotary));
            for isa in Isa::available() {
                let (output, log_sums) = forward(isa, &qkv, sight, rotary);
                let table = RotaryTable::new(&FREQUENCIES, length);
                let mut d = vec![f32::NAN; qkv.len()];
                let columns = [0..8, 8..16, 16..20, 20..24, 24..28, 28..32];
                let whole = 0..length;
                let blocks = crate::grid::split(&mut d, row, std::slice::from_ref(&whole), &columns);
                let Ok([mut q0, mut q1, mut k0, mut k1, mut v0, mut v1]) = <[_; 6]>::try_from(blocks) else {
                    unreachable!("six columns")
                };
                let saved =
                    AttentionSaved { qkv: &qkv, output: &output, d_output: &d_y, log_sums: &log_sums };
                let table = rotary.then_some(&table);
                local_attention_backward(isa, HEADS, table, sight, 0, saved, &mut q0, &mut k0, &mut v0);
                local_attention_backward(isa, HEADS, table, sight, 1, saved, &mut q1, &mut k1, &mut v1);
                // Sums over some tens of keys in f32.
                assert_all_close(&d, &expected, 2e-5, 1e-4, "d_qkv");
            }
        }
    }
}
