//! Scores in fp16: queries times keys, by what keys are held in.

use super::vector::{VECTOR, all, greater, load, store};
use crate::grouped::fp16::Fp16;
use crate::grouped::{Family, GROUP, Left, Shape};
use crate::{Isa, Store};
use std::arch::x86_64::*;

/// What keys and values are held in.
pub(in crate::attention_step) trait Held {
    /// Elements of a word of queries and keys.
    const ELEMENTS: usize;
    /// Words of the scales that a group of dimensions of a panel of keys has.
    const SCALE_WORDS: usize;
    /// Values are scaled to at most two to the power of this.
    const VALUES_BELOW: i16;
    /// Products of weights with values.
    type Values: Family;

    /// Whether this process can use them.
    fn usable(isa: Isa) -> bool;

    /// Rounds rows of queries to words, and for each group of dimensions to what undoes its scaling, and to what its sums start from.
    ///
    /// # Panics
    /// Where the CPU lacks the instructions.
    fn prepare_queries(isa: Isa, dimension: usize, queries: &[f32], words: &mut [u32]);

    /// Computes a tile of rows and panels, or of one row for each panel: of whole panels, or of the first half of one.
    ///
    /// # Safety
    /// [`Held::usable`], and all elements of the tile's operands can be read and written.
    unsafe fn tile<const ROWS: usize, const PANELS: usize, const HALVES: usize, const SINGLES: bool>(
        operands: &Operands,
    );
}

/// Panels of keys from a group of dimensions on, how far the next panel is, and where in each the scales of its keys begin. Of a
/// single panel, or one of each head, the second half may be left out: its scores are not to be looked at.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub words: &'a [u32],
    pub stride: usize,
    pub scales: usize,
    pub half: bool,
}

/// Scores are between this and its opposite, half of the largest numbers of fp16: what is beyond counts as that.
pub(super) const LOWEST: i16 = -32_767;

/// What an inner loop works on, bounds checked.
pub(in crate::attention_step) struct Operands {
    /// The first row of queries, its scale and the start of its sums, and how far the next row is.
    pub queries: *const u32,
    pub ends: *const u32,
    pub queries_stride: usize,
    pub keys: *const u32,
    pub scales: *const u32,
    pub keys_stride: usize,
    /// Words of depth.
    pub steps: usize,
    scores: *mut u32,
    width: usize,
    /// Whether scores are added to what is there.
    accumulate: bool,
}

impl Operands {
    /// Puts a vector of scores into a row, or adds it.
    ///
    /// # Safety
    /// The CPU has the instructions, and the vector can be read and written.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512fp16")]
    pub unsafe fn put(&self, row: usize, column: usize, mut score: __m512h) {
        // SAFETY: the caller's contract.
        unsafe {
            let place = self.scores.add(row * self.width + column * VECTOR);
            if self.accumulate {
                score = _mm512_add_ph(load(place), score);
            }
            // What is not a number stays that.
            score = greater(all(LOWEST), _mm512_min_ph(all(-LOWEST), score));
            store(place, score);
        }
    }
}

/// Scores of a tile over `steps` words of depth, a group at most, from (`row`, `panel`) of rows of `width` words on.
///
/// # Panics
/// Where `isa` lacks the instructions or an operand is too short.
pub(super) fn multiply<H: Held>(
    isa: Isa,
    (shape, steps): (Shape, usize),
    queries: Left<'_>,
    keys: Keys<'_>,
    (scores, width): (&mut [u32], usize),
    (row, panel): (usize, usize),
    store: Store,
) {
    let (rows, panels, side_by_side) = shape.counts();
    assert!(H::usable(isa) && rows > 0 && panels > 0 && steps <= GROUP / H::ELEMENTS);
    assert!(!keys.half || side_by_side == 1, "half of {side_by_side} panels");
    assert!(queries.words.len() >= (rows - 1) * queries.stride + steps.max(queries.ends + 2));
    let of_panel = (steps * Fp16::COLUMNS).max(keys.scales + H::SCALE_WORDS);
    assert!(keys.words.len() >= (panels - 1) * keys.stride + of_panel);
    assert!((panel + side_by_side) * VECTOR <= width && (row + rows) * width <= scores.len());
    let operands = Operands {
        queries: queries.words.as_ptr(),
        ends: queries.words[queries.ends..].as_ptr(),
        queries_stride: queries.stride,
        keys: keys.words.as_ptr(),
        scales: keys.words[keys.scales..].as_ptr(),
        keys_stride: keys.stride,
        steps,
        scores: scores[row * width + panel * VECTOR..].as_mut_ptr(),
        width,
        accumulate: store == Store::Accumulate,
    };
    macro_rules! run {
        ($($one:literal)+; $($rows:literal x $panels:literal),+) => {
            match (shape, keys.half) {
                $((Shape::Whole { rows: $one, panels: 1 }, true) => H::tile::<$one, 1, 1, false>(&operands),)+
                $((Shape::Whole { rows: $one, panels: 1 }, false) => H::tile::<$one, 1, 2, false>(&operands),)+
                $((Shape::Whole { rows: $rows, panels: $panels }, _) => {
                    H::tile::<$rows, $panels, 2, false>(&operands)
                })+
                (Shape::Singles(1), true) => H::tile::<1, 1, 1, true>(&operands),
                (Shape::Singles(1), false) => H::tile::<1, 1, 2, true>(&operands),
                (Shape::Singles(2), true) => H::tile::<1, 2, 1, true>(&operands),
                (Shape::Singles(2), false) => H::tile::<1, 2, 2, true>(&operands),
                (Shape::Singles(4), true) => H::tile::<1, 4, 1, true>(&operands),
                (Shape::Singles(4), false) => H::tile::<1, 4, 2, true>(&operands),
                _ => unreachable!("no tile of {rows} rows, {panels} panels"),
            }
        };
    }
    // SAFETY: usable, and the lengths were checked above.
    unsafe { run!(1 2 3 4 5 6 7 8 9 10 11; 1 x 2, 1 x 4, 2 x 2, 3 x 2) }
}
