//! A long short-term memory over packed segments: step by step in time, all segments of a time step together.

use super::linear::accumulate_weight_gradient;
use super::segments::Segments;
use crate::cpu::rows_mut;
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, Cpu, ParameterId, infer};
use std::ops::Range;
use strata_kernels::Element;
use strata_kernels::element::convert;
use strata_kernels::lstm::{lstm_cell_backward, lstm_cell_forward};
use strata_kernels::projection::PackedWeight;

impl<E: Activation> Tape<'_, E> {
    /// The hidden states of a recurrent layer of width W. `gates` holds, per token, what the input gives to input gate,
    /// forget gate, candidate and output gate (W each); `recurrent` (4 W, W) gives what the hidden state before gives to
    /// them, and `bias` (4 W) is added. Each segment begins with zeros.
    ///
    /// # Panics
    /// Where the shapes do not fit together.
    pub fn lstm(&mut self, gates: Var, recurrent: ParameterId, bias: ParameterId, starts: &[u32]) -> Var {
        let rows = self.rows(gates);
        let (outputs, width) = self.parameters.layout().shape(recurrent);
        assert!(outputs == 4 * width && self.width(gates) == outputs, "lstm: shapes");
        let segments = Segments::new(starts, rows).0;
        let groups = groups(&segments, self.cpu.threads());
        let packed = infer::pack(self.cpu, infer::WeightFormat::F32, self.parameters.get(recurrent), width);
        let mut y = self.buffers.take::<E>(rows * width);
        let mut opened = self.buffers.take::<f32>(rows * outputs);
        let mut cells = self.buffers.take::<f32>(rows * width);
        let (value, bias_values) = (self.value(gates), self.parameters.get(bias));
        let ranges: Vec<_> = groups.iter().map(|group| rows_of(&segments, group)).collect();
        let items: Vec<_> = groups
            .iter()
            .zip(rows_mut(&mut y, width, &ranges))
            .zip(rows_mut(&mut opened, outputs, &ranges))
            .zip(rows_mut(&mut cells, width, &ranges))
            .collect();
        let cpu = if groups.len() > 1 { self.cpu.alone() } else { self.cpu.clone() };
        self.cpu.for_each(items, |(((group, y), opened), cells)| {
            let own = &segments[group.clone()];
            let first = own.first().map_or(0, |segment| segment.start);
            let lengths: Vec<usize> = own.iter().map(|segment| segment.len()).collect();
            let mut states = vec![0.0; 2 * width * own.len()];
            let states = states.chunks_exact_mut(2 * width).collect();
            let x = &value[first * outputs..first * outputs + y.len() / width * outputs];
            let recurrent = Recurrent { weight: &packed, bias: bias_values };
            lstm_steps(&cpu, x, recurrent, &lengths, states, y, Some((opened, cells)));
        });
        self.push(width, y, Lstm { gates, recurrent, bias, segments, opened, cells })
    }
}

/// The recurrent weight (4 W, W), packed, and the bias.
#[derive(Clone, Copy)]
pub(crate) struct Recurrent<'a> {
    pub weight: &'a PackedWeight,
    pub bias: &'a [f32],
}

