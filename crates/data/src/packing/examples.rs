//! Batches of the command and dialogue stages: whole examples, several to a row.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::base::pad;
use super::{Batch, BatchOptions, BatchesState, order};
use crate::error::DataError;
use crate::message::{Example, Origin, Role};
use crate::tokenizer::Tokenizer;

/// Rows that are kept open while examples are put into the first that has room. More would fill rows
/// little better and make packing slower.
const OPEN_ROWS: usize = 64;

/// An example as tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenisedExample {
    /// The tokens, with those that begin the dialogue and end its turns.
    pub ids: Vec<u32>,
    /// For each token the factor on its loss: the example's weight where it is to be learned, else 0.
    pub weights: Vec<f32>,
    /// UTF-8 bytes of its answers, those that [`fit_examples`] cut off included.
    pub answer_bytes: u64,
    /// Where the example comes from.
    pub origin: Origin,
}

impl TokenisedExample {
    /// Positions it takes in a row: the last token is only a target.
    pub fn positions(&self) -> usize {
        self.ids.len().saturating_sub(1)
    }
}

/// Tokenises `examples` on all cores; the order stays.
///
/// # Errors
/// [`DataError::Template`] or [`DataError::Tokenizer`] of the first example that fails.
pub fn tokenise_examples(
    tokenizer: &Tokenizer,
    examples: &[Example],
) -> Result<Vec<TokenisedExample>, DataError> {
    let tokenise = |example: &Example| {
        let tokens = tokenizer.encode_chat(&example.messages).map_err(|error| match error {
            DataError::Template { problem } => {
                DataError::Template { problem: format!("{}: {problem}", example.origin) }
            }
            other => other,
        })?;
        let weights =
            tokens.loss_mask.iter().map(|learn| if *learn { example.weight } else { 0.0 }).collect();
        let answers = example.messages.iter().filter(|message| message.role == Role::Assistant);
        let answer_bytes = answers.map(|message| message.content.len() as u64).sum();
        Ok(TokenisedExample { ids: tokens.ids, weights, answer_bytes, origin: example.origin.clone() })
    };
    // Collected first: of several errors, the one of the first example is to be reported.
    let all: Vec<Result<TokenisedExample, DataError>> = examples.par_iter().map(tokenise).collect();
    all.into_iter().collect()
}

/// What to do with examples that are longer than a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongExamples {
    /// Refuse them, naming file and line.
    #[default]
    Error,
    /// Cut off their ends; what then has nothing left to learn is dropped.
    Truncate,
    /// Leave them out.
    Drop,
}

/// How many examples were cut and left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fitted {
    /// Examples that lost their end.
    pub truncated: u64,
    /// Examples left out.
    pub dropped: u64,
}

/// Brings examples to at most `sequence` positions.
///
/// # Errors
/// [`DataError::LongExample`] for the first one that is longer, when asked for errors.
pub fn fit_examples(
    examples: Vec<TokenisedExample>,
    sequence: usize,
    long: LongExamples,
) -> Result<(Vec<TokenisedExample>, Fitted), DataError> {
    let mut fitted = Fitted::default();
    let mut kept = Vec::with_capacity(examples.len());
    for mut example in examples {
        if example.positions() > sequence {
            match long {
                LongExamples::Error => {
                    return Err(DataError::LongExample {
                        tokens: example.positions(),
                        origin: example.origin,
                        sequence,
                    });
                }
                LongExamples::Drop => {
                    fitted.dropped += 1;
                    continue;
                }
                LongExamples::Truncate => {
                    example.ids.truncate(sequence + 1);
                    example.weights.truncate(sequence + 1);
                    if !example.weights.iter().any(|weight| *weight > 0.0) {
                        fitted.dropped += 1;
                        continue;
                    }
                    fitted.truncated += 1;
                }
            }
        }
        kept.push(example);
    }
    Ok((kept, fitted))
}

/// Batches of whole examples.
///
/// Each epoch the examples are shuffled and put, one after the other, into the first of the open rows
/// that has room; none is ever split. What is left of a row is filled up with positions of weight 0 in
/// a segment of their own.
#[derive(Debug)]
pub struct ExampleBatches {
    examples: Arc<Vec<TokenisedExample>>,
    options: BatchOptions,
    pad: u32,
    tokens: u64,
    /// The rows of this epoch: indices of examples.
    plan: Vec<Vec<u32>>,
    epoch: u64,
    row: u64,
}

