//! Keys and values of the tokens that a sequence has seen, laid out as the tiles read them.

use crate::Isa;
use crate::attention::Heads;
use crate::buffer::Lines;
#[cfg(target_arch = "x86_64")]
use crate::grouped::{self, fp16};
use crate::projection::{WeightFormat, columns};
use crate::tile::{Panels, bfloat16};

/// What keys and values are held in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CacheFormat {
    /// f32: the reference.
    F32,
    /// bf16: half the bytes. Where dot products of bf16 are used ([`Isa::prefers_bf16_dot`](crate::Isa::prefers_bf16_dot)), queries and the
    /// weights of attention are rounded too. Where [`Isa::attends_in_fp16`](crate::Isa::attends_in_fp16) says so, all of these are fp16 instead, with a
    /// scale for each position and head.
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

    /// Words that hold so many elements.
    fn words(self, elements: usize) -> usize {
        elements.div_ceil(self.elements())
    }
}

/// How keys and values lie in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    F32,
    Bf16,
    /// Panels as [`crate::grouped`] multiplies them.
    #[cfg(target_arch = "x86_64")]
    Fp16,
}

/// The keys and values of one layer in words that hold an f32, or two bf16 or fp16 that are neighbours in depth. Keys lie in panels of as
/// many positions as a tile has columns: per panel, head and word of dimensions those of its positions. Values lie position by
/// position (or pair by pair), head after head, each filled up with zeros to whole panels of dimensions. So both grow at
/// their end.
///
/// In fp16 every head of a panel of keys begins with the scales of its keys and ends with those of its values. The words are
/// finite, so that zero times what nobody sees is zero.
#[derive(Clone, Debug)]
pub struct KeyValueCache {
    isa: Isa,
    heads: Heads,
    format: CacheFormat,
    length: usize,
    keys: Lines,
    values: Lines,
}

/// Words of keys that are rounded at one time.
const ROUNDED: usize = 64;

/// Positions that there is room for with the first one.
const FIRST_POSITIONS: usize = 64;

