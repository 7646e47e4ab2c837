//! `y = x · Wᵀ`, optionally added to a residual.

use crate::cpu::rows_mut;
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, Cpu, ParameterId, Parameters};
use strata_kernels::matmul::matmul_packed;
use strata_kernels::tiles::PackedB;
use strata_kernels::{Element, MatrixMut, MatrixRef, Store, matmul};

/// Rows are shared out in multiples of this, so that only the last thread meets a partial register tile.
const GRAIN: usize = 96;

impl<E: Activation> Tape<'_, E> {
    /// `y[t, n] = Σ_k x[t, k] · weight[n, k]` for a weight of shape (n, k).
    ///
    /// # Panics
    /// Where the width of `x` is not k.
    pub fn linear(&mut self, x: Var, weight: ParameterId) -> Var {
        self.linear_onto(x, weight, None)
    }

    /// `y = residual + x · Wᵀ`: the product is added where the residual already lies.
    pub fn linear_residual(&mut self, x: Var, weight: ParameterId, residual: Var) -> Var {
        self.linear_onto(x, weight, Some(residual))
    }

    fn linear_onto(&mut self, x: Var, weight: ParameterId, residual: Option<Var>) -> Var {
        let (outputs, inputs) = self.parameters.layout().shape(weight);
        assert_eq!(self.width(x), inputs, "linear: the input's width is not the weight's");
        let rows = self.rows(x);
        let mut y = self.buffers.take::<E>(rows * outputs);
        if let Some(residual) = residual {
            y.copy_from_slice(self.value(residual));
        }
        let store = if residual.is_some() { Store::Accumulate } else { Store::Overwrite };
        let x_view = MatrixRef::new(self.value(x), rows, inputs);
        forward_product(self.cpu, self.parameters, x_view, weight, &mut y, store);
        self.push(outputs, y, Linear { x, weight, residual })
    }
}

struct Linear {
    x: Var,
    weight: ParameterId,
    residual: Option<Var>,
}

impl<E: Activation> Operation<E> for Linear {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let (outputs, _) = tape.parameters.layout().shape(self.weight);
        let rows = d_y.len() / outputs;
        let d_y_view = MatrixRef::new(&d_y, rows, outputs);

        let (mut d_x, store) = tape.take_gradient(self.x);
        backward_product(tape.cpu, tape.parameters, d_y_view, self.weight, &mut d_x, store);
        tape.set_gradient(self.x, d_x);

        weight_gradient(tape, self.weight, &d_y, self.x);

        match self.residual {
            Some(residual) => tape.add_gradient(residual, d_y),
            None => tape.buffers.give(d_y),
        }
    }
}

/// `dW[n, k] += Σ_t d_y[t, n] · x[t, k]`, shared out by rows of `dW`.
fn weight_gradient<E: Activation>(tape: &mut Tape<'_, E>, weight: ParameterId, d_y: &[E], x: Var) {
    let (outputs, inputs) = tape.parameters.layout().shape(weight);
    let range = tape.parameters.layout().range(weight);
    let Some(gradients) = tape.gradients.take() else { return };
    accumulate_weight_gradient(
        tape.cpu,
        d_y,
        tape.value(x),
        (outputs, inputs),
        &mut gradients.values_mut()[range],
    );
    tape.gradients = Some(gradients);
}

/// `d_weight[n, k] += Σ_t d_y[t, n] · x[t, k]`.
pub(crate) fn accumulate_weight_gradient<E: Element>(
    cpu: &Cpu,
    d_y: &[E],
    x: &[E],
    (outputs, inputs): (usize, usize),
    d_weight: &mut [f32],
) {
    let rows = x.len() / inputs;
    if rows == 0 {
        return;
    }
    let ranges = cpu.ranges(outputs, 48);
    let pieces = rows_mut(d_weight, inputs, &ranges);
    cpu.for_each(ranges.into_iter().zip(pieces).collect(), |(range, piece)| {
        let d_y = MatrixRef::with_stride(&d_y[range.start..], rows, range.len(), outputs).transposed();
        let x = MatrixRef::new(x, rows, inputs);
        matmul(cpu.isa(), d_y, x, MatrixMut::new(piece, range.len(), inputs), Store::Accumulate);
    });
}

