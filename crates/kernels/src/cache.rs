//! Keys and values of the tokens that a sequence has seen, laid out as the tiles read them.

use crate::Isa;
use crate::attention::Heads;
use crate::buffer::Lines;
use crate::projection::columns;
use crate::tile::Panels;

/// The keys and values of one layer, head by head. Keys lie in panels of as many positions as a tile has columns: per
/// panel and dimension the elements of its positions. Values lie position by position, filled up with zeros to whole
/// panels of dimensions.
#[derive(Clone, Debug)]
pub struct KeyValueCache {
    isa: Isa,
    heads: Heads,
    length: usize,
    keys: Vec<Lines>,
    values: Vec<Lines>,
}

impl KeyValueCache {
    /// A cache without positions, for the tiles of `isa`.
    pub fn new(isa: Isa, heads: Heads) -> KeyValueCache {
        let empty = vec![Lines::new(); heads.key_value_heads];
        KeyValueCache { isa, heads, length: 0, keys: empty.clone(), values: empty }
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there is no position.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Memory held for keys and values in bytes, some of it for positions to come.
    pub fn bytes(&self) -> usize {
        self.keys.iter().chain(&self.values).map(Lines::bytes).sum()
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

    /// A copy of the first `length` positions, or of all where there are fewer.
    pub fn prefix(&self, length: usize) -> KeyValueCache {
        let length = length.min(self.length);
        let keys = length.next_multiple_of(self.columns()) * self.heads.dimension;
        let values = length * self.padded_dimension();
        let copy = |heads: &[Lines], length| heads.iter().map(|head| head.prefix(length)).collect();
        KeyValueCache {
            isa: self.isa,
            heads: self.heads,
            length,
            keys: copy(&self.keys, keys),
            values: copy(&self.values, values),
        }
    }

    /// Adds a position: its keys, turned, and its values (`key_value_heads · dimension` elements each).
    ///
    /// # Panics
    /// Where keys or values have another length.
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        let (d, width, padded) = (self.heads.dimension, self.columns(), self.padded_dimension());
        let elements = self.heads.key_value_heads * d;
        assert!(keys.len() == elements && values.len() == elements, "cache: not {elements} keys and values");
        let position = self.length;
        self.length += 1;
        self.fit();
        let start = position / width * d * width + position % width;
        for (head, keys) in keys.chunks_exact(d).enumerate() {
            for (to, key) in self.keys[head].floats_mut()[start..].iter_mut().step_by(width).zip(keys) {
                *to = *key;
            }
        }
        for (head, values) in values.chunks_exact(d).enumerate() {
            self.values[head].floats_mut()[position * padded..][..d].copy_from_slice(values);
        }
    }

    /// Makes the memory as long as the positions need.
    fn fit(&mut self) {
        let keys = self.length.next_multiple_of(self.columns()) * self.heads.dimension;
        self.keys.iter_mut().for_each(|head| head.resize(keys));
        let values = self.length * self.padded_dimension();
        self.values.iter_mut().for_each(|head| head.resize(values));
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

    /// The keys of one head from panel `panel` on.
    pub(crate) fn keys(&self, head: usize, panel: usize) -> Panels<'_> {
        let stride = self.heads.dimension * self.columns();
        Panels { data: &self.keys[head].floats()[panel * stride..], stride, depth_stride: self.columns() }
    }

    /// The values of one head from `position` and panel `panel` of its dimensions on.
    pub(crate) fn values(&self, head: usize, panel: usize, position: usize) -> Panels<'_> {
        let (stride, depth_stride) = (self.columns(), self.padded_dimension());
        Panels {
            data: &self.values[head].floats()[position * depth_stride + panel * stride..],
            stride,
            depth_stride,
        }
    }
}