impl KeyValueCache {
    /// A cache without positions, for the tiles of `isa`.
    pub fn new(isa: Isa, heads: Heads, format: CacheFormat) -> KeyValueCache {
        KeyValueCache { isa, heads, format, length: 0, keys: Lines::new(), values: Lines::new() }
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
        self.keys.bytes() + self.values.bytes()
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
        let (keys, values) = (self.keys.prefix(keys), self.values.prefix(values));
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
        self.fit();
        #[cfg(target_arch = "x86_64")]
        if self.layout() == Layout::Fp16 {
            return self.set_fp16(position, keys, values);
        }
        let start = position / width * self.panel_words() + position % width;
        let row = position / self.format.elements() * self.row_words();
        // Heads that leave no gap are written as one.
        let keys_at_once = if d.is_multiple_of(self.format.elements()) { elements } else { d };
        let values_at_once = if padded == d { elements } else { d };
        let to_keys = self.keys.words_mut()[start..].chunks_mut(self.format.words(keys_at_once) * width);
        let to_values = self.values.words_mut()[row..].chunks_mut(values_at_once.next_multiple_of(width));
        let (high, format) = (position % 2 == 1, self.format);
        for (keys, to) in keys.chunks_exact(keys_at_once).zip(to_keys) {
            let mut to = to.iter_mut().step_by(width);
            match format {
                CacheFormat::F32 => to.zip(keys).for_each(|(to, key)| *to = key.to_bits()),
                // Rounded side by side first: they lie apart where they go.
                CacheFormat::Bf16 => {
                    for keys in keys.chunks(2 * ROUNDED) {
                        let mut words = [0; ROUNDED];
                        bfloat16::set_pairs(self.isa, keys, &mut words);
                        to.by_ref()
                            .zip(&words[..format.words(keys.len())])
                            .for_each(|(to, word)| *to = *word);
                    }
                }
            }
        }
        for (values, to) in values.chunks_exact(values_at_once).zip(to_values) {
            let to = &mut to[..values_at_once];
            match format {
                CacheFormat::F32 => to.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_bits()),
                CacheFormat::Bf16 => bfloat16::set_halves(self.isa, values, high, to),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn set_fp16(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let (isa, columns, d, padded) =
            (self.isa, self.columns(), self.heads.dimension, self.padded_dimension());
        let (panel_words, head_words, row_words) = (self.panel_words(), self.head_words(), self.row_words());
        let panel = &mut self.keys.words_mut()[position / columns * panel_words..];
        let row = &mut self.values.words_mut()[position / fp16::ELEMENTS * row_words..];
        let places = panel.chunks_exact_mut(head_words).zip(row.chunks_exact_mut(padded));
        for ((keys, values), (panel, row)) in keys.chunks_exact(d).zip(values.chunks_exact(d)).zip(places) {
            let (panel, value_scales) = panel.split_at_mut(head_words - columns);
            fp16::fill_column(isa, keys, columns, position % columns, panel);
            let scale = fp16::set_halves(isa, values, position % 2 == 1, &mut row[..d]);
            value_scales[position % columns] = scale.to_bits();
        }
    }

    /// The half of the last word of values that no position has yet is zero, so that it can be multiplied.
    fn clear_half(&mut self) {
        if self.layout() == Layout::Bf16 && self.length % 2 == 1 {
            let row = self.length / 2 * self.row_words();
            self.values.words_mut()[row..].iter_mut().for_each(|word| *word &= 0xffff);
        }
    }

    /// Makes the memory as long as the positions need.
    fn fit(&mut self) {
        if self.length > 0 && self.keys.bytes() == 0 {
            // Growing bit by bit from nothing costs a short answer more than its attention.
            let (keys, values) = self.words(FIRST_POSITIONS);
            self.keys.reserve(keys);
            self.values.reserve(values);
        }
        let (keys, values) = self.words(self.length);
        self.keys.resize(keys);
        self.values.resize(values);
    }

    /// Words of keys and of values for `length` positions.
    fn words(&self, length: usize) -> (usize, usize) {
        (length.div_ceil(self.columns()) * self.panel_words(), self.format.words(length) * self.row_words())
    }

    /// Words of a panel of keys, of all heads.
    fn panel_words(&self) -> usize {
        self.heads.key_value_heads * self.head_words()
    }

    /// Words of a panel of the keys of one head.
    pub(crate) fn head_words(&self) -> usize {
        match self.layout() {
            #[cfg(target_arch = "x86_64")]
            Layout::Fp16 => {
                let keys = grouped::panel_words(self.heads.dimension, fp16::ELEMENTS, self.columns());
                keys + self.columns()
            }
            _ => self.format.words(self.heads.dimension) * self.columns(),
        }
    }

    /// Words of the values of a position, or of a pair of them, of all heads.
    fn row_words(&self) -> usize {
        self.heads.key_value_heads * self.padded_dimension()
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
        let stride = self.panel_words();
        let data = &self.keys.words()[panel * stride + head * self.head_words()..];
        Panels { data, stride, depth_stride: self.columns() }
    }

    /// The scales of a panel of values of one head, in fp16.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn value_scales(&self, head: usize, panel: usize) -> &[f32] {
        let end = panel * self.panel_words() + (head + 1) * self.head_words();
        &self.keys.floats()[end - self.columns()..end]
    }

    pub(crate) fn layout(&self) -> Layout {
        match self.format {
            CacheFormat::F32 => Layout::F32,
            #[cfg(target_arch = "x86_64")]
            CacheFormat::Bf16 if self.isa.attends_in_fp16() => Layout::Fp16,
            CacheFormat::Bf16 => Layout::Bf16,
        }
    }

    /// The values of one head from `position` on, the first of a word.
    pub(crate) fn values(&self, head: usize, position: usize) -> Panels<'_> {
        let depth_stride = self.row_words();
        let row = position / self.format.elements() * depth_stride;
        let data = &self.values.words()[row + head * self.padded_dimension()..];
        Panels { data, stride: self.columns(), depth_stride }
    }
}
