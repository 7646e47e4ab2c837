//! How keys and values lie in memory.

use crate::Isa;
use crate::attention::Heads;
#[cfg(target_arch = "x86_64")]
use crate::grouped::{self, fp16};
use crate::projection::{WeightFormat, columns};

/// What keys and values are held in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum CacheFormat {
    /// f32: the reference.
    F32,
    /// bf16: half the bytes. Where dot products of bf16 are used ([`Isa::prefers_bf16_dot`](crate::Isa::prefers_bf16_dot)), queries and the
    /// weights of attention are rounded too. Where [`Isa::attends_in_fp16`](crate::Isa::attends_in_fp16) says so, all of these are fp16 instead, with
    /// scales in f32: of keys and values two for each position and head.
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

/// What decides the places of keys and values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub isa: Isa,
    pub heads: Heads,
    pub format: CacheFormat,
}

impl Form {
    pub fn layout(self) -> Layout {
        match self.format {
            CacheFormat::F32 => Layout::F32,
            #[cfg(target_arch = "x86_64")]
            CacheFormat::Bf16 if self.isa.attends_in_fp16() => Layout::Fp16,
            CacheFormat::Bf16 => Layout::Bf16,
        }
    }

    /// Whether memory of this form is memory of the other.
    pub fn is_as(self, other: Form) -> bool {
        columns(self.isa) == columns(other.isa) && self.heads == other.heads && self.format == other.format
    }

    /// Words of keys and of values for `length` positions.
    pub fn words(self, length: usize) -> (usize, usize) {
        (length.div_ceil(self.columns()) * self.panel_words(), self.format.words(length) * self.row_words())
    }

    /// Words of a panel of keys, of all heads.
    pub fn panel_words(self) -> usize {
        self.heads.key_value_heads * self.head_words()
    }

    /// Words of a panel of the keys of one head.
    pub fn head_words(self) -> usize {
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
    pub fn row_words(self) -> usize {
        self.heads.key_value_heads * self.padded_dimension()
    }

    /// Positions of a panel of keys, dimensions of a panel of values; an even number.
    pub fn columns(self) -> usize {
        columns(self.isa)
    }

    /// Dimensions of a head with the zeros that fill its last panel.
    pub fn padded_dimension(self) -> usize {
        self.heads.dimension.next_multiple_of(self.columns())
    }
}
