//! The gated activation of Llama's MLP (Shazeer, 2020): `y = silu(gate) · up`, `silu(x) = x · sigmoid(x)`.

use crate::Element;
use crate::math::sigmoid;

per_isa! {
    /// `y[r, i] = silu(gate) * up`, where row r of `gate_up` holds `width` gates, then `width` ups.
    pub fn swiglu_forward<E: Element>(gate_up: &[E], width: usize, y: &mut [E]) {
        assert!(gate_up.len() == 2 * y.len() && y.len().is_multiple_of(width), "swiglu: shapes");
        for (row, y) in gate_up.chunks_exact(2 * width).zip(y.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
                let g = g.to_f32();
                *y = E::from_f32(g * sigmoid(g) * u.to_f32());
            }
        }
    }
}

per_isa! {
    /// Gradient of [`swiglu_forward`] with respect to `gate_up`, written to `d_gate_up`.
    pub fn swiglu_backward<E: Element>(d_y: &[E], gate_up: &[E], width: usize, d_gate_up: &mut [E]) {
        assert!(gate_up.len() == 2 * d_y.len() && d_gate_up.len() == gate_up.len(), "swiglu: shapes");
        let rows = d_y.chunks_exact(width).zip(gate_up.chunks_exact(2 * width)).zip(d_gate_up.chunks_exact_mut(2 * width));
        for ((d_y, row), d_row) in rows {
            let (gate, up) = row.split_at(width);
            let (d_gate, d_up) = d_row.split_at_mut(width);
            for i in 0..width {
                let (dy, g, u) = (d_y[i].to_f32(), gate[i].to_f32(), up[i].to_f32());
                let s = sigmoid(g);
                d_up[i] = E::from_f32(dy * g * s);
                d_gate[i] = E::from_f32(dy * u * s * (1.0 + g * (1.0 - s)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

    fn reference(gate_up: &[f64], width: usize) -> Vec<f64> {
        let row =
            |r: &[f64]| (0..width).map(|i| r[i] / (1.0 + (-r[i]).exp()) * r[width + i]).collect::<Vec<_>>();
        gate_up.chunks(2 * width).flat_map(row).collect()
    }

    #[test]
    fn swiglu_and_its_gradient_equal_the_float64_reference() {
        let mut random = Random::new(7);
        for isa in Isa::available_or_trapped() {
            for (rows, width) in [(1, 1), (2, 5), (3, 33), (1, 96)] {
                let x: Vec<f32> = random.elements(rows * width * 2);
                let x: Vec<f32> = x.iter().map(|v| v * 8.0).collect();
                let d_y: Vec<f32> = random.elements(rows * width);
                let mut y = vec![0.0; rows * width];
                swiglu_forward(isa, &x, width, &mut y);
                assert_all_close(&y, &reference(&to_f64(&x), width), 1e-6, 1e-5, "y");
                let mut d_x = vec![0.0; x.len()];
                swiglu_backward(isa, &d_y, &x, width, &mut d_x);
                let expected = numeric_gradient(&to_f64(&x), &d_y, |x| reference(x, width));
                assert_all_close(&d_x, &expected, 1e-5, 1e-5, "d_x");
            }
        }
    }
}
