//! Sequence mixers: what lets a token see the ones before it. One file each, behind one small interface.
//!
//! A decoder is blocks of a mixer and a point-wise MLP; the mixer is all that differs between architectures. It
//! has two forms that compute the same: [`Mixer::forward`] over whole packed sequences, a composition of tape
//! operations, whose gradient follows; and [`Mixer::step`] over new tokens of many sequences, each of which carries
//! a state ([`Carried`]). `docs/new-mixer.md` walks through adding one.

mod attention;
mod lstm;
pub mod mixing;
mod nothing;
mod s4d;
pub mod ssm;

pub(crate) use attention::Attention;
pub(crate) use lstm::Lstm;
pub use mixing::{LETTERS, Letter, Mixing, Positions};
pub(crate) use nothing::Nothing;
pub(crate) use s4d::S4d;
pub(crate) use ssm::Ssm;
pub use ssm::SsmShape;

use crate::Config;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
pub use strata_tensor::infer::CacheFormat;
use strata_tensor::infer::{KeyValueCache, PackedWeight};
use strata_tensor::{Activation, Buffers, Cpu, Isa, ParameterId, Tape, Var, bf16};

/// A sequence mixer of one shape; the weights come from outside, so blocks of the same shape share one.
pub trait Mixer: Debug + Send + Sync {
    /// The weights, in the order in which the other methods get them. None at all means that the block mixes
    /// nothing: it then has no norm before the mixer either, and nothing else is called.
    fn weights(&self) -> Vec<Weight>;

    /// The train form: the residual stream after the mixer. Segments do not see each other.
    fn forward<E: Activation>(&self, tape: &mut Tape<'_, E>, whole: &Whole<'_>) -> Var
    where
        Self: Sized;

    /// The state before any token; keys and values, where it has some, in `format`.
    fn new_state(&self, isa: Isa, format: CacheFormat) -> Carried;

    /// The step form: what the mixer adds to the residual stream. What a sequence gets does not depend, to the
    /// bit, on the other sequences, on the pieces it is read in or on the number of threads.
    fn step(&self, cpu: &Cpu, weights: &[Packed], step: Step<'_, '_>);

    /// Bytes of a sequence's state after `length` tokens.
    fn state_bytes(&self, length: usize, format: CacheFormat) -> usize;

    /// Floating-point operations per token of the forward pass, averaged over a sequence of `length`, beyond two for
    /// every element of the projection matrices.
    fn flops(&self, length: usize) -> f64;

    /// Longest sequence that it can step through, in tokens.
    fn context(&self) -> usize {
        UNBOUNDED
    }
}

/// The context of what has no limit of its own: far beyond what anything is trained on, and no sum overflows.
pub const UNBOUNDED: usize = 1 << 20;

/// A weight of a mixer: one parameter in memory, one or several tensors on disk.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Rows (outputs) and columns (inputs); a vector has one row.
    pub shape: (usize, usize),
    /// How it is used.
    pub kind: Kind,
    /// Names (behind the block's prefix) and shapes of the tensors whose rows it consists of, in order.
    pub tensors: Vec<(&'static str, Vec<usize>)>,
    /// What it holds before training.
    pub start: Start,
}

/// What a weight is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Multiplied by activations: packed for decoding, under weight decay.
    Projection,
    /// Read element by element, under weight decay.
    Table,
    /// Read element by element, without weight decay.
    Vector,
}

/// What a weight holds before training.
#[derive(Clone, Debug)]
pub enum Start {
    /// Normal numbers, deviation `0.5 / sqrt(columns)`.
    Normal,
    /// As [`Start::Normal`], divided by `sqrt(2 · layers)`: for what writes into the residual stream.
    Residual,
    /// One number throughout.
    Fill(f32),
    /// These numbers.
    Values(Vec<f32>),
}

impl Weight {
    /// A projection (outputs, inputs) that is one tensor on disk.
    pub fn projection(name: &'static str, outputs: usize, inputs: usize, start: Start) -> Weight {
        let tensors = vec![(name, vec![outputs, inputs])];
        Weight { shape: (outputs, inputs), kind: Kind::Projection, tensors, start }
    }

    /// A vector that is one tensor on disk.
    pub fn vector(name: &'static str, length: usize, start: Start) -> Weight {
        Weight { shape: (1, length), kind: Kind::Vector, tensors: vec![(name, vec![length])], start }
    }
}

/// What the train form works on.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// The mixer's weights.
    pub weights: &'a [ParameterId],
    /// The normed input.
    pub x: Var,
    /// The residual stream, to which the result is to be added.
    pub residual: Var,
    /// Where each packed segment starts, ascending from 0.
    pub starts: &'a [u32],
}

/// A weight as decoding reads it.
#[derive(Debug)]
pub enum Packed {
    /// For [`strata_tensor::infer::project`].
    Projection(PackedWeight),
    /// Element by element.
    Plain(Vec<f32>),
}

impl Packed {
    /// The packed matrix.
    ///
    /// # Panics
    /// Where the weight is none of [`Kind::Projection`].
    pub fn projection(&self) -> &PackedWeight {
        match self {
            Packed::Projection(weight) => weight,
            Packed::Plain(_) => panic!("a weight is read as a projection and is none"),
        }
    }

    /// The numbers.
    ///
    /// # Panics
    /// Where the weight is of [`Kind::Projection`].
    pub fn plain(&self) -> &[f32] {
        match self {
            Packed::Plain(weight) => weight,
            Packed::Projection(_) => panic!("a projection is read element by element"),
        }
    }
}

