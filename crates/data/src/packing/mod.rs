//! Packing: documents and examples into rows of a fixed length, with targets and weights.
//!
//! A row is cut into segments, and attention never crosses from one to another. Position `i` reads
//! `tokens[i]` and is to predict `targets[i]`; a text of n tokens takes n + 1 positions (it is predicted
//! from its beginning up to its end), and the token that ends it is only ever a target.

mod base;
mod examples;
#[cfg(test)]
mod tests;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

pub use base::BaseBatches;
pub use examples::{ExampleBatches, Fitted, LongExamples, TokenisedExample, fit_examples, tokenise_examples};

/// One batch of packed sequences, flat: row after row, `rows × sequence` positions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// What each position reads.
    pub tokens: Vec<u32>,
    /// What each position is to predict.
    pub targets: Vec<u32>,
    /// Factor on the loss of each position; 0 where there is nothing to learn.
    pub weights: Vec<f32>,
    /// First position of every segment, ascending, starting with 0; every row starts one. The last
    /// segment ends at `tokens.len()`.
    pub starts: Vec<u32>,
    /// UTF-8 bytes the weighted targets stand for: of the text, or of the examples' answers. Bits per byte are the
    /// weighted sum of the loss in nats / ln 2 / `bytes`.
    pub bytes: u64,
}

/// The shape of a batch and the order of what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchOptions {
    /// Rows of a batch.
    pub rows: usize,
    /// Positions of a row.
    pub sequence: usize,
    /// Seed of the order; equal seeds give equal batches.
    pub seed: u64,
    /// True for endless batches in a new order each epoch; false for one pass in the order of the data,
    /// whose last batch is filled up with positions of weight 0 (for measuring).
    pub endless: bool,
}

impl BatchOptions {
    fn check(&self) -> Result<(), DataError> {
        let positions = self.rows.checked_mul(self.sequence).filter(|n| u32::try_from(*n).is_ok());
        match positions {
            Some(0) | None => Err(DataError::Setting {
                what: "batch shape",
                problem: format!(
                    "expected at least one row and one position, below 2^32 positions together, got {} × {}",
                    self.rows, self.sequence
                ),
            }),
            Some(_) => Ok(()),
        }
    }
}

/// Where batches continue. Restored with `seek` on the same data and options, exactly the batches follow
/// that would have followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchesState {
    /// Seed of the order.
    pub seed: u64,
    /// Positions of a row.
    pub sequence: u64,
    /// Pieces of documents, or examples, in the data, to notice a state that belongs to other data.
    pub items: u64,
    /// Tokens in the data, for the same purpose.
    pub tokens: u64,
    /// Passes over the data begun before this one.
    pub epoch: u64,
    /// Next piece or row in the order of this epoch.
    pub item: u64,
    /// Next position within that piece.
    pub offset: u64,
}

impl BatchesState {
    /// Checks that `self` can continue where `current` stands at its start.
    fn check(&self, current: &BatchesState, item_count: u64) -> Result<(), DataError> {
        let same = |state: &BatchesState| (state.seed, state.sequence, state.items, state.tokens);
        if same(self) != same(current) {
            return Err(DataError::Setting {
                what: "saved position",
                problem: format!(
                    "it belongs to other data or settings: seed {}, sequence {}, {} items, {} tokens were saved and \
                     {}, {}, {}, {} are here; continue with what the run began with",
                    self.seed,
                    self.sequence,
                    self.items,
                    self.tokens,
                    current.seed,
                    current.sequence,
                    current.items,
                    current.tokens
                ),
            });
        }
        if self.item > item_count {
            return Err(DataError::Setting {
                what: "saved position",
                problem: format!("it is at item {} of {item_count}; the file is damaged", self.item),
            });
        }
        Ok(())
    }
}

/// The numbers 0 to `count` - 1 in an order that `seed` and `epoch` decide. Written out (Fisher and
/// Yates, as Knuth's algorithm P) because the order must stay the same when the random crates change.
fn order(count: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<u32> = (0..count as u32).collect();
    for last in (1..count).rev() {
        // The high half of a product is uniform up to 2^-32 for the counts that occur here.
        let other = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, other as usize);
    }
    order
}
