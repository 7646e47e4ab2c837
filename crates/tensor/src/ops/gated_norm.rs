//! Root-mean-square normalisation of a gated value, group by group.

use super::segments::columns_of;
use crate::cpu::rows_mut;
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, ParameterId};
use std::ops::Range;
use strata_kernels::gated_norm::{gated_norm_backward, gated_norm_forward};
use strata_kernels::grid;

impl<E: Activation> Tape<'_, E> {
    /// `y = gain · v / sqrt(mean(v²) + epsilon)` with `v = x · silu(gate[.., columns])`, the mean over each of `groups`
    /// equal parts of a token.
    ///
    /// # Panics
    /// Where there are not as many gates as elements, or the groups do not divide them.
    pub fn gated_norm(
        &mut self,
        x: Var,
        gate: Var,
        columns: Range<usize>,
        gain: ParameterId,
        groups: usize,
        epsilon: f32,
    ) -> Var {
        let (rows, width) = (self.rows(x), self.width(x));
        assert!(columns.len() == width && width.is_multiple_of(groups), "gated norm: shapes");
        let mut y = self.buffers.take::<E>(rows * width);
        let mut rstd = self.buffers.take::<f32>(rows * groups);
        let ranges = self.cpu.ranges(rows, 1);
        let weight = self.parameters.get(gain);
        let gates = columns_of(self.value(gate), self.width(gate), columns.clone());
        let x_value = self.value(x);
        let items: Vec<_> = ranges
            .iter()
            .zip(rows_mut(&mut y, width, &ranges))
            .zip(rows_mut(&mut rstd, groups, &ranges))
            .collect();
        self.cpu.for_each(items, |((range, y), rstd)| {
            let x = &x_value[range.start * width..range.end * width];
            let gates = gates.row_range(range.clone());
            gated_norm_forward(self.cpu.isa(), x, gates, weight, groups, epsilon, y, rstd);
        });
        self.push(width, y, GatedNorm { x, gate, columns, gain, groups, rstd })
    }
}

struct GatedNorm {
    x: Var,
    gate: Var,
    columns: Range<usize>,
    gain: ParameterId,
    groups: usize,
    rstd: Vec<f32>,
}

impl<E: Activation> Operation<E> for GatedNorm {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let (rows, width, groups) = (tape.rows(self.x), tape.width(self.x), self.groups);
        let mut d_x = tape.buffers.take::<E>(d_y.len());
        let mut d_gate = tape.take_column_gradient(self.gate);
        let ranges = tape.cpu.ranges(rows, 1);
        let gate_width = tape.width(self.gate);
        let gate_blocks = grid::split(&mut d_gate, gate_width, &ranges, std::slice::from_ref(&self.columns));
        let items: Vec<_> = ranges.iter().zip(rows_mut(&mut d_x, width, &ranges)).zip(gate_blocks).collect();
        let (x, weight) = (tape.value(self.x), tape.parameters.get(self.gain));
        let gates = columns_of(tape.value(self.gate), gate_width, self.columns.clone());
        let parts = tape.cpu.map(items, |((range, d_x), mut d_gate)| {
            let own = range.start * width..range.end * width;
            let rstd = &self.rstd[range.start * groups..range.end * groups];
            let gates = gates.row_range(range.clone());
            let mut d_weight = vec![0.0; width];
            let isa = tape.cpu.isa();
            gated_norm_backward(
                isa,
                &d_y[own.clone()],
                &x[own],
                gates,
                weight,
                rstd,
                d_x,
                &mut d_gate,
                &mut d_weight,
            );
            d_weight
        });
        tape.set_gradient(self.gate, d_gate);
        tape.add_gradient(self.x, d_x);
        for part in parts {
            tape.add_to_parameter(self.gain, part);
        }
        tape.buffers.give(self.rstd);
        tape.buffers.give(d_y);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::check;
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn the_gated_norm_passes_the_gradient_check() {
        let mut layout = Layout::new();
        let (table, gates, gain) = (layout.matrix(3, 6), layout.matrix(8, 6), layout.vector(6));
        let mut parameters = Parameters::zeros(layout);
        let values = random_values(9, parameters.values().len());
        parameters.values_mut().copy_from_slice(&values);
        // Truncation of the differences.
        check::parameters(&parameters, 2e-3, |tape| {
            let x = tape.embedding(table, &[0, 1, 2, 1]);
            let projected = tape.linear(x, gates);
            tape.gated_norm(x, projected, 1..7, gain, 2, 0.1)
        });
    }
}
