//! Attention in arithmetic of fp16, from scores to sums of values, with powers of two for values and weights. Keys and values are in fp16
//! too ([`Halves`]), or in int8 ([`Bytes`]).
//!
//! Rows of a tile are multiplied with all that the last of them sees: what a row does not see has the weight zero, and the words
//! of values are finite. So a row's sums have the same bits in any tile. Keys need not be finite: one that is not spoils the scores
//! of its own position, which are masked for those who do not see it.

use super::{Part, ROWS, Scratch};
use crate::cache::KeyValueCache;
use crate::grouped::fp16::{ELEMENTS, Fp16};
use crate::grouped::{self, Family, GROUP, Left, Right, Shape, multiply};
use crate::projection::{columns, tiles};
use crate::tile::{Panels, power_of_two_up_to};
use crate::{BlockMut, Store};
pub(super) use bytes::Bytes;
pub(super) use halves::Halves;
use scores::{Held, Keys};
use std::ops::Range;
use vector::VECTOR;
use weights::weigh;

mod bytes;
mod halves;
mod scores;
mod vector;
mod weights;

pub(super) fn block<H: Held>(
    cache: &KeyValueCache,
    part: Part,
    qkv: &[f32],
    first: usize,
    output: &mut BlockMut<'_, f32>,
    scratch: &mut Scratch,
) {
    let (isa, heads, columns) = (cache.isa(), cache.heads(), columns(cache.isa()));
    let (d, count, all) = (heads.dimension, part.rows.len(), part.len());
    let seen = |row: usize| part.seen(row, first, heads.group());
    let Scratch { queries, scores, sums, left, .. } = scratch;

    let queries = queries.at_least(all * d);
    // Scores count powers of two.
    part.queries(heads, heads.scale() * std::f32::consts::LOG2_E, qkv, queries);
    let row_words = grouped::row_words(d, H::ELEMENTS);
    let prepared = left.words_at_least(all * row_words);
    H::prepare_queries(isa, d, queries, prepared);

    let panels = seen(count - 1).div_ceil(columns);
    let width = panels * VECTOR;
    let scores = scores.words_at_least(all * width);
    let together = Together::of(count, part.heads.len());
    let steps = d.div_ceil(H::ELEMENTS);
    // Panels of which somebody sees the second half.
    let whole = (seen(count - 1) + columns / 2 - 1) / columns;
    for side in together.heads(part.heads.len()) {
        let mut panel = 0;
        while panel < panels {
            let Panels { data, stride, .. } = cache.keys(part.heads.start + side.start, panel);
            let stride = together.stride(stride, cache.head_words());
            let half = panel == whole;
            let next = if half { 1 } else { together.panels(whole - panel) };
            for (group, start) in (0..steps).step_by(GROUP / H::ELEMENTS).enumerate() {
                let depth = (steps - start).min(GROUP / H::ELEMENTS);
                let scales = (steps - start) * columns + group * H::SCALE_WORDS;
                let keys = Keys { words: &data[start * columns..], stride, scales, half };
                let store = if group == 0 { Store::Overwrite } else { Store::Accumulate };
                for tile in tiles(Fp16::ROWS, count) {
                    let row = side.start * count + tile.start;
                    let words = &prepared[row * row_words + start..];
                    let left = Left { words, ends: steps - start + 2 * group, stride: row_words };
                    let (shape, corner) = (together.shape(&tile, &side, next), (row, panel));
                    scores::multiply::<H>(isa, (shape, depth), left, keys, (scores, width), corner, store);
                }
            }
            panel += next;
        }
    }

    let (mut visible, mut inverses) = ([0; ROWS], [0.0; ROWS]);
    visible[..count].iter_mut().enumerate().for_each(|(row, visible)| *visible = seen(row));
    let (row_words, padded) = (grouped::row_words(panels * columns, ELEMENTS), cache.padded_dimension());
    let weights = left.words_at_least(all * row_words);
    let exponents = |head| cache.value_exponents(part.heads.start + head);
    weigh(
        isa,
        (scores, width),
        &visible[..count],
        (exponents, H::VALUES_BELOW),
        weights,
        &mut inverses[..all],
    );

    let sums = sums.at_least(all * padded);
    let mut place = BlockMut::new(sums, padded);
    for side in together.heads(part.heads.len()) {
        for group in 0..seen(count - 1).div_ceil(GROUP) {
            let first = group * GROUP / ELEMENTS;
            let ends = width - first + 2 * group;
            let store = if group == 0 { Store::Overwrite } else { Store::Accumulate };
            let Panels { data, stride, depth_stride: step, .. } =
                cache.values(part.heads.start + side.start, group * GROUP);
            let (panel_words, stride) = (stride, together.stride(stride, cache.value_words()));
            for tile in tiles(Fp16::ROWS, count) {
                let positions = seen(tile.end - 1).saturating_sub(group * GROUP).min(GROUP);
                let row = side.start * count + tile.start;
                let left = Left { words: &weights[row * row_words + first..], ends, stride: row_words };
                let mut panel = 0;
                while panel < padded / columns && positions > 0 {
                    let values = Right::Plain { words: &data[panel * panel_words..], stride, step };
                    let next = together.panels(padded / columns - panel);
                    let (shape, corner) = (together.shape(&tile, &side, next), (row, panel * columns));
                    let depth = positions.div_ceil(ELEMENTS);
                    multiply::<H::Values>(isa, (shape, depth), left, values, &mut place, corner, store);
                    panel += next;
                }
            }
        }
    }
    part.write(heads, (sums, padded), &inverses, output);
}

/// What is computed in one loop: several heads where there are four or more and each has a single row, whose sums are too few to keep
/// a core busy, else several panels of one head.
#[derive(Clone, Copy)]
struct Together {
    heads: usize,
    panels: usize,
}

impl Together {
    /// For so many rows of each of some heads.
    fn of(rows: usize, heads: usize) -> Together {
        let tile = tiles(Fp16::ROWS, rows).next().map_or(1, |tile| tile.len());
        if rows == 1 && heads >= 4 {
            Together { heads: 4, panels: 1 }
        } else {
            Together { heads: 1, panels: Fp16::side_by_side(tile) }
        }
    }

    /// All `heads`, so many at one time.
    fn heads(self, heads: usize) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let side = start..start + power_of_two_up_to(self.heads, heads - start);
            start = side.end;
            (side.end <= heads).then_some(side)
        })
    }

    /// Panels at one time where so many are left.
    fn panels(self, left: usize) -> usize {
        power_of_two_up_to(self.panels, left)
    }

    /// How far the next panel is: that of the same head, or the same of the next.
    fn stride(self, panel: usize, head: usize) -> usize {
        if self.heads > 1 { head } else { panel }
    }

    fn shape(self, tile: &Range<usize>, heads: &Range<usize>, panels: usize) -> Shape {
        match self.heads {
            1 => Shape::Whole { rows: tile.len(), panels },
            _ => Shape::Singles(heads.len()),
        }
    }
}
