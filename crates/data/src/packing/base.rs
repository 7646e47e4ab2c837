//! Batches of the base stage: documents one after the other, cut where a row ends.

use std::sync::Arc;

use super::{Batch, BatchOptions, BatchesState, order};
use crate::error::DataError;
use crate::shards::Shard;

/// Batches from a shard.
///
/// Endless batches take pieces of documents, each of a few rows, in an order of their own: a corpus of a few long
/// documents would else be read source by source, and a run would end with what came last. Nothing is lost by it, since
/// no row sees what was in the one before.
///
/// A document that does not fit into what is left of a row goes on in the next row, as a segment of its
/// own; the last position before the cut still predicts the true next token, so that each token of the
/// shard is a target exactly once an epoch.
#[derive(Debug)]
pub struct BaseBatches {
    shard: Arc<Shard>,
    options: BatchOptions,
    /// Documents, and the first position of a piece of each.
    pieces: Vec<(u32, u64)>,
    order: Vec<u32>,
    epoch: u64,
    item: u64,
    offset: u64,
    scratch: Vec<u32>,
}

impl BaseBatches {
    /// Batches from the start of `shard`.
    ///
    /// # Errors
    /// A shape without positions, a shard without documents or with more than 2^32.
    pub fn new(shard: Arc<Shard>, options: BatchOptions) -> Result<BaseBatches, DataError> {
        options.check()?;
        if shard.documents() == 0 || u32::try_from(shard.documents()).is_err() {
            return Err(DataError::Setting {
                what: "shard",
                problem: format!(
                    "{} holds {} documents, expected between 1 and 2^32",
                    shard.path().display(),
                    shard.documents()
                ),
            });
        }
        let pieces = pieces(&shard, options);
        if u32::try_from(pieces.len()).is_err() {
            let problem = format!("{} holds more than 2^32 pieces of documents", shard.path().display());
            return Err(DataError::Setting { what: "shard", problem });
        }
        let mut batches = BaseBatches {
            shard,
            options,
            pieces,
            order: Vec::new(),
            epoch: 0,
            item: 0,
            offset: 0,
            scratch: Vec::new(),
        };
        batches.reorder();
        Ok(batches)
    }

    /// Positions of one epoch: every token and every end is a target once.
    pub fn positions_per_epoch(&self) -> u64 {
        self.shard.tokens() + self.shard.documents()
    }

    /// The next batch; `None` only after the one pass that was asked for.
    ///
    /// # Errors
    /// [`DataError::Shard`] when the shard turns out to be damaged.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, DataError> {
        let BatchOptions { rows, sequence, .. } = self.options;
        let mut batch = Batch::default();
        for row in 0..rows {
            self.fill_row(&mut batch, row * sequence, sequence)?;
        }
        Ok((batch.weights.iter().any(|weight| *weight > 0.0)).then_some(batch))
    }

    /// Where the next batch starts.
    pub fn position(&self) -> BatchesState {
        BatchesState {
            seed: self.options.seed,
            sequence: self.options.sequence as u64,
            items: self.pieces.len() as u64,
            tokens: self.shard.tokens(),
            epoch: self.epoch,
            item: self.item,
            offset: self.offset,
        }
    }

    /// Continues from a saved position.
    ///
    /// # Errors
    /// [`DataError::Setting`] when it belongs to another shard, seed or row length.
    pub fn seek(&mut self, state: &BatchesState) -> Result<(), DataError> {
        state.check(&self.position(), self.pieces.len() as u64)?;
        (self.epoch, self.item, self.offset) = (state.epoch, state.item, state.offset);
        self.reorder();
        Ok(())
    }

    fn reorder(&mut self) {
        let count = self.pieces.len();
        self.order = if self.options.endless {
            order(count, self.options.seed, self.epoch)
        } else {
            (0..count as u32).collect()
        };
    }

    fn fill_row(&mut self, batch: &mut Batch, row_start: usize, sequence: usize) -> Result<(), DataError> {
        let row_end = row_start + sequence;
        while batch.tokens.len() < row_end {
            let piece = self.order.get(self.item as usize).map(|piece| self.pieces[*piece as usize]);
            let Some((document, first)) = piece.map(|(document, first)| (u64::from(document), first)) else {
                if !self.options.endless {
                    pad(batch, row_end, self.shard.end_token());
                    return Ok(());
                }
                self.epoch += 1;
                self.item = 0;
                self.reorder();
                continue;
            };
            // Position p reads token p - 1 (the beginning, for 0) and predicts token p (the end, for n).
            let positions =
                (self.shard.document_tokens(document) + 1 - first).min(piece_length(self.options));
            let count = (positions - self.offset.min(positions)).min((row_end - batch.tokens.len()) as u64);
            if count > 0 {
                self.segment(batch, document, first + self.offset, count as usize)?;
            }
            self.offset += count;
            if self.offset >= positions {
                self.item += 1;
                self.offset = 0;
            }
        }
        Ok(())
    }

    /// Appends `count` positions of `document` from `first` on as one segment.
    fn segment(
        &mut self,
        batch: &mut Batch,
        document: u64,
        first: u64,
        count: usize,
    ) -> Result<(), DataError> {
        batch.starts.push(batch.tokens.len() as u32);
        self.scratch.clear();
        if first == 0 {
            self.scratch.push(self.shard.begin_token());
        }
        let from = first.saturating_sub(1);
        self.shard.read(document, from, count + 1 - self.scratch.len(), &mut self.scratch)?;
        if self.scratch.len() == count {
            self.scratch.push(self.shard.end_token());
        }
        batch.tokens.extend_from_slice(&self.scratch[..count]);
        let targets = &self.scratch[1..];
        batch.targets.extend_from_slice(targets);
        batch.weights.resize(batch.tokens.len(), 1.0);
        let lengths = self.shard.byte_lengths();
        batch.bytes += targets.iter().map(|token| u64::from(lengths[*token as usize])).sum::<u64>();
        Ok(())
    }
}

/// Rows of a piece: many enough that few rows are cut by a border, few enough that sources mix.
const PIECE_ROWS: u64 = 4;

/// Positions of a piece at most: documents stay whole in one pass in the order of the data.
fn piece_length(options: BatchOptions) -> u64 {
    if options.endless { PIECE_ROWS * options.sequence as u64 } else { u64::MAX }
}

/// All pieces: the document, and its first position.
fn pieces(shard: &Shard, options: BatchOptions) -> Vec<(u32, u64)> {
    let length = piece_length(options);
    let mut pieces = Vec::with_capacity(shard.documents() as usize);
    for document in 0..shard.documents() {
        let count = (shard.document_tokens(document) + 1).div_ceil(length);
        pieces.extend((0..count).map(|piece| (document as u32, piece * length)));
    }
    pieces
}

/// Fills up to `end` with a segment of weight 0.
pub(super) fn pad(batch: &mut Batch, end: usize, token: u32) {
    if batch.tokens.len() < end {
        batch.starts.push(batch.tokens.len() as u32);
        batch.tokens.resize(end, token);
        batch.targets.resize(end, token);
        batch.weights.resize(end, 0.0);
    }
}
