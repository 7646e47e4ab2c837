//! Causal depthwise convolution and SiLU of some columns.

use super::segments::{Segments, columns_of};
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, ParameterId};
use std::ops::Range;
use strata_kernels::conv::{Filter, conv_silu_backward, conv_silu_forward};
use strata_kernels::grid;

/// Channels that are one piece of work: two cache lines of bf16 per token.
const CHANNELS: usize = 64;

impl<E: Activation> Tape<'_, E> {
    /// `y[t, c] = silu(bias[c] + Σ_lag weight[c, taps − 1 − lag] · x[t − lag, columns.start + c])` over each segment by
    /// itself, for a weight of shape (columns, taps).
    ///
    /// # Panics
    /// Where the shapes do not fit together.
    pub fn conv_silu(
        &mut self,
        x: Var,
        columns: Range<usize>,
        weight: ParameterId,
        bias: ParameterId,
        starts: &[u32],
    ) -> Var {
        let (rows, width, channels) = (self.rows(x), self.width(x), columns.len());
        let positions = Segments::new(starts, rows).positions();
        let mut y = self.buffers.take::<E>(rows * channels);
        let blocks = blocks(channels);
        let outputs = grid::split(&mut y, channels, std::slice::from_ref(&(0..rows)), &blocks);
        let value = self.value(x);
        let (weight_values, bias_values) = (self.parameters.get(weight), self.parameters.get(bias));
        self.cpu.for_each(blocks.into_iter().zip(outputs).collect(), |(block, mut y)| {
            let x = columns_of(value, width, columns.start + block.start..columns.start + block.end);
            let filter = filter(weight_values, bias_values, block);
            conv_silu_forward(self.cpu.isa(), x, &positions, filter, &mut y);
        });
        self.push(channels, y, Convolution { x, columns, weight, bias, positions })
    }
}

fn blocks(channels: usize) -> Vec<Range<usize>> {
    (0..channels).step_by(CHANNELS).map(|start| start..channels.min(start + CHANNELS)).collect()
}

fn filter<'a>(weight: &'a [f32], bias: &'a [f32], block: Range<usize>) -> Filter<'a> {
    let taps = weight.len() / bias.len();
    Filter { weight: &weight[block.start * taps..block.end * taps], bias: &bias[block] }
}

struct Convolution {
    x: Var,
    columns: Range<usize>,
    weight: ParameterId,
    bias: ParameterId,
    positions: Vec<u32>,
}

impl<E: Activation> Operation<E> for Convolution {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let mut d_x = tape.take_column_gradient(self.x);
        let (rows, width, channels) = (self.positions.len(), tape.width(self.x), self.columns.len());
        let blocks = blocks(channels);
        let first = self.columns.start;
        let places: Vec<_> = blocks.iter().map(|b| first + b.start..first + b.end).collect();
        let outputs = grid::split(&mut d_x, width, std::slice::from_ref(&(0..rows)), &places);
        let value = tape.value(self.x);
        let (weight, bias) = (tape.parameters.get(self.weight), tape.parameters.get(self.bias));
        let items: Vec<_> = blocks.iter().cloned().zip(places.iter().cloned()).zip(outputs).collect();
        let parts = tape.cpu.map(items, |((block, place), mut d_x)| {
            let filter = filter(weight, bias, block.clone());
            let (mut d_weight, mut d_bias) = (vec![0.0; filter.weight.len()], vec![0.0; filter.bias.len()]);
            conv_silu_backward(
                tape.cpu.isa(),
                columns_of(&d_y, channels, block),
                columns_of(value, width, place),
                &self.positions,
                filter,
                &mut d_x,
                &mut d_weight,
                &mut d_bias,
            );
            (d_weight, d_bias)
        });
        tape.set_gradient(self.x, d_x);
        let (d_weight, d_bias): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        tape.add_to_parameter(self.weight, d_weight.into_iter().flatten());
        tape.add_to_parameter(self.bias, d_bias.into_iter().flatten());
        tape.buffers.give(d_y);
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::check;
    use crate::{Layout, Parameters, random_values};

    #[test]
    fn the_convolution_of_some_columns_passes_the_gradient_check() {
        let mut layout = Layout::new();
        let (table, weight, bias) = (layout.matrix(3, 7), layout.matrix(4, 3), layout.vector(4));
        let mut parameters = Parameters::zeros(layout);
        let values = random_values(8, parameters.values().len());
        parameters.values_mut().copy_from_slice(&values);
        // Truncation of the differences.
        check::parameters(&parameters, 1e-3, |tape| {
            let x = tape.embedding(table, &[0, 1, 2, 1, 0, 2]);
            tape.conv_silu(x, 2..6, weight, bias, &[0, 1])
        });
    }
}
