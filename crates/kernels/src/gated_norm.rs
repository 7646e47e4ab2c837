//! Root-mean-square normalisation of a gated value, group by group: what a Mamba-2 block does behind its scan.

use crate::math::{sigmoid, sum_of, sum_of_pairs};
use crate::{BlockMut, Element, MatrixRef};

per_isa! {
    /// `y[r, i] = weight[i] · v[r, i] · rstd[r, group of i]` with `v = x · silu(gate)` and `rstd = 1 / sqrt(mean(v²) +
    /// epsilon)` over the group; a row of `weight.len()` elements has `groups` groups of equal size.
    pub fn gated_norm_forward<E: Element>(
        x: &[E],
        gate: MatrixRef<'_, E>,
        weight: &[f32],
        groups: usize,
        epsilon: f32,
        y: &mut [E],
        rstd: &mut [f32],
    ) {
        let (rows, width) = (gate.rows, weight.len());
        let group = width / groups;
        assert!(
            gate.columns == width && x.len() == rows * width && y.len() == x.len() && rstd.len() == rows * groups,
            "gated norm: shapes"
        );
        let mut v = vec![0.0; group];
        for r in 0..rows {
            for g in 0..groups {
                let own = r * width + g * group..r * width + (g + 1) * group;
                let gate = &gate.data[r * gate.row_stride + g * group..][..group];
                for ((v, x), gate) in v.iter_mut().zip(&x[own.clone()]).zip(gate) {
                    let gate = gate.to_f32();
                    *v = x.to_f32() * (gate * sigmoid(gate));
                }
                let scale = 1.0 / (sum_of(&v[..group], |v| v * v) / group as f32 + epsilon).sqrt();
                rstd[r * groups + g] = scale;
                for ((y, v), w) in y[own].iter_mut().zip(&v).zip(&weight[g * group..]) {
                    *y = E::from_f32(v * scale * w);
                }
            }
        }
    }
}

per_isa! {
    /// Gradients of [`gated_norm_forward`]: `d_x` and `d_gate` are overwritten, `d_weight` is added to.
    pub fn gated_norm_backward<E: Element>(
        d_y: &[E],
        x: &[E],
        gate: MatrixRef<'_, E>,
        weight: &[f32],
        rstd: &[f32],
        d_x: &mut [E],
        d_gate: &mut BlockMut<'_, E>,
        d_weight: &mut [f32],
    ) {
        let (rows, width) = (gate.rows, weight.len());
        let groups = rstd.len() / rows.max(1);
        assert!(
            gate.columns == width && x.len() == rows * width && d_y.len() == x.len() && d_x.len() == x.len(),
            "gated norm: shapes"
        );
        assert!(
            d_gate.rows() == rows && d_gate.columns() == width && d_weight.len() == width && rstd.len() == rows * groups,
            "gated norm: shapes"
        );
        let group = width / groups.max(1);
        let (mut v, mut d_v, mut gates) = (vec![0.0; group], vec![0.0; group], vec![0.0; group]);
        for r in 0..rows {
            let d_gate = d_gate.row_mut(r);
            for g in 0..groups {
                let start = r * width + g * group;
                let (x, d_y) = (&x[start..start + group], &d_y[start..start + group]);
                let d_x = &mut d_x[start..start + group];
                let gate = &gate.data[r * gate.row_stride + g * group..][..group];
                let d_gate = &mut d_gate[g * group..][..group];
                let weight = &weight[g * group..][..group];
                let d_weight = &mut d_weight[g * group..][..group];
                let scale = rstd[r * groups + g];
                for i in 0..group {
                    let z = gate[i].to_f32();
                    gates[i] = sigmoid(z);
                    v[i] = x[i].to_f32() * (z * gates[i]);
                    let dy = d_y[i].to_f32();
                    d_v[i] = dy * weight[i];
                    d_weight[i] += dy * v[i] * scale;
                }
                let pull = sum_of_pairs(&d_v[..group], &v[..group], |d_v, v| d_v * v) * scale * scale / group as f32;
                for i in 0..group {
                    let (z, d) = (gate[i].to_f32(), scale * (d_v[i] - v[i] * pull));
                    let s = gates[i];
                    d_x[i] = E::from_f32(d * z * s);
                    d_gate[i] = E::from_f32(d * x[i].to_f32() * s * (1.0 + z * (1.0 - s)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

    fn reference(x: &[f64], gate: &[f64], weight: &[f64], groups: usize) -> Vec<f64> {
        let width = weight.len();
        let group = width / groups;
        let v: Vec<f64> = x.iter().zip(gate).map(|(x, z)| x * z / (1.0 + (-z).exp())).collect();
        let norm = |start: usize| {
            let v = &v[start..start + group];
            (v.iter().map(|v| v * v).sum::<f64>() / group as f64 + 1e-3).sqrt()
        };
        (0..v.len()).map(|i| weight[i % width] * v[i] / norm(i / group * group)).collect()
    }

    #[test]
    fn the_gated_norm_and_its_gradients_equal_the_float64_reference() {
        let mut random = Random::new(31);
        for isa in Isa::available_or_trapped() {
            for (rows, groups, group) in [(1, 1, 1), (3, 2, 7), (2, 1, 64), (3, 4, 33)] {
                let width = groups * group;
                let (x, weight): (Vec<f32>, Vec<f32>) =
                    (random.elements(rows * width), random.elements(width));
                let (gate, d_y): (Vec<f32>, Vec<f32>) =
                    (random.elements(rows * width), random.elements(rows * width));
                let view = MatrixRef::new(&gate, rows, width);
                let (mut y, mut rstd) = (vec![f32::NAN; x.len()], vec![0.0; rows * groups]);
                gated_norm_forward(isa, &x, view, &weight, groups, 1e-3, &mut y, &mut rstd);
                let (wx, wg, ww) = (to_f64(&x), to_f64(&gate), to_f64(&weight));
                assert_all_close(&y, &reference(&wx, &wg, &ww, groups), 1e-6, 1e-5, "y");

                let (mut d_x, mut d_gate) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
                let mut d_weight = vec![0.5; width];
                let mut d_gate_block = BlockMut::new(&mut d_gate, width);
                gated_norm_backward(
                    isa,
                    &d_y,
                    &x,
                    view,
                    &weight,
                    &rstd,
                    &mut d_x,
                    &mut d_gate_block,
                    &mut d_weight,
                );
                let expected = numeric_gradient(&wx, &d_y, |x| reference(x, &wg, &ww, groups));
                assert_all_close(&d_x, &expected, 2e-5, 1e-4, "d_x");
                let expected = numeric_gradient(&wg, &d_y, |g| reference(&wx, g, &ww, groups));
                assert_all_close(&d_gate, &expected, 2e-5, 1e-4, "d_gate");
                let mut expected = numeric_gradient(&ww, &d_y, |w| reference(&wx, &wg, w, groups));
                expected.iter_mut().for_each(|e| *e += 0.5);
                assert_all_close(&d_weight, &expected, 2e-5, 1e-4, "d_weight");
            }
        }
    }
}
