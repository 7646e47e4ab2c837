//! Decoding: the decoder applied to new tokens, with the keys and values of the old ones in a cache.
//!
//! What a token gives depends on its own sequence alone, to the bit: not on the other sequences of a step, nor on
//! where a prompt was cut, nor on the number of threads. Every operation is either a matter of one row, or a
//! product whose sums have one order for any number of rows.

use crate::mixers::{AnyMixer, CacheFormat, Carried, Kind, Packed, Start, Weight};
use crate::{Config, Decoder, ModelError};
use std::sync::{Arc, Mutex};
use strata_tensor::Cpu;
pub use strata_tensor::infer::WeightFormat;
use strata_tensor::infer::{self, PackedWeight};

mod pass;

use pass::Buffers;

/// What a sequence carries from step to step: the state of every block's mixer.
#[derive(Clone, Debug)]
pub struct State {
    layers: Vec<Carried>,
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

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Carried::bytes).sum()
    }

    /// The longest beginning of the sequence, `length` tokens at most, whose state can be had from this one: any where
    /// only keys and values are kept; all tokens or none where a mixer overwrites its state.
    pub fn reach(&self, length: usize) -> usize {
        if length >= self.length {
            self.length
        } else if self.layers.iter().all(Carried::can_be_cut) {
            length
        } else {
            0
        }
    }

    /// A copy of what was known after the first `length` tokens, or after all where there are fewer. `None` where that
    /// cannot be had back; see [`State::reach`].
    pub fn prefix(&self, length: usize) -> Option<State> {
        let length = length.min(self.length);
        let layers = || self.layers.iter().map(|carried| carried.prefix(length)).collect();
        (length > 0 && self.reach(length) == length).then(|| State { layers: layers(), length })
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
    mixers: Vec<Arc<dyn AnyMixer>>,
    /// The state before any token.
    empty: Vec<Carried>,
    /// Longest sequence.
    context: usize,
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
    mixer_norm: Option<Vec<f32>>,
    mixer: Vec<Packed>,
    mlp: Option<Mlp>,
}

#[derive(Debug)]
struct Mlp {
    norm: Vec<f32>,
    gate_up: PackedWeight,
    down: PackedWeight,
}

/// Bytes of weights at most, and rows for each thread at least, for which threads compute their own sequences apart from each
/// other. Each then reads all weights, which costs little beside multiplying so many rows: in the caches of a core, in the
/// last-level cache, and in memory.
const APART: [(usize, usize); 3] = [(8 << 20, 1), (16 << 20, 8), (usize::MAX, 16)];

impl Inference {
    /// [`Inference::with_format`] in f32, the reference.
    pub fn new(decoder: Decoder, cpu: &Cpu) -> Inference {
        Inference::with_format(decoder, cpu, WeightFormat::F32)
    }

    /// Packs the weights of `decoder` in `format`. Its own are given back one by one, so that they are never held twice.
    pub fn with_format(decoder: Decoder, cpu: &Cpu, format: WeightFormat) -> Inference {
        let Decoder { config, mixers, mut parameters, embedding, blocks, norm, head } = decoder;
        let (width, ffn) = (config.width, config.ffn);
        // Last to first.
        let untied = (head != embedding)
            .then(|| parameters.take_last(head, |weight| infer::pack(cpu, format, weight, width)));
        let norm = parameters.take_last(norm, <[f32]>::to_vec);
        let mut packed: Vec<Block> = Vec::with_capacity(blocks.len());
        for (block, mixer) in blocks.into_iter().zip(&mixers).rev() {
            let mlp = block.mlp.map(|mlp| {
                let mut pack =
                    |id, inputs| parameters.take_last(id, |weight| infer::pack(cpu, format, weight, inputs));
                let down = pack(mlp.down, ffn);
                let gate_up = pack(mlp.gate_up, width);
                Mlp { norm: parameters.take_last(mlp.norm, <[f32]>::to_vec), gate_up, down }
            });
            let mut take = |(id, weight): (_, Weight)| match weight.kind {
                Kind::Projection => Packed::Projection(
                    parameters.take_last(id, |values| infer::pack(cpu, format, values, weight.shape.1)),
                ),
                Kind::Table | Kind::Vector => Packed::Plain(parameters.take_last(id, <[f32]>::to_vec)),
            };
            let mut mixer: Vec<Packed> =
                block.mixer.into_iter().zip(mixer.weights()).rev().map(&mut take).collect();
            mixer.reverse();
            let mixer_norm = block.mixer_norm.map(|norm| parameters.take_last(norm, <[f32]>::to_vec));
            packed.push(Block { mixer_norm, mixer, mlp });
        }
        packed.reverse();
        let (embedding, head) = match untied {
            Some(head) => (Some(parameters.take_last(embedding, <[f32]>::to_vec)), head),
            None => (None, parameters.take_last(embedding, |weight| infer::pack(cpu, format, weight, width))),
        };
        Inference::of(config, mixers, embedding, packed, norm, head)
    }

