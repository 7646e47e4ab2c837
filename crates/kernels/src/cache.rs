//! Keys and values of the tokens that a sequence has seen, laid out as the tiles read them.

use crate::Isa;
use crate::attention::Heads;
use crate::buffer::Lines;
use crate::projection::columns;
use crate::tile::Panels;
use std::ops::Range;

/// Positions of a block of values.
pub(crate) const BLOCK: usize = 32;

/// The keys and values of one layer. Keys lie in panels of positions: per panel, head and dimension the elements of
/// as many positions as a tile has columns. Values lie in blocks of [`BLOCK`] positions: per block and head, panels
/// of as many dimensions as a tile has columns.
#[derive(Clone, Debug)]
pub struct KeyValueCache {
    isa: Isa,
    heads: Heads,
    length: usize,
    keys: Lines,
    values: Lines,
}

impl KeyValueCache {
    /// A cache without positions, for the tiles of `isa`.
    pub fn new(isa: Isa, heads: Heads) -> KeyValueCache {
        KeyValueCache { isa, heads, length: 0, keys: Lines::new(), values: Lines::new() }
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no position.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Memory of the keys and values in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.keys.floats()) + size_of_val(self.values.floats())
    }

    /// Forgets the positions from `length` on.
    pub fn truncate(&mut self, length: usize) {
        if length < self.length {
            self.length = length;
            self.fit();
        }
    }

    /// Whether the cache is laid out for these heads and the tiles of `isa`.
    pub fn fits(&self, isa: Isa, heads: Heads) -> bool {
        columns(self.isa) == columns(isa) && self.heads == heads
    }

    /// Adds a position: its keys, turned, and its values (`key_value_heads · dimension` elements each).
    ///
    /// # Panics
    /// Where keys or values have another length.
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        let (d, width) = (self.heads.dimension, self.columns());
        let elements = self.heads.key_value_heads * d;
        assert!(keys.len() == elements && values.len() == elements, "cache: not {elements} keys and values");
        let position = self.length;
        self.length += 1;
        self.fit();
        let start = position / width * elements * width + position % width;
        for (to, key) in self.keys.floats_mut()[start..].iter_mut().step_by(width).zip(keys) {
            *to = *key;
        }
        let block = position / BLOCK * self.heads.key_value_heads * self.head_values();
        for (head, values) in values.chunks_exact(d).enumerate() {
            let start = block + head * self.head_values() + position % BLOCK * width;
            for (panel, values) in values.chunks(width).enumerate() {
                let start = start + panel * BLOCK * width;
                self.values.floats_mut()[start..start + values.len()].copy_from_slice(values);
            }
        }
    }

    /// Makes the memory as long as the positions need.
    fn fit(&mut self) {
        let elements = self.heads.key_value_heads * self.heads.dimension;
        self.keys.resize(self.length.next_multiple_of(self.columns()) * elements);
        let blocks = self.length.div_ceil(BLOCK);
        self.values.resize(blocks * self.heads.key_value_heads * self.head_values());
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn heads(&self) -> Heads {
        self.heads
    }

    /// Positions of a panel of keys, dimensions of a panel of values.
    fn columns(&self) -> usize {
        columns(self.isa)
    }

    /// Dimensions of a head with the zeros that fill its last panel.
    pub(crate) fn padded_dimension(&self) -> usize {
        self.heads.dimension.next_multiple_of(self.columns())
    }

    /// Elements of a head's values in a block.
    fn head_values(&self) -> usize {
        BLOCK * self.padded_dimension()
    }

    /// The keys of one head from panel `panel` on.
    pub(crate) fn keys(&self, head: usize, panel: usize) -> Panels<'_> {
        let stride = self.heads.key_value_heads * self.heads.dimension * self.columns();
        let start = panel * stride + head * self.heads.dimension * self.columns();
        Panels { data: &self.keys.floats()[start..], stride }
    }

    /// The values of one head at `positions`, which lie in one block, from panel `panel` of its dimensions on.
    pub(crate) fn values(&self, head: usize, panel: usize, positions: &Range<usize>) -> Panels<'_> {
        let (block, slot) = (positions.start / BLOCK, positions.start % BLOCK);
        let start = (block * self.heads.key_value_heads + head) * self.head_values();
        let start = start + panel * BLOCK * self.columns() + slot * self.columns();
        Panels { data: &self.values.floats()[start..], stride: BLOCK * self.columns() }
    }
}
