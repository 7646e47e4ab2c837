//! Time steps of a chunk, and the decays that follow from them.

use super::{CHUNK, Scan};
use crate::math::{exp, softplus};
use crate::{Element, Isa};

/// Of one head: a value for each token of the chunk in every array.
pub(super) struct HeadSteps {
    rows: usize,
    biased: [f32; CHUNK],
    dt: [f32; CHUNK],
    sum: [f32; CHUNK],
    since_start: [f32; CHUNK],
    left: [f32; CHUNK],
    to_end: [f32; CHUNK],
}

impl HeadSteps {
    const EMPTY: HeadSteps = HeadSteps {
        rows: 0,
        biased: [0.0; CHUNK],
        dt: [0.0; CHUNK],
        sum: [0.0; CHUNK],
        since_start: [0.0; CHUNK],
        left: [0.0; CHUNK],
        to_end: [0.0; CHUNK],
    };

    /// Raw time steps with the bias added.
    #[inline(always)]
    pub fn biased(&self) -> &[f32] {
        &self.biased[..self.rows]
    }

    /// Time steps. What lies behind the last token is of another chunk.
    #[inline(always)]
    pub fn dt(&self) -> &[f32; CHUNK] {
        &self.dt
    }

    /// Logarithms of the decay from before the chunk's first token to each. As [`HeadSteps::dt`].
    #[inline(always)]
    pub fn sum(&self) -> &[f32; CHUNK] {
        &self.sum
    }

    /// Decay from the chunk's start to each token.
    #[inline(always)]
    pub fn since_start(&self) -> &[f32] {
        &self.since_start[..self.rows]
    }

    /// Decay from each token to the chunk's end.
    #[inline(always)]
    pub fn left(&self) -> &[f32] {
        &self.left[..self.rows]
    }

    /// What is left at the chunk's end of an input at each token: decay times time step.
    #[inline(always)]
    pub fn to_end(&self) -> &[f32] {
        &self.to_end[..self.rows]
    }

    /// Decay over the whole chunk.
    pub fn whole(&self) -> f32 {
        self.since_start[self.rows - 1]
    }
}

/// The steps of every head of a scan in one of its chunks.
pub(super) struct Steps(Vec<HeadSteps>);

impl Steps {
    pub fn new(heads: usize) -> Steps {
        Steps((0..heads).map(|_| HeadSteps::EMPTY).collect())
    }

    /// Takes the values of a chunk, which is not empty.
    pub fn fill<E: Element>(&mut self, isa: Isa, chunk: &Scan<'_, E>) {
        let rows = chunk.raw.rows;
        for (head, steps) in self.0.iter_mut().enumerate() {
            steps.rows = rows;
            for (t, biased) in steps.biased[..rows].iter_mut().enumerate() {
                *biased = chunk.raw.at(t, head).to_f32() + chunk.decay.bias[head];
            }
            derive(isa, steps, chunk.decay.a[head], chunk.decay.limits);
        }
    }

    pub fn head(&self, head: usize) -> &HeadSteps {
        &self.0[head]
    }
}

per_isa! {
    /// Everything else from `biased`.
    fn derive(steps: &mut HeadSteps, a: f32, limits: (f32, f32)) {
        // All of the arrays, whose length is known, not only the rows.
        for (dt, biased) in steps.dt.iter_mut().zip(&steps.biased) {
            *dt = softplus(*biased).clamp(limits.0, limits.1);
        }
        let mut total = 0.0;
        for (sum, dt) in steps.sum.iter_mut().zip(&steps.dt) {
            total += dt * a;
            *sum = total;
        }
        let last = steps.sum[steps.rows - 1];
        for (since_start, sum) in steps.since_start.iter_mut().zip(&steps.sum) {
            *since_start = exp(*sum);
        }
        for (left, sum) in steps.left.iter_mut().zip(&steps.sum) {
            *left = exp(last - sum);
        }
        for ((to_end, left), dt) in steps.to_end.iter_mut().zip(&steps.left).zip(&steps.dt) {
            *to_end = left * dt;
        }
    }
}
