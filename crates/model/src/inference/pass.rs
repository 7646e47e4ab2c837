//! A step: new tokens through all blocks.

use super::{Block, Inference, Input, Wanted};
use crate::mixers::{Piece, Step};
use std::cell::RefCell;
use std::sync::PoisonError;
use strata_tensor::infer;
use strata_tensor::{Buffers as Temporary, Cpu};

/// Memory of a step.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// The residual stream, what goes into the next mixer or the head, and what a mixer adds.
    x: Vec<f32>,
    normed: Vec<f32>,
    delta: Vec<f32>,
    temporary: Temporary,
    inner: Inner,
}

/// Memory within an MLP and for products.
#[derive(Debug, Default)]
struct Inner {
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    /// Inputs of a product in the form its weight wants.
    words: Vec<u32>,
}

thread_local! {
    /// For blocks of rows, which stay in the caches of a core.
    static INNER: RefCell<Inner> = RefCell::default();
}

/// Rows on their way from one mixer to the next.
struct Between<'a> {
    x: &'a mut [f32],
    /// What the mixer adds, then memory for what the MLP adds.
    delta: &'a mut [f32],
    /// What goes into the next mixer or the head.
    normed: &'a mut [f32],
}

impl Between<'_> {
    /// Cut after every so many elements.
    fn chunks(&mut self, elements: usize) -> impl Iterator<Item = Between<'_>> {
        let parts = self.x.chunks_mut(elements).zip(self.delta.chunks_mut(elements));
        parts.zip(self.normed.chunks_mut(elements)).map(|((x, delta), normed)| Between { x, delta, normed })
    }
}

/// New tokens of a sequence from which on all threads prepare its memory: the system's pages, cleared, are a twentieth of a prompt's time.
const PROMPT: usize = 64;