/// What a sequence carries from step to step in one block.
#[derive(Clone, Debug)]
pub enum Carried {
    /// Nothing.
    Nothing,
    /// Keys and values of every token: grows with the sequence, and can be cut.
    Cache(KeyValueCache),
    /// So many numbers for every token: grows with the sequence, and can be cut.
    Rows {
        /// Numbers per token.
        width: usize,
        /// Those of all tokens, behind each other.
        values: Vec<f32>,
    },
    /// A fixed number of numbers that every token overwrites: what was before cannot be had back.
    Fixed(Vec<f32>),
}

impl Carried {
    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Carried::Nothing => 0,
            Carried::Cache(cache) => cache.bytes(),
            Carried::Fixed(state) | Carried::Rows { values: state, .. } => size_of_val(state.as_slice()),
        }
    }

    /// Has the memory for so many tokens that will come soon.
    pub(crate) fn expect(&mut self, new: usize) {
        if let Carried::Cache(cache) = self {
            cache.expect(new);
        }
    }

    /// Whether an earlier state can be had from this one.
    pub(crate) fn can_be_cut(&self) -> bool {
        !matches!(self, Carried::Fixed(_))
    }

    /// The state after the first `length` tokens, which must be all of them where it cannot be cut.
    pub(crate) fn prefix(&self, length: usize) -> Carried {
        match self {
            Carried::Cache(cache) => Carried::Cache(cache.prefix(length)),
            Carried::Rows { width, values } => {
                Carried::Rows { width: *width, values: values[..length * width].to_vec() }
            }
            whole => whole.clone(),
        }
    }

    /// Whether this is a state of the mixer that began with `empty`.
    pub(crate) fn belongs_with(&self, empty: &Carried) -> bool {
        match (self, empty) {
            (Carried::Nothing, Carried::Nothing) => true,
            (Carried::Cache(cache), Carried::Cache(empty)) => cache.fits(empty),
            (Carried::Rows { width, .. }, Carried::Rows { width: of_empty, .. }) => width == of_empty,
            (Carried::Fixed(state), Carried::Fixed(empty)) => state.len() == empty.len(),
            _ => false,
        }
    }

    /// The numbers of [`Carried::Fixed`].
    ///
    /// # Panics
    /// Where the state is another.
    pub fn fixed(&mut self) -> &mut [f32] {
        match self {
            Carried::Fixed(state) => state,
            _ => panic!("a state of fixed size was expected"),
        }
    }
}

/// The new tokens of one sequence in a step.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The sequence's state in this block.
    pub carried: &'a mut Carried,
    /// New tokens, at least one.
    pub new: usize,
    /// Tokens before them.
    pub position: usize,
}

/// What the step form works on.
#[derive(Debug)]
pub struct Step<'a, 'b> {
    /// The normed inputs: a row per new token, sequence after sequence.
    pub x: &'a [f32],
    /// The sequences.
    pub pieces: &'a mut [Piece<'b>],
    /// Whether only the last token of each sequence has a result: `y` then has a row per sequence.
    pub last_only: bool,
    /// The results, overwritten: a row per new token.
    pub y: &'a mut [f32],
    /// Where temporary buffers come from and go back to.
    pub buffers: &'a mut Buffers,
    /// Where [`strata_tensor::infer::project`] keeps inputs in the form that a weight wants.
    pub words: &'a mut Vec<u32>,
}

impl Step<'_, '_> {
    /// Keeps of `rows` (of `width` elements, one per new token) what `y` wants results of: the last row of every
    /// sequence, moved to the front, where `last_only`. Returns how many rows that are.
    pub fn keep_wanted(&self, rows: &mut [f32], width: usize) -> usize {
        if !self.last_only {
            return rows.len() / width;
        }
        let mut end = 0;
        for (i, piece) in self.pieces.iter().enumerate() {
            end += piece.new;
            rows.copy_within((end - 1) * width..end * width, i * width);
        }
        self.pieces.len()
    }
}

/// A [`Mixer`] behind a pointer: the generic train form as one method per element type. Implemented for every mixer.
pub trait AnyMixer: Mixer {
    /// [`Mixer::forward`] in f32.
    fn forward_f32(&self, tape: &mut Tape<'_, f32>, whole: &Whole<'_>) -> Var;
    /// [`Mixer::forward`] in bf16.
    fn forward_bf16(&self, tape: &mut Tape<'_, bf16>, whole: &Whole<'_>) -> Var;
}

impl<M: Mixer> AnyMixer for M {
    fn forward_f32(&self, tape: &mut Tape<'_, f32>, whole: &Whole<'_>) -> Var {
        self.forward(tape, whole)
    }
    fn forward_bf16(&self, tape: &mut Tape<'_, bf16>, whole: &Whole<'_>) -> Var {
        self.forward(tape, whole)
    }
}

/// The mixer of every block of a configuration.
pub(crate) fn of(config: &Config) -> Vec<Arc<dyn AnyMixer>> {
    let mut made: HashMap<Letter, Arc<dyn AnyMixer>> = HashMap::new();
    let letters = config.mixing.letters(config.layers);
    letters.map(|letter| made.entry(letter).or_insert_with(|| make(letter, config)).clone()).collect()
}

fn make(letter: Letter, config: &Config) -> Arc<dyn AnyMixer> {
    match letter {
        Letter::Attention => Arc::new(Attention::new(config)),
        Letter::Ssm => Arc::new(Ssm::new(config)),
        Letter::Lstm => Arc::new(Lstm::new(config)),
        Letter::S4d => Arc::new(S4d::new(config)),
        Letter::Nothing => Arc::new(Nothing),
    }
}
