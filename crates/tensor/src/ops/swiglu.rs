//! The gated activation of the MLP.

use crate::Activation;
use crate::cpu::rows_mut;
use crate::tape::{Operation, Tape, Var};
use strata_kernels::swiglu;

impl<E: Activation> Tape<'_, E> {
    /// `silu(gate) · up` where each token holds its gates in the first half, its ups in the second.
    ///
    /// # Panics
    /// Where the width is odd.
    pub fn swiglu(&mut self, gate_up: Var) -> Var {
        let width = self.width(gate_up) / 2;
        assert_eq!(self.width(gate_up), 2 * width, "swiglu: odd width");
        let rows = self.rows(gate_up);
        let mut y = self.buffers.take::<E>(rows * width);
        let ranges = self.cpu.ranges(rows, 1);
        let value = self.value(gate_up);
        let items: Vec<_> = ranges.iter().zip(rows_mut(&mut y, width, &ranges)).collect();
        self.cpu.for_each(items, |(range, y)| {
            let gate_up = &value[range.start * 2 * width..range.end * 2 * width];
            swiglu::swiglu_forward(self.cpu.isa(), gate_up, width, y);
        });
        self.push(width, y, Swiglu { gate_up })
    }
}

struct Swiglu {
    gate_up: Var,
}

impl<E: Activation> Operation<E> for Swiglu {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let mut d_gate_up = tape.buffers.take::<E>(2 * d_y.len());
        let value = tape.value(self.gate_up);
        let width = tape.width(self.gate_up) / 2;
        let ranges = tape.cpu.ranges(d_y.len() / width, 1);
        let items: Vec<_> = ranges.iter().zip(rows_mut(&mut d_gate_up, 2 * width, &ranges)).collect();
        tape.cpu.for_each(items, |(range, d_gate_up)| {
            let d_y = &d_y[range.start * width..range.end * width];
            let gate_up = &value[range.start * 2 * width..range.end * 2 * width];
            swiglu::swiglu_backward(tape.cpu.isa(), d_y, gate_up, width, d_gate_up);
        });
        tape.add_gradient(self.gate_up, d_gate_up);
        tape.buffers.give(d_y);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::check;
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn swiglu_passes_the_gradient_check() {
        let mut layout = Layout::new();
        let table = layout.matrix(3, 10);
        let mut parameters = Parameters::zeros(layout);
        parameters.get_mut(table).copy_from_slice(&random_values(5, 30));
        check::parameters(&parameters, 1e-3, |tape| {
            let x = tape.embedding(table, &[2, 0, 1]);
            tape.swiglu(x)
        });
    }
}