/// `y = x · Wᵀ` for a weight W of shape (outputs, inputs).
pub(crate) fn forward_product<E: Activation, C: Element>(
    cpu: &Cpu,
    parameters: &Parameters,
    x: MatrixRef<'_, E>,
    weight: ParameterId,
    y: &mut [C],
    store: Store,
) {
    let (outputs, inputs) = parameters.layout().shape(weight);
    match E::packed(parameters, weight) {
        Some(packed) => packed_product(cpu, x, &packed.forward, y, store),
        None => {
            let weights = MatrixRef::new(E::weights(parameters, weight), outputs, inputs);
            product(cpu, x, weights.transposed(), y, store);
        }
    }
}

/// `dx = dy · W` for a weight W of shape (outputs, inputs).
pub(crate) fn backward_product<E: Activation, C: Element>(
    cpu: &Cpu,
    parameters: &Parameters,
    d_y: MatrixRef<'_, E>,
    weight: ParameterId,
    d_x: &mut [C],
    store: Store,
) {
    let (outputs, inputs) = parameters.layout().shape(weight);
    match E::packed(parameters, weight) {
        Some(packed) => packed_product(cpu, d_y, &packed.backward, d_x, store),
        None => {
            let weights = MatrixRef::new(E::weights(parameters, weight), outputs, inputs);
            product(cpu, d_y, weights, d_x, store);
        }
    }
}

/// `c = a · b` shared out by rows of `a`.
fn packed_product<A: Element, C: Element>(
    cpu: &Cpu,
    a: MatrixRef<'_, A>,
    b: &PackedB,
    c: &mut [C],
    store: Store,
) {
    let ranges = cpu.ranges(a.rows(), GRAIN);
    let pieces = rows_mut(c, b.n(), &ranges);
    cpu.for_each(ranges.into_iter().zip(pieces).collect(), |(range, piece)| {
        let rows = range.len();
        matmul_packed(cpu.isa(), a.row_range(range), b, MatrixMut::new(piece, rows, b.n()), store);
    });
}

/// `c = a · b` shared out by rows of `a`.
pub(crate) fn product<A: Element, B: Element, C: Element>(
    cpu: &Cpu,
    a: MatrixRef<'_, A>,
    b: MatrixRef<'_, B>,
    c: &mut [C],
    store: Store,
) {
    let (rows, columns) = (a.rows(), b.columns());
    let ranges = cpu.ranges(rows, GRAIN);
    let pieces = rows_mut(c, columns, &ranges);
    cpu.for_each(ranges.into_iter().zip(pieces).collect(), |(range, piece)| {
        let rows = range.len();
        matmul(cpu.isa(), a.row_range(range), b, MatrixMut::new(piece, rows, columns), store);
    });
}

#[cfg(test)]
mod tests {
    use crate::ops::check;
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn linear_and_residual_pass_the_gradient_check() {
        let mut layout = Layout::new();
        let table = layout.matrix(5, 3);
        let (first, second) = (layout.matrix(4, 3), layout.matrix(3, 4));
        let mut parameters = Parameters::zeros(layout);
        for (seed, id) in [table, first, second].into_iter().enumerate() {
            let n = parameters.get(id).len();
            parameters.get_mut(id).copy_from_slice(&random_values(seed as u64, n));
        }
        // Products of three factors: central differences are exact up to f32 rounding over the step.
        check::parameters(&parameters, 2e-4, |tape| {
            let x = tape.embedding(table, &[0, 4, 4, 2]);
            let hidden = tape.linear(x, first);
            tape.linear_residual(hidden, second, x)
        });
    }
}
