//! Causal self-attention with grouped heads, over everything or a sliding window, with rotary positions, a penalty on
//! distance (ALiBi: Press et al. 2022, "Train Short, Test Long") or neither, forward and backward, without ever holding
//! the matrix of scores (the recomputing scheme of FlashAttention, Dao et al., 2022): scores exist for one block of queries
//! and the keys that it can see at a time, and the backward rebuilds them from the saved log-sums.
//!
//! One call handles one segment (a run of tokens that see only each other) and one group of query heads that
//! share a key/value head, so calls can run on any thread in any order.

use crate::attention_tiled;
use crate::math::{exp, max, sum_of, sum_of_pairs};
use crate::rotary::RotaryTable;
use crate::{BlockMut, Element, Isa, MatrixMut, MatrixRef, Store, matmul};
use std::cell::RefCell;
use std::ops::Range;

/// Queries whose scores exist at one time: whole tiles. More would see more keys that are hidden from most of them.
pub(crate) const QUERY_BLOCK: usize = 64;
/// The keys of a block of queries begin at a multiple of this, where a tile begins.
const KEY_STEP: usize = 32;

/// How heads lie in a row of queries, keys and values: `heads · dimension` of queries, then
/// `key_value_heads · dimension` of keys, then as many of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Number of query heads, a multiple of `key_value_heads`.
    pub heads: usize,
    /// Number of key/value heads.
    pub key_value_heads: usize,
    /// Elements of a head; even.
    pub dimension: usize,
}

impl Heads {
    /// Query heads per key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.key_value_heads
    }

    /// Elements of a row of queries, keys and values together.
    pub fn row(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.dimension
    }

    /// Elements of a row of queries, which is also a row of the output.
    pub fn query_row(&self) -> usize {
        self.heads * self.dimension
    }

    /// First element of key head `head` in a row.
    pub fn key_start(&self, head: usize) -> usize {
        self.query_row() + head * self.dimension
    }

    /// First element of value head `head` in a row.
    pub fn value_start(&self, head: usize) -> usize {
        self.key_start(self.key_value_heads + head)
    }

    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.dimension as f32).sqrt()
    }
}

/// What a token sees of those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sight {
    /// Tokens that a token sees, itself included; at least 1.
    pub window: usize,
    /// Whether scores fall with the distance, in each head at another rate.
    pub alibi: bool,
}

impl Sight {
    /// Everything, near and far alike.
    pub const ALL: Sight = Sight { window: usize::MAX, alibi: false };

    /// The first token that token `position` sees.
    pub(crate) fn first(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }

    /// What a score loses per token of distance in head `head` of `heads`: the powers of `2^(−8 / heads)`.
    pub(crate) fn slope(&self, head: usize, heads: usize) -> f32 {
        if self.alibi { (-8.0 * (head + 1) as f32 / heads as f32).exp2() } else { 0.0 }
    }

    /// The first key of a block of queries from `start` on.
    pub(crate) fn first_of_block(&self, start: usize) -> usize {
        self.first(start) / KEY_STEP * KEY_STEP
    }

    /// What the queries from `start` on see of the keys from `low` on in a head.
    pub(crate) fn rows(&self, start: usize, low: usize, head: usize, heads: Heads) -> Row {
        Row { start, low, window: self.window, slope: self.slope(head, heads.heads) }
    }
}

/// Rows of scores: queries from `start` on, keys from `low` on.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub start: usize,
    low: usize,
    window: usize,
    pub slope: f32,
}

impl Row {
    /// The columns that row `i` sees.
    #[inline(always)]
    pub fn seen(&self, i: usize) -> Range<usize> {
        let end = self.start + i + 1 - self.low;
        end.saturating_sub(self.window)..end
    }
}

/// Takes `slope · distance` from scores of which the last is at distance 0.
#[inline(always)]
pub(crate) fn penalise(seen: &mut [f32], slope: f32) {
    if slope == 0.0 {
        return;
    }
    let last = seen.len() - 1;
    for (j, s) in seen.iter_mut().enumerate() {
        *s -= slope * (last - j) as f32;
    }
}

/// An attention: how heads lie, how keys and queries are turned, and what a token sees.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// How heads lie in a row.
    pub heads: Heads,
    /// Turns queries and keys to their positions, where positions are rotary.
    pub table: Option<&'a RotaryTable>,
    /// What a token sees.
    pub sight: Sight,
}

