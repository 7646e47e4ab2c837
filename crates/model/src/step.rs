//! Decoding: the decoder applied to new tokens, with the keys and values of the old ones in a cache.

use crate::{Decoder, ModelError};
use strata_tensor::Cpu;
use strata_tensor::infer;

/// What a sequence carries from step to step: keys and values of every layer, positions x width.
#[derive(Clone, Debug)]
pub struct State {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    length: usize,
}

impl State {
    /// Number of tokens seen.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Memory held for cached keys and values in bytes.
    pub fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(|v| v.capacity() * size_of::<f32>()).sum()
    }

    /// A copy of what was known after the first `length` tokens, or after all where there are fewer.
    pub fn prefix(&self, length: usize) -> State {
        let length = length.min(self.length);
        let copy = |caches: &[Vec<f32>]| {
            caches.iter().map(|cache| cache[..cache.len() / self.length.max(1) * length].to_vec()).collect()
        };
        State { keys: copy(&self.keys), values: copy(&self.values), length }
    }

    /// Forgets everything after the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        if length < self.length {
            for cache in self.keys.iter_mut().chain(&mut self.values) {
                cache.truncate(cache.len() / self.length * length);
            }
            self.length = length;
        }
    }
}

/// One sequence of a step: its state and its new tokens, at least one.
#[derive(Debug)]
pub struct Input<'a> {
    /// What the sequence has seen; the new tokens are added.
    pub state: &'a mut State,
    /// New tokens.
    pub tokens: &'a [u32],
}

/// After which of the new tokens logits are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// After the last one of each sequence.
    Last,
    /// After every one.
    All,
}

impl Decoder {
    /// The state before any token.
    pub fn new_state(&self) -> State {
        let empty = || vec![Vec::new(); self.config.layers];
        State { keys: empty(), values: empty(), length: 0 }
    }

    /// Reads the new tokens of several sequences at once. Returns logits, rows of `vocab_size`: one row per
    /// sequence or one per new token, in the order of the inputs. A sequence's logits do not depend on the others
    /// but for rounding.
    ///
    /// # Errors
    /// [`ModelError::Batch`] where a sequence has no new token, a token is outside the vocabulary, or the context is
    /// full. The states are then untouched.
    pub fn step(&self, cpu: &Cpu, inputs: &mut [Input<'_>], wanted: Wanted) -> Result<Vec<f32>, ModelError> {
        for input in inputs.iter() {
            self.check(input)?;
        }
        let config = &self.config;
        let heads = self.heads();
        let (width, row) = (config.width, heads.row());
        let tokens: Vec<u32> = inputs.iter().flat_map(|i| i.tokens).copied().collect();
        let rows = tokens.len();
        let weights = |id| self.parameters.get(id);
        let mut x = vec![0.0; rows * width];
        for (x, &token) in x.chunks_exact_mut(width).zip(&tokens) {
            x.copy_from_slice(&weights(self.embedding)[token as usize * width..][..width]);
        }
        let mut normed = vec![0.0; rows * width];
        let mut qkv = vec![0.0; rows * row];
        let mut attended = vec![0.0; rows * heads.query_row()];
        let mut gate_up = vec![0.0; rows * 2 * config.ffn];
        let mut gated = vec![0.0; rows * config.ffn];
        let mut delta = vec![0.0; rows * width];
        for (layer, block) in self.blocks.iter().enumerate() {
            infer::rms_norm(cpu, &x, weights(block.attention_norm), config.norm_epsilon, &mut normed);
            infer::project(cpu, &normed, weights(block.qkv), width, &mut qkv);
            self.cache(layer, inputs, &mut qkv);
            let sequences: Vec<infer::Cached<'_>> = inputs
                .iter()
                .map(|i| infer::Cached {
                    new: i.tokens.len(),
                    keys: &i.state.keys[layer],
                    values: &i.state.values[layer],
                })
                .collect();
            infer::attention(cpu, heads, &qkv, &sequences, &mut attended);
            infer::project(cpu, &attended, weights(block.output), heads.query_row(), &mut delta);
            add(&mut x, &delta);
            infer::rms_norm(cpu, &x, weights(block.mlp_norm), config.norm_epsilon, &mut normed);
            infer::project(cpu, &normed, weights(block.gate_up), width, &mut gate_up);
            infer::swiglu(cpu, &gate_up, config.ffn, &mut gated);
            infer::project(cpu, &gated, weights(block.down), config.ffn, &mut delta);
            add(&mut x, &delta);
        }
        for input in inputs.iter_mut() {
            input.state.length += input.tokens.len();
        }
        if wanted == Wanted::Last {
            let mut end = 0;
            for (i, input) in inputs.iter().enumerate() {
                end += input.tokens.len();
                x.copy_within((end - 1) * width..end * width, i * width);
            }
            x.truncate(inputs.len() * width);
        }
        normed.truncate(x.len());
        infer::rms_norm(cpu, &x, weights(self.norm), config.norm_epsilon, &mut normed);
        let mut logits = vec![0.0; x.len() / width * config.vocab_size];
        infer::project(cpu, &normed, weights(self.head), width, &mut logits);
        Ok(logits)
    }

    fn check(&self, input: &Input<'_>) -> Result<(), ModelError> {
        let fail = |reason: String| Err(ModelError::Batch(reason));
        if input.tokens.is_empty() {
            return fail("a sequence without a new token".into());
        }
        let vocabulary = self.config.vocab_size;
        if let Some(token) = input.tokens.iter().find(|&&t| t as usize >= vocabulary) {
            return fail(format!("token {token} is outside the model's vocabulary of {vocabulary}"));
        }
        let (length, limit) = (input.state.length + input.tokens.len(), self.config.max_positions);
        if length > limit {
            return fail(format!("{length} tokens are more than the model's context of {limit}"));
        }
        Ok(())
    }

    /// Turns queries and keys to their positions, in place, and adds keys and values to the caches.
    fn cache(&self, layer: usize, inputs: &mut [Input<'_>], qkv: &mut [f32]) {
        let heads = self.heads();
        let d = heads.dimension;
        let mut rows = qkv.chunks_exact_mut(heads.row());
        for input in inputs {
            for (i, row) in rows.by_ref().take(input.tokens.len()).enumerate() {
                let (turned, values) = row.split_at_mut(heads.value_start(0));
                for head in turned.chunks_exact_mut(d) {
                    self.rotary.rotate(head, input.state.length + i);
                }
                input.state.keys[layer].extend_from_slice(&turned[heads.key_start(0)..]);
                input.state.values[layer].extend_from_slice(values);
            }
        }
    }
}

fn add(x: &mut [f32], delta: &[f32]) {
    for (x, d) in x.iter_mut().zip(delta) {
        *x += d;
    }
}
