//! Attention of new tokens over a cache of keys and values: decoding, and prompts read in pieces. The bits of a
//! token's result do not depend on the tokens that come with it.

use crate::attention::Heads;
use crate::buffer::Lines;
use crate::cache::{KeyValueCache, Layout};
use crate::math::{exp, largest_of_lanes, sum_of_lanes};
use crate::projection::tiles;
use crate::tile::{self, Left, Panels, Shape, Tile, prepared, with_tile};
use crate::{BlockMut, Isa, Store};
use std::cell::RefCell;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
mod fp16;

/// Rows (a token times a query head) whose scores exist at one time: whole tiles of every instruction set, and
/// scores of 2,000 positions fit into an L2 cache (in fp16 4,000).
const ROWS: usize = 24;

/// Positions whose values stay in the L1 cache while the tiles pass by.
const BLOCK: usize = 128;

#[derive(Debug)]
struct Scratch {
    queries: Lines,
    scores: Lines,
    sums: Lines,
    /// Queries, then weights, as the tiles read them.
    left: Lines,
    /// Values of which one in a word is not seen yet.
    last: Lines,
}

impl Scratch {
    const fn new() -> Scratch {
        Scratch {
            queries: Lines::new(),
            scores: Lines::new(),
            sums: Lines::new(),
            left: Lines::new(),
            last: Lines::new(),
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Attention over some of the key/value heads of `cache`. `qkv` holds a row as [`crate::attention::Heads`] describes it per
/// new token, the queries turned to their positions; token i stands at position `first + i` and sees the positions
/// up to its own, which are in the cache. `output` is tokens x `heads · group · dimension`.
///
/// # Panics
/// Where the shapes do not fit together or a position is not in the cache.
pub fn attention_step(
    cache: &KeyValueCache,
    key_value_heads: Range<usize>,
    qkv: &[f32],
    first: usize,
    output: &mut BlockMut<'_, f32>,
) {
    let heads = cache.heads();
    let tokens = qkv.len() / heads.row();
    assert!(
        first + tokens <= cache.len()
            && tokens == output.rows()
            && key_value_heads.end <= heads.key_value_heads
            && output.columns() == key_value_heads.len() * heads.group() * heads.dimension,
        "attention: {tokens} tokens from position {first} on, {} positions in the cache, heads {key_value_heads:?}, \
         {} x {} of output",
        cache.len(),
        output.rows(),
        output.columns()
    );
    let rows = tokens * heads.group();
    // Heads do not wait for each other: what few rows lack in independent sums, several heads have.
    let side_by_side = (ROWS / rows.max(1)).max(1);
    SCRATCH.with_borrow_mut(|scratch| {
        for head in key_value_heads.clone().step_by(side_by_side) {
            let heads = head..key_value_heads.end.min(head + side_by_side);
            for start in (0..rows).step_by(ROWS) {
                let part = Part {
                    heads: heads.clone(),
                    before: key_value_heads.start,
                    rows: start..rows.min(start + ROWS),
                };
                match cache.layout() {
                    Layout::F32 => {
                        with_tile!(f32 cache.isa(), block(cache, part, qkv, first, output, scratch));
                    }
                    Layout::Bf16 => {
                        with_tile!(bf16 cache.isa(), block(cache, part, qkv, first, output, scratch));
                    }
                    #[cfg(target_arch = "x86_64")]
                    Layout::Fp16 => fp16::block::<fp16::Halves>(cache, part, qkv, first, output, scratch),
                    #[cfg(target_arch = "x86_64")]
                    Layout::Int8 => fp16::block::<fp16::Bytes>(cache, part, qkv, first, output, scratch),
                }
            }
        }
    });
}

/// What is computed at one time: rows of some heads, [`ROWS`] of them at most.
struct Part {
    /// Key/value heads.
    heads: Range<usize>,
    /// The first head of the output.
    before: usize,
    /// Rows of each head: token after token, the query heads of a token beside each other.
    rows: Range<usize>,
}

impl Part {
    /// Rows of all heads.
    fn len(&self) -> usize {
        self.heads.len() * self.rows.len()
    }

    /// The positions that a row sees, of tokens from position `first` on with `group` rows each.
    fn seen(&self, row: usize, first: usize, group: usize) -> usize {
        first + (self.rows.start + row) / group + 1
    }

    /// Copies the queries, head after head, times `scale`.
    fn queries(&self, heads: Heads, scale: f32, qkv: &[f32], queries: &mut [f32]) {
        let (d, group) = (heads.dimension, heads.group());
        let places = self.heads.clone().flat_map(|head| self.rows.clone().map(move |row| (head, row)));
        for (query, (head, row)) in queries.chunks_exact_mut(d).zip(places) {
            let start = row / group * heads.row() + (head * group + row % group) * d;
            for (to, from) in query.iter_mut().zip(&qkv[start..start + d]) {
                *to = from * scale;
            }
        }
    }

    /// Writes sums of weighted values, `padded` from row to row, times one over the weights' own sums.
    fn write(
        &self,
        heads: Heads,
        (sums, padded): (&[f32], usize),
        inverses: &[f32],
        output: &mut BlockMut<'_, f32>,
    ) {
        let (d, group) = (heads.dimension, heads.group());
        let mut sums = sums.chunks_exact(padded).zip(inverses);
        for head in self.heads.clone() {
            for (row, (sums, inverse)) in self.rows.clone().zip(&mut sums) {
                let column = ((head - self.before) * group + row % group) * d;
                let to = &mut output.row_mut(row / group)[column..][..d];
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to = *sum * inverse);
            }
        }
    }
}

fn block<K: Tile>(
    cache: &KeyValueCache,
    part: Part,
    qkv: &[f32],
    first: usize,
    output: &mut BlockMut<'_, f32>,
    scratch: &mut Scratch,
) {
    let (isa, heads, key_value_heads) = (cache.isa(), cache.heads(), part.heads.clone());
    let (d, count, all) = (heads.dimension, part.rows.len(), part.len());
    let seen = |row: usize| part.seen(row, first, heads.group());

    let Scratch { queries, scores, sums, left, last, .. } = scratch;
    let queries = queries.at_least(all * d);
    part.queries(heads, heads.scale(), qkv, queries);
    let queries = prepared::<K>(isa, d, queries, left);

    let panels = seen(count - 1).div_ceil(K::COLUMNS);
    let width = (panels * K::COLUMNS).next_multiple_of(SCORES);
    let scores = scores.at_least(all * width);
    let tile_rows = tiles(K::ROWS, count).next().map_or(1, |tile| tile.len());
    let mut place = BlockMut::new(scores, width);
    for (at, head) in key_value_heads.clone().enumerate() {
        let mut panel = 0;
        while panel < panels {
            let side = tile::power_of_two_up_to(K::side_by_side(tile_rows), panels - panel);
            let keys = cache.keys(head, panel);
            for tile in tiles(K::ROWS, count) {
                let (row_stride, row) = (K::row_words(d), at * count + tile.start);
                let left = Left { data: &queries[row * row_stride..], row_stride, depth_stride: K::WORDS };
                let shape = Shape { rows: tile.len(), panels: side, depth: d.div_ceil(K::ELEMENTS) };
                let corner = (row, panel * K::COLUMNS);
                tile::multiply::<K>(isa, shape, left, keys, &mut place, corner, Store::Overwrite);
            }
            panel += side;
        }
    }

    let (mut visible, mut inverses) = ([0; ROWS], [0.0; ROWS]);
    visible[..all].iter_mut().enumerate().for_each(|(row, visible)| *visible = seen(row % count));
    exponentials(isa, scores, width, &visible[..all], &mut inverses);
    let weights = prepared::<K>(isa, width, scores, left);
    let padded = cache.padded_dimension();
    let memory = sums.at_least(all * padded);
    let mut sums = Sums::<K> {
        isa,
        weights,
        row_stride: K::row_words(width),
        panels: padded / K::COLUMNS,
        place: BlockMut::new(memory, padded),
        tile: std::marker::PhantomData,
    };

    // A tile goes as far as its first row sees, and the rows after it on their own: nothing hidden is multiplied,
    // not even by zero.
    let whole = |positions: usize| match positions == cache.len() {
        // What is left of the last word is zero.
        true => positions.next_multiple_of(K::ELEMENTS),
        false => positions / K::ELEMENTS * K::ELEMENTS,
    };
    for (at, head) in key_value_heads.clone().enumerate() {
        let of_all = |rows: Range<usize>| at * count + rows.start..at * count + rows.end;
        for start in (0..seen(count - 1)).step_by(BLOCK) {
            for tile in tiles(K::ROWS, count) {
                let common = whole(seen(tile.start)).min(start + BLOCK);
                if start < common {
                    sums.add(of_all(tile.clone()), start..common, cache.values(head, start));
                }
                for row in tile {
                    let own = of_all(row..row + 1);
                    let (from, to) = (common.max(start), whole(seen(row)).min(start + BLOCK));
                    if from < to {
                        sums.add(own.clone(), from..to, cache.values(head, from));
                    }
                    let end = whole(seen(row));
                    if end < seen(row) && (start..start + BLOCK).contains(&end) {
                        let last = last.words_at_least(padded);
                        let values = cache.values(head, end);
                        last.iter_mut().zip(values.data).for_each(|(to, word)| *to = word & 0xffff);
                        sums.add(own, end..seen(row), Panels { data: last, ..values });
                    }
                }
            }
        }
    }
    part.write(heads, (memory, padded), &inverses, output);
}

/// Sums of weighted values, a row of the block in each.
struct Sums<'a, K> {
    isa: Isa,
    /// The weights as the tiles read them, and words from row to row.
    weights: &'a [u32],
    row_stride: usize,
    /// Panels of a row of sums.
    panels: usize,
    place: BlockMut<'a, f32>,
    tile: std::marker::PhantomData<K>,
}

impl<K: Tile> Sums<'_, K> {
    /// Adds the values of `positions` (whole words) to `rows`, or sets the sums where the positions are the first.
    fn add(&mut self, rows: Range<usize>, positions: Range<usize>, values: Panels<'_>) {
        let store = if positions.start == 0 { Store::Overwrite } else { Store::Accumulate };
        let data = &self.weights[rows.start * self.row_stride + positions.start / K::ELEMENTS * K::WORDS..];
        let left = Left { data, row_stride: self.row_stride, depth_stride: K::WORDS };
        let mut panel = 0;
        while panel < self.panels {
            let side = tile::power_of_two_up_to(K::side_by_side(rows.len()), self.panels - panel);
            let values = Panels { data: &values.data[panel * K::COLUMNS..], ..values };
            let depth = positions.len().div_ceil(K::ELEMENTS);
            let shape = Shape { rows: rows.len(), panels: side, depth };
            let corner = (rows.start, panel * K::COLUMNS);
            tile::multiply::<K>(self.isa, shape, left, values, &mut self.place, corner, store);
            panel += side;
        }
    }
}