/// Steps through sequences that lie behind each other in `x` (rows of 4 W), sequence `i` of `lengths[i]` tokens with the
/// state `states[i]`: hidden, then cell. Keeps what came out of the gates, and the cells, where asked to.
pub(crate) fn lstm_steps<E: Element>(
    cpu: &Cpu,
    x: &[E],
    recurrent: Recurrent<'_>,
    lengths: &[usize],
    mut states: Vec<&mut [f32]>,
    y: &mut [E],
    mut keep: Option<(&mut [f32], &mut [f32])>,
) {
    let outputs = recurrent.bias.len();
    let (width, isa) = (outputs / 4, cpu.isa());
    let starts = starts_of(lengths);
    let (mut hidden, mut gates, mut input) = (Vec::new(), Vec::new(), vec![0.0; outputs]);
    let mut words = Vec::new();
    for t in 0..lengths.iter().copied().max().unwrap_or(0) {
        let active: Vec<usize> = (0..lengths.len()).filter(|&i| lengths[i] > t).collect();
        hidden.clear();
        for &i in &active {
            hidden.extend_from_slice(&states[i][..width]);
        }
        gates.resize(active.len() * outputs, 0.0);
        infer::project(cpu, &hidden, recurrent.weight, &mut words, &mut gates);
        for (&i, gates) in active.iter().zip(gates.chunks_exact_mut(outputs)) {
            let row = starts[i] + t;
            convert(isa, &x[row * outputs..][..outputs], &mut input);
            for ((gate, x), bias) in gates.iter_mut().zip(&input).zip(recurrent.bias) {
                *gate += x + bias;
            }
            let (hidden, cell) = states[i].split_at_mut(width);
            lstm_cell_forward(isa, gates, cell, hidden);
            convert(isa, hidden, &mut y[row * width..][..width]);
            if let Some((opened, cells)) = &mut keep {
                opened[row * outputs..][..outputs].copy_from_slice(gates);
                cells[row * width..][..width].copy_from_slice(cell);
            }
        }
    }
}

fn starts_of(lengths: &[usize]) -> Vec<usize> {
    let mut end = 0;
    let next = |length: &usize| {
        end += length;
        end - length
    };
    lengths.iter().map(next).collect()
}

/// Runs of segments of about as many tokens, one for each thread at most.
fn groups(segments: &[Range<usize>], threads: usize) -> Vec<Range<usize>> {
    let share = segments.last().map_or(0, |last| last.end).div_ceil(threads.max(1)).max(1);
    let (mut groups, mut start) = (Vec::new(), 0);
    for (i, segment) in segments.iter().enumerate() {
        if segment.end - segments[start].start >= share || i + 1 == segments.len() {
            groups.push(start..i + 1);
            start = i + 1;
        }
    }
    groups
}

fn rows_of(segments: &[Range<usize>], group: &Range<usize>) -> Range<usize> {
    segments[group.start].start..segments[group.end - 1].end
}

struct Lstm {
    gates: Var,
    recurrent: ParameterId,
    bias: ParameterId,
    segments: Vec<Range<usize>>,
    /// What came out of the gates.
    opened: Vec<f32>,
    cells: Vec<f32>,
}

impl<E: Activation> Operation<E> for Lstm {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, output: &[E], d_y: Vec<E>) {
        let (outputs, width) = tape.parameters.layout().shape(self.recurrent);
        let rows = d_y.len() / width;
        let mut d_gates = tape.buffers.take::<E>(rows * outputs);
        let weight = tape.parameters.get(self.recurrent);
        let transposed: Vec<f32> =
            (0..width).flat_map(|i| (0..outputs).map(move |o| weight[o * width + i])).collect();
        let packed = infer::pack(tape.cpu, infer::WeightFormat::F32, &transposed, outputs);
        let groups = groups(&self.segments, tape.cpu.threads());
        let ranges: Vec<_> = groups.iter().map(|group| rows_of(&self.segments, group)).collect();
        let items: Vec<_> = groups.iter().zip(rows_mut(&mut d_gates, outputs, &ranges)).collect();
        let cpu = if groups.len() > 1 { tape.cpu.alone() } else { tape.cpu.clone() };
        let parts = tape.cpu.map(items, |(group, d_gates)| self.back(&cpu, group, &packed, &d_y, d_gates));
        for part in parts {
            tape.add_to_parameter(self.bias, part);
        }
        // The hidden state before each token.
        let mut before = tape.buffers.zeroed::<E>(rows * width);
        for segment in &self.segments {
            if segment.len() > 1 {
                let (from, to) = (segment.start * width, (segment.end - 1) * width);
                before[from + width..to + width].copy_from_slice(&output[from..to]);
            }
        }
        let range = tape.parameters.layout().range(self.recurrent);
        if let Some(gradients) = &mut tape.gradients {
            let to = &mut gradients.values_mut()[range];
            accumulate_weight_gradient(tape.cpu, &d_gates, &before, (outputs, width), to);
        }
        tape.buffers.give(before);
        tape.add_gradient(self.gates, d_gates);
        tape.buffers.give(self.opened);
        tape.buffers.give(self.cells);
        tape.buffers.give(d_y);
    }
}

