//! Softmax cross-entropy over rows of logits.

use crate::math::{exp, max, sum_of};

per_isa! {
    /// The weighted loss `Σ_r weights[r] · (log Σ_j e^logits[r, j] - logits[r, targets[r]])` in nats, over rows of
    /// `vocabulary` logits. Where `gradient_scale` is given, the logits are replaced by the gradient of
    /// `gradient_scale · loss`. Rows of weight 0 cost nothing and may hold any target.
    ///
    /// # Panics
    /// Where a target of non-zero weight is outside the vocabulary; callers check what comes from outside.
    pub fn cross_entropy(
        logits: &mut [f32],
        vocabulary: usize,
        targets: &[u32],
        weights: &[f32],
        gradient_scale: Option<f32>,
    ) -> f64 {
        assert!(logits.len() == targets.len() * vocabulary && targets.len() == weights.len(), "cross_entropy: shapes");
        let mut loss = 0.0f64;
        for ((row, &target), &weight) in logits.chunks_exact_mut(vocabulary).zip(targets).zip(weights) {
            if weight == 0.0 {
                if gradient_scale.is_some() {
                    row.fill(0.0);
                }
                continue;
            }
            let largest = max(row);
            let chosen = row[target as usize];
            let sum = if gradient_scale.is_some() {
                for v in row.iter_mut() {
                    *v = exp(*v - largest);
                }
                sum_of(row, |v| v)
            } else {
                sum_of(row, |v| exp(v - largest))
            };
            loss += weight as f64 * (largest as f64 + (sum as f64).ln() - chosen as f64);
            if let Some(scale) = gradient_scale {
                let factor = weight * scale / sum;
                for v in row.iter_mut() {
                    *v *= factor;
                }
                row[target as usize] -= weight * scale;
            }
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::reference::{Random, assert_all_close, assert_close, numeric_gradient, to_f64};

    #[test]
    fn cross_entropy_and_its_gradient_equal_the_float64_reference() {
        let mut random = Random::new(9);
        for isa in Isa::available_or_trapped() {
            for vocabulary in [1, 2, 17, 64, 101] {
                let rows = 4;
                let logits: Vec<f32> = random.elements(rows * vocabulary);
                let logits: Vec<f32> = logits.iter().map(|v| v * 20.0).collect();
                let targets: Vec<u32> = (0..rows).map(|_| random.below(vocabulary) as u32).collect();
                let weights = [1.0, 0.0, 0.25, 2.0];
                let reference = |x: &[f64]| {
                    x.chunks(vocabulary)
                        .zip(&targets)
                        .zip(weights)
                        .map(|((row, &t), w)| {
                            w as f64 * (row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[t as usize])
                        })
                        .collect::<Vec<f64>>()
                };
                let wide = to_f64(&logits);
                let expected: f64 = reference(&wide).iter().sum();
                let loss = cross_entropy(isa, &mut logits.clone(), vocabulary, &targets, &weights, None);
                assert_close(loss, expected, 1e-5, 1e-5, "loss");
                let mut gradient = logits.clone();
                let loss = cross_entropy(isa, &mut gradient, vocabulary, &targets, &weights, Some(0.5));
                assert_close(loss, expected, 1e-5, 1e-5, "loss with gradient");
                let expected = numeric_gradient(&wide, &[0.5; 4], reference);
                assert_all_close(&gradient, &expected, 2e-6, 1e-4, "gradient");
            }
        }
    }

    #[test]
    fn a_row_without_weight_may_hold_any_target() {
        let mut logits = [1.0, 2.0];
        assert_eq!(cross_entropy(Isa::best(), &mut logits, 2, &[99], &[0.0], Some(1.0)), 0.0);
        assert_eq!(logits, [0.0, 0.0]);
    }
}
