//! AdamW over the flat buffers of all parameters.

use crate::{Cpu, Gradients, Parameters};
use strata_kernels::bf16;
use strata_kernels::buffer::filled_vec;
use strata_kernels::element::convert;
use strata_kernels::optimizer::{AdamWStep, adamw};

/// Elements that one task updates: 256 KiB of each of the four buffers.
const CHUNK: usize = 1 << 16;

/// The settings of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first and of the second moment.
    pub betas: (f32, f32),
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay of matrices; vectors have none.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> AdamW {
        AdamW { betas: (0.9, 0.95), epsilon: 1e-8, weight_decay: 0.1 }
    }
}

/// The optimiser's memory: the step count and two moments per parameter element.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct OptimizerState {
    /// Steps taken.
    pub step: u64,
    /// First moments, flat; empty before the first step.
    pub first: Vec<f32>,
    /// Second moments, flat; empty before the first step.
    pub second: Vec<f32>,
}

impl AdamW {
    /// One step: every gradient is multiplied by `gradient_scale`, the parameters move, the gradients are cleared.
    pub fn step(
        &self,
        cpu: &Cpu,
        state: &mut OptimizerState,
        parameters: &mut Parameters,
        gradients: &mut Gradients,
        learning_rate: f32,
        gradient_scale: f32,
    ) {
        let (layout, values, half) = parameters.parts_mut();
        for moments in [&mut state.first, &mut state.second] {
            if moments.len() != values.len() {
                *moments = filled_vec(values.len(), 0.0);
            }
        }
        state.step += 1;
        let mut tasks = Vec::new();
        let (mut v, mut h) = (values, half);
        let (mut g, mut m1, mut m2) = (gradients.values_mut(), &mut state.first[..], &mut state.second[..]);
        for (range, decay) in layout.decayed() {
            let mut left = range.len();
            while left > 0 {
                let n = left.min(CHUNK);
                tasks.push((
                    v.split_off_mut(..n).unwrap_or_default(),
                    g.split_off_mut(..n).unwrap_or_default(),
                    m1.split_off_mut(..n).unwrap_or_default(),
                    m2.split_off_mut(..n).unwrap_or_default(),
                    h.split_off_mut(..n).unwrap_or_default(),
                    decay,
                ));
                left -= n;
            }
        }
        let step = AdamWStep {
            learning_rate,
            beta1: self.betas.0,
            beta2: self.betas.1,
            epsilon: self.epsilon,
            weight_decay: 0.0,
            step: state.step,
            gradient_scale,
        };
        cpu.for_each(
            tasks,
            |(values, gradients, first, second, half, decay): (_, _, _, _, &mut [bf16], bool)| {
                let step = AdamWStep { weight_decay: if decay { self.weight_decay } else { 0.0 }, ..step };
                adamw(cpu.isa(), &step, values, gradients, first, second);
                gradients.fill(0.0);
                if !half.is_empty() {
                    convert(cpu.isa(), values, half);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Isa, Layout};

    #[test]
    fn a_step_moves_parameters_clears_gradients_and_refreshes_the_bf16_copy() {
        let cpu = Cpu::new(Isa::best(), 2).unwrap();
        let mut layout = Layout::new();
        let matrix = layout.matrix(2, 3);
        let vector = layout.vector(2);
        let mut parameters = Parameters::zeros(layout);
        parameters.get_mut(matrix).fill(1.0);
        parameters.get_mut(vector).fill(1.0);
        parameters.ensure_half(&cpu);
        let mut gradients = Gradients::zeros(parameters.layout());
        gradients.values_mut()[6] = 4.0;
        let mut state = OptimizerState::default();
        let optimizer = AdamW { weight_decay: 0.5, ..AdamW::default() };
        optimizer.step(&cpu, &mut state, &mut parameters, &mut gradients, 0.1, 1.0);
        // Decay alone moves the matrix; the vector moves by the learning rate against its gradient, without decay.
        assert_eq!(parameters.get(matrix), [0.95; 6]);
        assert!((parameters.get(vector)[0] - 0.9).abs() <= 1e-6, "{:?}", parameters.get(vector));
        assert_eq!(parameters.get(vector)[1], 1.0);
        assert_eq!(gradients.values(), [0.0; 8]);
        assert_eq!(bf16::weights(&parameters, matrix)[0], bf16::from_f32(0.95));
        assert_eq!(state.step, 1);
    }
}
