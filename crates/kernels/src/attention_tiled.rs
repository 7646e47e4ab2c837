//! [`crate::attention`] where products of bf16 are fast: keys and values of a segment are packed once as tiles, and
//! queries pass by in blocks. The scores of a block exist in f32, its probabilities in bf16.

use crate::attention::{Attention, AttentionSaved, Heads, QUERY_BLOCK, Row, penalise};
use crate::math::{exp, max, sum_of, sum_of_pairs};
use crate::rotary::RotaryTable;
use crate::tiles::{Bf16Unit, PackedB, Scratch, matmul_bf16, matmul_packed_part};
use crate::{BlockMut, Element, Isa, MatrixRef, bf16};
use std::cell::RefCell;

/// Memory that a thread keeps.
#[derive(Default)]
struct Memory {
    keys: Vec<bf16>,
    values: Vec<bf16>,
    queries: Vec<bf16>,
    d_output: Vec<bf16>,
    packed: [PackedB; 3],
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    probabilities: Vec<bf16>,
    d_narrow: Vec<bf16>,
    rows: Vec<f32>,
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
    row: Vec<f32>,
    tiles: Scratch,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::new(Memory::default());
}

/// The first `length` elements of a buffer, which grows where it has fewer.
fn sized<T: Copy + Default>(buffer: &mut Vec<T>, length: usize) -> &mut [T] {
    if buffer.len() < length {
        buffer.resize(length, T::default());
    }
    &mut buffer[..length]
}

/// What the products of one segment and one key/value head share.
#[derive(Clone, Copy)]
struct Task<'a> {
    isa: Isa,
    attention: Attention<'a>,
    key_value_head: usize,
    qkv: &'a [bf16],
}

impl Task<'_> {
    fn length(&self) -> usize {
        self.qkv.len() / self.attention.heads.row()
    }

    fn keys(&self, row: &mut Vec<f32>, to: &mut [bf16]) {
        let Attention { heads, table, .. } = self.attention;
        let start = heads.key_start(self.key_value_head);
        gather(self.isa, self.qkv, heads.row(), start, heads.dimension, 0, 1.0, table, row, to);
    }

    fn values(&self, row: &mut Vec<f32>, to: &mut [bf16]) {
        let heads = self.attention.heads;
        let start = heads.value_start(self.key_value_head);
        gather(self.isa, self.qkv, heads.row(), start, heads.dimension, 0, 1.0, None, row, to);
    }

    /// The queries of one head from position `start` on, turned and scaled.
    fn queries(&self, head: usize, start: usize, row: &mut Vec<f32>, to: &mut [bf16]) {
        let Attention { heads, table, .. } = self.attention;
        let (d, width) = (heads.dimension, heads.row());
        let rows = &self.qkv[start * width..][..to.len() / d * width];
        gather(self.isa, rows, width, head * d, d, start, heads.scale(), table, row, to);
    }
}

/// [`crate::attention::attention_forward`] by `unit`.
#[allow(clippy::too_many_arguments, reason = "the arguments of the function it carries out")]
pub(crate) fn forward<E: Element>(
    isa: Isa,
    unit: Bf16Unit,
    attention: Attention<'_>,
    key_value_head: usize,
    qkv: &[bf16],
    output: &mut BlockMut<'_, E>,
    log_sums: &mut BlockMut<'_, f32>,
) {
    let Attention { heads, sight, .. } = attention;
    let task = Task { isa, attention, key_value_head, qkv };
    let (d, length) = (heads.dimension, task.length());
    MEMORY.with_borrow_mut(|memory| {
        let Memory { keys, values, queries, packed, scores, probabilities, rows, row, tiles, .. } = memory;
        let [packed_keys, packed_values, _] = packed;
        let keys = sized(keys, length * d);
        task.keys(row, keys);
        packed_keys.refresh(isa, MatrixRef::new(keys, length, d).transposed());
        let values = sized(values, length * d);
        task.values(row, values);
        packed_values.refresh(isa, MatrixRef::new(values, length, d));
        for start in (0..length).step_by(QUERY_BLOCK) {
            let end = length.min(start + QUERY_BLOCK);
            let (block, low) = (end - start, sight.first_of_block(start));
            let seen = end - low;
            for member in 0..heads.group() {
                let head = key_value_head * heads.group() + member;
                let queries = sized(queries, block * d);
                task.queries(head, start, row, queries);
                let scores = sized(scores, block * seen);
                let queries = MatrixRef::new(queries, block, d);
                matmul_packed_part(unit, queries, packed_keys, (0, low), seen, scores, seen, false, tiles);
                let probabilities = sized(probabilities, block * seen);
                let mut sums = [0.0; QUERY_BLOCK];
                let mut inverses = [0.0; QUERY_BLOCK];
                let view = sight.rows(start, low, head, heads);
                softmax(isa, scores, seen, view, probabilities, &mut sums, &mut inverses);
                let out = sized(rows, block * d);
                let probabilities = MatrixRef::new(probabilities, block, seen);
                matmul_packed_part(unit, probabilities, packed_values, (low, 0), d, out, d, false, tiles);
                for i in 0..block {
                    log_sums.row_mut(start + i)[member] = sums[i];
                    let to = &mut output.row_mut(start + i)[member * d..][..d];
                    scaled(isa, &out[i * d..(i + 1) * d], inverses[i], to);
                }
            }
        }
    });
}