/// Scores that are taken side by side: a row has few where little was said.
const SCORES: usize = 16;

per_isa! {
    /// Replaces the visible scores of every row, `width` apart, by `exp(score - largest)`, and writes one over their sum.
    /// What is hidden in the last block gets a zero: whole blocks are faster than what is left of one.
    fn exponentials(scores: &mut [f32], width: usize, visible: &[usize], inverses: &mut [f32]) {
        for ((row, &visible), inverse) in scores.chunks_exact_mut(width).zip(visible).zip(inverses) {
            let blocks = &mut row.as_chunks_mut::<SCORES>().0[..visible.div_ceil(SCORES)];
            if let Some(last) = blocks.last_mut() {
                let shown = (visible - 1) % SCORES;
                for (l, score) in last.iter_mut().enumerate() {
                    *score = if l <= shown { *score } else { f32::NEG_INFINITY };
                }
            }
            let mut largest = [f32::NEG_INFINITY; SCORES];
            for block in blocks.iter() {
                for (largest, score) in largest.iter_mut().zip(block) {
                    *largest = if *score > *largest { *score } else { *largest };
                }
            }
            let largest = largest_of_lanes(&largest);
            let mut sums = [0.0; SCORES];
            for block in blocks {
                for (score, sum) in block.iter_mut().zip(&mut sums) {
                    *score = exp(*score - largest);
                    *sum += *score;
                }
            }
            *inverse = 1.0 / sum_of_lanes(&sums);
        }
    }
}

#[cfg(test)]
mod tests;
