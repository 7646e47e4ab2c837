//! Attention of new tokens over a cache of keys and values: decoding, and prompts read in pieces. The bits of a
//! token's result do not depend on the tokens that come with it.

use crate::buffer::Lines;
use crate::cache::KeyValueCache;
use crate::math::{exp, max, sum_by};
use crate::projection::tiles;
use crate::tile::{self, Left, Shape, Tile, with_tile};
use crate::{BlockMut, Store};
use std::cell::RefCell;
use std::ops::Range;

/// Rows (a token times a query head) whose scores exist at one time: whole tiles of every instruction set, and
/// scores of 2,000 positions fit into an L2 cache.
const ROWS: usize = 24;

/// Positions whose values stay in the L1 cache while the tiles pass by.
const BLOCK: usize = 128;

#[derive(Debug)]
struct Scratch {
    queries: Lines,
    scores: Lines,
    sums: Lines,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        const { RefCell::new(Scratch { queries: Lines::new(), scores: Lines::new(), sums: Lines::new() }) };
}

/// Attention over one key/value head of `cache`. `qkv` holds a row as [`crate::attention::Heads`] describes it per
/// new token, the queries turned to their positions; token i stands at position `first + i` and sees the positions
/// up to its own, which are in the cache. `output` is tokens x `group · dimension`.
///
/// # Panics
/// Where the shapes do not fit together or a position is not in the cache.
pub fn attention_step(
    cache: &KeyValueCache,
    key_value_head: usize,
    qkv: &[f32],
    first: usize,
    output: &mut BlockMut<'_, f32>,
) {
    let heads = cache.heads();
    let tokens = qkv.len() / heads.row();
    assert!(
        first + tokens <= cache.len() && tokens == output.rows() && key_value_head < heads.key_value_heads,
        "attention: {tokens} tokens from position {first} on, {} positions in the cache, {} rows of output",
        cache.len(),
        output.rows()
    );
    let rows = tokens * heads.group();
    SCRATCH.with_borrow_mut(|scratch| {
        for start in (0..rows).step_by(ROWS) {
            let rows = start..rows.min(start + ROWS);
            with_tile!(cache.isa(), block(cache, key_value_head, qkv, first, rows, output, scratch));
        }
    });
}

/// A block of rows, token after token, the query heads of a token beside each other.
fn block<K: Tile>(
    cache: &KeyValueCache,
    key_value_head: usize,
    qkv: &[f32],
    first: usize,
    rows: Range<usize>,
    output: &mut BlockMut<'_, f32>,
    scratch: &mut Scratch,
) {
    let (isa, heads) = (cache.isa(), cache.heads());
    let (d, group) = (heads.dimension, heads.group());
    let seen = |row: usize| first + (rows.start + row) / group + 1;
    let count = rows.len();

    let queries = scratch.queries.at_least(count * d);
    for (query, row) in queries.chunks_exact_mut(d).zip(rows.clone()) {
        let start = row / group * heads.row() + (key_value_head * group + row % group) * d;
        for (to, from) in query.iter_mut().zip(&qkv[start..start + d]) {
            *to = from * heads.scale();
        }
    }

    let panels = seen(count - 1).div_ceil(K::COLUMNS);
    let width = panels * K::COLUMNS;
    let scores = scratch.scores.at_least(count * width);
    let tile_rows = tiles(K::ROWS, count).next().map_or(1, |tile| tile.len());
    let mut place = BlockMut::new(scores, width);
    let mut panel = 0;
    while panel < panels {
        let side = tile::power_of_two_up_to(K::side_by_side(tile_rows), panels - panel);
        let keys = cache.keys(key_value_head, panel);
        for tile in tiles(K::ROWS, count) {
            let left = Left { data: &queries[tile.start * d..], row_stride: d, depth_stride: 1 };
            let shape = Shape { rows: tile.len(), panels: side, depth: d };
            let corner = (tile.start, panel * K::COLUMNS);
            tile::multiply::<K>(isa, shape, left, keys, &mut place, corner, Store::Overwrite);
        }
        panel += side;
    }

    let mut inverses = [0.0; ROWS];
    for (row, inverse) in inverses[..count].iter_mut().enumerate() {
        *inverse = 1.0 / exponentials(isa, &mut scores[row * width..][..seen(row)]);
    }

    // A tile goes as far as its first row sees, and the rows after it on their own: nothing hidden is multiplied,
    // not even by zero.
    let padded = cache.padded_dimension();
    let sums = scratch.sums.at_least(count * padded);
    let mut place = BlockMut::new(sums, padded);
    let mut add = |rows: Range<usize>, positions: Range<usize>| {
        let store = if positions.start == 0 { Store::Overwrite } else { Store::Accumulate };
        let data = &scores[rows.start * width + positions.start..];
        let left = Left { data, row_stride: width, depth_stride: 1 };
        let mut panel = 0;
        while panel < padded / K::COLUMNS {
            let side = tile::power_of_two_up_to(K::side_by_side(rows.len()), padded / K::COLUMNS - panel);
            let values = cache.values(key_value_head, panel, positions.start);
            let shape = Shape { rows: rows.len(), panels: side, depth: positions.len() };
            let corner = (rows.start, panel * K::COLUMNS);
            tile::multiply::<K>(isa, shape, left, values, &mut place, corner, store);
            panel += side;
        }
    };
    for start in (0..seen(count - 1)).step_by(BLOCK) {
        for tile in tiles(K::ROWS, count) {
            let common = seen(tile.start).min(start + BLOCK);
            if start < common {
                add(tile.clone(), start..common);
            }
            for row in tile {
                let (from, to) = (common.max(start), seen(row).min(start + BLOCK));
                if from < to {
                    add(row..row + 1, from..to);
                }
            }
        }
    }

    for (at, row) in rows.clone().enumerate() {
        let to = &mut output.row_mut(row / group)[row % group * d..][..d];
        for (to, sum) in to.iter_mut().zip(&sums[at * padded..]) {
            *to = sum * inverses[at];
        }
    }
}