    fn of(
        config: Config,
        mixers: Vec<Arc<dyn AnyMixer>>,
        embedding: Option<Vec<f32>>,
        blocks: Vec<Block>,
        norm: Vec<f32>,
        head: PackedWeight,
    ) -> Inference {
        let empty = {
            let format = CacheFormat::beside(head.format(), head.isa());
            mixers.iter().map(|mixer| mixer.new_state(head.isa(), format)).collect()
        };
        let context = mixers.iter().map(|mixer| mixer.context()).min().unwrap_or(config.max_positions);
        let free = Mutex::default();
        Inference { config, mixers, empty, context, embedding, blocks, norm, head, free }
    }

    /// A decoder of made-up weights, to measure speed with: made in parallel and straight in `format`, so that a large
    /// one is there in seconds and takes no more memory than it holds.
    ///
    /// # Errors
    /// [`ModelError::Field`] where the configuration does not fit together.
    pub fn made_up(config: &Config, cpu: &Cpu, format: WeightFormat) -> Result<Inference, ModelError> {
        config.check(std::path::Path::new("config.json"))?;
        let (width, ffn) = (config.width, config.ffn);
        let matrix = |outputs: usize, inputs: usize| {
            let largest = 1.0 / (inputs as f32).sqrt();
            infer::pack_with(cpu, format, outputs, inputs, |rows, values| {
                made_up(rows.start * inputs, largest, values);
            })
        };
        let weight = |weight: Weight| {
            let (outputs, inputs) = weight.shape;
            match (weight.kind, weight.start) {
                (Kind::Projection, _) => Packed::Projection(matrix(outputs, inputs)),
                (_, Start::Fill(value)) => Packed::Plain(vec![value; outputs * inputs]),
                (_, Start::Values(values)) => Packed::Plain(values),
                (_, Start::Normal | Start::Residual) => {
                    let mut values = vec![0.0; outputs * inputs];
                    made_up(0, 1.0 / (inputs as f32).sqrt(), &mut values);
                    Packed::Plain(values)
                }
            }
        };
        let mixers = config.mixers();
        let block = |mixer: &Arc<dyn AnyMixer>| {
            let mixer: Vec<Packed> = mixer.weights().into_iter().map(weight).collect();
            let mlp =
                || Mlp { norm: vec![1.0; width], gate_up: matrix(2 * ffn, width), down: matrix(width, ffn) };
            Block {
                mixer_norm: (!mixer.is_empty()).then(|| vec![1.0; width]),
                mixer,
                mlp: (ffn > 0).then(mlp),
            }
        };
        let blocks = mixers.iter().map(block).collect();
        let embedding = (!config.tied).then(|| {
            let mut values = vec![0.0; config.vocab_size * width];
            made_up(0, 1.0, &mut values);
            values
        });
        let head = matrix(config.vocab_size, width);
        Ok(Inference::of(config.clone(), mixers, embedding, blocks, vec![1.0; width], head))
    }

