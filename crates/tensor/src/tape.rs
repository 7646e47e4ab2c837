//! The tape: what was computed, and how its gradient is.

use crate::{Activation, Buffers, Cpu, Gradients, Parameters};
use strata_kernels::{Store, element};

/// A matrix of tokens by features on a [`Tape`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Var(usize);

/// How a recorded operation hands its output's gradient on to its inputs.
pub(crate) trait Operation<E: Activation> {
    /// Called once, with the output and its gradient, in the reverse order of recording. Every buffer that the
    /// operation owns goes back to the tape's pool.
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, output: &[E], d_output: Vec<E>);
}

struct Node<E: Activation> {
    width: usize,
    value: Vec<E>,
    gradient: Option<Vec<E>>,
    operation: Option<Box<dyn Operation<E>>>,
}

/// A forward pass in progress. With gradients it records every operation; without, it only computes.
pub struct Tape<'a, E: Activation> {
    pub(crate) cpu: &'a Cpu,
    pub(crate) parameters: &'a Parameters,
    pub(crate) gradients: Option<&'a mut Gradients>,
    pub(crate) buffers: &'a mut Buffers,
    nodes: Vec<Node<E>>,
}

impl<'a, E: Activation> Tape<'a, E> {
    /// An empty tape. Operations are recorded where `gradients` is given, and add to it in the backward pass.
    pub fn new(
        cpu: &'a Cpu,
        parameters: &'a Parameters,
        gradients: Option<&'a mut Gradients>,
        buffers: &'a mut Buffers,
    ) -> Tape<'a, E> {
        Tape { cpu, parameters, gradients, buffers, nodes: Vec::new() }
    }

    /// Whether operations are recorded.
    pub fn recording(&self) -> bool {
        self.gradients.is_some()
    }

    /// The value of a variable, row-major.
    pub fn value(&self, var: Var) -> &[E] {
        &self.nodes[var.0].value
    }

    /// Features per token.
    pub fn width(&self, var: Var) -> usize {
        self.nodes[var.0].width
    }

    /// Number of tokens.
    pub fn rows(&self, var: Var) -> usize {
        self.value(var).len() / self.width(var)
    }

    /// Puts a computed value on the tape; `operation` is kept only where the tape records.
    pub(crate) fn push(
        &mut self,
        width: usize,
        value: Vec<E>,
        operation: impl Operation<E> + 'static,
    ) -> Var {
        let operation = self.recording().then(|| Box::new(operation) as Box<dyn Operation<E>>);
        self.nodes.push(Node { width, value, gradient: None, operation });
        Var(self.nodes.len() - 1)
    }

    /// The buffer to put the gradient of `var` into, and whether it already holds a part of it. It must be handed
    /// back with [`Tape::set_gradient`].
    pub(crate) fn take_gradient(&mut self, var: Var) -> (Vec<E>, Store) {
        match self.nodes[var.0].gradient.take() {
            Some(gradient) => (gradient, Store::Accumulate),
            None => (self.buffers.take(self.nodes[var.0].value.len()), Store::Overwrite),
        }
    }

    /// Hands back what [`Tape::take_gradient`] gave.
    pub(crate) fn set_gradient(&mut self, var: Var, gradient: Vec<E>) {
        self.nodes[var.0].gradient = Some(gradient);
    }

    /// Adds a whole gradient buffer to that of `var`; moves it where there is none yet.
    pub(crate) fn add_gradient(&mut self, var: Var, gradient: Vec<E>) {
        match &mut self.nodes[var.0].gradient {
            Some(sum) => {
                let chunk = gradient.len().div_ceil(self.cpu.threads()).max(1);
                let items: Vec<_> = gradient.chunks(chunk).zip(sum.chunks_mut(chunk)).collect();
                self.cpu.for_each(items, |(from, to)| element::add_assign(self.cpu.isa(), from, to));
                self.buffers.give(gradient);
            }
            none => *none = Some(gradient),
        }
    }

    /// Runs every recorded operation's gradient, last first, and gives all buffers back to the pool. The gradient of
    /// the outputs must have been set, as [`Tape::cross_entropy`] does for its input.
    pub fn backward(mut self) {
        while let Some(mut node) = self.nodes.pop() {
            if let (Some(operation), Some(gradient)) = (node.operation.take(), node.gradient.take()) {
                // The operation sees inputs only: they lie below, since they were recorded before.
                operation.backward(&mut self, &node.value, gradient);
            }
            self.buffers.give(node.value);
        }
    }
}

impl<E: Activation> Drop for Tape<'_, E> {
    fn drop(&mut self) {
        for node in self.nodes.drain(..) {
            self.buffers.give(node.value);
            if let Some(gradient) = node.gradient {
                self.buffers.give(gradient);
            }
        }
    }
}

/// Adds the gradient of `Σ weights · output` to the tape's gradients: what gradient checks differentiate.
#[cfg(test)]
impl<E: Activation> Tape<'_, E> {
    pub(crate) fn backward_from(mut self, output: Var, weights: &[f32]) {
        let gradient = weights.iter().map(|&w| E::from_f32(w)).collect();
        self.set_gradient(output, gradient);
        self.backward();
    }
}
