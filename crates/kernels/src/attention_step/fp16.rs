//! Attention in arithmetic of fp16. Keys and values have a scale each, weights one for every group of positions.
//!
//! Rows of a tile are multiplied with all that the last of them sees: what a row does not see has the weight zero, and the words
//! of values are finite. So a row's sums have the same bits in any tile. Keys need not be finite: one that is not spoils the scores
//! of its own position, which are masked for those who do not see it.

use super::{Part, ROWS, Scratch};
use crate::cache::KeyValueCache;
use crate::grouped::fp16::{ELEMENTS, Fp16, prepare, round_below};
use crate::grouped::{self, Family, GROUP, Left, Right, Shape, multiply};
use crate::math::exponential::{COEFFICIENTS, LEAST, MINUS_LN_2, ROUND};
use crate::projection::{columns, tiles};
use crate::tile::{Panels, power_of_two_up_to};
use crate::{BlockMut, Isa, Store};
use std::arch::x86_64::*;
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
    let Scratch { queries, scores, sums, left, .. } = scratch;

    let queries = queries.at_least(all * d);
    part.queries(heads, qkv, queries);
    let row_words = grouped::row_words(d, ELEMENTS);
    let prepared = left.words_at_least(all * row_words);
    prepare(isa, d, queries, prepared);

    let panels = seen(count - 1).div_ceil(columns);
    let width = panels * columns;
    let scores = scores.at_least(all * width);
    let mut place = BlockMut::new(scores, width);
    let together = Together::of(count, part.heads.len());
    let steps = d.div_ceil(ELEMENTS);
    for side in together.heads(part.heads.len()) {
        let mut panel = 0;
        while panel < panels {
            let Panels { data: words, stride, .. } = cache.keys(part.heads.start + side.start, panel);
            let stride = together.stride(stride, cache.head_words());
            let keys = Right::Scaled { words, stride, next: &[] };
            let next = together.panels(panels - panel);
            for tile in tiles(Fp16::ROWS, count) {
                let row = side.start * count + tile.start;
                let left = Left { words: &prepared[row * row_words..], ends: steps, stride: row_words };
                let (shape, corner) = (together.shape(&tile, &side, next), (row, panel * columns));
                multiply::<Fp16>(isa, (shape, steps), left, keys, &mut place, corner, Store::Overwrite);
            }
            panel += next;
        }
    }

    let (mut visible, mut inverses) = ([0; ROWS], [0.0; ROWS]);
    visible[..count].iter_mut().enumerate().for_each(|(row, visible)| *visible = seen(row));
    let (row_words, padded) = (grouped::row_words(width, ELEMENTS), cache.padded_dimension());
    let weights = left.words_at_least(all * row_words);
    let of_heads = scores.chunks_exact(count * width).zip(weights.chunks_exact_mut(count * row_words));
    for ((head, (scores, words)), inverses) in
        part.heads.clone().zip(of_heads).zip(inverses.chunks_exact_mut(count))
    {
        let scales = |panel| cache.value_scales(head, panel);
        weigh(isa, (scores, width), &visible[..count], scales, words, inverses);
    }

    let sums = sums.at_least(all * padded);
    let mut place = BlockMut::new(sums, padded);
    for side in together.heads(part.heads.len()) {
        for group in 0..seen(count - 1).div_ceil(GROUP) {
            let first = group * GROUP / ELEMENTS;
            let ends = width / ELEMENTS - first + 2 * group;
            let store = if group == 0 { Store::Overwrite } else { Store::Accumulate };
            let Panels { data, stride, depth_stride: step, .. } =
                cache.values(part.heads.start + side.start, group * GROUP);
            let stride = together.stride(stride, padded);
            for tile in tiles(Fp16::ROWS, count) {
                let positions = seen(tile.end - 1).saturating_sub(group * GROUP).min(GROUP);
                let row = side.start * count + tile.start;
                let left = Left { words: &weights[row * row_words + first..], ends, stride: row_words };
                let mut panel = 0;
                while panel < padded / columns && positions > 0 {
                    let values = Right::Plain { words: &data[panel * columns..], stride, step };
                    let next = together.panels(padded / columns - panel);
                    let (shape, corner) = (together.shape(&tile, &side, next), (row, panel * columns));
                    let depth = positions.div_ceil(ELEMENTS);
                    multiply::<Fp16>(isa, (shape, depth), left, values, &mut place, corner, store);
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

/// Elements of a vector, and positions of a panel.
const LANES: usize = 16;
const PANEL: usize = Fp16::COLUMNS;

/// Rows of scores, `width` apart, become weights in fp16: `exp(score - largest)` times the scale of the position's values where
/// it is visible, else zero. Their sums, without the scales, become `inverses`, one over each.
///
/// # Panics
/// Where the CPU lacks the instructions or the lengths do not fit together.
fn weigh<'a>(
    isa: Isa,
    (scores, width): (&[f32], usize),
    visible: &[usize],
    scales: impl Fn(usize) -> &'a [f32],
    words: &mut [u32],
    inverses: &mut [f32],
) {
    let (rows, row_words) = (visible.len(), grouped::row_words(width, ELEMENTS));
    assert!(Fp16::usable(isa) && width.is_multiple_of(PANEL) && inverses.len() == rows);
    assert!(scores.len() == rows * width && words.len() == rows * row_words);
    let rows = scores.chunks_exact(width).zip(words.chunks_exact_mut(row_words));
    for (((scores, words), &visible), inverse) in rows.zip(visible).zip(inverses) {
        // SAFETY: arithmetic of fp16 comes with AVX-512 and FMA.
        *inverse = unsafe { weigh_row(scores, visible, &scales, words) };
    }
}

/// One row of [`weigh`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn weigh_row<'a>(
    scores: &[f32],
    visible: usize,
    scales: &impl Fn(usize) -> &'a [f32],
    words: &mut [u32],
) -> f32 {
    // SAFETY: sixteen elements can be read.
    let load = |block: &[f32; LANES]| unsafe { _mm512_loadu_ps(block.as_ptr()) };
    let blocks = scores.as_chunks::<LANES>().0;
    let (whole, rest) = (visible / LANES, (1 << (visible % LANES)) - 1);
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for block in &blocks[..whole] {
        // A score that is not a number leaves it as it is.
        largest = _mm512_max_ps(load(block), largest);
    }
    if rest > 0 {
        largest = _mm512_mask_max_ps(largest, rest, load(&blocks[whole]), largest);
    }
    let largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    let (elements, ends) = words.split_at_mut(scores.len() / ELEMENTS);
    let groups = elements.chunks_mut(GROUP / ELEMENTS).zip(ends.as_chunks_mut::<2>().0);
    let panels = scores.as_chunks::<PANEL>().0;
    let mut sums = [_mm512_setzero_ps(); 2];
    for ((words, end), (group, panels)) in groups.zip(panels.chunks(GROUP / PANEL).enumerate()) {
        let (mut weights, mut most) = ([0.0; GROUP], _mm512_setzero_si512());
        for (at, (panel, to)) in panels.iter().zip(weights.as_chunks_mut::<PANEL>().0).enumerate() {
            let at = group * (GROUP / PANEL) + at;
            let shown = visible.saturating_sub(at * PANEL);
            if shown == 0 {
                break;
            }
            let scales = scales(at).as_chunks::<LANES>().0;
            for (half, (scores, to)) in
                panel.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut::<LANES>().0).enumerate()
            {
                let mut powers = exp(_mm512_sub_ps(load(scores), largest));
                let mut scaled = _mm512_mul_ps(powers, load(&scales[half]));
                if shown < PANEL {
                    let mask = (((1u32 << shown) - 1) >> (LANES * half)) as u16;
                    powers = _mm512_maskz_mov_ps(mask, powers);
                    scaled = _mm512_maskz_mov_ps(mask, scaled);
                }
                sums[half] = _mm512_add_ps(sums[half], powers);
                // Weights and scales are not below zero; what is no number is above all, whatever its sign.
                most = _mm512_max_epu32(most, _mm512_castps_si512(scaled));
                // SAFETY: sixteen elements can be written.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr(), scaled) };
            }
        }
        let most = _mm512_reduce_max_epu32(most) & 0x7fff_ffff;
        *end = [round_below(most, &weights[..ELEMENTS * words.len()], words).to_bits(), 0];
    }
    1.0 / _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}

/// `e^x` of sixteen numbers up to zero, [`crate::math::fused::exp`] to the bit.
#[inline]
#[target_feature(enable = "avx512f,fma")]
fn exp(x: __m512) -> __m512 {
    let all = _mm512_set1_ps;
    let n = _mm512_fmadd_ps(x, all(std::f32::consts::LOG2_E), all(ROUND));
    let whole = _mm512_sub_ps(n, all(ROUND));
    let r = _mm512_fmadd_ps(whole, all(MINUS_LN_2[0]), x);
    let r = _mm512_fmadd_ps(whole, all(MINUS_LN_2[1]), r);
    let mut p = all(COEFFICIENTS[0]);
    for coefficient in &COEFFICIENTS[1..] {
        p = _mm512_fmadd_ps(p, r, all(*coefficient));
    }
    let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), all(1.0));
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
    let scale = _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23)));
    // Far below zero anything may have come out.
    _mm512_maskz_mul_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, all(LEAST)), p, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_of_a_vector_are_those_of_its_numbers_to_the_bit() {
        let isa = Isa::best();
        if isa.level() < crate::Level::Avx512 {
            return eprintln!("SKIPPED: this CPU has no AVX-512");
        }
        let mut xs: Vec<f32> = (0..=900_000).map(|i| i as f32 * -1e-4).collect();
        xs.extend([f32::NEG_INFINITY, f32::NAN, f32::MIN, -87.3, -87.300_01, -1e-30, -1e5, -1e20]);
        for xs in xs.chunks(LANES) {
            let (mut padded, mut powers) = ([0.0; LANES], [0.0; LANES]);
            padded[..xs.len()].copy_from_slice(xs);
            // SAFETY: the CPU has AVX-512, and sixteen elements can be read and written.
            unsafe { _mm512_storeu_ps(powers.as_mut_ptr(), exp(_mm512_loadu_ps(padded.as_ptr()))) };
            for (x, power) in xs.iter().zip(powers) {
                let expected = crate::math::fused::exp(*x);
                let same = power.to_bits() == expected.to_bits() || power.is_nan() && expected.is_nan();
                assert!(same, "exp({x}) = {power} not {expected}");
            }
        }
    }
}