impl Lstm {
    /// Goes back through the segments of a group; returns the gradient of the bias.
    fn back<E: Element>(
        &self,
        cpu: &Cpu,
        group: &Range<usize>,
        transposed: &PackedWeight,
        d_y: &[E],
        d_gates: &mut [E],
    ) -> Vec<f32> {
        let segments = &self.segments[group.clone()];
        let (outputs, width, isa) = (transposed.inputs(), transposed.outputs(), cpu.isa());
        let first = segments.first().map_or(0, |segment| segment.start);
        let mut d_hidden = vec![0.0; segments.len() * width];
        let mut d_cells = vec![0.0; segments.len() * width];
        let (mut d_bias, zeros) = (vec![0.0; outputs], vec![0.0; width]);
        let (mut d_step, mut d_before, mut own) = (Vec::new(), Vec::new(), vec![0.0; width]);
        let mut words = Vec::new();
        for t in (0..segments.iter().map(|segment| segment.len()).max().unwrap_or(0)).rev() {
            let active: Vec<usize> = (0..segments.len()).filter(|&i| segments[i].len() > t).collect();
            d_step.resize(active.len() * outputs, 0.0);
            d_before.resize(active.len() * width, 0.0);
            for (&i, d_step) in active.iter().zip(d_step.chunks_exact_mut(outputs)) {
                let row = segments[i].start + t;
                convert(isa, &d_y[row * width..][..width], &mut own);
                for (d, later) in own.iter_mut().zip(&d_hidden[i * width..]) {
                    *d += later;
                }
                let cell = |row: usize| &self.cells[row * width..][..width];
                let before = if t == 0 { &zeros } else { cell(row - 1) };
                let opened = &self.opened[row * outputs..][..outputs];
                let d_cell = &mut d_cells[i * width..][..width];
                lstm_cell_backward(isa, opened, before, cell(row), &own, d_cell, d_step);
                convert(isa, d_step, &mut d_gates[(row - first) * outputs..][..outputs]);
                for (sum, d) in d_bias.iter_mut().zip(d_step.iter()) {
                    *sum += d;
                }
            }
            infer::project(cpu, &d_step, transposed, &mut words, &mut d_before);
            for (&i, d) in active.iter().zip(d_before.chunks_exact(width)) {
                d_hidden[i * width..][..width].copy_from_slice(d);
            }
        }
        d_bias
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn the_layer_over_segments_passes_the_gradient_check() {
        let mut layout = Layout::new();
        let (table, input) = (layout.matrix(3, 3), layout.matrix(12, 3));
        let (recurrent, bias) = (layout.matrix(12, 3), layout.vector(12));
        let mut parameters = Parameters::zeros(layout);
        let values = random_values(12, parameters.values().len());
        parameters.values_mut().copy_from_slice(&values);
        // Truncation of the differences.
        check::parameters(&parameters, 1e-3, |tape| {
            let x = tape.embedding(table, &[0, 1, 2, 2, 1, 0, 1]);
            let gates = tape.linear(x, input);
            tape.lstm(gates, recurrent, bias, &[0, 1, 5])
        });
    }

    #[test]
    fn groups_cover_all_segments_in_order() {
        let segments = [0..3, 3..4, 4..9, 9..10];
        for threads in 1..6 {
            let groups = groups(&segments, threads);
            assert!(groups.len() <= threads.max(1) && groups[0].start == 0);
            assert_eq!(groups.last().unwrap().end, 4);
            assert!(groups.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }
}
