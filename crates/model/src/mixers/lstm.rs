//! The recurrent baseline: one layer of long short-term memory (Hochreiter and Schmidhuber 1997), as wide as the residual
//! stream, and a projection back.

use super::{CacheFormat, Carried, Mixer, Packed, Piece, Start, Step, Weight, Whole};
use crate::Config;
use strata_tensor::recurrent::{self, Carrying};
use strata_tensor::{Activation, Cpu, Isa, Tape, Var, infer};

/// A recurrent mixer of a configuration's width.
#[derive(Debug)]
pub(crate) struct Lstm {
    width: usize,
}

impl Lstm {
    pub fn new(config: &Config) -> Lstm {
        Lstm { width: config.width }
    }
}

impl Mixer for Lstm {
    fn weights(&self) -> Vec<Weight> {
        let width = self.width;
        // A forget gate that begins open lets gradients reach back (Jozefowicz et al. 2015).
        let bias = (0..4 * width).map(|i| if i / width == 1 { 1.0 } else { 0.0 }).collect();
        vec![
            Weight::projection("mixer.weight_ih", 4 * width, width, Start::Normal),
            Weight::projection("mixer.weight_hh", 4 * width, width, Start::Normal),
            Weight::vector("mixer.bias", 4 * width, Start::Values(bias)),
            Weight::projection("mixer.out_proj.weight", width, width, Start::Residual),
        ]
    }

    fn forward<E: Activation>(&self, tape: &mut Tape<'_, E>, whole: &Whole<'_>) -> Var {
        let weights = whole.weights;
        let gates = tape.linear(whole.x, weights[0]);
        let hidden = tape.lstm(gates, weights[1], weights[2], whole.starts);
        tape.linear_residual(hidden, weights[3], whole.residual)
    }

    fn new_state(&self, _: Isa, _: CacheFormat) -> Carried {
        Carried::Fixed(vec![0.0; 2 * self.width])
    }

    fn step(&self, cpu: &Cpu, weights: &[Packed], step: Step<'_, '_>) {
        let rows = step.x.len() / self.width;
        let mut gates = step.buffers.take::<f32>(rows * 4 * self.width);
        infer::project(cpu, step.x, weights[0].projection(), step.words, &mut gates);
        let mut sequences = Vec::with_capacity(step.pieces.len());
        for Piece { carried, new, .. } in step.pieces.iter_mut() {
            sequences.push(Carrying { new: *new, state: carried.fixed() });
        }
        let mut hidden = step.buffers.take::<f32>(rows * self.width);
        recurrent::lstm(cpu, &gates, weights[1].projection(), weights[2].plain(), sequences, &mut hidden);
        let wanted = step.keep_wanted(&mut hidden, self.width);
        infer::project(cpu, &hidden[..wanted * self.width], weights[3].projection(), step.words, step.y);
        step.buffers.give(gates);
        step.buffers.give(hidden);
    }

    fn state_bytes(&self, _: usize, _: CacheFormat) -> usize {
        2 * self.width * size_of::<f32>()
    }

    fn flops(&self, _: usize) -> f64 {
        // Five activations and four products per element are nothing beside the projections.
        0.0
    }
}
