//! How keys and values lie in memory.

use crate::Isa;
use crate::attention::Heads;
#[cfg(target_arch = "x86_64")]
use crate::grouped::GROUP;
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
    pub(super) fn words(self, elements: usize) -> usize {
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
    pub head_words: usize,
    /// Dimensions of a head with the zeros that fill its last panel.
    pub padded_dimension: usize,
}

impl Form {
    pub fn new(isa: Isa, heads: Heads, format: CacheFormat) -> Form {
        let layout = match format {
            CacheFormat::F32 => Layout::F32,
            #[cfg(target_arch = "x86_64")]
            CacheFormat::Bf16 if isa.attends_in_fp16() => Layout::Fp16,
            CacheFormat::Bf16 => Layout::Bf16,
        };
        let (columns, dimension) = (columns(isa), heads.dimension);
        let head_words = match layout {
            #[cfg(target_arch = "x86_64")]
            Layout::Fp16 => {
                let exponents = dimension.div_ceil(GROUP) + 1;
                format.words(dimension) * columns + format.words(exponents * columns)
            }
            _ => format.words(dimension) * columns,
        };
        let padded_dimension = dimension.next_multiple_of(columns);
        Form { isa, heads, format, layout, columns, head_words, padded_dimension }
    }

    /// Whether memory of this form is memory of the other.
    pub fn is_as(self, other: Form) -> bool {
        self.columns == other.columns && self.heads == other.heads && self.format == other.format
    }

    /// Words of keys and of values for `length` positions.
    pub fn words(self, length: usize) -> (usize, usize) {
        (length.div_ceil(self.columns) * self.panel_words(), self.format.words(length) * self.row_words())
    }

    /// Words of a panel of keys, of all heads.
    pub fn panel_words(self) -> usize {
        self.heads.key_value_heads * self.head_words
    }

    /// Words of the values of a position, or of a pair of them, of all heads.
    pub fn row_words(self) -> usize {
        self.heads.key_value_heads * self.padded_dimension
    }
}