/// Has the memory for prompts in all layers.
fn expect(cpu: &Cpu, inputs: &mut [Input<'_>]) {
    let prompts = inputs.iter_mut().filter(|input| input.tokens.len() >= PROMPT);
    let layers = prompts.flat_map(|input| {
        let new = input.tokens.len();
        input.state.layers.iter_mut().map(move |carried| (carried, new))
    });
    let layers: Vec<_> = layers.collect();
    if !layers.is_empty() {
        cpu.for_each(layers, |(carried, new)| carried.expect(new));
    }
}

impl Inference {
    pub(super) fn with_buffers(
        &self,
        cpu: &Cpu,
        inputs: &mut [Input<'_>],
        wanted: Wanted,
        logits: &mut [f32],
    ) {
        let lock = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers = lock().pop().unwrap_or_default();
        self.pass(cpu, inputs, wanted, &mut buffers, logits);
        lock().push(buffers);
    }

    fn pass(
        &self,
        cpu: &Cpu,
        inputs: &mut [Input<'_>],
        wanted: Wanted,
        buffers: &mut Buffers,
        logits: &mut [f32],
    ) {
        expect(cpu, inputs);
        let Buffers { x, normed, delta, temporary, inner } = buffers;
        let width = self.config.width;
        let mut rows: usize = inputs.iter().map(|input| input.tokens.len()).sum();
        let (x, normed, delta) =
            (sized(x, rows * width), sized(normed, rows * width), sized(delta, rows * width));
        let tokens = inputs.iter().flat_map(|input| input.tokens);
        // A row of the head lies scattered: each element costs a line of the cache.
        cpu.for_each_of(4 * x.len(), x.chunks_exact_mut(width).zip(tokens), |(x, &token)| {
            self.embed(token as usize, x);
        });
        if let Some(norm) = self.norm_before(0) {
            infer::rms_norm(cpu, x, norm, self.config.norm_epsilon, normed);
        }
        for (layer, (block, mixer)) in self.blocks.iter().zip(&self.mixers).enumerate() {
            // Behind the last mixer's state, only what is wanted is computed.
            let last_only = wanted == Wanted::Last && layer + 1 == self.blocks.len();
            let read = rows;
            if last_only {
                rows = inputs.len();
            }
            if block.mixer_norm.is_some() {
                let mut pieces = Vec::with_capacity(inputs.len());
                for Input { state, tokens } in inputs.iter_mut() {
                    let (position, new) = (state.length, tokens.len());
                    pieces.push(Piece { carried: &mut state.layers[layer], new, position });
                }
                let step = Step {
                    x: &normed[..read * width],
                    pieces: &mut pieces,
                    last_only,
                    y: &mut delta[..rows * width],
                    buffers: temporary,
                    words: &mut inner.words,
                };
                mixer.step(cpu, &block.mixer, step);
            }
            if last_only {
                let mut end = 0;
                for (i, input) in inputs.iter().enumerate() {
                    end += input.tokens.len();
                    x.copy_within((end - 1) * width..end * width, i * width);
                }
            }
            let (x, delta, normed) =
                (&mut x[..rows * width], &mut delta[..rows * width], &mut normed[..rows * width]);
            self.between(cpu, layer, Between { x, delta, normed }, inner);
        }
        for input in inputs.iter_mut() {
            input.state.length += input.tokens.len();
        }
        infer::project(cpu, &normed[..rows * width], &self.head, &mut inner.words, logits);
    }

    /// From the output of the mixer of block `layer` to the input of the next one, or of the head.
    fn between(&self, cpu: &Cpu, layer: usize, mut rows: Between<'_>, inner: &mut Inner) {
        let width = self.config.width;
        let mlp = self.blocks[layer].mlp.as_ref();
        let bytes = mlp.map_or(0, |mlp| mlp.gate_up.bytes() + mlp.down.bytes());
        let Some(blocks) = infer::row_blocks(cpu, rows.x.len() / width, bytes) else {
            return self.between_rows(cpu, layer, rows, inner);
        };
        let alone = cpu.alone();
        let height = blocks.first().map_or(1, |block| block.len());
        cpu.for_each(rows.chunks(height * width).collect(), |rows| {
            INNER.with_borrow_mut(|inner| self.between_rows(&alone, layer, rows, inner));
        });
    }

    fn between_rows(&self, cpu: &Cpu, layer: usize, rows: Between<'_>, inner: &mut Inner) {
        let (width, ffn, epsilon) = (self.config.width, self.config.ffn, self.config.norm_epsilon);
        let (Block { mixer_norm, mlp, .. }, Between { x, delta, normed }) = (&self.blocks[layer], rows);
        let Inner { gate_up, gated, words } = inner;
        let count = x.len() / width;
        if mixer_norm.is_some() {
            infer::add(cpu, x, delta, width);
        }
        if let Some(mlp) = mlp {
            infer::rms_norm(cpu, x, &mlp.norm, epsilon, normed);
            let (gate_up, gated) = (sized(gate_up, count * 2 * ffn), sized(gated, count * ffn));
            infer::project(cpu, normed, &mlp.gate_up, words, gate_up);
            infer::swiglu(cpu, gate_up, ffn, gated);
            infer::project(cpu, gated, &mlp.down, words, delta);
            infer::add(cpu, x, delta, width);
        }
        if let Some(norm) = self.norm_before(layer + 1) {
            infer::rms_norm(cpu, x, norm, epsilon, normed);
        }
    }

    /// The norm before the mixer of block `layer`, if that has one, or before the head.
    fn norm_before(&self, layer: usize) -> Option<&[f32]> {
        match self.blocks.get(layer) {
            Some(block) => block.mixer_norm.as_deref(),
            None => Some(&self.norm),
        }
    }

    fn embed(&self, token: usize, x: &mut [f32]) {
        match &self.embedding {
            Some(table) => x.copy_from_slice(&table[token * x.len()..][..x.len()]),
            None => self.head.read_row(token, x),
        }
    }
}

/// The first `length` elements of a buffer, which grows where it has fewer.
fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}