#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    rows: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// A zeroed slice of `length` from a buffer that keeps its memory.
fn zeroed(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    buffer.clear();
    buffer.resize(length, 0.0);
    buffer
}

/// Attention of one segment and one key/value head.
///
/// `qkv` holds the segment's rows ([`Heads::row`] elements each), positions counted from its start. The outputs
/// of the group's heads go to `output` (tokens x `group · dimension`), and the logarithm of each softmax's
/// denominator to `log_sums` (tokens x group) for the backward.
pub fn attention_forward<E: Element>(
    isa: Isa,
    attention: Attention<'_>,
    key_value_head: usize,
    qkv: &[E],
    output: &mut BlockMut<'_, E>,
    log_sums: &mut BlockMut<'_, f32>,
) {
    if let (Some(unit), Some(qkv)) = (isa.bf16_unit(), E::as_bf16(qkv)) {
        return attention_tiled::forward(isa, unit, attention, key_value_head, qkv, output, log_sums);
    }
    let Attention { heads, table, sight } = attention;
    let d = heads.dimension;
    let length = qkv.len() / heads.row();
    SCRATCH.with_borrow_mut(|scratch| {
        let keys = zeroed(&mut scratch.keys, length * d);
        gather(isa, qkv, heads.row(), heads.key_start(key_value_head), d, 0, 1.0, table, keys);
        let values = zeroed(&mut scratch.values, length * d);
        gather(isa, qkv, heads.row(), heads.value_start(key_value_head), d, 0, 1.0, None, values);
        for start in (0..length).step_by(QUERY_BLOCK) {
            let end = length.min(start + QUERY_BLOCK);
            let (block, low) = (end - start, sight.first_of_block(start));
            let seen = end - low;
            for member in 0..heads.group() {
                let head = key_value_head * heads.group() + member;
                let rows = &qkv[start * heads.row()..end * heads.row()];
                let queries = zeroed(&mut scratch.queries, block * d);
                gather(isa, rows, heads.row(), head * d, d, start, heads.scale(), table, queries);
                let scores = zeroed(&mut scratch.scores, block * seen);
                let keys = &keys[low * d..end * d];
                product(isa, queries, (block, d), false, keys, (seen, d), true, scores, Store::Overwrite);
                let sums = zeroed(&mut scratch.d_scores, block);
                softmax(isa, scores, seen, sight.rows(start, low, head, heads), sums);
                let out = zeroed(&mut scratch.rows, block * d);
                let values = &values[low * d..end * d];
                product(isa, scores, (block, seen), false, values, (seen, d), false, out, Store::Overwrite);
                for i in 0..block {
                    log_sums.row_mut(start + i)[member] = sums[i];
                    let to = &mut output.row_mut(start + i)[member * d..][..d];
                    for (t, f) in to.iter_mut().zip(&out[i * d..]) {
                        *t = E::from_f32(*f);
                    }
                }
            }
        }
    });
}

/// What [`attention_backward`] reads: one segment's rows of the forward's tensors and of the output's gradient.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSaved<'a, E> {
    /// Rows of queries, keys and values.
    pub qkv: &'a [E],
    /// Rows of the output, all heads.
    pub output: &'a [E],
    /// Gradient of the output.
    pub d_output: &'a [E],
    /// Rows of log-sums, all heads.
    pub log_sums: &'a [f32],
}

