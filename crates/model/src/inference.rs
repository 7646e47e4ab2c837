//! Decoding: the decoder applied to new tokens, with the keys and values of the old ones in a cache.
//!
//! What a token gives depends on its own sequence alone, to the bit: not on the other sequences of a step, nor on
//! where a prompt was cut, nor on the number of threads. Every operation is either a matter of one row, or a
//! product whose sums have one order for any number of rows.

use crate::{Config, Decoder, ModelError};
use std::sync::{Arc, Mutex, PoisonError};
pub use strata_tensor::infer::WeightFormat;
use strata_tensor::infer::{self, KeyValueCache, PackedWeight};
use strata_tensor::{Cpu, Heads, RotaryTable};

/// What a sequence carries from step to step: keys and values of every layer.
#[derive(Clone, Debug)]
pub struct State {
    layers: Vec<KeyValueCache>,
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

    /// Memory of the cached keys and values in bytes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(KeyValueCache::bytes).sum()
    }

    /// A copy of what was known after the first `length` tokens, or after all where there are fewer.
    pub fn prefix(&self, length: usize) -> State {
        let length = length.min(self.length);
        State { layers: self.layers.iter().map(|cache| cache.prefix(length)).collect(), length }
    }

    /// Forgets everything after the first `length` tokens.
    pub fn truncate(&mut self, length: usize) {
        if length < self.length {
            self.layers.iter_mut().for_each(|cache| cache.truncate(length));
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

/// A decoder ready to decode: its weights packed for the instruction set, once.
#[derive(Debug)]
pub struct Inference {
    config: Config,
    heads: Heads,
    rotary: Arc<RotaryTable>,
    /// Rows of the embedding; `None` where the head has the same.
    embedding: Option<Vec<f32>>,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    head: PackedWeight,
    /// Buffers of earlier steps.
    free: Mutex<Vec<Buffers>>,
}

#[derive(Debug)]
struct Block {
    attention_norm: Vec<f32>,
    qkv: PackedWeight,
    output: PackedWeight,
    mlp_norm: Vec<f32>,
    gate_up: PackedWeight,
    down: PackedWeight,
}

/// Bytes of weights that stay in the caches of a core while it passes through them again and again.
const CACHED_WEIGHTS: usize = 8 << 20;
/// Rows for which reading all weights costs a thread little beside multiplying them.
const MANY_ROWS: usize = 32;

/// Activations of a step.
#[derive(Debug, Default)]
struct Buffers {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    delta: Vec<f32>,
    /// Inputs of a product in the form its weight wants.
    words: Vec<u32>,
}

impl Inference {
    /// [`Inference::with_format`] in f32, the reference.
    pub fn new(decoder: Decoder, cpu: &Cpu) -> Inference {
        Inference::with_format(decoder, cpu, WeightFormat::F32)
    }

    /// Packs the weights of `decoder` in `format`. Its own are given back one by one, so that they are never held twice.
    pub fn with_format(decoder: Decoder, cpu: &Cpu, format: WeightFormat) -> Inference {
        let heads = decoder.heads();
        let Decoder { config, mut parameters, embedding, blocks, norm, head, rotary } = decoder;
        let (width, ffn) = (config.width, config.ffn);
        // Last to first.
        let untied = (head != embedding)
            .then(|| parameters.take_last(head, |weight| infer::pack(cpu, format, weight, width)));
        let norm = parameters.take_last(norm, <[f32]>::to_vec);
        let mut packed: Vec<Block> = Vec::with_capacity(blocks.len());
        for block in blocks.into_iter().rev() {
            let mut pack =
                |id, inputs| parameters.take_last(id, |weight| infer::pack(cpu, format, weight, inputs));
            let down = pack(block.down, ffn);
            let gate_up = pack(block.gate_up, width);
            let mlp_norm = parameters.take_last(block.mlp_norm, <[f32]>::to_vec);
            let mut pack =
                |id, inputs| parameters.take_last(id, |weight| infer::pack(cpu, format, weight, inputs));
            let output = pack(block.output, heads.query_row());
            let qkv = pack(block.qkv, width);
            let attention_norm = parameters.take_last(block.attention_norm, <[f32]>::to_vec);
            packed.push(Block { attention_norm, qkv, output, mlp_norm, gate_up, down });
        }
        packed.reverse();
        let (embedding, head) = match untied {
            Some(head) => (Some(parameters.take_last(embedding, <[f32]>::to_vec)), head),
            None => (None, parameters.take_last(embedding, |weight| infer::pack(cpu, format, weight, width))),
        };
        Inference { config, heads, rotary, embedding, blocks: packed, norm, head, free: Mutex::default() }
    }

    /// A decoder of made-up weights, to measure speed with: made in parallel and straight in `format`, so that a large
    /// one is there in seconds and takes no more memory than it holds.
    ///
    /// # Errors
    /// [`ModelError::Field`] where the configuration does not fit together.
    pub fn made_up(config: &Config, cpu: &Cpu, format: WeightFormat) -> Result<Inference, ModelError> {
        config.check(std::path::Path::new("config.json"))?;
        let heads = crate::decoder::heads(config);
        let frequencies = crate::decoder::rotary_frequencies(config);
        let rotary = Arc::new(RotaryTable::new(&frequencies, config.max_positions));
        let (width, ffn) = (config.width, config.ffn);
        let matrix = |outputs: usize, inputs: usize| {
            let largest = 1.0 / (inputs as f32).sqrt();
            infer::pack_with(cpu, format, outputs, inputs, |rows, values| {
                made_up(rows.start * inputs, largest, values);
            })
        };
        let block = || Block {
            attention_norm: vec![1.0; width],
            qkv: matrix(heads.row(), width),
            output: matrix(width, heads.query_row()),
            mlp_norm: vec![1.0; width],
            gate_up: matrix(2 * ffn, width),
            down: matrix(width, ffn),
        };
        let embedding = (!config.tied).then(|| {
            let mut values = vec![0.0; config.vocab_size * width];
            made_up(0, 1.0, &mut values);
            values
        });
        Ok(Inference {
            config: config.clone(),
            heads,
            rotary,
            embedding,
            blocks: (0..config.layers).map(|_| block()).collect(),
            norm: vec![1.0; width],
            head: matrix(config.vocab_size, width),
            free: Mutex::default(),
        })
    }

    fn weights(&self) -> impl Iterator<Item = &PackedWeight> {
        let blocks = self.blocks.iter();
        blocks.flat_map(|block| [&block.qkv, &block.output, &block.gate_up, &block.down]).chain([&self.head])
    }

    /// Elements of all packed weights.
    fn weight_elements(&self) -> usize {
        self.weights().map(|weight| weight.outputs() * weight.inputs()).sum()
    }

    /// Bytes of the weights that a step multiplies with, each read once per step; scales included.
    pub fn weight_bytes(&self) -> usize {
        self.weights().map(PackedWeight::bytes).sum()
    }

    /// The shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state before any token.
    pub fn new_state(&self) -> State {
        let empty = KeyValueCache::new(self.head.isa(), self.heads);
        State { layers: vec![empty; self.config.layers], length: 0 }
    }

    /// Reads the new tokens of several sequences at once. Returns logits, rows of `vocab_size`: one row per
    /// sequence or one per new token, in the order of the inputs. The bits of a sequence's logits depend neither on
    /// the others nor on the pieces in which it was read.
    ///
    /// # Errors
    /// [`ModelError::Batch`] where a sequence has no new token, a token is outside the vocabulary, the context is
    /// full, or a state is another model's. All states are then untouched.
    pub fn step(&self, cpu: &Cpu, inputs: &mut [Input<'_>], wanted: Wanted) -> Result<Vec<f32>, ModelError> {
        for input in inputs.iter() {
            self.check(input)?;
        }
        let vocabulary = self.config.vocab_size;
        let results = |input: &Input<'_>| if wanted == Wanted::Last { 1 } else { input.tokens.len() };
        let mut logits = vec![0.0; inputs.iter().map(results).sum::<usize>() * vocabulary];
        let rows: usize = inputs.iter().map(|input| input.tokens.len()).sum();
        cpu.wake_for(rows * self.weight_elements());
        let groups = self.groups(cpu, inputs, rows);
        if groups.len() > 1 {
            let alone = cpu.alone();
            let mut work = Vec::with_capacity(groups.len());
            let (mut inputs, mut rest) = (inputs, logits.as_mut_slice());
            for count in groups {
                let (group, others) = inputs.split_at_mut(count);
                let (own, after) = rest.split_at_mut(group.iter().map(results).sum::<usize>() * vocabulary);
                work.push((group, own));
                (inputs, rest) = (others, after);
            }
            cpu.for_each_small(work, |(group, logits)| self.with_buffers(&alone, group, wanted, logits));
            return Ok(logits);
        }
        self.with_buffers(cpu, inputs, wanted, &mut logits);
        Ok(logits)
    }

    /// Sizes of groups of sequences, one for each thread, that are best computed apart from each other; one group where
    /// the threads had better share every product. Apart, threads meet once per step, but each reads all weights:
    /// that pays where they lie in the caches, or where each thread has many rows for them.
    fn groups(&self, cpu: &Cpu, inputs: &[Input<'_>], rows: usize) -> Vec<usize> {
        let threads = cpu.threads();
        let apart = self.weight_bytes() <= CACHED_WEIGHTS || rows / threads >= MANY_ROWS;
        if threads == 1 || inputs.len() < threads || !apart {
            return vec![inputs.len()];
        }
        let share = rows.div_ceil(threads);
        let (mut groups, mut largest, mut own) = (vec![0], 0, 0);
        for input in inputs {
            if own >= share && groups.len() < threads {
                groups.push(0);
                own = 0;
            }
            own += input.tokens.len();
            largest = largest.max(own);
            *groups.last_mut().expect("there is a first group") += 1;
        }
        // One long prompt among short ones would keep the other threads waiting.
        if largest * 4 > share * 5 { vec![inputs.len()] } else { groups }
    }

    fn with_buffers(&self, cpu: &Cpu, inputs: &mut [Input<'_>], wanted: Wanted, logits: &mut [f32]) {
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
        let Buffers { x, normed, qkv, attended, gate_up, gated, delta, words } = buffers;
        let (config, heads) = (&self.config, self.heads);
        let (width, row, query_row) = (config.width, heads.row(), heads.query_row());
        let positions: Vec<usize> =
            inputs.iter().flat_map(|i| i.state.length..i.state.length + i.tokens.len()).collect();
        let mut rows = positions.len();
        let x = sized(x, rows * width);
        let tokens = inputs.iter().flat_map(|input| input.tokens);
        for (x, &token) in x.chunks_exact_mut(width).zip(tokens) {
            self.embed(token as usize, x);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let x = &mut *x;
            let normed_rows = sized(normed, rows * width);
            infer::rms_norm(cpu, &x[..rows * width], &block.attention_norm, config.norm_epsilon, normed_rows);
            let qkv = sized(qkv, rows * row);
            infer::project(cpu, normed_rows, &block.qkv, words, qkv);
            infer::rotate(cpu, heads, &self.rotary, &positions, qkv);
            for (input, range) in ranges(inputs) {
                let cache = &mut input.state.layers[layer];
                for row in qkv[range.start * row..range.end * row].chunks_exact(row) {
                    cache.push(&row[heads.key_start(0)..heads.value_start(0)], &row[heads.value_start(0)..]);
                }
            }
            // Behind the last keys and values, only what is wanted is computed.
            let last_only = wanted == Wanted::Last && layer + 1 == self.blocks.len();
            if last_only {
                for (i, (_, range)) in ranges(inputs).enumerate() {
                    x.copy_within((range.end - 1) * width..range.end * width, i * width);
                    qkv.copy_within((range.end - 1) * row..range.end * row, i * row);
                }
                rows = inputs.len();
            }
            let x = &mut x[..rows * width];
            let cached = inputs.iter().map(|input| infer::Cached {
                new: if last_only { 1 } else { input.tokens.len() },
                cache: &input.state.layers[layer],
            });
            let attended = sized(attended, rows * query_row);
            infer::attention(cpu, heads, &qkv[..rows * row], &cached.collect::<Vec<_>>(), attended);
            let delta = sized(delta, rows * width);
            infer::project(cpu, attended, &block.output, words, delta);
            add(x, delta);
            let normed = sized(normed, rows * width);
            infer::rms_norm(cpu, x, &block.mlp_norm, config.norm_epsilon, normed);
            let gate_up = sized(gate_up, rows * 2 * config.ffn);
            infer::project(cpu, normed, &block.gate_up, words, gate_up);
            let gated = sized(gated, rows * config.ffn);
            infer::swiglu(cpu, gate_up, config.ffn, gated);
            infer::project(cpu, gated, &block.down, words, delta);
            add(x, delta);
        }
        for input in inputs.iter_mut() {
            input.state.length += input.tokens.len();
        }
        let normed = sized(normed, rows * width);
        infer::rms_norm(cpu, &x[..rows * width], &self.norm, config.norm_epsilon, normed);
        infer::project(cpu, normed, &self.head, words, logits);
    }

    fn embed(&self, token: usize, x: &mut [f32]) {
        match &self.embedding {
            Some(table) => x.copy_from_slice(&table[token * x.len()..][..x.len()]),
            None => self.head.read_row(token, x),
        }
    }

    fn check(&self, input: &Input<'_>) -> Result<(), ModelError> {
        let fail = |reason: String| Err(ModelError::Batch(reason));
        if input.tokens.is_empty() {
            return fail("a sequence without a new token".into());
        }
        let layers = &input.state.layers;
        if layers.len() != self.config.layers
            || layers.iter().any(|cache| !cache.fits(self.head.isa(), self.heads))
        {
            return fail("a state of another model; begin with this model's `new_state`".into());
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
}

/// Every input with the rows of its tokens.
fn ranges<'a, 'b>(
    inputs: &'a mut [Input<'b>],
) -> impl Iterator<Item = (&'a mut Input<'b>, std::ops::Range<usize>)> {
    let mut end = 0;
    inputs.iter_mut().map(move |input| {
        let start = end;
        end += input.tokens.len();
        (input, start..end)
    })
}

/// The first `length` elements of a buffer, which grows where it has fewer.
fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}

fn add(x: &mut [f32], delta: &[f32]) {
    for (x, d) in x.iter_mut().zip(delta) {
        *x += d;
    }
}

/// Numbers below `largest` that look random: a hash of each one's place.
fn made_up(start: usize, largest: f32, values: &mut [f32]) {
    for (at, value) in (start as u32..).zip(values) {
        let mixed = (at ^ at >> 15).wrapping_mul(0x2c1b_3c6d);
        let mixed = (mixed ^ mixed >> 12).wrapping_mul(0x297a_2d39);
        *value = (mixed as i32 >> 8) as f32 * (largest / 8_388_608.0);
    }
}
