//! AdamW (Loshchilov and Hutter, 2019) over flat slices, in the form of `torch.optim.AdamW`.

/// The constants of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f32,
    /// Number of this step, from 1: corrects the bias of young moments.
    pub step: u64,
    /// Every gradient is multiplied by this first: gradient clipping.
    pub gradient_scale: f32,
}

/// One step on a slice of parameters; `first` and `second` are its moments.
pub fn adamw(
    isa: crate::Isa,
    step: &AdamWStep,
    values: &mut [f32],
    gradients: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    let correction1 = 1.0 - (step.beta1 as f64).powf(step.step as f64);
    let correction2 = 1.0 - (step.beta2 as f64).powf(step.step as f64);
    update(
        isa,
        step,
        (step.learning_rate as f64 / correction1) as f32,
        (1.0 / correction2.sqrt()) as f32,
        values,
        gradients,
        first,
        second,
    );
}

per_isa! {
    fn update(
        step: &AdamWStep,
        rate: f32,
        second_scale: f32,
        values: &mut [f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
    ) {
        let n = values.len();
        assert!(gradients.len() == n && first.len() == n && second.len() == n, "adamw: lengths");
        let keep = 1.0 - step.learning_rate * step.weight_decay;
        let AdamWStep { beta1, beta2, epsilon, gradient_scale, .. } = *step;
        for i in 0..n {
            let g = gradients[i] * gradient_scale;
            let m = beta1 * first[i] + (1.0 - beta1) * g;
            let v = beta2 * second[i] + (1.0 - beta2) * g * g;
            first[i] = m;
            second[i] = v;
            values[i] = values[i] * keep - rate * m / (v.sqrt() * second_scale + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::reference::{Random, assert_close};

    #[test]
    fn adamw_equals_the_float64_formula_over_several_steps() {
        let mut random = Random::new(11);
        for isa in Isa::available_or_trapped() {
            let n = 37;
            let mut values: Vec<f32> = random.elements(n);
            let (mut first, mut second) = (vec![0.0; n], vec![0.0; n]);
            let mut wide: Vec<[f64; 3]> = values.iter().map(|&v| [v as f64, 0.0, 0.0]).collect();
            for step in 1..=5 {
                let gradients: Vec<f32> = random.elements(n);
                let constants = AdamWStep {
                    learning_rate: 0.01,
                    beta1: 0.9,
                    beta2: 0.95,
                    epsilon: 1e-8,
                    weight_decay: 0.1,
                    step,
                    gradient_scale: 0.5,
                };
                adamw(isa, &constants, &mut values, &gradients, &mut first, &mut second);
                for (state, &g) in wide.iter_mut().zip(&gradients) {
                    let g = g as f64 * 0.5;
                    state[1] = 0.9 * state[1] + 0.1 * g;
                    state[2] = 0.95 * state[2] + 0.05 * g * g;
                    let m = state[1] / (1.0 - 0.9f64.powi(step as i32));
                    let v = state[2] / (1.0 - 0.95f64.powi(step as i32));
                    state[0] = state[0] * (1.0 - 0.01 * 0.1) - 0.01 * m / (v.sqrt() + 1e-8);
                }
            }
            for (v, w) in values.iter().zip(&wide) {
                assert_close(*v as f64, w[0], 1e-6, 1e-5, "value");
            }
        }
    }
}
