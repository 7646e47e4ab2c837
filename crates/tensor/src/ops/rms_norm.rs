//! Root-mean-square normalisation with a gain.

use crate::cpu::rows_mut;
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, ParameterId};
use strata_kernels::norm;

impl<E: Activation> Tape<'_, E> {
    /// `y = gain · x / sqrt(mean(x²) + epsilon)`, token by token.
    pub fn rms_norm(&mut self, x: Var, gain: ParameterId, epsilon: f32) -> Var {
        let width = self.width(x);
        let rows = self.rows(x);
        let mut y = self.buffers.take::<E>(rows * width);
        let mut rstd = self.buffers.take::<f32>(rows);
        let ranges = self.cpu.ranges(rows, 1);
        let weight = self.parameters.get(gain);
        let value = self.value(x);
        let items: Vec<_> = ranges
            .iter()
            .zip(rows_mut(&mut y, width, &ranges))
            .zip(rows_mut(&mut rstd, 1, &ranges))
            .collect();
        self.cpu.for_each(items, |((range, y), rstd)| {
            let x = &value[range.start * width..range.end * width];
            norm::rms_norm_forward(self.cpu.isa(), x, weight, epsilon, y, rstd);
        });
        self.push(width, y, RmsNorm { x, gain, rstd })
    }
}

struct RmsNorm {
    x: Var,
    gain: ParameterId,
    rstd: Vec<f32>,
}

impl<E: Activation> Operation<E> for RmsNorm {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let (mut d_x, store) = tape.take_gradient(self.x);
        let x = tape.value(self.x);
        let width = tape.width(self.x);
        let weight = tape.parameters.get(self.gain);
        let ranges = tape.cpu.ranges(self.rstd.len(), 1);
        let items: Vec<_> = ranges.iter().zip(rows_mut(&mut d_x, width, &ranges)).collect();
        let partial = tape.cpu.map(items, |(range, d_x)| {
            let part = range.start * width..range.end * width;
            let mut d_weight = vec![0.0; width];
            let rstd = &self.rstd[range.clone()];
            norm::rms_norm_backward(
                tape.cpu.isa(),
                &d_y[part.clone()],
                &x[part],
                weight,
                rstd,
                d_x,
                &mut d_weight,
                store,
            );
            d_weight
        });
        tape.set_gradient(self.x, d_x);
        let range = tape.parameters.layout().range(self.gain);
        if let Some(gradients) = &mut tape.gradients {
            for part in partial {
                for (to, from) in gradients.values_mut()[range.clone()].iter_mut().zip(part) {
                    *to += from;
                }
            }
        }
        tape.buffers.give(self.rstd);
        tape.buffers.give(d_y);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::check;
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn rms_norm_used_twice_passes_the_gradient_check() {
        let mut layout = Layout::new();
        let (table, gain) = (layout.matrix(4, 6), layout.vector(6));
        let mut parameters = Parameters::zeros(layout);
        parameters.get_mut(table).copy_from_slice(&random_values(3, 24));
        parameters.get_mut(gain).copy_from_slice(&random_values(4, 6));
        // Truncation of the differences: a normed vector's third derivative is a few units.
        check::parameters(&parameters, 2e-3, |tape| {
            let x = tape.embedding(table, &[0, 1, 2, 3, 1]);
            let y = tape.rms_norm(x, gain, 0.1);
            tape.rms_norm(y, gain, 0.1)
        });
    }
}
