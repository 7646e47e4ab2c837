//! Keys and values of the tokens that a sequence has seen, laid out as the tiles read them.

use crate::Isa;
use crate::attention::Heads;
use crate::buffer::Lines;
use crate::projection::{WeightFormat, columns};
use crate::tile::{Panels, bfloat16};

/// What keys and values are held in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CacheFormat {
    /// f32: the reference.
    F32,
    /// bf16: half the bytes. Where dot products of bf16 are used ([`Isa::prefers_bf16_dot`](crate::Isa::prefers_bf16_dot)), queries and the
    /// weights of attention are rounded too.
    Bf16,
}

impl CacheFormat {
    /// What goes with weights in `format`: beside rounded weights there is no use for exact keys.
    pub fn beside(format: WeightFormat) -> CacheFormat {
        if format == WeightFormat::F32 { CacheFormat::F32 } else { CacheFormat::Bf16 }
    }

    /// Elements in a word of 32 bits.
    pub fn elements(self) -> usize {
        if self == CacheFormat::F32 { 1 } else { 2 }
    }
}

/// The keys and values of one layer, head by head, in words that hold an f32, or two bf16 that are neighbours in depth. Keys
/// lie in panels of as many positions as a tile has columns: per panel and word of dimensions those of its positions.
/// Values lie position by position (or pair by pair), filled up with zeros to whole panels of dimensions.
#[derive(Clone, Debug)]
pub struct KeyValueCache {
    isa: Isa,
    heads: Heads,
    format: CacheFormat,
    length: usize,
    keys: Vec<Lines>,
    values: Vec<Lines>,
}

/// Words of keys that are rounded at one time.
const ROUNDED: usize = 64;

/// Positions that there is room for with the first one.
const FIRST_POSITIONS: usize = 64;

impl KeyValueCache {
    /// A cache without positions, for the tiles of `isa`.
    pub fn new(isa: Isa, heads: Heads, format: CacheFormat) -> KeyValueCache {
        let empty = vec![Lines::new(); heads.key_value_heads];
        KeyValueCache { isa, heads, format, length: 0, keys: empty.clone(), values: empty }
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
            self.clear_half();
        }
    }

    /// Whether the cache is laid out as `other` is.
    pub fn fits(&self, other: &KeyValueCache) -> bool {
        columns(self.isa) == columns(other.isa) && self.heads == other.heads && self.format == other.format
    }

    /// A copy of the first `length` positions, or of all where there are fewer.
    pub fn prefix(&self, length: usize) -> KeyValueCache {
        let length = length.min(self.length);
        let (keys, values) = self.words(length);
        let copy = |heads: &[Lines], length| heads.iter().map(|head| head.prefix(length)).collect();
        let (keys, values) = (copy(&self.keys, keys), copy(&self.values, values));
        let mut cut =
            KeyValueCache { isa: self.isa, heads: self.heads, format: self.format, length, keys, values };
        cut.clear_half();
        cut
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
        // Else looking at every head costs a small model as much as the rest of this.
        if position.is_multiple_of(self.format.elements()) {
            self.fit();
        }
        let start = position / width * self.key_words() * width + position % width;
        let row = position / self.format.elements() * padded;
        let heads = self.keys.iter_mut().zip(&mut self.values);
        let (high, format) = (position % 2 == 1, self.format);
        for ((to_keys, to_values), (keys, values)) in
            heads.zip(keys.chunks_exact(d).zip(values.chunks_exact(d)))
        {
            let mut to_keys = to_keys.words_mut()[start..].iter_mut().step_by(width);
            let to_values = &mut to_values.words_mut()[row..][..d];
            match format {
                CacheFormat::F32 => {
                    to_keys.zip(keys).for_each(|(to, key)| *to = key.to_bits());
                    to_values.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_bits());
                }
                CacheFormat::Bf16 => {
                    // Rounded side by side first: they lie apart where they go.
                    for keys in keys.chunks(2 * ROUNDED) {
                        let mut words = [0; ROUNDED];
                        bfloat16::set_pairs(self.isa, keys, &mut words);
                        to_keys
                            .by_ref()
                            .zip(&words[..keys.len().div_ceil(2)])
                            .for_each(|(to, word)| *to = *word);
                    }
                    bfloat16::set_halves(self.isa, values, high, to_values);
                }
            }
        }
    }

    /// The half of the last word of values that no position has yet is zero, so that it can be multiplied.
    fn clear_half(&mut self) {
        if self.format == CacheFormat::Bf16 && self.length % 2 == 1 {
            let row = self.length / 2 * self.padded_dimension();
            self.values
                .iter_mut()
                .for_each(|head| head.words_mut()[row..].iter_mut().for_each(|word| *word &= 0xffff));
        }
    }

    /// Makes the memory as long as the positions need.
    fn fit(&mut self) {
        if self.length > 0 && self.keys.iter().any(|head| head.bytes() == 0) {
            // Growing bit by bit from nothing costs a short answer more than its attention.
            let (keys, values) = self.words(FIRST_POSITIONS);
            self.keys.iter_mut().for_each(|head| head.reserve(keys));
            self.values.iter_mut().for_each(|head| head.reserve(values));
        }
        let (keys, values) = self.words(self.length);
        self.keys.iter_mut().for_each(|head| head.resize(keys));
        self.values.iter_mut().for_each(|head| head.resize(values));
    }

    /// Words of a head's keys and of its values for `length` positions.
    fn words(&self, length: usize) -> (usize, usize) {
        let values = length.div_ceil(self.format.elements()) * self.padded_dimension();
        (length.next_multiple_of(self.columns()) * self.key_words(), values)
    }

    /// Words of a position's keys of one head.
    fn key_words(&self) -> usize {
        self.heads.dimension.div_ceil(self.format.elements())
    }

    pub(crate) fn isa(&self) -> Isa {
        self.isa
    }

    pub(crate) fn heads(&self) -> Heads {
        self.heads
    }

    pub(crate) fn format(&self) -> CacheFormat {
        self.format
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
        let stride = self.key_words() * self.columns();
        Panels { data: &self.keys[head].words()[panel * stride..], stride, depth_stride: self.columns() }
    }

    /// The values of one head from `position` on, the first of a word.
    pub(crate) fn values(&self, head: usize, position: usize) -> Panels<'_> {
        let depth_stride = self.padded_dimension();
        let data = &self.values[head].words()[position / self.format.elements() * depth_stride..];
        Panels { data, stride: self.columns(), depth_stride }
    }
}
