//! The diagonal state-space mixer S4D (Gu et al. 2022): a linear recurrence with complex states for every element of the
//! residual stream, SiLU, and a projection back.

use super::{CacheFormat, Carried, Kind, Mixer, Packed, Piece, Start, Step, Weight, Whole};
use crate::Config;
use strata_tensor::ops::{S4dNumbers, S4dParameters};
use strata_tensor::recurrent::{self, Carrying};
use strata_tensor::{Activation, Cpu, Isa, Tape, Var, infer};

/// A diagonal state-space mixer of a configuration's shape.
#[derive(Debug)]
pub(crate) struct S4d {
    width: usize,
    /// Complex states per channel.
    states: usize,
}

impl S4d {
    pub fn new(config: &Config) -> S4d {
        S4d { width: config.width, states: config.mixing.s4d_states / 2 }
    }
}

impl Mixer for S4d {
    fn weights(&self) -> Vec<Weight> {
        let (width, states) = (self.width, self.states);
        let each = |f: fn(usize) -> f32| (0..width).flat_map(|_| (0..states).map(f)).collect::<Vec<f32>>();
        let table = |name, values| Weight {
            shape: (1, width * states),
            kind: Kind::Vector,
            tensors: vec![(name, vec![width, states])],
            start: Start::Values(values),
        };
        // "S4D-Lin" of the paper: a = −1/2 + iπn; time steps from 0.001 to 0.1.
        let log_step = (0..width).map(|channel| {
            let part = (channel as f64 * 0.618_033_988_749_895).fract();
            (0.001 * 100f64.powf(part)).ln() as f32
        });
        vec![
            Weight::vector("mixer.log_dt", width, Start::Values(log_step.collect())),
            table("mixer.A_log", each(|_| 0.5f32.ln())),
            table("mixer.A_imag", each(|n| std::f32::consts::PI * n as f32)),
            Weight {
                shape: (width, 2 * states),
                kind: Kind::Table,
                tensors: vec![("mixer.C", vec![width, states, 2])],
                start: Start::Values(unit_numbers(2 * width * states)),
            },
            Weight::vector("mixer.D", width, Start::Fill(1.0)),
            Weight::projection("mixer.out_proj.weight", width, width, Start::Residual),
        ]
    }

    fn forward<E: Activation>(&self, tape: &mut Tape<'_, E>, whole: &Whole<'_>) -> Var {
        let &[log_step, a_log, a_imaginary, c, d, out] = whole.weights else { unreachable!("six weights") };
        let parameters = S4dParameters { log_step, a_log, a_imaginary, c, d };
        let y = tape.s4d(whole.x, parameters, whole.starts);
        tape.linear_residual(y, out, whole.residual)
    }

    fn new_state(&self, _: Isa, _: CacheFormat) -> Carried {
        Carried::Fixed(vec![0.0; recurrent::s4d_state(self.width, self.states)])
    }

    fn step(&self, cpu: &Cpu, weights: &[Packed], step: Step<'_, '_>) {
        let numbers = S4dNumbers {
            log_step: weights[0].plain(),
            a_log: weights[1].plain(),
            a_imaginary: weights[2].plain(),
            c: weights[3].plain(),
            d: weights[4].plain(),
        };
        let mut sequences = Vec::with_capacity(step.pieces.len());
        for Piece { carried, new, .. } in step.pieces.iter_mut() {
            sequences.push(Carrying { new: *new, state: carried.fixed() });
        }
        let mut y = step.buffers.take::<f32>(step.x.len());
        recurrent::s4d(cpu, step.x, self.width, numbers, sequences, &mut y);
        let wanted = step.keep_wanted(&mut y, self.width);
        infer::project(cpu, &y[..wanted * self.width], weights[5].projection(), step.words, step.y);
        step.buffers.give(y);
    }

    fn state_bytes(&self, _: usize, _: CacheFormat) -> usize {
        recurrent::s4d_state(self.width, self.states) * size_of::<f32>()
    }

    fn flops(&self, _: usize) -> f64 {
        // A complex product and sum, and the real part of another, per state.
        12.0 * (self.width * self.states) as f64
    }
}

/// Numbers of variance 1/2 that look random, the same every time: real and imaginary parts of unit variance together.
fn unit_numbers(count: usize) -> Vec<f32> {
    let part = |i: usize| (i as f64 * 0.754_877_666_246_693).fract();
    (0..count).map(|i| ((part(i + 1) * 2.0 - 1.0) * 1.5f64.sqrt()) as f32).collect()
}
