//! Root-mean-square normalisation (Zhang and Sennrich, 2019): `y = w · x / sqrt(mean(x²) + ε)`.

use crate::math::{sum_of, sum_of_triples};
use crate::{Element, Store};

per_isa! {
    /// `y[r, i] = weight[i] * x[r, i] * rstd[r]` with `rstd[r] = 1 / sqrt(mean(x[r]²) + epsilon)`, for rows of
    /// `weight.len()` elements; `rstd` is kept for the backward.
    pub fn rms_norm_forward<E: Element>(x: &[E], weight: &[f32], epsilon: f32, y: &mut [E], rstd: &mut [f32]) {
        let width = weight.len();
        assert!(x.len() == y.len() && x.len() == rstd.len() * width, "rms_norm: shapes");
        for ((x, y), r) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd) {
            let mean = sum_of(x, |x| x.to_f32() * x.to_f32()) / width as f32;
            let scale = 1.0 / (mean + epsilon).sqrt();
            *r = scale;
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = E::from_f32(x.to_f32() * scale * w);
            }
        }
    }
}

per_isa! {
    /// Gradients of [`rms_norm_forward`]: `d_x` is written or added to, `d_weight` always added to.
    pub fn rms_norm_backward<E: Element>(
        d_y: &[E],
        x: &[E],
        weight: &[f32],
        rstd: &[f32],
        d_x: &mut [E],
        d_weight: &mut [f32],
        store: Store,
    ) {
        let width = weight.len();
        assert!(
            d_y.len() == x.len() && d_x.len() == x.len() && d_weight.len() == width && x.len() == rstd.len() * width,
            "rms_norm: shapes"
        );
        let rows = d_y.chunks_exact(width).zip(x.chunks_exact(width)).zip(d_x.chunks_exact_mut(width)).zip(rstd);
        for (((d_y, x), d_x), &scale) in rows {
            let dot = sum_of_triples(d_y, weight, x, |d_y, w, x| d_y.to_f32() * w * x.to_f32());
            let pull = dot * scale * scale / width as f32;
            let keep = if store == Store::Accumulate { 1.0 } else { 0.0 };
            for i in 0..width {
                let (dy, x) = (d_y[i].to_f32(), x[i].to_f32());
                let old = if store == Store::Accumulate { d_x[i].to_f32() } else { 0.0 };
                d_x[i] = E::from_f32(old * keep + scale * (dy * weight[i] - x * pull));
                d_weight[i] += dy * x * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};
    use crate::{Isa, bf16};

    fn reference(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
        let row = |x: &[f64]| {
            let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            x.iter().zip(weight).map(|(v, w)| w * v / (mean + epsilon).sqrt()).collect::<Vec<_>>()
        };
        x.chunks(weight.len()).flat_map(row).collect()
    }

    #[test]
    fn rms_norm_and_its_gradients_equal_the_float64_reference() {
        let mut random = Random::new(5);
        for isa in Isa::available_or_trapped() {
            for (rows, width) in [(1, 1), (3, 7), (2, 64), (5, 97)] {
                let (x, weight): (Vec<f32>, Vec<f32>) =
                    (random.elements(rows * width), random.elements(width));
                let d_y: Vec<f32> = random.elements(rows * width);
                let (mut y, mut rstd) = (vec![0.0; rows * width], vec![0.0; rows]);
                rms_norm_forward(isa, &x, &weight, 1e-3, &mut y, &mut rstd);
                let (wide_x, wide_weight) = (to_f64(&x), to_f64(&weight));
                assert_all_close(&y, &reference(&wide_x, &wide_weight, 1e-3), 1e-6, 1e-5, "y");

                let before: Vec<f32> = random.elements(rows * width);
                let (mut d_x, mut d_weight) = (before.clone(), vec![0.5; width]);
                rms_norm_backward(isa, &d_y, &x, &weight, &rstd, &mut d_x, &mut d_weight, Store::Accumulate);
                let mut expected = numeric_gradient(&wide_x, &d_y, |x| reference(x, &wide_weight, 1e-3));
                expected.iter_mut().zip(&before).for_each(|(e, b)| *e += *b as f64);
                assert_all_close(&d_x, &expected, 2e-5, 1e-4, "d_x");
                let mut expected = numeric_gradient(&wide_weight, &d_y, |w| reference(&wide_x, w, 1e-3));
                expected.iter_mut().for_each(|e| *e += 0.5);
                assert_all_close(&d_weight, &expected, 2e-5, 1e-4, "d_weight");
            }
        }
    }

    #[test]
    fn rms_norm_of_bf16_differs_only_by_the_rounding_of_its_output() {
        let mut random = Random::new(6);
        for isa in Isa::available_or_trapped() {
            let x: Vec<bf16> = random.elements(3 * 33);
            let weight: Vec<f32> = random.elements(33);
            let (mut y, mut rstd) = (vec![bf16::ZERO; 99], vec![0.0; 3]);
            rms_norm_forward(isa, &x, &weight, 1e-5, &mut y, &mut rstd);
            let wide: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
            let got: Vec<f32> = y.iter().map(|v| v.to_f32()).collect();
            // bf16 keeps 8 bits: half a unit in the last place is 2^-9.
            assert_all_close(&got, &reference(&wide, &to_f64(&weight), 1e-5), 1e-6, 2f64.powi(-8), "y");
        }
    }
}
