//! Places of new keys and values.

use super::form::{CacheFormat, Form, Layout};
#[cfg(target_arch = "x86_64")]
use super::{fp16, int8};
#[cfg(target_arch = "x86_64")]
use crate::grouped::{GROUP, fp16::ELEMENTS, int8::ELEMENTS as BYTES};
use crate::tile::bfloat16;

/// Words of keys that are rounded at one time.
const ROUNDED: usize = 64;

/// New positions of a panel: what is to be written, and where. Several threads can each write some of them.
#[derive(Debug)]
#[must_use = "their keys and values are not in the cache yet"]
pub struct NewPositions<'a> {
    pub(super) form: Form,
    /// The first position within the panel.
    pub(super) first: usize,
    /// Rows as [`Heads`](crate::attention::Heads) describes them, a position in each.
    pub(super) qkv: &'a [f32],
    /// The panel of keys, and all rows of values that go with its positions.
    pub(super) keys: &'a mut [u32],
    pub(super) values: &'a mut [u32],
}

impl NewPositions<'_> {
    /// Writes their keys and values.
    pub fn write(mut self) {
        let heads = self.form.heads;
        for (i, row) in self.qkv.chunks_exact(heads.row()).enumerate() {
            let (keys, values) =
                row[heads.key_start(0)..].split_at(heads.value_start(0) - heads.key_start(0));
            match self.form.layout {
                #[cfg(target_arch = "x86_64")]
                Layout::Fp16 => self.write_fp16(self.first + i, keys, values),
                #[cfg(target_arch = "x86_64")]
                Layout::Int8 => self.write_int8(self.first + i, keys, values),
                Layout::F32 | Layout::Bf16 => self.write_plain(self.first + i, keys, values),
            }
        }
    }

    fn write_plain(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let Form { isa, heads, format, .. } = self.form;
        let (d, elements) = (heads.dimension, keys.len());
        let (width, padded, row_words) =
            (self.form.columns, self.form.padded_dimension, self.form.row_words());
        // Heads that leave no gap are written as one.
        let keys_at_once = if d.is_multiple_of(format.elements()) { elements } else { d };
        let values_at_once = if padded == d { elements } else { d };
        let words_of = |keys: usize| keys.div_ceil(format.elements());
        let to_keys = self.keys[position..].chunks_mut(words_of(keys_at_once) * width);
        let row = position / format.elements() * row_words;
        let to_values = self.values[row..].chunks_mut(values_at_once.next_multiple_of(width));
        for (keys, to) in keys.chunks_exact(keys_at_once).zip(to_keys) {
            let mut to = to.iter_mut().step_by(width);
            match format {
                CacheFormat::F32 => to.zip(keys).for_each(|(to, key)| *to = key.to_bits()),
                // Rounded side by side first: they lie apart where they go.
                _ => {
                    for keys in keys.chunks(2 * ROUNDED) {
                        let mut words = [0; ROUNDED];
                        bfloat16::set_pairs(isa, keys, &mut words);
                        to.by_ref().zip(&words[..words_of(keys.len())]).for_each(|(to, word)| *to = *word);
                    }
                }
            }
        }
        for (values, to) in values.chunks_exact(values_at_once).zip(to_values) {
            let to = &mut to[..values_at_once];
            match format {
                CacheFormat::F32 => to.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_bits()),
                _ => bfloat16::set_halves(isa, values, position % 2 == 1, to),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn write_fp16(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let Form { isa, columns, key_words, head_words, padded_dimension: padded, .. } = self.form;
        let (d, row) = (self.form.heads.dimension, position / ELEMENTS * self.form.row_words());
        let vector = columns / ELEMENTS;
        // Not chunks of heads: their number takes a division each, which a single position feels.
        for head in 0..self.form.heads.key_value_heads {
            let (words, exponents) = self.keys[head * head_words..][..head_words].split_at_mut(key_words);
            let mut set = |group: usize, exponent| {
                set_half(&mut exponents[group * vector..][..vector], position, exponent);
            };
            let keys = keys[head * d..][..d].chunks(GROUP);
            for (group, keys) in keys.enumerate() {
                let words = &mut words[group * GROUP / ELEMENTS * columns..];
                set(group, fp16::set_column(isa, keys, columns, position, words));
            }
            let row = &mut self.values[row + head * padded..][..d];
            let exponent = fp16::set_halves(isa, &values[head * d..][..d], position % 2 == 1, row);
            set(d.div_ceil(GROUP), exponent);
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn write_int8(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let Form { isa, columns, key_words, head_words, .. } = self.form;
        let (d, of_head) = (self.form.heads.dimension, self.form.value_words());
        let row = position / self.form.row_positions * self.form.row_words();
        for head in 0..self.form.heads.key_value_heads {
            let (words, scales) = self.keys[head * head_words..][..head_words].split_at_mut(key_words);
            for (group, keys) in keys[head * d..][..d].chunks(GROUP).enumerate() {
                let words = &mut words[group * GROUP / BYTES * columns..];
                let scale = int8::set_column(isa, keys, columns, position, words);
                scales[group * columns + position] = scale.to_bits();
            }
            let row = &mut self.values[row + head * of_head..][..of_head];
            let exponent = int8::set_values(isa, &values[head * d..][..d], position % 2 == 1, row);
            set_half(&mut scales[d.div_ceil(GROUP) * columns..], position, exponent);
        }
    }
}

/// Sets one of the elements that lie two to a word.
#[cfg(target_arch = "x86_64")]
fn set_half(words: &mut [u32], at: usize, bits: u16) {
    let shift = 16 * (at % 2);
    let word = &mut words[at / 2];
    *word = *word & !(0xffff << shift) | u32::from(bits) << shift;
}