    fn weights(&self) -> impl Iterator<Item = &PackedWeight> {
        let projections =
            self.blocks.iter().flat_map(|block| &block.mixer).filter_map(|weight| match weight {
                Packed::Projection(weight) => Some(weight),
                Packed::Plain(_) => None,
            });
        let mlps = self.blocks.iter().filter_map(|block| block.mlp.as_ref());
        projections.chain(mlps.flat_map(|mlp| [&mlp.gate_up, &mlp.down])).chain([&self.head])
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
        State { layers: self.empty.clone(), length: 0 }
    }

    /// Longest sequence in tokens, the prompt included.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of a sequence's state after `length` tokens, about.
    pub fn state_bytes(&self, length: usize) -> usize {
        let format = CacheFormat::beside(self.head.format(), self.head.isa());
        self.mixers.iter().map(|mixer| mixer.state_bytes(length, format)).sum()
    }

    /// Reads the new tokens of several sequences at once. Returns logits, rows of `vocab_size`: one row per
    /// sequence or one per new token, in the order of the inputs. The bits of a sequence's logits depend neither on
    /// the others nor on the pieces in which it was read.
    ///
    /// # Errors
    /// [`ModelError::Batch`] where a sequence has no new token, a token is outside the vocabulary, the context is
    /// full, or a state is another model's. All states are then untouched.
    pub fn step(&self, cpu: &Cpu, inputs: &mut [Input<'_>], wanted: Wanted) -> Result<Vec<f32>, ModelError> {
        let mut logits = Vec::new();
        self.step_into(cpu, inputs, wanted, &mut logits)?;
        Ok(logits)
    }

    /// As [`Inference::step`], with memory of an earlier step for the logits: a crowd's are hundreds of kilobytes.
    ///
    /// # Errors
    /// As there.
    pub fn step_into(
        &self,
        cpu: &Cpu,
        inputs: &mut [Input<'_>],
        wanted: Wanted,
        logits: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        for input in inputs.iter() {
            self.check(input)?;
        }
        let vocabulary = self.config.vocab_size;
        let results = |input: &Input<'_>| if wanted == Wanted::Last { 1 } else { input.tokens.len() };
        logits.resize(inputs.iter().map(results).sum::<usize>() * vocabulary, 0.0);
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
            cpu.for_each(work, |(group, logits)| self.with_buffers(&alone, group, wanted, logits));
            return Ok(());
        }
        self.with_buffers(cpu, inputs, wanted, logits);
        Ok(())
    }

    /// Sizes of groups of sequences, one for each thread, that are best computed apart from each other; one group where
    /// the threads had better share every product. Apart, threads meet once per step, but each reads all weights:
    /// that pays where they lie in the caches, or where each thread has many rows for them.
    fn groups(&self, cpu: &Cpu, inputs: &[Input<'_>], rows: usize) -> Vec<usize> {
        let threads = cpu.threads();
        let bytes = self.weight_bytes();
        let apart = APART.iter().any(|&(most, least)| bytes <= most && rows / threads >= least);
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

    fn check(&self, input: &Input<'_>) -> Result<(), ModelError> {
        let fail = |reason: String| Err(ModelError::Batch(reason));
        if input.tokens.is_empty() {
            return fail("a sequence without a new token".into());
        }
        let layers = &input.state.layers;
        let fits = |(own, empty): (&Carried, &Carried)| own.belongs_with(empty);
        if layers.len() != self.empty.len() || !layers.iter().zip(&self.empty).all(fits) {
            return fail("a state of another model; begin with this model's `new_state`".into());
        }
        let vocabulary = self.config.vocab_size;
        if let Some(token) = input.tokens.iter().find(|&&t| t as usize >= vocabulary) {
            return fail(format!("token {token} is outside the model's vocabulary of {vocabulary}"));
        }
        let (length, limit) = (input.state.length + input.tokens.len(), self.context);
        if length > limit {
            return fail(format!("{length} tokens are more than the model's context of {limit}"));
        }
        Ok(())
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
