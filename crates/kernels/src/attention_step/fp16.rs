//! Attention in arithmetic of fp16. Keys and values have a scale each, weights one for every group of positions.
//!
//! Rows of a tile are multiplied with all that the last of them sees: what a row does not see has the weight zero, and the words
//! of values are finite. So a row's sums have the same bits in any tile. Keys need not be finite: one that is not spoils the scores
//! of its own position, which are overwritten for those who do not see it.

use super::{Part, ROWS, Scratch, exponentials};
use crate::cache::KeyValueCache;
use crate::grouped::fp16::{ELEMENTS, Fp16, prepare};
use crate::grouped::{self, Family, GROUP, Left, Right, multiply, multiply_singles};
use crate::projection::{columns, tiles};
use crate::tile::{Panels, power_of_two_up_to};
use crate::{BlockMut, Store};
use std::ops::Range;

pub(super) fn block(
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
    let Scratch { queries, scores, sums, left, scales, .. } = scratch;

    let queries = queries.at_least(all * d);
    part.queries(heads, qkv, queries);
    let row_words = grouped::row_words(d, ELEMENTS);
    let prepared = left.words_at_least(all * row_words);
    prepare(isa, d, queries, prepared);

    let panels = seen(count - 1).div_ceil(columns);
    let width = panels * columns;
    let scores = scores.at_least(all * width);
    let mut place = BlockMut::new(scores, width);
    let tile_rows = tiles(Fp16::ROWS, count).next().map_or(1, |tile| tile.len());
    let steps = d.div_ceil(ELEMENTS);
    for side in side_by_side(count, part.heads.len()) {
        let head = part.heads.start + side.start;
        let left = |row| Left { words: &prepared[row * row_words..], ends: steps, stride: row_words };
        let mut panel = 0;
        while panel < panels {
            let Panels { data: words, stride, .. } = cache.keys(head, panel);
            if count == 1 {
                let keys = Right::Scaled { words, stride: cache.head_words() };
                let (left, corner) = (left(side.start), (side.start, panel * columns));
                let shape = (side.len(), steps);
                multiply_singles::<Fp16>(isa, shape, left, keys, &mut place, corner, Store::Overwrite);
                panel += 1;
                continue;
            }
            let keys = Right::Scaled { words, stride };
            let next = power_of_two_up_to(Fp16::side_by_side(tile_rows), panels - panel);
            for tile in tiles(Fp16::ROWS, count) {
                let row = side.start * count + tile.start;
                let (shape, corner) = ((tile.len(), next, steps), (row, panel * columns));
                multiply::<Fp16>(isa, shape, left(row), keys, &mut place, corner, Store::Overwrite);
            }
            panel += next;
        }
    }

    let (mut visible, mut inverses) = ([0; ROWS], [0.0; ROWS]);
    visible[..all].iter_mut().enumerate().for_each(|(row, visible)| *visible = seen(row % count));
    exponentials(isa, scores, width, &visible[..all], &mut inverses);
    let scales = scales.at_least(width);
    for (head, weights) in part.heads.clone().zip(scores.chunks_exact_mut(count * width)) {
        for (panel, scales) in scales.chunks_exact_mut(columns).enumerate() {
            scales.copy_from_slice(cache.value_scales(head, panel));
        }
        weigh(isa, weights, width, &visible[..count], scales);
    }
    let (row_words, padded) = (grouped::row_words(width, ELEMENTS), cache.padded_dimension());
    let weights = left.words_at_least(all * row_words);
    prepare(isa, width, scores, weights);

    let sums = sums.at_least(all * padded);
    let mut place = BlockMut::new(sums, padded);
    for side in side_by_side(count, part.heads.len()) {
        for group in 0..seen(count - 1).div_ceil(GROUP) {
            let first = group * GROUP / ELEMENTS;
            let ends = width / ELEMENTS - first + 2 * group;
            let left = |row| Left { words: &weights[row * row_words + first..], ends, stride: row_words };
            let store = if group == 0 { Store::Overwrite } else { Store::Accumulate };
            let Panels { data, stride, depth_stride: step } =
                cache.values(part.heads.start + side.start, group * GROUP);
            let values = |panel, stride| Right::Plain { words: &data[panel * columns..], stride, step };
            let steps = |tile: &Range<usize>| {
                seen(tile.end - 1).saturating_sub(group * GROUP).min(GROUP).div_ceil(ELEMENTS)
            };
            if count == 1 {
                let shape = (side.len(), steps(&(0..1)));
                for panel in 0..padded / columns {
                    let (values, corner) = (values(panel, padded), (side.start, panel * columns));
                    multiply_singles::<Fp16>(isa, shape, left(side.start), values, &mut place, corner, store);
                }
                continue;
            }
            for tile in tiles(Fp16::ROWS, count).filter(|tile| steps(tile) > 0) {
                let row = side.start * count + tile.start;
                let mut panel = 0;
                while panel < padded / columns {
                    let next = power_of_two_up_to(Fp16::side_by_side(tile.len()), padded / columns - panel);
                    let (shape, corner) = ((tile.len(), next, steps(&tile)), (row, panel * columns));
                    multiply::<Fp16>(isa, shape, left(row), values(panel, stride), &mut place, corner, store);
                    panel += next;
                }
            }
        }
    }
    part.write(heads, (sums, padded), &inverses, output);
}

/// Heads that are computed at one time: several where each has a single row, whose sums are too few to keep a core busy.
fn side_by_side(rows: usize, heads: usize) -> impl Iterator<Item = Range<usize>> {
    let (most, mut start) = (if rows == 1 { 4 } else { 1 }, 0);
    std::iter::from_fn(move || {
        let side = start..start + power_of_two_up_to(most, heads - start);
        start = side.end;
        (side.end <= heads).then_some(side)
    })
}

per_isa! {
    /// Multiplies the visible weights of every row, `width` apart, by the scales of their values. The others become zero.
    fn weigh(weights: &mut [f32], width: usize, visible: &[usize], scales: &[f32]) {
        for (row, &visible) in weights.chunks_exact_mut(width).zip(visible) {
            let (seen, hidden) = row.split_at_mut(visible);
            seen.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
            hidden.fill(0.0);
        }
    }
}