/// Gradients of [`attention_forward`] for one segment and one key/value head, written to the blocks of the
/// group's queries (tokens x `group · dimension`), the key head and the value head (tokens x `dimension`).
#[allow(clippy::too_many_arguments, reason = "three outputs that lie apart")]
pub fn attention_backward<E: Element>(
    isa: Isa,
    attention: Attention<'_>,
    key_value_head: usize,
    saved: AttentionSaved<'_, E>,
    d_queries: &mut BlockMut<'_, E>,
    d_keys_out: &mut BlockMut<'_, E>,
    d_values_out: &mut BlockMut<'_, E>,
) {
    let AttentionSaved { qkv, output, d_output, log_sums } = saved;
    if let (Some(unit), Some(qkv), Some(output), Some(d_output)) =
        (isa.bf16_unit(), E::as_bf16(qkv), E::as_bf16(output), E::as_bf16(d_output))
    {
        let saved = AttentionSaved { qkv, output, d_output, log_sums };
        let (q, k, v) = (d_queries, d_keys_out, d_values_out);
        return attention_tiled::backward(isa, unit, attention, key_value_head, saved, q, k, v);
    }
    let Attention { heads, table, sight } = attention;
    let d = heads.dimension;
    let (row, out_row) = (heads.row(), heads.query_row());
    let length = qkv.len() / row;
    SCRATCH.with_borrow_mut(|scratch| {
        let keys = zeroed(&mut scratch.keys, length * d);
        gather(isa, qkv, row, heads.key_start(key_value_head), d, 0, 1.0, table, keys);
        let values = zeroed(&mut scratch.values, length * d);
        gather(isa, qkv, row, heads.value_start(key_value_head), d, 0, 1.0, None, values);
        let d_keys = zeroed(&mut scratch.d_keys, length * d);
        let d_values = zeroed(&mut scratch.d_values, length * d);
        for start in (0..length).step_by(QUERY_BLOCK) {
            let end = length.min(start + QUERY_BLOCK);
            let (block, low) = (end - start, sight.first_of_block(start));
            let seen = end - low;
            for member in 0..heads.group() {
                let head = key_value_head * heads.group() + member;
                let queries = zeroed(&mut scratch.queries, block * d);
                gather(
                    isa,
                    &qkv[start * row..end * row],
                    row,
                    head * d,
                    d,
                    start,
                    heads.scale(),
                    table,
                    queries,
                );
                let scores = zeroed(&mut scratch.scores, block * seen);
                let keys = &keys[low * d..end * d];
                product(isa, queries, (block, d), false, keys, (seen, d), true, scores, Store::Overwrite);
                let out = zeroed(&mut scratch.rows, block * d);
                gather(
                    isa,
                    &d_output[start * out_row..end * out_row],
                    out_row,
                    head * d,
                    d,
                    0,
                    1.0,
                    None,
                    out,
                );
                let d_scores = zeroed(&mut scratch.d_scores, block * seen);
                let values = &values[low * d..end * d];
                product(isa, out, (block, d), false, values, (seen, d), true, d_scores, Store::Overwrite);
                let view = sight.rows(start, low, head, heads);
                score_gradient(isa, heads, head, view, seen, output, log_sums, out, scores, d_scores);
                let (keys_seen, values_seen) =
                    (&mut d_keys[low * d..end * d], &mut d_values[low * d..end * d]);
                product(
                    isa,
                    scores,
                    (block, seen),
                    true,
                    out,
                    (block, d),
                    false,
                    values_seen,
                    Store::Accumulate,
                );
                product(
                    isa,
                    d_scores,
                    (block, seen),
                    true,
                    queries,
                    (block, d),
                    false,
                    keys_seen,
                    Store::Accumulate,
                );
                product(
                    isa,
                    d_scores,
                    (block, seen),
                    false,
                    keys,
                    (seen, d),
                    false,
                    queries,
                    Store::Overwrite,
                );
                for i in 0..block {
                    let gradient = &mut queries[i * d..(i + 1) * d];
                    if let Some(table) = table {
                        table.rotate_back(gradient, start + i);
                    }
                    let to = &mut d_queries.row_mut(start + i)[member * d..][..d];
                    for (t, f) in to.iter_mut().zip(gradient) {
                        *t = E::from_f32(*f * heads.scale());
                    }
                }
            }
        }
        for i in 0..length {
            let gradient = &mut d_keys[i * d..(i + 1) * d];
            if let Some(table) = table {
                table.rotate_back(gradient, i);
            }
            for (t, f) in d_keys_out.row_mut(i).iter_mut().zip(gradient) {
                *t = E::from_f32(*f);
            }
            for (t, f) in d_values_out.row_mut(i).iter_mut().zip(&d_values[i * d..]) {
                *t = E::from_f32(*f);
            }
        }
    });
}

per_isa! {
    /// Copies one head of every row, widened, scaled and, where a table is given, turned to its position.
    fn gather<E: Element>(
        rows: &[E],
        row: usize,
        start: usize,
        dimension: usize,
        first_position: usize,
        scale: f32,
        table: Option<&RotaryTable>,
        to: &mut [f32],
    ) {
        for (i, (from, to)) in rows.chunks_exact(row).zip(to.chunks_exact_mut(dimension)).enumerate() {
            for (t, f) in to.iter_mut().zip(&from[start..start + dimension]) {
                *t = f.to_f32() * scale;
            }
            if let Some(table) = table {
                table.rotate(to, first_position + i);
            }
        }
    }
}

