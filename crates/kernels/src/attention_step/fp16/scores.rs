//! Scores in fp16: queries times keys, each with a power of two to itself.

use super::vector::{VECTOR, all, greater, load, store};
use crate::grouped::fp16::{ELEMENTS, Fp16, exponent, join, prepare};
use crate::grouped::{Family, GROUP, Left, Shape, row_words};
use crate::{Isa, Store};
use std::arch::x86_64::*;

/// Panels of keys from a group of dimensions on, how far the next panel is, and where in each the exponents of its keys begin. Of a
/// single panel, or one of each head, the second half may be left out: its scores are not to be looked at.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub words: &'a [u32],
    pub stride: usize,
    pub exponents: usize,
    pub half: bool,
}

/// Scores are between this and its opposite, half of the largest numbers of fp16: what is beyond counts as that.
pub(super) const LOWEST: i16 = -32_767;

/// What an inner loop works on, bounds checked.
struct Operands {
    /// The first row of queries, the exponent of its scale, and how far the next row is.
    queries: *const u32,
    ends: *const u32,
    queries_stride: usize,
    keys: *const u32,
    exponents: *const u32,
    keys_stride: usize,
    /// Words of depth.
    steps: usize,
    scores: *mut u32,
    width: usize,
    /// Whether scores are added to what is there.
    accumulate: bool,
}

/// Rounds rows of queries, each group of dimensions with an exponent of a power of two, as fp16, in both halves of its word. That of a
/// group that is not finite is not a number.
///
/// # Panics
/// Where the CPU lacks the instructions.
pub(super) fn prepare_queries(isa: Isa, dimension: usize, queries: &[f32], words: &mut [u32]) {
    prepare(isa, dimension, queries, words);
    let (steps, row_words) = (dimension.div_ceil(ELEMENTS), row_words(dimension, ELEMENTS));
    for row in words.chunks_exact_mut(row_words) {
        for [end, _] in row[steps..].as_chunks_mut::<2>().0 {
            *end = u32::from(exponent(f32::from_bits(*end))) * 0x1_0001;
        }
    }
}

/// Scores of a tile over `steps` words of depth, a group at most, from (`row`, `panel`) of rows of `width` words on. They are products
/// summed up in fp16, as those of weights are, so that nothing is lost by keeping them in it.
///
/// # Panics
/// Where `isa` lacks the instructions or an operand is too short.
pub(super) fn multiply(
    isa: Isa,
    (shape, steps): (Shape, usize),
    queries: Left<'_>,
    keys: Keys<'_>,
    (scores, width): (&mut [u32], usize),
    (row, panel): (usize, usize),
    store: Store,
) {
    let (rows, panels, side_by_side) = shape.counts();
    assert!(Fp16::usable(isa) && rows > 0 && panels > 0 && steps <= GROUP / ELEMENTS);
    assert!(!keys.half || side_by_side == 1, "half of {side_by_side} panels");
    assert!(queries.words.len() >= (rows - 1) * queries.stride + steps.max(queries.ends + 2));
    let of_panel = (steps * Fp16::COLUMNS).max(keys.exponents + VECTOR);
    assert!(keys.words.len() >= (panels - 1) * keys.stride + of_panel);
    assert!((panel + side_by_side) * VECTOR <= width && (row + rows) * width <= scores.len());
    let operands = Operands {
        queries: queries.words.as_ptr(),
        ends: queries.words[queries.ends..].as_ptr(),
        queries_stride: queries.stride,
        keys: keys.words.as_ptr(),
        exponents: keys.words[keys.exponents..].as_ptr(),
        keys_stride: keys.stride,
        steps,
        scores: scores[row * width + panel * VECTOR..].as_mut_ptr(),
        width,
        accumulate: store == Store::Accumulate,
    };
    macro_rules! run {
        ($($one:literal)+; $($rows:literal x $panels:literal),+) => {
            match (shape, keys.half) {
                $((Shape::Whole { rows: $one, panels: 1 }, true) => tile::<$one, 1, 1, false>(&operands),)+
                $((Shape::Whole { rows: $one, panels: 1 }, false) => tile::<$one, 1, 2, false>(&operands),)+
                $((Shape::Whole { rows: $rows, panels: $panels }, _) => tile::<$rows, $panels, 2, false>(&operands),)+
                (Shape::Singles(1), true) => tile::<1, 1, 1, true>(&operands),
                (Shape::Singles(1), false) => tile::<1, 1, 2, true>(&operands),
                (Shape::Singles(2), true) => tile::<1, 2, 1, true>(&operands),
                (Shape::Singles(2), false) => tile::<1, 2, 2, true>(&operands),
                (Shape::Singles(4), true) => tile::<1, 4, 1, true>(&operands),
                (Shape::Singles(4), false) => tile::<1, 4, 2, true>(&operands),
                _ => unreachable!("no tile of {rows} rows, {panels} panels"),
            }
        };
    }
    // SAFETY: usable, and the lengths were checked above.
    unsafe { run!(1 2 3 4 5 6 7 8 9 10 11; 1 x 2, 1 x 4, 2 x 2, 3 x 2) }
}

/// # Safety
/// The CPU has the instructions, and all elements of the tile's operands can be read and written.
#[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
unsafe fn tile<const ROWS: usize, const PANELS: usize, const HALVES: usize, const SINGLES: bool>(
    operands: &Operands,
) {
    let &Operands { mut queries, ends, queries_stride, mut keys, exponents, keys_stride, .. } = operands;
    let &Operands { steps, scores, width, accumulate, .. } = operands;
    // SAFETY: see the caller's contract.
    unsafe {
        // The row of a panel, which is its own where every panel has one.
        let row_of = |row: usize, panel: usize| if SINGLES { panel } else { row };
        let mut sums = [[[_mm512_setzero_ph(); 2]; PANELS]; ROWS];
        for _ in 0..steps {
            let mut vectors = [[_mm512_setzero_ph(); HALVES]; PANELS];
            for panel in 0..PANELS {
                for half in 0..HALVES {
                    vectors[panel][half] = load(keys.add(panel * keys_stride + half * VECTOR));
                }
            }
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    let query = queries.add(row_of(row, panel) * queries_stride).read();
                    let query = _mm512_castsi512_ph(_mm512_set1_epi32(query as i32));
                    for half in 0..HALVES {
                        sums[row][panel][half] =
                            _mm512_fmadd_ph(query, vectors[panel][half], sums[row][panel][half]);
                    }
                }
            }
            queries = queries.wrapping_add(1);
            keys = keys.wrapping_add(Fp16::COLUMNS);
        }
        for panel in 0..PANELS {
            let exponents = load(exponents.add(panel * keys_stride));
            for row in 0..ROWS {
                let of_row = ends.add(row_of(row, panel) * queries_stride).read();
                let of_row = _mm512_castsi512_ph(_mm512_set1_epi32(of_row as i32));
                let mut score = _mm512_scalef_ph(join(sums[row][panel]), _mm512_add_ph(exponents, of_row));
                let column = if SINGLES { 0 } else { panel };
                let place = scores.add(row_of(row, panel) * width + column * VECTOR);
                if accumulate {
                    score = _mm512_add_ph(load(place), score);
                }
                // What is not a number stays that.
                score = greater(all(LOWEST), _mm512_min_ph(all(-LOWEST), score));
                store(place, score);
            }
        }
    }
}
