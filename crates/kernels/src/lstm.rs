//! The cell of a long short-term memory (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000).

use crate::math::{sigmoid, tanh};

per_isa! {
    /// One token of one sequence of width W: `gates` holds what goes into input gate, forget gate, candidate and output
    /// gate (W each) and gets what comes out of them; `cell` and `hidden` move on: `cell = forget · cell + input ·
    /// candidate`, `hidden = output · tanh(cell)`.
    pub fn lstm_cell_forward(gates: &mut [f32], cell: &mut [f32], hidden: &mut [f32]) {
        let width = cell.len();
        assert!(gates.len() == 4 * width && hidden.len() == width, "lstm: shapes");
        let (inputs, rest) = gates.split_at_mut(width);
        let (forgets, rest) = rest.split_at_mut(width);
        let (candidates, outputs) = rest.split_at_mut(width);
        for i in 0..width {
            let (input, forget) = (sigmoid(inputs[i]), sigmoid(forgets[i]));
            let (candidate, output) = (tanh(candidates[i]), sigmoid(outputs[i]));
            cell[i] = forget * cell[i] + input * candidate;
            hidden[i] = output * tanh(cell[i]);
            (inputs[i], forgets[i], candidates[i], outputs[i]) = (input, forget, candidate, output);
        }
    }
}

per_isa! {
    /// Gradients of [`lstm_cell_forward`]: `gates` are what came out of them, `before` and `after` the cell before and
    /// after the token. `d_cell` comes with the gradient of `after` from later tokens and goes with that of `before`;
    /// `d_gates` (of what went into the gates) is overwritten.
    pub fn lstm_cell_backward(
        gates: &[f32],
        before: &[f32],
        after: &[f32],
        d_hidden: &[f32],
        d_cell: &mut [f32],
        d_gates: &mut [f32],
    ) {
        let width = after.len();
        assert!(gates.len() == 4 * width && d_gates.len() == 4 * width, "lstm: shapes");
        assert!(before.len() == width && d_hidden.len() == width && d_cell.len() == width, "lstm: shapes");
        let (d_inputs, rest) = d_gates.split_at_mut(width);
        let (d_forgets, rest) = rest.split_at_mut(width);
        let (d_candidates, d_outputs) = rest.split_at_mut(width);
        for i in 0..width {
            let (input, forget) = (gates[i], gates[width + i]);
            let (candidate, output) = (gates[2 * width + i], gates[3 * width + i]);
            let squashed = tanh(after[i]);
            let d = d_cell[i] + d_hidden[i] * output * (1.0 - squashed * squashed);
            d_inputs[i] = d * candidate * input * (1.0 - input);
            d_forgets[i] = d * before[i] * forget * (1.0 - forget);
            d_candidates[i] = d * input * (1.0 - candidate * candidate);
            d_outputs[i] = d_hidden[i] * squashed * output * (1.0 - output);
            d_cell[i] = d * forget;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

    /// The new cell, then the hidden state, of gates and cell.
    fn reference(gates: &[f64], cell: &[f64]) -> Vec<f64> {
        let width = cell.len();
        let gate = |k: usize, i: usize| 1.0 / (1.0 + (-gates[k * width + i]).exp());
        let new: Vec<f64> =
            (0..width).map(|i| gate(1, i) * cell[i] + gate(0, i) * gates[2 * width + i].tanh()).collect();
        let hidden: Vec<f64> = (0..width).map(|i| gate(3, i) * new[i].tanh()).collect();
        [new, hidden].concat()
    }

    #[test]
    fn the_cell_and_its_gradients_equal_the_float64_reference() {
        let mut random = Random::new(41);
        for isa in Isa::available_or_trapped() {
            for width in [1, 7, 33] {
                let gates: Vec<f32> = random.elements(4 * width);
                let cell: Vec<f32> = random.elements(width);
                let (mut out, mut after, mut hidden) = (gates.clone(), cell.clone(), vec![f32::NAN; width]);
                lstm_cell_forward(isa, &mut out, &mut after, &mut hidden);
                let (wide_gates, wide_cell) = (to_f64(&gates), to_f64(&cell));
                let expected = reference(&wide_gates, &wide_cell);
                assert_all_close(&[after.clone(), hidden].concat(), &expected, 1e-6, 1e-5, "cell and hidden");

                let d: Vec<f32> = random.elements(2 * width);
                let mut d_cell = d[..width].to_vec();
                let mut d_gates = vec![f32::NAN; 4 * width];
                lstm_cell_backward(isa, &out, &cell, &after, &d[width..], &mut d_cell, &mut d_gates);
                let expected = numeric_gradient(&wide_gates, &d, |gates| reference(gates, &wide_cell));
                assert_all_close(&d_gates, &expected, 1e-6, 1e-5, "d_gates");
                let expected = numeric_gradient(&wide_cell, &d, |cell| reference(&wide_gates, cell));
                assert_all_close(&d_cell, &expected, 1e-6, 1e-5, "d_cell");
            }
        }
    }
}