per_isa! {
    /// Turns rows of scores into probabilities; what a row does not see becomes 0.
    fn softmax(scores: &mut [f32], columns: usize, view: Row, log_sums: &mut [f32]) {
        for (i, (row, log_sum)) in scores.chunks_exact_mut(columns).zip(log_sums).enumerate() {
            let place = view.seen(i);
            row[..place.start].fill(0.0);
            row[place.end..].fill(0.0);
            let seen = &mut row[place];
            penalise(seen, view.slope);
            let largest = max(seen);
            for s in seen.iter_mut() {
                *s = exp(*s - largest);
            }
            let sum = sum_of(seen, |s| s);
            let inverse = 1.0 / sum;
            for s in seen.iter_mut() {
                *s *= inverse;
            }
            *log_sum = largest + sum.ln();
        }
    }
}

per_isa! {
    /// From raw `scores` and the gradient of the probabilities in `d_scores`: leaves the probabilities in
    /// `scores` and the gradient of the raw scores in `d_scores`.
    fn score_gradient<E: Element>(
        heads: Heads,
        head: usize,
        view: Row,
        columns: usize,
        output: &[E],
        log_sums: &[f32],
        d_out: &[f32],
        scores: &mut [f32],
        d_scores: &mut [f32],
    ) {
        let d = heads.dimension;
        let rows = scores.chunks_exact_mut(columns).zip(d_scores.chunks_exact_mut(columns));
        for (i, (row, d_row)) in rows.enumerate() {
            let (position, place) = (view.start + i, view.seen(i));
            let out = &output[position * heads.query_row() + head * d..][..d];
            let d_out = &d_out[i * d..][..d];
            // Σ_j p_j · dp_j equals d_out · out, which is shorter.
            let pull = sum_of_pairs(out, d_out, |o, d_o| o.to_f32() * d_o);
            let log_sum = log_sums[position * heads.heads + head];
            for hidden in [&mut *row, &mut *d_row] {
                hidden[..place.start].fill(0.0);
                hidden[place.end..].fill(0.0);
            }
            let (seen, d_seen) = (&mut row[place.clone()], &mut d_row[place]);
            penalise(seen, view.slope);
            for (s, ds) in seen.iter_mut().zip(d_seen) {
                let p = exp(*s - log_sum);
                *s = p;
                *ds = p * (*ds - pull);
            }
        }
    }
}

/// A product of two dense matrices, each transposed on wish.
#[allow(clippy::too_many_arguments, reason = "two operands, each with shape and direction")]
fn product(
    isa: Isa,
    a: &[f32],
    a_shape: (usize, usize),
    a_transposed: bool,
    b: &[f32],
    b_shape: (usize, usize),
    b_transposed: bool,
    c: &mut [f32],
    store: Store,
) {
    let (a, b) = (view(a, a_shape, a_transposed), view(b, b_shape, b_transposed));
    let (rows, columns) = (a.rows(), b.columns());
    matmul(isa, a, b, MatrixMut::new(c, rows, columns), store);
}

