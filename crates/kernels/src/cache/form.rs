//! How keys and values lie in memory.

use crate::Isa;
use crate::attention::Heads;
#[cfg(target_arch = "x86_64")]
use crate::grouped::{GROUP, fp16};
use crate::projection::{WeightFormat, columns};

/// What keys and values are held in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CacheFormat {
    /// f32: the reference.
    F32,
    /// bf16: half the bytes. Where dot products of bf16 are used ([`Isa::prefers_bf16_dot`](crate::Isa::prefers_bf16_dot)), queries and the
    /// weights of attention are rounded too. Where [`Isa::attends_in_fp16`](crate::Isa::attends_in_fp16) says so, all of these are fp16 instead, with
    /// powers of two: one for the values of each position and head, one for each 128 dimensions of its key.
    Bf16,
    /// int8: a quarter of the bytes. Keys, and the queries that they are multiplied with, have a scale for each 128 dimensions of a
    /// position and head, values a power of two for each position and head. All else is fp16.
    Int8,
}

impl CacheFormat {
    /// What goes with weights in `format`: beside rounded weights there is no use for exact keys.
    pub fn beside(format: WeightFormat, isa: Isa) -> CacheFormat {
        match format {
            WeightFormat::F32 => CacheFormat::F32,
            WeightFormat::Int8 if CacheFormat::Int8.usable(isa) => CacheFormat::Int8,
            WeightFormat::Bf16 | WeightFormat::Int8 => CacheFormat::Bf16,
        }
    }

    /// Whether there is attention to it.
    pub fn usable(self, isa: Isa) -> bool {
        self != CacheFormat::Int8 || isa.attends_in_fp16() && isa.has_avx512_vnni()
    }

    /// Elements in a word of 32 bits.
    pub fn elements(self) -> usize {
        match self {
            CacheFormat::F32 => 1,
            CacheFormat::Bf16 => 2,
            CacheFormat::Int8 => 4,
        }
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
    /// As [`Layout::Fp16`], of bytes: four of a key to a word, and two positions' of a value to a half of one.
    #[cfg(target_arch = "x86_64")]
    Int8,
}

/// What decides the places of keys and values, and what follows from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub isa: Isa,
    pub heads: Heads,
    pub format: CacheFormat,
    pub layout: Layout,
    /// Positions of a panel of keys, dimensions of a panel of values; an even number.
    pub columns: usize,
    /// Words of a panel of the keys of one head.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub key_words: usize,
    /// The same with the scales that follow them.
    pub head_words: usize,
    /// Dimensions of a head with the zeros that fill its last panel.
    pub padded_dimension: usize,
    /// Positions whose values lie in one row.
    pub row_positions: usize,
    /// Dimensions of values in one word.
    pub value_elements: usize,
}

impl Form {
    /// # Panics
    /// Where there is no attention to `format`.
    pub fn new(isa: Isa, heads: Heads, format: CacheFormat) -> Form {
        assert!(format.usable(isa), "cache: no attention to {format:?} with {isa:?}");
        let layout = match format {
            CacheFormat::F32 => Layout::F32,
            #[cfg(target_arch = "x86_64")]
            CacheFormat::Bf16 if isa.attends_in_fp16() => Layout::Fp16,
            #[cfg(target_arch = "x86_64")]
            CacheFormat::Int8 => Layout::Int8,
            _ => Layout::Bf16,
        };
        let (columns, dimension) = (columns(isa), heads.dimension);
        let key_words = dimension.div_ceil(format.elements()) * columns;
        let scales = match layout {
            Layout::F32 | Layout::Bf16 => 0,
            #[cfg(target_arch = "x86_64")]
            Layout::Fp16 => (dimension.div_ceil(GROUP) + 1) * (columns / fp16::ELEMENTS),
            #[cfg(target_arch = "x86_64")]
            Layout::Int8 => dimension.div_ceil(GROUP) * columns + columns / fp16::ELEMENTS,
        };
        Form {
            isa,
            heads,
            format,
            layout,
            columns,
            key_words,
            head_words: key_words + scales,
            padded_dimension: dimension.next_multiple_of(columns),
            row_positions: format.elements().min(2),
            value_elements: format.elements().div_ceil(2),
        }
    }

    /// Whether memory of this form is memory of the other.
    pub fn is_as(self, other: Form) -> bool {
        self.columns == other.columns && self.heads == other.heads && self.format == other.format
    }

    /// Words of keys and of values for `length` positions.
    pub fn words(self, length: usize) -> (usize, usize) {
        let (panels, rows) = (length.div_ceil(self.columns), length.div_ceil(self.row_positions));
        (panels * self.panel_words(), rows * self.row_words())
    }

    /// Words of a panel of keys, of all heads.
    pub fn panel_words(self) -> usize {
        self.heads.key_value_heads * self.head_words
    }

    /// Words of the values of a position, or of a pair of them, of one head.
    pub fn value_words(self) -> usize {
        self.padded_dimension / self.value_elements
    }

    /// Words of the values of a position, or of a pair of them, of all heads.
    pub fn row_words(self) -> usize {
        self.heads.key_value_heads * self.value_words()
    }
}
