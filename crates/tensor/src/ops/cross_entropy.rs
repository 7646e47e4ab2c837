//! The output head fused with softmax cross-entropy: logits exist for a few hundred tokens at a time.

use crate::cpu::rows_mut;
use crate::ops::linear::{accumulate_weight_gradient, backward_product, forward_product};
use crate::tape::{Tape, Var};
use crate::{Activation, Cpu, ParameterId};
use std::ops::Range;
use strata_kernels::cross_entropy::cross_entropy;
use strata_kernels::element::convert;
use strata_kernels::{MatrixRef, Store};

/// Tokens whose logits exist at one time.
const CHUNK: usize = 512;

/// What the loss is taken over.
#[derive(Clone, Copy, Debug)]
pub struct Loss<'a> {
    /// The token that should follow each token.
    pub targets: &'a [u32],
    /// How much each token counts; 0 leaves it out, and its target may be anything.
    pub weights: &'a [f32],
    /// Gradients are those of the weighted sum times this.
    pub gradient_scale: f32,
}

impl<E: Activation> Tape<'_, E> {
    /// The weighted sum of `-ln softmax(x · headᵀ)[target]` in nats. Where the tape records, the gradients of `x`
    /// and of the head are computed at once, chunk by chunk, and [`Tape::backward`] goes on from there.
    pub fn cross_entropy(&mut self, x: Var, head: ParameterId, loss: Loss<'_>) -> f64 {
        let (vocabulary, width) = self.parameters.layout().shape(head);
        assert!(
            self.width(x) == width
                && loss.targets.len() == self.rows(x)
                && loss.weights.len() == self.rows(x),
            "cross_entropy: shapes"
        );
        let counted: Vec<usize> = (0..loss.weights.len()).filter(|&i| loss.weights[i] != 0.0).collect();
        let recording = self.recording();
        let mut gradient = recording.then(|| self.buffers.zeroed::<E>(loss.targets.len() * width));
        let chunk = CHUNK.min(counted.len());
        let mut rows = self.buffers.take::<E>(chunk * width);
        let mut d_rows = self.buffers.take::<E>(if recording { chunk * width } else { 0 });
        let mut logits = self.buffers.take::<f32>(chunk * vocabulary);
        let mut d_logits = self.buffers.take::<E>(if recording { chunk * vocabulary } else { 0 });
        let mut total = 0.0;
        for part in counted.chunks(CHUNK) {
            let n = part.len();
            let (rows, logits) = (&mut rows[..n * width], &mut logits[..n * vocabulary]);
            for (to, &i) in rows.chunks_exact_mut(width).zip(part) {
                to.copy_from_slice(&self.value(x)[i * width..][..width]);
            }
            let x = MatrixRef::new(&*rows, n, width);
            forward_product(self.cpu, self.parameters, x, head, logits, Store::Overwrite);
            let scale = recording.then_some(loss.gradient_scale);
            let d = if recording { &mut d_logits[..n * vocabulary] } else { &mut [][..] };
            total += chunk_loss(self.cpu, logits, d, vocabulary, part, loss, scale);
            if let (Some(gradient), Some(gradients)) = (&mut gradient, &mut self.gradients) {
                let d_rows = &mut d_rows[..n * width];
                let d_view = MatrixRef::new(&*d, n, vocabulary);
                backward_product(self.cpu, self.parameters, d_view, head, d_rows, Store::Overwrite);
                for (from, &i) in d_rows.chunks_exact(width).zip(part) {
                    gradient[i * width..][..width].copy_from_slice(from);
                }
                let range = self.parameters.layout().range(head);
                let d_head = &mut gradients.values_mut()[range];
                accumulate_weight_gradient(self.cpu, d, rows, (vocabulary, width), d_head);
            }
        }
        self.buffers.give(rows);
        self.buffers.give(d_rows);
        self.buffers.give(logits);
        self.buffers.give(d_logits);
        if let Some(gradient) = gradient {
            self.add_gradient(x, gradient);
        }
        total
    }
}

/// Loss of one chunk; leaves the gradient of its logits in `d_logits` where `scale` is given.
fn chunk_loss<E: Activation>(
    cpu: &Cpu,
    logits: &mut [f32],
    d_logits: &mut [E],
    vocabulary: usize,
    part: &[usize],
    loss: Loss<'_>,
    scale: Option<f32>,
) -> f64 {
    let targets: Vec<u32> = part.iter().map(|&i| loss.targets[i]).collect();
    let weights: Vec<f32> = part.iter().map(|&i| loss.weights[i]).collect();
    // Ranges that do not depend on the thread count keep the sum of losses the same for any.
    let ranges: Vec<Range<usize>> =
        (0..part.len()).step_by(32).map(|start| start..part.len().min(start + 32)).collect();
    let d_pieces = if scale.is_some() {
        rows_mut(d_logits, vocabulary, &ranges)
    } else {
        ranges.iter().map(|_| &mut [][..]).collect()
    };
    let items: Vec<_> = rows_mut(logits, vocabulary, &ranges).into_iter().zip(d_pieces).zip(ranges).collect();
    cpu.map(items, |((logits, d_logits), range)| {
        let (targets, weights) = (&targets[range.clone()], &weights[range]);
        let loss = cross_entropy(cpu.isa(), logits, vocabulary, targets, weights, scale);
        if scale.is_some() {
            convert(cpu.isa(), logits, d_logits);
        }
        loss
    })
    .iter()
    .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffers, Gradients, Isa, Layout, Parameters, random_values};

    #[test]
    fn the_fused_loss_passes_the_gradient_check_and_skips_tokens_without_weight() {
        let mut layout = Layout::new();
        let (table, head) = (layout.matrix(4, 3), layout.matrix(5, 3));
        let mut parameters = Parameters::zeros(layout);
        parameters.get_mut(table).copy_from_slice(&random_values(1, 12));
        parameters.get_mut(head).copy_from_slice(&random_values(2, 15));
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2).unwrap();
            let mut buffers = Buffers::new();
            let loss = Loss { targets: &[4, 99, 0, 1], weights: &[1.0, 0.0, 0.5, 2.0], gradient_scale: 0.25 };
            let mut run = |parameters: &Parameters, gradients: Option<&mut Gradients>| {
                let recording = gradients.is_some();
                let mut tape = Tape::<f32>::new(&cpu, parameters, gradients, &mut buffers);
                let x = tape.embedding(table, &[0, 1, 2, 3]);
                let value = tape.cross_entropy(x, head, loss);
                if recording {
                    tape.backward();
                }
                value
            };
            let mut gradients = Gradients::zeros(parameters.layout());
            run(&parameters, Some(&mut gradients));
            let mut moved = parameters.clone();
            for i in 0..parameters.values().len() {
                let step = 0.0078125;
                let original = parameters.values()[i];
                moved.values_mut()[i] = original + step;
                let above = run(&moved, None);
                moved.values_mut()[i] = original - step;
                let below = run(&moved, None);
                moved.values_mut()[i] = original;
                let expected = 0.25 * (above - below) / (2.0 * step as f64);
                let got = gradients.values()[i] as f64;
                // f32 logits over a step of 2^-7, and the truncation of the differences.
                assert!((got - expected).abs() <= 2e-4, "{isa:?} element {i}: {got} not {expected}");
            }
            assert!(
                gradients.values()[3..6].iter().all(|&g| g == 0.0),
                "the token without weight has no gradient"
            );
        }
    }
}