/// [`crate::attention::attention_backward`] by `unit`.
#[allow(clippy::too_many_arguments, reason = "the arguments of the function it carries out")]
pub(crate) fn backward<E: Element>(
    isa: Isa,
    unit: Bf16Unit,
    attention: Attention<'_>,
    key_value_head: usize,
    saved: AttentionSaved<'_, bf16>,
    d_queries: &mut BlockMut<'_, E>,
    d_keys_out: &mut BlockMut<'_, E>,
    d_values_out: &mut BlockMut<'_, E>,
) {
    let AttentionSaved { qkv, output, d_output, log_sums } = saved;
    let Attention { heads, table, sight } = attention;
    let task = Task { isa, attention, key_value_head, qkv };
    let (d, length, out_row) = (heads.dimension, task.length(), heads.query_row());
    MEMORY.with_borrow_mut(|memory| {
        let Memory {
            keys, values, queries, d_output: d_out, packed, scores, d_scores, rows, row, tiles, ..
        } = memory;
        let Memory { probabilities, d_narrow, d_keys, d_values, .. } = memory;
        let [keys_for_scores, keys_for_queries, packed_values] = packed;
        let keys = sized(keys, length * d);
        task.keys(row, keys);
        let view = MatrixRef::new(keys, length, d);
        keys_for_scores.refresh(isa, view.transposed());
        keys_for_queries.refresh(isa, view);
        let values = sized(values, length * d);
        task.values(row, values);
        packed_values.refresh(isa, MatrixRef::new(values, length, d).transposed());
        let (d_keys, d_values) = (sized(d_keys, length * d), sized(d_values, length * d));
        d_keys.fill(0.0);
        d_values.fill(0.0);
        for start in (0..length).step_by(QUERY_BLOCK) {
            let end = length.min(start + QUERY_BLOCK);
            let (block, low) = (end - start, sight.first_of_block(start));
            let seen = end - low;
            for member in 0..heads.group() {
                let head = key_value_head * heads.group() + member;
                let queries = sized(queries, block * d);
                task.queries(head, start, row, queries);
                let queries = MatrixRef::new(&*queries, block, d);
                let scores = sized(scores, block * seen);
                matmul_packed_part(
                    unit,
                    queries,
                    keys_for_scores,
                    (0, low),
                    seen,
                    scores,
                    seen,
                    false,
                    tiles,
                );
                let d_out = sized(d_out, block * d);
                let d_rows = &d_output[start * out_row..end * out_row];
                gather(isa, d_rows, out_row, head * d, d, 0, 1.0, None, row, d_out);
                let d_scores = sized(d_scores, block * seen);
                let d_out_view = MatrixRef::new(&*d_out, block, d);
                matmul_packed_part(
                    unit,
                    d_out_view,
                    packed_values,
                    (0, low),
                    seen,
                    d_scores,
                    seen,
                    false,
                    tiles,
                );
                let probabilities = sized(probabilities, block * seen);
                let d_narrow = sized(d_narrow, block * seen);
                let view = sight.rows(start, low, head, heads);
                let of_head = Head { heads, head, view, output, log_sums, d_out };
                score_gradient(isa, of_head, seen, scores, d_scores, probabilities, d_narrow);
                let probabilities = MatrixRef::new(&*probabilities, block, seen);
                let values_seen = &mut d_values[low * d..end * d];
                matmul_bf16(unit, probabilities.transposed(), d_out_view, values_seen, d, true, tiles);
                let d_scores = MatrixRef::new(&*d_narrow, block, seen);
                let keys_seen = &mut d_keys[low * d..end * d];
                matmul_bf16(unit, d_scores.transposed(), queries, keys_seen, d, true, tiles);
                let gradients = sized(rows, block * d);
                matmul_packed_part(unit, d_scores, keys_for_queries, (low, 0), d, gradients, d, false, tiles);
                for i in 0..block {
                    let to = &mut d_queries.row_mut(start + i)[member * d..][..d];
                    turned_back(isa, table, &mut gradients[i * d..(i + 1) * d], start + i, heads.scale(), to);
                }
            }
        }
        for i in 0..length {
            turned_back(isa, table, &mut d_keys[i * d..(i + 1) * d], i, 1.0, d_keys_out.row_mut(i));
            scaled(isa, &d_values[i * d..(i + 1) * d], 1.0, d_values_out.row_mut(i));
        }
    });
}

per_isa! {
    /// `to = from · factor`.
    fn scaled<E: Element>(from: &[f32], factor: f32, to: &mut [E]) {
        for (t, f) in to.iter_mut().zip(from) {
            *t = E::from_f32(*f * factor);
        }
    }
}

