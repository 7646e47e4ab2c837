//! Causal self-attention within a window, with a penalty on distance, or without positions, over packed segments.

use super::attention::columns;
use super::segments::Segments;
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, Heads, RotaryTable};
use std::ops::Range;
use std::sync::Arc;
use strata_kernels::attention::AttentionSaved;
use strata_kernels::grid;
pub use strata_kernels::local_attention::Sight;
use strata_kernels::local_attention::{local_attention_backward, local_attention_forward};

impl<E: Activation> Tape<'_, E> {
    /// As [`Tape::attention`], within sight; positions are turned where there is a table.
    ///
    /// # Panics
    /// As [`Tape::attention`].
    pub fn local_attention(
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
        let longest = segments.iter().map(|segment| segment.len()).max().unwrap_or(0);
        let positions = table.as_ref().map_or(usize::MAX, |table| table.positions());
        assert!(longest <= positions, "attention: {longest} tokens, {positions} positions");
        let mut output = self.buffers.take::<E>(rows * heads.query_row());
        let mut log_sums = self.buffers.take::<f32>(rows * heads.heads);
        let groups = heads.key_value_heads;
        let query_places = columns(0, groups, heads.group() * heads.dimension);
        let outputs = grid::split(&mut output, heads.query_row(), &segments, &query_places);
        let sum_places = columns(0, groups, heads.group());
        let sums = grid::split(&mut log_sums, heads.heads, &segments, &sum_places);
        let value = self.value(qkv);
        self.cpu.for_each(
            outputs.into_iter().zip(sums).enumerate().collect(),
            |(i, (mut output, mut sums))| {
                let segment = &segments[i / groups];
                let rows = &value[segment.start * heads.row()..segment.end * heads.row()];
                let (isa, table) = (self.cpu.isa(), table.as_deref());
                local_attention_forward(isa, heads, table, sight, i % groups, rows, &mut output, &mut sums);
            },
        );
        let operation = LocalAttention { qkv, heads, table, sight, segments, log_sums };
        self.push(heads.query_row(), output, operation)
    }
}

struct LocalAttention {
    qkv: Var,
    heads: Heads,
    table: Option<Arc<RotaryTable>>,
    sight: Sight,
    segments: Vec<Range<usize>>,
    log_sums: Vec<f32>,
}

impl<E: Activation> Operation<E> for LocalAttention {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, output: &[E], d_output: Vec<E>) {
        let heads = self.heads;
        let (row, query_row, groups) = (heads.row(), heads.query_row(), heads.key_value_heads);
        let mut d_qkv = tape.buffers.take::<E>(d_output.len() / query_row * row);
        let value = tape.value(self.qkv);
        let mut places = columns(0, groups, heads.group() * heads.dimension);
        places.extend(columns(query_row, 2 * groups, heads.dimension));
        let mut blocks = grid::split(&mut d_qkv, row, &self.segments, &places).into_iter();
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
            let (isa, table) = (tape.cpu.isa(), self.table.as_deref());
            local_attention_backward(isa, heads, table, self.sight, group, saved, &mut q, &mut k, &mut v);
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
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn attention_within_sight_over_segments_passes_the_gradient_check() {
        let heads = Heads { heads: 4, key_value_heads: 2, dimension: 4 };
        let mut layout = Layout::new();
        let id = layout.matrix(6, heads.row());
        let mut parameters = Parameters::zeros(layout);
        parameters.get_mut(id).copy_from_slice(&random_values(14, 6 * heads.row()));
        let table = Arc::new(RotaryTable::new(&[1.0, 0.3], 16));
        for (sight, table) in [
            (Sight { window: 2, alibi: false }, Some(table)),
            (Sight { window: usize::MAX, alibi: true }, None),
        ] {
            check::parameters(&parameters, 1e-3, |tape| {
                let qkv = tape.embedding(id, &[0, 1, 2, 3, 4, 5]);
                tape.local_attention(qkv, heads, table.clone(), sight, &[0, 1, 2])
            });
        }
    }
}
