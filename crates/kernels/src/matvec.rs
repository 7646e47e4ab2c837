//! Matrix times vector: the inner loop of decoding one token, bound by the reading of the matrix.

use crate::Element;
use crate::math::sum_by;

per_isa! {
    /// `y[n] = Σ_k weight[n, k] · x[k]`, rows of `x.len()` elements.
    pub fn matvec<E: Element>(weight: &[E], x: &[f32], y: &mut [f32]) {
        let width = x.len();
        assert_eq!(weight.len(), y.len() * width, "matvec: shapes");
        for (row, y) in weight.chunks_exact(width.max(1)).zip(y) {
            *y = sum_by(width, |k| row[k].to_f32() * x[k]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, assert_close};
    use crate::{Isa, bf16};

    #[test]
    fn matvec_equals_the_float64_product_for_both_element_types() {
        fn check<E: Element>(random: &mut Random, isa: Isa, rows: usize, width: usize) {
            let weight: Vec<E> = random.elements(rows * width);
            let x: Vec<f32> = random.elements(width);
            let mut y = vec![0.0; rows];
            matvec(isa, &weight, &x, &mut y);
            for (n, y) in y.iter().enumerate() {
                let expected = (0..width).map(|k| weight[n * width + k].to_f32() as f64 * x[k] as f64).sum();
                // Up to 129 products of magnitude one in f32.
                assert_close(*y as f64, expected, 2e-5, 1e-5, "matvec");
            }
        }
        let mut random = Random::new(17);
        for isa in Isa::available() {
            for (rows, width) in [(1, 1), (3, 31), (2, 32), (5, 65), (4, 129)] {
                check::<f32>(&mut random, isa, rows, width);
                check::<bf16>(&mut random, isa, rows, width);
            }
        }
    }
}