per_isa! {
    /// The gradient of a row before it was turned to `position` and multiplied by `factor`.
    fn turned_back<E: Element>(
        table: Option<&RotaryTable>,
        row: &mut [f32],
        position: usize,
        factor: f32,
        to: &mut [E],
    ) {
        if let Some(table) = table {
            table.rotate_back(row, position);
        }
        for (t, f) in to.iter_mut().zip(row) {
            *t = E::from_f32(*f * factor);
        }
    }
}

per_isa! {
    /// Copies one head of every row, scaled and, where a table is given, turned to its position.
    fn gather(
        rows: &[bf16],
        row_length: usize,
        start: usize,
        dimension: usize,
        first_position: usize,
        scale: f32,
        table: Option<&RotaryTable>,
        row: &mut Vec<f32>,
        to: &mut [bf16],
    ) {
        row.resize(dimension, 0.0);
        for (i, (from, to)) in rows.chunks_exact(row_length).zip(to.chunks_exact_mut(dimension)).enumerate() {
            let from = &from[start..start + dimension];
            if table.is_none() && scale == 1.0 {
                to.copy_from_slice(from);
                continue;
            }
            for (r, f) in row.iter_mut().zip(from) {
                *r = f.to_f32() * scale;
            }
            if let Some(table) = table {
                table.rotate(row, first_position + i);
            }
            for (t, r) in to.iter_mut().zip(row.iter()) {
                *t = <bf16 as Element>::from_f32(*r);
            }
        }
    }
}

per_isa! {
    /// From rows of scores the probabilities times their row's sum, whose inverse goes to `inverses`; what a row does not
    /// see becomes 0.
    fn softmax(
        scores: &mut [f32],
        columns: usize,
        view: Row,
        probabilities: &mut [bf16],
        log_sums: &mut [f32],
        inverses: &mut [f32],
    ) {
        let rows = scores.chunks_exact_mut(columns).zip(probabilities.chunks_exact_mut(columns));
        for (i, (row, probabilities)) in rows.enumerate() {
            let place = view.seen(i);
            probabilities[..place.start].fill(bf16::ZERO);
            probabilities[place.end..].fill(bf16::ZERO);
            let (seen, probabilities) = (&mut row[place.clone()], &mut probabilities[place]);
            penalise(seen, view.slope);
            let largest = max(seen);
            for (s, p) in seen.iter_mut().zip(probabilities) {
                *s = exp(*s - largest);
                *p = <bf16 as Element>::from_f32(*s);
            }
            let sum = sum_of(seen, |s| s);
            inverses[i] = 1.0 / sum;
            log_sums[i] = largest + sum.ln();
        }
    }
}

/// What the gradient of the scores needs of one head.
#[derive(Clone, Copy)]
struct Head<'a> {
    heads: Heads,
    head: usize,
    view: Row,
    output: &'a [bf16],
    log_sums: &'a [f32],
    d_out: &'a [bf16],
}

per_isa! {
    /// From raw `scores` and the gradient of the probabilities in `d_scores`: the probabilities, and the gradient of the
    /// raw scores in `d_narrow`.
    fn score_gradient(
        of: Head<'_>,
        columns: usize,
        scores: &mut [f32],
        d_scores: &[f32],
        probabilities: &mut [bf16],
        d_narrow: &mut [bf16],
    ) {
        let d = of.heads.dimension;
        let rows = scores.chunks_exact_mut(columns).zip(d_scores.chunks_exact(columns));
        let narrow = probabilities.chunks_exact_mut(columns).zip(d_narrow.chunks_exact_mut(columns));
        for (i, ((row, d_row), (to, d_to))) in rows.zip(narrow).enumerate() {
            let (position, place) = (of.view.start + i, of.view.seen(i));
            let out = &of.output[position * of.heads.query_row() + of.head * d..][..d];
            let d_out = &of.d_out[i * d..][..d];
            // Σ_j p_j · dp_j equals d_out · out, which is shorter.
            let pull = sum_of_pairs(out, d_out, |o, d_o| o.to_f32() * d_o.to_f32());
            let log_sum = of.log_sums[position * of.heads.heads + of.head];
            for hidden in [&mut *to, &mut *d_to] {
                hidden[..place.start].fill(bf16::ZERO);
                hidden[place.end..].fill(bf16::ZERO);
            }
            let (seen, d_seen) = (&mut row[place.clone()], &d_row[place.clone()]);
            penalise(seen, of.view.slope);
            let narrow = to[place.clone()].iter_mut().zip(&mut d_to[place]);
            for ((s, ds), (to, d_to)) in seen.iter().zip(d_seen).zip(narrow) {
                let p = exp(*s - log_sum);
                *to = <bf16 as Element>::from_f32(p);
                *d_to = <bf16 as Element>::from_f32(p * (*ds - pull));
            }
        }
    }
}