per_isa! {
    /// Replaces scores by `exp(score - largest)`; returns their sum.
    fn exponentials(scores: &mut [f32]) -> f32 {
        let largest = max(scores);
        for s in scores.iter_mut() {
            *s = exp(*s - largest);
        }
        sum_by(scores.len(), |j| scores[j])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::attention::Heads;
    use crate::grid::split;
    use crate::reference::{Random, assert_close};

    /// Adds the tokens of `qkv` to the cache and attends to it.
    fn attend(cache: &mut KeyValueCache, qkv: &[f32]) -> Vec<f32> {
        let heads = cache.heads();
        let first = cache.len();
        for row in qkv.chunks_exact(heads.row()) {
            cache.push(&row[heads.key_start(0)..heads.value_start(0)], &row[heads.value_start(0)..]);
        }
        let tokens = qkv.len() / heads.row();
        let mut output = vec![f32::NAN; tokens * heads.query_row()];
        let width = heads.group() * heads.dimension;
        let columns: Vec<_> = (0..heads.key_value_heads).map(|g| g * width..(g + 1) * width).collect();
        let rows = 0..tokens;
        let blocks = split(&mut output, heads.query_row(), std::slice::from_ref(&rows), &columns);
        for (g, mut block) in blocks.into_iter().enumerate() {
            attention_step(cache, g, qkv, first, &mut block);
        }
        output
    }

    #[test]
    fn new_tokens_attend_to_the_cache_as_the_float64_formula_says() {
        let mut random = Random::new(19);
        for isa in Isa::available() {
            for (dimension, key_value_heads) in [(6, 2), (40, 1), (32, 4)] {
                let heads = Heads { heads: 4, key_value_heads, dimension };
                for (tokens, first) in [(1, 0), (1, 9), (3, 4), (9, 0), (2, 63), (70, 5)] {
                    let qkv: Vec<f32> = random.elements((first + tokens) * heads.row());
                    let mut cache = KeyValueCache::new(isa, heads);
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
                                let sum: f64 = q.iter().zip(k).map(|(a, b)| *a as f64 * *b as f64).sum();
                                (sum / (dimension as f64).sqrt()).exp()
                            };
                            let sum: f64 = (0..=first + t).map(weight).sum();
                            for i in 0..dimension {
                                let value = |j: usize| row(j, heads.value_start(shared))[i] as f64;
                                let expected = (0..=first + t).map(|j| weight(j) / sum * value(j)).sum();
                                let got = output[t * heads.query_row() + head * dimension + i];
                                // Averages of values of magnitude one; weights with a few f32 roundings.
                                assert_close(got as f64, expected, 2e-6, 1e-5, "output");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_token_has_the_same_bits_alone_and_in_any_piece_of_a_prompt() {
        let mut random = Random::new(31);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for isa in Isa::available() {
            for (heads, key_value_heads, dimension) in [(4, 4, 32), (6, 2, 10), (3, 1, 64)] {
                let heads = Heads { heads, key_value_heads, dimension };
                let tokens = 150;
                let qkv: Vec<f32> = random.elements(tokens * heads.row());
                let mut cache = KeyValueCache::new(isa, heads);
                let alone: Vec<f32> =
                    qkv.chunks(heads.row()).flat_map(|row| attend(&mut cache, row)).collect();
                for longest in [2, 7, 33, 150] {
                    let mut cache = KeyValueCache::new(isa, heads);
                    let mut pieces = Vec::new();
                    while cache.len() < tokens {
                        let start = cache.len();
                        let end = tokens.min(start + 1 + random.below(longest));
                        pieces.extend(attend(&mut cache, &qkv[start * heads.row()..end * heads.row()]));
                    }
                    assert!(bits(&pieces) == bits(&alone), "{isa:?}, {heads:?}, pieces of up to {longest}");
                }
            }
        }
    }

    #[test]
    fn a_shortened_cache_goes_on_as_if_the_rest_had_never_been() {
        let mut random = Random::new(37);
        let heads = Heads { heads: 2, key_value_heads: 1, dimension: 8 };
        for isa in Isa::available() {
            let qkv: Vec<f32> = random.elements(80 * heads.row());
            let rows = |range: Range<usize>| &qkv[range.start * heads.row()..range.end * heads.row()];
            let mut straight = KeyValueCache::new(isa, heads);
            attend(&mut straight, rows(0..33));
            let mut shortened = KeyValueCache::new(isa, heads);
            attend(&mut shortened, rows(0..33));
            shortened.push(&[f32::NAN; 8], &[f32::NAN; 8]);
            attend(&mut shortened, rows(40..79));
            shortened.truncate(33);
            assert_eq!(shortened.len(), straight.len());
            assert_eq!(attend(&mut shortened, rows(33..40)), attend(&mut straight, rows(33..40)));
        }
    }
}
