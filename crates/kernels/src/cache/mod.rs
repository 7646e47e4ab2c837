//! Keys and values of the tokens that a sequence has seen, laid out as the tiles read them.

mod form;
#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod int8;
mod new_positions;

pub use form::CacheFormat;
pub(crate) use form::Layout;
pub use new_positions::NewPositions;

use crate::Isa;
use crate::attention::Heads;
use crate::buffer::Lines;
#[cfg(target_arch = "x86_64")]
use crate::grouped::fp16::ELEMENTS;
use crate::tile::Panels;
use form::Form;

/// The keys and values of one layer in words that hold an f32, or two bf16 or fp16 that are neighbours in depth. Keys lie in panels of as
/// many positions as a tile has columns: per panel, head and word of dimensions those of its positions. Values lie position by
/// position (or pair by pair), head after head, each filled up with zeros to whole panels of dimensions. So both grow at
/// their end.
///
/// In fp16 what is kept is a power of two smaller, and every head of a panel of keys ends with the exponents of these powers as fp16: those
/// of the keys, for each group of dimensions, then those of the values. The words of values are finite, so that zero times what nobody
/// sees is zero. In int8 the keys have scales in f32 instead, and words hold four dimensions of a key, or two of the values of two positions.
#[derive(Clone, Debug)]
pub struct KeyValueCache {
    form: Form,
    length: usize,
    keys: Lines,
    values: Lines,
}

/// Positions to come that there is room for with the first ones, and behind a copy.
const FURTHER_POSITIONS: usize = 64;

impl KeyValueCache {
    /// A cache without positions, for the tiles of `isa`.
    pub fn new(isa: Isa, heads: Heads, format: CacheFormat) -> KeyValueCache {
        let form = Form::new(isa, heads, format);
        KeyValueCache { form, length: 0, keys: Lines::new(), values: Lines::new() }
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
            self.fit(self.length);
            self.clear_half();
        }
    }

    /// Whether the cache is laid out as `other` is.
    pub fn fits(&self, other: &KeyValueCache) -> bool {
        self.form.is_as(other.form)
    }

    /// A copy of the first `length` positions, or of all where there are fewer, with room for some more.
    pub fn prefix(&self, length: usize) -> KeyValueCache {
        let length = length.min(self.length);
        let ((keys, values), room) = (self.form.words(length), self.form.words(length + FURTHER_POSITIONS));
        let (keys, values) = (self.keys.prefix(keys, room.0), self.values.prefix(values, room.1));
        let mut cut = KeyValueCache { form: self.form, length, keys, values };
        cut.clear_half();
        cut
    }

    /// Has the memory for so many positions that will be added soon. Adding them has it too, and adding fewer gives the rest back:
    /// this is for many caches, of which each thread can take some, since new memory is cleared.
    pub fn expect(&mut self, new: usize) {
        self.fit(self.length + new);
    }

    /// Adds positions, a row of `qkv` (as [`Heads`] describes it, the keys turned) for each. They are in the cache once all
    /// that is given back was written.
    ///
    /// # Panics
    /// Where `qkv` is not whole rows.
    pub fn extend<'a>(&'a mut self, qkv: &'a [f32]) -> impl Iterator<Item = NewPositions<'a>> {
        let (form, before, row) = (self.form, self.length, self.form.heads.row());
        assert!(qkv.len().is_multiple_of(row), "cache: {} elements are no rows of {row}", qkv.len());
        self.length += qkv.len() / row;
        self.fit(self.length);
        let width = form.columns;
        let (panel, rows) = form.words(width);
        let (first_panel, first) = (before / width, before % width);
        let keys = self.keys.words_mut()[first_panel * panel..].chunks_mut(panel);
        let values = self.values.words_mut()[first_panel * rows..].chunks_mut(rows);
        let mut rest = qkv;
        keys.zip(values).enumerate().map_while(move |(i, (keys, values))| {
            let first = if i == 0 { first } else { 0 };
            let (qkv, after) = rest.split_at(rest.len().min((width - first) * row));
            rest = after;
            (!qkv.is_empty()).then_some(NewPositions { form, first, qkv, keys, values })
        })
    }

    /// The half of the last word of values that no position has yet is zero, so that it can be multiplied.
    fn clear_half(&mut self) {
        if self.layout() == Layout::Bf16 && self.length % 2 == 1 {
            let row = self.length / 2 * self.form.row_words();
            self.values.words_mut()[row..].iter_mut().for_each(|word| *word &= 0xffff);
        }
    }

    /// Makes the memory as long as so many positions need.
    fn fit(&mut self, length: usize) {
        if length > 0 && self.keys.bytes() == 0 {
            // Growing bit by bit from nothing costs a short answer more than its attention.
            let (keys, values) = self.form.words(length + FURTHER_POSITIONS);
            self.keys.reserve(keys);
            self.values.reserve(values);
        }
        let (keys, values) = self.form.words(length);
        self.keys.resize(keys);
        self.values.resize(values);
    }

    pub(crate) fn isa(&self) -> Isa {
        self.form.isa
    }

    pub(crate) fn heads(&self) -> Heads {
        self.form.heads
    }

    pub(crate) fn layout(&self) -> Layout {
        self.form.layout
    }

    /// Words of a panel of the keys of one head.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn head_words(&self) -> usize {
        self.form.head_words
    }

    /// Words of a row of the values of one head.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn value_words(&self) -> usize {
        self.form.value_words()
    }

    /// Dimensions of a head with the zeros that fill its last panel.
    pub(crate) fn padded_dimension(&self) -> usize {
        self.form.padded_dimension
    }

    /// The keys of one head from panel `panel` on.
    pub(crate) fn keys(&self, head: usize, panel: usize) -> Panels<'_> {
        let stride = self.form.panel_words();
        let data = &self.keys.words()[panel * stride + head * self.form.head_words..];
        Panels { data, stride, depth_stride: self.form.columns, next: &[] }
    }

    /// The exponents of the values of one head, as fp16: those of the first panel, and how far the next are.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn value_exponents(&self, head: usize) -> (&[u32], usize) {
        let start = (head + 1) * self.form.head_words - self.form.columns / ELEMENTS;
        (&self.keys.words()[start..], self.form.panel_words())
    }

    /// The values of one head from `position` on, the first of a word.
    pub(crate) fn values(&self, head: usize, position: usize) -> Panels<'_> {
        let depth_stride = self.form.row_words();
        let row = position / self.form.row_positions * depth_stride;
        let data = &self.values.words()[row + head * self.form.value_words()..];
        Panels { data, stride: self.form.columns / self.form.value_elements, depth_stride, next: &[] }
    }
}
