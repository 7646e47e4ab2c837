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
                    Layout::Fp16 => fp16::block(cache, part, qkv, first, output, scratch),
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
mod tests {
    use super::*;
    use crate::Isa;
    use crate::bf16;
    use crate::cache::{CacheFormat, NewPositions};
    use crate::grid::split;
    use crate::reference::{Random, assert_close};

    /// Adds the tokens of `qkv` to the cache and attends to it.
    fn attend(cache: &mut KeyValueCache, qkv: &[f32]) -> Vec<f32> {
        let heads = cache.heads();
        let first = cache.len();
        cache.extend(qkv).for_each(NewPositions::write);
        let tokens = qkv.len() / heads.row();
        let mut output = vec![f32::NAN; tokens * heads.query_row()];
        let width = heads.group() * heads.dimension;
        let columns: Vec<_> = (0..heads.key_value_heads).map(|g| g * width..(g + 1) * width).collect();
        let rows = 0..tokens;
        let blocks = split(&mut output, heads.query_row(), std::slice::from_ref(&rows), &columns);
        for (g, mut block) in blocks.into_iter().enumerate() {
            attention_step(cache, g..g + 1, qkv, first, &mut block);
        }
        let mut together = vec![f32::NAN; tokens * heads.query_row()];
        let mut block = BlockMut::new(&mut together, heads.query_row());
        attention_step(cache, 0..heads.key_value_heads, qkv, first, &mut block);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&together) == bits(&output), "heads alone and beside each other");
        output
    }

    const FORMATS: [CacheFormat; 2] = [CacheFormat::F32, CacheFormat::Bf16];

    fn combinations() -> impl Iterator<Item = (Isa, CacheFormat)> {
        Isa::available_or_trapped().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)))
    }

    #[test]
    fn new_tokens_attend_to_the_cache_as_the_float64_formula_says() {
        let mut random = Random::new(19);
        for (isa, format) in combinations() {
            // Products of pairs round both sides, otherwise only what is kept is rounded.
            let in_fp16 = format == CacheFormat::Bf16 && isa.attends_in_fp16();
            let narrow = format == CacheFormat::Bf16 && !in_fp16;
            let both = narrow && isa.prefers_bf16_dot();
            let round = |value: f32, narrow: bool| {
                f64::from(if narrow { bf16::from_f32(value).to_f32() } else { value })
            };
            // Averages of values of magnitude one. Weights have a few f32 roundings, or are rounded to 8 bits: each by up to
            // 1/512 of itself, and so their average. In fp16 all is rounded to 11 bits, and up to 64 sums of magnitude one are, each
            // by up to 1/4096: in any direction, so that eight times as much is a deviation.
            let tolerance = if both || in_fp16 { 1.0 / 256.0 } else { 2e-6 };
            for (dimension, key_value_heads) in
                [(6, 2), (7, 4), (40, 1), (32, 4), (128, 1), (160, 4), (300, 2)]
            {
                let heads = Heads { heads: 4, key_value_heads, dimension };
                for (tokens, first) in [(1, 0), (1, 9), (3, 4), (9, 0), (2, 63), (70, 5), (1, 260)] {
                    let qkv: Vec<f32> = random.elements((first + tokens) * heads.row());
                    let mut cache = KeyValueCache::new(isa, heads, format);
                    attend(&mut cache, &qkv[..first * heads.row()]);
                    let output = attend(&mut cache, &qkv[first * heads.row()..]);
                    for t in 0..tokens {
                        for head in 0..4 {
                            let shared = head / heads.group();
                            let row = |position: usize, start: usize| {
                                &qkv[position * heads.row() + start..][..dimension]
                            };
                            let weight = |j: usize| {
                                let (q, k) =
                                    (row(first + t, head * dimension), row(j, heads.key_start(shared)));
                                let products = q.iter().zip(k);
                                let product =
                                    |(q, k): (&f32, &f32)| round(q * heads.scale(), both) * round(*k, narrow);
                                products.map(product).sum::<f64>().exp()
                            };
                            let sum: f64 = (0..=first + t).map(weight).sum();
                            for i in 0..dimension {
                                let value = |j: usize| round(row(j, heads.value_start(shared))[i], narrow);
                                let expected = (0..=first + t).map(|j| weight(j) / sum * value(j)).sum();
                                let got = output[t * heads.query_row() + head * dimension + i];
                                let what = format!("{isa:?} {format:?} {heads:?} {tokens} after {first}");
                                assert_close(got as f64, expected, tolerance, 1e-5, &what);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn positions_of_any_magnitude_neither_overflow_nor_vanish() {
        let mut random = Random::new(23);
        let heads = Heads { heads: 1, key_value_heads: 1, dimension: 40 };
        let tokens = 300;
        // Powers of two of the values: of all sizes, all tiny, and below what f32 holds without loss. A third of them are zeros.
        let powers = [-40..40, -45..-37, -140..-132].map(|range: Range<i32>| range.collect::<Vec<_>>());
        for ((isa, format), powers) in combinations().flat_map(|c| powers.iter().map(move |p| (c, p))) {
            let mut qkv: Vec<f32> = random.elements(tokens * heads.row());
            for (t, row) in qkv.chunks_exact_mut(heads.row()).enumerate() {
                let value = if t % 3 == 1 { 0.0 } else { 2f32.powi(powers[t * 7 % powers.len()]) };
                row[heads.value_start(0)..].iter_mut().for_each(|v| *v *= value);
                // Scores stay below a few hundredths, so that every value has its part in the average.
                let key = 2f32.powi((t * 11 % 50) as i32 - 25);
                row[heads.key_start(0)..heads.value_start(0)].iter_mut().for_each(|k| *k *= key);
                row[..heads.key_start(0)].iter_mut().for_each(|q| *q *= 2f32.powi(-32));
            }
            let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
            for (t, got) in output.chunks_exact(40).enumerate() {
                for (i, got) in got.iter().enumerate() {
                    let values = |j: usize| qkv[j * heads.row() + heads.value_start(0) + i] as f64;
                    let of_all =
                        |part: fn(f64) -> f64| (0..=t).map(|j| part(values(j))).sum::<f64>() / (t + 1) as f64;
                    let error = (*got as f64 - of_all(|v| v)).abs();
                    assert!(
                        error <= of_all(f64::abs) / 50.0,
                        "{isa:?} {format:?}, {t}: {got} not {}",
                        of_all(|v| v)
                    );
                }
            }
        }
    }

    #[test]
    fn scores_of_any_magnitude_are_ordered_as_far_as_they_can_be_told_apart() {
        let mut random = Random::new(41);
        let heads = Heads { heads: 2, key_value_heads: 1, dimension: 8 };
        for (isa, format) in combinations() {
            for size in [1e-3, 1e3, 1e6] {
                let mut qkv: Vec<f32> = random.elements(100 * heads.row());
                for (t, row) in qkv.chunks_exact_mut(heads.row()).enumerate() {
                    row[..heads.dimension].fill(size);
                    row[heads.dimension..heads.key_start(0)].fill(-size);
                    // One key in five is the opposite of the others.
                    row[heads.key_start(0)..heads.value_start(0)].fill(if t % 5 == 2 { -size } else { size });
                }
                let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                for (t, row) in output.chunks_exact(heads.query_row()).enumerate() {
                    for head in 0..2 {
                        let liked = |j: &usize| size < 1.0 || t < 2 || (j % 5 == 2) == (head == 1);
                        let values = |j: usize| &qkv[j * heads.row() + heads.value_start(0)..][..8];
                        let seen: Vec<_> = (0..=t).filter(liked).collect();
                        for i in 0..8 {
                            let sum: f64 = seen.iter().map(|j| values(*j)[i] as f64).sum();
                            let (got, expected) = (row[8 * head + i] as f64, sum / seen.len() as f64);
                            assert!(
                                (got - expected).abs() < 0.01,
                                "{isa:?} {format:?} {size}, {t}: {got}, {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn large_values_without_weight_take_nothing_from_the_others() {
        let mut random = Random::new(43);
        let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
        for (isa, format) in combinations() {
            for power in [4, 12, 20, 30, 60, 100] {
                let mut qkv: Vec<f32> = random.elements(150 * heads.row());
                for (t, row) in qkv.chunks_exact_mut(heads.row()).enumerate() {
                    let (size, key) = if t % 50 == 7 { (2f32.powi(power), -100.0) } else { (1.0, 0.0) };
                    row[..heads.dimension].fill(100.0);
                    row[heads.key_start(0)..heads.value_start(0)].fill(key);
                    row[heads.value_start(0)..].iter_mut().for_each(|value| *value *= size);
                }
                let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                for (t, row) in output.chunks_exact(8).enumerate() {
                    for (i, got) in row.iter().enumerate() {
                        let values = |j: usize| qkv[j * heads.row() + heads.value_start(0) + i] as f64;
                        let seen: Vec<f64> = (0..=t).filter(|j| j % 50 != 7).map(values).collect();
                        let expected = seen.iter().sum::<f64>() / seen.len() as f64;
                        let error = (*got as f64 - expected).abs();
                        assert!(error < 0.005, "{isa:?} {format:?} 2^{power}, {t}: {got} not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn small_elements_beside_large_ones_of_a_value_keep_their_digits() {
        let mut random = Random::new(47);
        let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
        for (isa, format) in combinations() {
            for large in [1.0, 256.0, 4_096.0] {
                let mut qkv: Vec<f32> = random.elements(100 * heads.row());
                for row in qkv.chunks_exact_mut(heads.row()) {
                    row[..heads.dimension].fill(0.0);
                    row[heads.value_start(0)] = large;
                }
                let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                for (t, row) in output.chunks_exact(8).enumerate() {
                    for (i, got) in row.iter().enumerate() {
                        let values = |j: usize| qkv[j * heads.row() + heads.value_start(0) + i] as f64;
                        let expected = (0..=t).map(values).sum::<f64>() / (t + 1) as f64;
                        let allowed = if i == 0 { 0.005 * large as f64 } else { 0.005 };
                        let error = (*got as f64 - expected).abs();
                        assert!(error < allowed, "{isa:?} {format:?} {large}, {t}: {got} not {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn queries_and_keys_that_are_infinite_give_what_is_not_a_number() {
        let mut random = Random::new(53);
        let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
        let qkv: Vec<f32> = random.elements(140 * heads.row());
        for (isa, format) in combinations() {
            let in_fp16 = format == CacheFormat::Bf16 && isa.attends_in_fp16();
            for (place, from_then_on) in [(0, false), (heads.key_start(0), true)] {
                for broken in [0, 63, 129] {
                    let mut qkv = qkv.clone();
                    qkv[broken * heads.row() + place + 3] = f32::INFINITY;
                    qkv[broken * heads.row() + place + 4] = -f32::INFINITY;
                    let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                    for (t, row) in output.chunks_exact(8).enumerate() {
                        let spoilt = if from_then_on { t >= broken } else { t == broken };
                        let finite = row.iter().all(|y| y.is_finite());
                        // A score of minus infinity is as good as a position that is not seen, where scores tell it.
                        let told = from_then_on && !in_fp16;
                        assert!(finite != spoilt || told && spoilt, "{isa:?} {format:?}: {t}, {broken}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_token_sees_nothing_of_those_after_it_not_even_what_is_not_a_number() {
        let heads = Heads { heads: 2, key_value_heads: 1, dimension: 8 };
        for (isa, format) in combinations() {
            for broken in 1..6 {
                let mut qkv = vec![0.5; 6 * heads.row()];
                qkv[broken * heads.row()..][..heads.row()].fill(f32::NAN);
                let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                for (token, row) in output.chunks_exact(heads.query_row()).enumerate() {
                    let sees = token >= broken;
                    assert!(row.iter().all(|y| y.is_nan() == sees), "{isa:?} {format:?}: {token}, {broken}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_changes_no_bit_of_those_before_it_around_the_border_of_a_group() {
        let mut random = Random::new(29);
        let heads = Heads { heads: 1, key_value_heads: 1, dimension: 8 };
        let qkv: Vec<f32> = random.elements(140 * heads.row());
        for (isa, format) in combinations() {
            let clean = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
            for (broken, bad) in
                [(63, f32::NAN), (127, f32::INFINITY), (128, f32::NAN), (129, -f32::INFINITY)]
            {
                for place in [heads.key_start(0), heads.value_start(0)] {
                    let mut qkv = qkv.clone();
                    qkv[broken * heads.row() + place + 3] = bad;
                    let output = attend(&mut KeyValueCache::new(isa, heads, format), &qkv);
                    let before = ..broken * heads.query_row();
                    let same =
                        output[before].iter().zip(&clean[before]).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa:?} {format:?}: {bad} at {broken}");
                    let seen = &output[broken * heads.query_row()..];
                    assert!(place == heads.key_start(0) || seen.chunks(8).all(|row| !row[3].is_finite()));
                }
            }
        }
    }

    #[test]
    fn a_token_has_the_same_bits_alone_and_in_any_piece_of_a_prompt() {
        let mut random = Random::new(31);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for (isa, format) in combinations() {
            for (heads, key_value_heads, dimension) in
                [(4, 4, 32), (6, 2, 10), (3, 1, 64), (1, 1, 160), (7, 7, 40)]
            {
                let heads = Heads { heads, key_value_heads, dimension };
                let tokens = 150;
                let qkv: Vec<f32> = random.elements(tokens * heads.row());
                let mut cache = KeyValueCache::new(isa, heads, format);
                let alone: Vec<f32> =
                    qkv.chunks(heads.row()).flat_map(|row| attend(&mut cache, row)).collect();
                for longest in [2, 7, 33, 150] {
                    let mut cache = KeyValueCache::new(isa, heads, format);
                    let mut pieces = Vec::new();
                    while cache.len() < tokens {
                        let start = cache.len();
                        let end = tokens.min(start + 1 + random.below(longest));
                        pieces.extend(attend(&mut cache, &qkv[start * heads.row()..end * heads.row()]));
                    }
                    assert!(
                        bits(&pieces) == bits(&alone),
                        "{isa:?} {format:?}, {heads:?}, pieces of up to {longest}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_shortened_cache_goes_on_as_if_the_rest_had_never_been() {
        let mut random = Random::new(37);
        let heads = Heads { heads: 2, key_value_heads: 1, dimension: 8 };
        for (isa, format) in combinations() {
            let qkv: Vec<f32> = random.elements(80 * heads.row());
            let rows = |range: Range<usize>| &qkv[range.start * heads.row()..range.end * heads.row()];
            let mut straight = KeyValueCache::new(isa, heads, format);
            attend(&mut straight, rows(0..33));
            let mut shortened = KeyValueCache::new(isa, heads, format);
            attend(&mut shortened, rows(0..33));
            shortened.extend(&vec![f32::NAN; heads.row()]).for_each(NewPositions::write);
            attend(&mut shortened, rows(40..79));
            shortened.truncate(33);
            shortened.expect(100);
            assert_eq!(shortened.len(), straight.len());
            assert_eq!(
                attend(&mut shortened, rows(33..40)),
                attend(&mut straight, rows(33..40)),
                "{isa:?} {format:?}"
            );
        }
    }
}
