//! Causal self-attention over packed segments.

use super::segments::Segments;
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, Heads, RotaryTable};
use std::ops::Range;
use std::sync::Arc;
pub use strata_kernels::attention::Sight;
use strata_kernels::attention::{self, AttentionSaved, attention_backward, attention_forward};
use strata_kernels::grid;

impl<E: Activation> Tape<'_, E> {
    /// Attention of each segment over itself: `qkv` holds rows as [`Heads`] describes them, segment `i` starts at
    /// token `starts[i]` and ends where the next one starts. A token sees what `sight` says; where there is a table, queries
    /// and keys are turned to their positions, which count from the segment's start.
    ///
    /// # Panics
    /// Where `starts` does not begin with 0 and ascend, or a segment is longer than the table.
    pub fn attention(
        &mut self,
        qkv: Var,
        heads: Heads,
        table: Option<Arc<RotaryTable>>,
        sight: Sight,
        starts: &[u32],
    ) -> Var {
        let rows = self.rows(qkv);
        assert_eq!(self.width(qkv), heads.row(), "attention: the input's width is not the heads'");
        let segments = Segments::new(starts, rows).0;
        let longest = segments.iter().map(|s| s.len()).max().unwrap_or(0);
        let positions = table.as_ref().map_or(usize::MAX, |table| table.positions());
        assert!(longest <= positions, "attention: {longest} tokens, {positions} positions");
        let mut output = self.buffers.take::<E>(rows * heads.query_row());
        let mut log_sums = self.buffers.take::<f32>(rows * heads.heads);
        let value = self.value(qkv);
        let groups = heads.key_value_heads;
        let outputs = grid::split(
            &mut output,
            heads.query_row(),
            &segments,
            &columns(0, groups, heads.group() * heads.dimension),
        );
        let sums = grid::split(&mut log_sums, heads.heads, &segments, &columns(0, groups, heads.group()));
        let items: Vec<_> = outputs.into_iter().zip(sums).enumerate().collect();
        self.cpu.for_each(items, |(i, (mut output, mut sums))| {
            let segment = &segments[i / groups];
            let rows = &value[segment.start * heads.row()..segment.end * heads.row()];
            let attention = attention::Attention { heads, table: table.as_deref(), sight };
            attention_forward(self.cpu.isa(), attention, i % groups, rows, &mut output, &mut sums);
        });
        let operation = Attention { qkv, heads, table, sight, segments, log_sums };
        self.push(heads.query_row(), output, operation)
    }
}

/// `count` column ranges of `width` each, from `start`.
fn columns(start: usize, count: usize, width: usize) -> Vec<Range<usize>> {
    (0..count).map(|i| start + i * width..start + (i + 1) * width).collect()
}

struct Attention {
    qkv: Var,
    heads: Heads,
    table: Option<Arc<RotaryTable>>,
    sight: Sight,
    segments: Vec<Range<usize>>,
    log_sums: Vec<f32>,
}

impl<E: Activation> Operation<E> for Attention {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, output: &[E], d_output: Vec<E>) {
        let heads = self.heads;
        let (row, query_row, groups) = (heads.row(), heads.query_row(), heads.key_value_heads);
        let mut d_qkv = tape.buffers.take::<E>(d_output.len() / query_row * row);
        let value = tape.value(self.qkv);
        let mut ranges = columns(0, groups, heads.group() * heads.dimension);
        ranges.extend(columns(query_row, 2 * groups, heads.dimension));
        let mut blocks = grid::split(&mut d_qkv, row, &self.segments, &ranges).into_iter();
        let mut items = Vec::with_capacity(self.segments.len() * groups);
        for segment in &self.segments {
            let mut take = || blocks.by_ref().take(groups).collect::<Vec<_>>();
            let (queries, keys, values) = (take(), take(), take());
            for (group, ((q, k), v)) in queries.into_iter().zip(keys).zip(values).enumerate() {
                items.push((segment, group, q, k, v));
            }
        }
        tape.cpu.for_each(items, |(s, group, mut q, mut k, mut v)| {
            let saved = AttentionSaved {
                qkv: &value[s.start * row..s.end * row],
                output: &output[s.start * query_row..s.end * query_row],
                d_output: &d_output[s.start * query_row..s.end * query_row],
                log_sums: &self.log_sums[s.start * heads.heads..s.end * heads.heads],
            };
            let attention = attention::Attention { heads, table: self.table.as_deref(), sight: self.sight };
            attention_backward(tape.cpu.isa(), attention, group, saved, &mut q, &mut k, &mut v);
        });
        tape.add_gradient(self.qkv, d_qkv);
        tape.buffers.give(self.log_sums);
        tape.buffers.give(d_output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;
    use crate::{Buffers, Cpu, Isa, Layout, Parameters, random_values};

    const HEADS: Heads = Heads { heads: 4, key_value_heads: 2, dimension: 4 };

    fn table() -> Arc<RotaryTable> {
        Arc::new(RotaryTable::new(&[1.0, 0.3], 16))
    }

    fn embedded(tokens: usize) -> (Parameters, crate::ParameterId) {
        let mut layout = Layout::new();
        let id = layout.matrix(tokens, HEADS.row());
        let mut parameters = Parameters::zeros(layout);
        parameters.get_mut(id).copy_from_slice(&random_values(7, tokens * HEADS.row()));
        (parameters, id)
    }

    #[test]
    fn attention_over_segments_passes_the_gradient_check() {
        let (parameters, id) = embedded(6);
        let table = table();
        check::parameters(&parameters, 1e-3, |tape| {
            let qkv = tape.embedding(id, &[0, 1, 2, 3, 4, 5]);
            tape.attention(qkv, HEADS, Some(table.clone()), Sight::ALL, &[0, 1, 4])
        });
    }

    #[test]
    fn attention_within_sight_over_segments_passes_the_gradient_check() {
        let (parameters, id) = embedded(6);
        for (sight, table) in [
            (Sight { window: 2, alibi: false }, Some(table())),
            (Sight { window: usize::MAX, alibi: true }, None),
        ] {
            check::parameters(&parameters, 1e-3, |tape| {
                let qkv = tape.embedding(id, &[0, 1, 2, 3, 4, 5]);
                tape.attention(qkv, HEADS, table.clone(), sight, &[0, 1, 2])
            });
        }
    }

    #[test]
    fn a_segment_gives_the_same_alone_and_packed() {
        let (parameters, id) = embedded(9);
        let table = table();
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2).unwrap();
            let run = |tokens: &[u32], starts: &[u32]| {
                let mut buffers = Buffers::new();
                let mut tape = Tape::<f32>::new(&cpu, &parameters, None, &mut buffers);
                let qkv = tape.embedding(id, tokens);
                let y = tape.attention(qkv, HEADS, Some(table.clone()), Sight::ALL, starts);
                tape.value(y).to_vec()
            };
            let packed = run(&[8, 7, 0, 1, 2, 3, 4, 5], &[0, 2, 6]);
            let alone = run(&[0, 1, 2, 3], &[0]);
            assert_eq!(packed[2 * HEADS.query_row()..6 * HEADS.query_row()], alone);
        }
    }
}
