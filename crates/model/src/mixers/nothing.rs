//! No mixing: every token is on its own, which is the control that shows what mixing is worth.

use super::{CacheFormat, Carried, Mixer, Packed, Step, Weight, Whole};
use strata_tensor::{Activation, Cpu, Isa, Tape, Var};

/// A mixer that does not mix.
#[derive(Debug)]
pub(crate) struct Nothing;

impl Mixer for Nothing {
    fn weights(&self) -> Vec<Weight> {
        Vec::new()
    }
    fn forward<E: Activation>(&self, _: &mut Tape<'_, E>, whole: &Whole<'_>) -> Var {
        whole.residual
    }
    fn new_state(&self, _: Isa, _: CacheFormat) -> Carried {
        Carried::Nothing
    }
    fn step(&self, _: &Cpu, _: &[Packed], step: Step<'_, '_>) {
        step.y.fill(0.0);
    }
    fn state_bytes(&self, _: usize, _: CacheFormat) -> usize {
        0
    }
    fn flops(&self, _: usize) -> f64 {
        0.0
    }
}