fn view(data: &[f32], (rows, columns): (usize, usize), transposed: bool) -> MatrixRef<'_, f32> {
    let view = MatrixRef::new(data, rows, columns);
    if transposed { view.transposed() } else { view }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16;
    use crate::grid::split;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

    /// Frequencies of a head with base 100, so that short tests turn noticeably.
    fn frequencies(half: usize) -> Vec<f64> {
        (0..half).map(|i| 100f64.powf(-(i as f64) / half as f64)).collect()
    }

    fn reference(heads: Heads, qkv: &[f64]) -> Vec<f64> {
        let (row, d, half) = (heads.row(), heads.dimension, heads.dimension / 2);
        let length = qkv.len() / row;
        let f = frequencies(half);
        let turned = |t: usize, start: usize| -> Vec<f64> {
            let head = &qkv[t * row + start..][..d];
            let angle = |i: usize| t as f64 * f[i % half];
            let other = |i: usize| if i < half { -head[i + half] } else { head[i - half] };
            (0..d).map(|i| head[i] * angle(i).cos() + other(i) * angle(i).sin()).collect()
        };
        let mut out = vec![0.0; length * heads.query_row()];
        for t in 0..length {
            for head in 0..heads.heads {
                let shared = head / heads.group();
                let q = turned(t, head * d);
                let scores: Vec<f64> = (0..=t)
                    .map(|s| {
                        let k = turned(s, heads.key_start(shared));
                        q.iter().zip(&k).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()
                    })
                    .collect();
                let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                for (s, score) in scores.iter().enumerate() {
                    for i in 0..d {
                        out[t * heads.query_row() + head * d + i] +=
                            score.exp() / sum * qkv[s * row + heads.value_start(shared) + i];
                    }
                }
            }
        }
        out
    }

    fn forward<E: Element>(isa: Isa, heads: Heads, table: &RotaryTable, qkv: &[E]) -> (Vec<E>, Vec<f32>) {
        let length = qkv.len() / heads.row();
        let mut output = vec![E::default(); length * heads.query_row()];
        let mut log_sums = vec![0.0; length * heads.heads];
        let groups =
            |width: usize| (0..heads.key_value_heads).map(|g| g * width..(g + 1) * width).collect::<Vec<_>>();
        let rows = 0..length;
        let rows = std::slice::from_ref(&rows);
        let mut outputs =
            split(&mut output, heads.query_row(), rows, &groups(heads.group() * heads.dimension));
        let mut sums = split(&mut log_sums, heads.heads, rows, &groups(heads.group()));
        for (g, (o, s)) in outputs.iter_mut().zip(&mut sums).enumerate() {
            let attention = Attention { heads, table: Some(table), sight: Sight::ALL };
            attention_forward(isa, attention, g, qkv, o, s);
        }
        (output, log_sums)
    }

    #[test]
    fn attention_and_its_gradient_equal_the_float64_reference() {
        // Sums over up to 67 positions in f32.
        check::<f32>(3e-5);
    }

    #[test]
    fn attention_in_bf16_differs_by_the_rounding_of_its_operands() {
        // 2^-9 for each of queries, keys, probabilities and outputs; gradients are sums of up to 67 such terms of
        // magnitude one with random signs.
        check::<bf16>(6e-2);
    }

    fn check<E: Element>(tolerance: f64) {
        let mut random = Random::new(13);
        for isa in Isa::available_or_trapped() {
            for (heads, key_value_heads, dimension, length) in
                [(1, 1, 2, 1), (2, 1, 4, 3), (2, 2, 6, 17), (3, 1, 8, 5), (1, 1, 4, 67)]
            {
                let heads = Heads { heads, key_value_heads, dimension };
                let table = RotaryTable::new(&frequencies(dimension / 2), length);
                let qkv: Vec<E> = random.elements(length * heads.row());
                let (output, log_sums) = forward(isa, heads, &table, &qkv);
                let widened = |values: &[E]| values.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
                let wide = to_f64(&widened(&qkv));
                assert_all_close(
                    &widened(&output),
                    &reference(heads, &wide),
                    tolerance / 3.0,
                    tolerance / 3.0,
                    "output",
                );

                let d_output: Vec<E> = random.elements(output.len());
                let mut d_qkv = vec![E::from_f32(9.0); qkv.len()];
                let d = dimension;
                let mut columns: Vec<_> = (0..key_value_heads)
                    .map(|g| g * heads.group() * d..(g + 1) * heads.group() * d)
                    .collect();
                columns.extend((heads.heads..heads.heads + 2 * key_value_heads).map(|h| h * d..(h + 1) * d));
                let rows = 0..length;
                let mut blocks = split(&mut d_qkv, heads.row(), std::slice::from_ref(&rows), &columns);
                let (queries, rest) = blocks.split_at_mut(key_value_heads);
                let (keys, values) = rest.split_at_mut(key_value_heads);
                for g in 0..key_value_heads {
                    let saved = AttentionSaved {
                        qkv: &qkv,
                        output: &output,
                        d_output: &d_output,
                        log_sums: &log_sums,
                    };
                    attention_backward(
                        isa,
                        Attention { heads, table: Some(&table), sight: Sight::ALL },
                        g,
                        saved,
                        &mut queries[g],
                        &mut keys[g],
                        &mut values[g],
                    );
                }
                let expected = numeric_gradient(&wide, &widened(&d_output), |x| reference(heads, x));
                assert_all_close(&widened(&d_qkv), &expected, tolerance, 4.0 * tolerance, "d_qkv");
            }
        }
    }
}