impl ExampleBatches {
    /// Batches from the start of `examples`; `pad` is the token that fills rows up.
    ///
    /// # Errors
    /// A shape without positions, no example with anything to learn, or one longer than a row
    /// ([`fit_examples`] deals with these).
    pub fn new(
        examples: Arc<Vec<TokenisedExample>>,
        options: BatchOptions,
        pad: u32,
    ) -> Result<ExampleBatches, DataError> {
        options.check()?;
        if let Some(long) = examples.iter().find(|example| example.positions() > options.sequence) {
            return Err(DataError::LongExample {
                origin: long.origin.clone(),
                tokens: long.positions(),
                sequence: options.sequence,
            });
        }
        let learns = |example: &TokenisedExample| example.weights.iter().skip(1).any(|weight| *weight > 0.0);
        if !examples.iter().any(learns) || u32::try_from(examples.len()).is_err() {
            return Err(DataError::Setting {
                what: "examples",
                problem: format!(
                    "{} examples, and none has anything to learn; check their answers and weights",
                    examples.len()
                ),
            });
        }
        let tokens = examples.iter().map(|example| example.ids.len() as u64).sum();
        let mut batches =
            ExampleBatches { examples, options, pad, tokens, plan: Vec::new(), epoch: 0, row: 0 };
        batches.replan();
        Ok(batches)
    }

    /// Rows of the current epoch; other epochs may have a few more or fewer.
    pub fn rows_per_epoch(&self) -> usize {
        self.plan.len()
    }

    /// The next batch; `None` only after the one pass that was asked for.
    pub fn next_batch(&mut self) -> Option<Batch> {
        let BatchOptions { rows, sequence, endless, .. } = self.options;
        if !endless && self.row as usize >= self.plan.len() {
            return None;
        }
        let mut batch = Batch::default();
        for row in 0..rows {
            if endless && self.row as usize >= self.plan.len() {
                self.epoch += 1;
                self.row = 0;
                self.replan();
            }
            for example in self.plan.get(self.row as usize).into_iter().flatten() {
                append(&mut batch, &self.examples[*example as usize]);
            }
            self.row += 1;
            pad(&mut batch, (row + 1) * sequence, self.pad);
        }
        Some(batch)
    }

    /// Where the next batch starts.
    pub fn position(&self) -> BatchesState {
        BatchesState {
            seed: self.options.seed,
            sequence: self.options.sequence as u64,
            items: self.examples.len() as u64,
            tokens: self.tokens,
            epoch: self.epoch,
            item: self.row,
            offset: 0,
        }
    }

    /// Continues from a saved position.
    ///
    /// # Errors
    /// [`DataError::Setting`] when it belongs to other examples, another seed or row length.
    pub fn seek(&mut self, state: &BatchesState) -> Result<(), DataError> {
        // No epoch has more rows than examples; a batch of one pass may end beyond its last row.
        state.check(&self.position(), self.examples.len() as u64 + self.options.rows as u64)?;
        (self.epoch, self.row) = (state.epoch, state.item);
        self.replan();
        Ok(())
    }

    fn replan(&mut self) {
        let count = self.examples.len();
        let order = if self.options.endless {
            order(count, self.options.seed, self.epoch)
        } else {
            (0..count as u32).collect()
        };
        self.plan = first_fit(&self.examples, &order, self.options.sequence);
    }
}

/// Puts examples into the first of the last [`OPEN_ROWS`] rows that has room.
fn first_fit(examples: &[TokenisedExample], order: &[u32], sequence: usize) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut room: Vec<usize> = Vec::new();
    for index in order {
        let length = examples[*index as usize].positions();
        if length == 0 {
            continue;
        }
        let open = rows.len().saturating_sub(OPEN_ROWS);
        match (open..rows.len()).find(|row| room[*row] >= length) {
            Some(row) => {
                rows[row].push(*index);
                room[row] -= length;
            }
            None => {
                rows.push(vec![*index]);
                room.push(sequence - length);
            }
        }
    }
    rows
}

fn append(batch: &mut Batch, example: &TokenisedExample) {
    let positions = example.positions();
    batch.starts.push(batch.tokens.len() as u32);
    batch.tokens.extend_from_slice(&example.ids[..positions]);
    batch.targets.extend_from_slice(&example.ids[1..]);
    batch.weights.extend_from_slice(&example.weights[1..]);
    batch.bytes += example.answer_bytes;
}
