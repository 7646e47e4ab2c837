//! Products for decoding with a scale for every 128 neighbours of a row, of weights and of inputs: prepared rows times
//! packed panels.
//!
//! A word of 32 bits holds neighbours in depth, four int8 or two fp16, word after word for the columns of a panel, so that an
//! instruction which multiplies and adds within words does a step for a whole vector of columns. What a group adds up to is
//! scaled and added in f32. As with `crate::tile`, an element is one chain in ascending depth, whatever the rows, the tile or
//! the threads.
//!
//! Rows of inputs are words, then for each group its scale and the word that its sums start from. A panel is for each group
//! the scales of its columns, then their words.

#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16;
pub(crate) mod int8;
mod loops;

use crate::projection::{block_rows, following, tiles};
use crate::tile::{LARGEST, power_of_two_up_to};
use crate::{BlockMut, Isa, Store, prefetch};
use std::ops::Range;

/// Neighbours that share a scale.
pub(crate) const GROUP: usize = 128;
/// Words of depth of a block for many rows: 32 columns of a panel take 24 KiB of a 32 KiB L1 cache. A multiple of
/// the words of a group.
const BLOCK_STEPS: usize = 192;

/// What an inner loop works on, bounds checked.
pub(crate) struct Operands {
    /// The first row of the inputs, its scale and the start of its sums in the first group, and how far the next row is.
    left: *const u32,
    ends: *const u32,
    left_stride: usize,
    /// The words of the first panel, how far the next panel is, and the next step.
    right: *const u32,
    right_stride: usize,
    right_step: usize,
    /// The scales of the first panel, and how far those of the next one are. Those of the next group follow its words, and its words
    /// them.
    scales: *const f32,
    scales_stride: usize,
    /// What the caches are asked for with each step, and how far apart.
    next: *const u32,
    next_step: usize,
    /// Words of depth, whole groups but for the last.
    steps: usize,
    c: *mut f32,
    c_stride: usize,
    /// Whether sums go on from what is there.
    accumulate: bool,
}

/// The inner loops of a format on an instruction set.
pub(crate) trait Family {
    /// Most rows of a tile.
    const ROWS: usize;
    /// Columns of a panel.
    const COLUMNS: usize;
    /// Elements of a word of inputs.
    const ELEMENTS: usize;
    /// Words of a step of a panel.
    const STEP_WORDS: usize;

    /// Whether this process can use them.
    fn usable(isa: Isa) -> bool;

    /// Most panels side by side, a power of two.
    fn side_by_side(rows: usize) -> usize;

    /// Computes a tile of `rows` up to [`Family::ROWS`] and a power of two up to [`Family::side_by_side`] panels.
    ///
    /// # Safety
    /// [`Family::usable`], and all elements of the tile's operands can be read and written.
    unsafe fn run(rows: usize, panels: usize, operands: &Operands);

    /// Computes 1, 2 or 4 tiles of one row and one panel, of which each has its own.
    ///
    /// # Safety
    /// As [`Family::run`].
    unsafe fn run_singles(count: usize, operands: &Operands);
}

/// Groups of a row.
fn groups(inputs: usize) -> usize {
    inputs.div_ceil(GROUP)
}

/// Words of a row of inputs, with so many `elements` in one.
pub(crate) fn row_words(inputs: usize, elements: usize) -> usize {
    inputs.div_ceil(elements) + 2 * groups(inputs)
}

/// Words of a panel, with so many `elements` in one.
pub(crate) fn panel_words(inputs: usize, elements: usize, columns: usize) -> usize {
    (inputs.div_ceil(elements) + groups(inputs)) * columns
}

/// Rows of prepared inputs: from a group on, where their ends begin, and how far the next row is.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub words: &'a [u32],
    pub ends: usize,
    pub stride: usize,
}

/// The scales of what has none.
static ONES: [f32; 32] = [1.0; 32];

/// Panels from a group on, and how far the next one is.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Scales, then words, group after group. Where more than two rows pass by, the caches are asked for `next` meanwhile, a line with
    /// each step, and beyond its end where there are more steps.
    Scaled { words: &'a [u32], stride: usize, next: &'a [u32] },
    /// One group of words without scales, `step` apart.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Plain { words: &'a [u32], stride: usize, step: usize },
}

/// What a tile is made of.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// Rows times panels.
    Whole { rows: usize, panels: usize },
    /// 1, 2 or 4 rows, each times a panel of its own.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Singles(usize),
}

impl Shape {
    /// Rows, panels, and panels side by side in the results.
    #[inline(always)]
    pub(crate) fn counts(self) -> (usize, usize, usize) {
        match self {
            Shape::Whole { rows, panels } => (rows, panels, panels),
            Shape::Singles(count) => (count, count, 1),
        }
    }
}

/// A tile over `steps` words of depth, from (`row`, `column`) of the block on.
///
/// # Panics
/// Where `isa` lacks the instructions or an operand is too short.
#[inline(always)]
pub(crate) fn multiply<F: Family>(
    isa: Isa,
    (shape, steps): (Shape, usize),
    a: Left<'_>,
    b: Right<'_>,
    c: &mut BlockMut<'_, f32>,
    (row, column): (usize, usize),
    store: Store,
) {
    let (rows, panels, side_by_side) = shape.counts();
    assert!(F::usable(isa) && rows > 0 && panels > 0);
    let groups = steps.div_ceil(GROUP / F::ELEMENTS);
    assert!(a.words.len() >= (rows - 1) * a.stride + steps.max(a.ends + 2 * groups));
    let none: &[u32] = &[];
    let (words, right_stride, right_step, scales, scales_stride, next) = match b {
        Right::Scaled { words, stride, next } => {
            assert!(
                F::STEP_WORDS == F::COLUMNS
                    && words.len() >= (panels - 1) * stride + (steps + groups) * F::COLUMNS
            );
            (&words[F::COLUMNS..], stride, F::COLUMNS, words.as_ptr().cast(), stride, next)
        }
        Right::Plain { words, stride, step } => {
            assert!(groups <= 1 && F::COLUMNS <= ONES.len());
            assert!(words.len() >= (panels - 1) * stride + steps.saturating_sub(1) * step + F::STEP_WORDS);
            (words, stride, step, ONES.as_ptr(), 0, none)
        }
    };
    let (c, c_stride) = c.place(row..row + rows, column..column + side_by_side * F::COLUMNS);
    let (next, next_step) = prefetch::line_by_line(next, words);
    let operands = Operands {
        left: a.words.as_ptr(),
        ends: a.words[a.ends..].as_ptr(),
        left_stride: a.stride,
        right: words.as_ptr(),
        right_stride,
        right_step,
        scales,
        scales_stride,
        next,
        next_step,
        steps,
        c,
        c_stride,
        accumulate: store == Store::Accumulate,
    };
    // SAFETY: usable, and the lengths were checked above, the place in C by the block.
    unsafe {
        match shape {
            Shape::Whole { .. } => F::run(rows, panels, &operands),
            Shape::Singles(count) => F::run_singles(count, &operands),
        }
    }
}

/// What a product reads: prepared rows and packed panels.
pub(crate) struct Product<'a> {
    pub isa: Isa,
    pub inputs: usize,
    pub x: &'a [u32],
    pub panels: &'a [u32],
}

/// `y[r, n] = Σ_k x[r, k] · weight[n, k]` for the outputs n of a range of panels.
pub(crate) fn project<F: Family>(product: &Product<'_>, panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    let &Product { isa, inputs, x, panels: memory } = product;
    let (rows, steps) = (y.rows(), inputs.div_ceil(F::ELEMENTS));
    let row_words = row_words(inputs, F::ELEMENTS);
    let panel_words = panel_words(inputs, F::ELEMENTS, F::COLUMNS);
    assert!(F::usable(isa) && F::COLUMNS == crate::projection::columns(isa));
    assert!(x.len() >= rows * row_words && memory.len() >= panels.end * panel_words);
    let block = if rows <= F::ROWS { steps } else { BLOCK_STEPS };
    let most = block_rows(row_words);
    for top in (0..rows).step_by(most) {
        let height = most.min(rows - top);
        let tile_rows = tiles(F::ROWS, height).next().map_or(0, |tile| tile.len());
        let mut panel = panels.start;
        while panel < panels.end {
            let count = power_of_two_up_to(F::side_by_side(tile_rows), panels.end - panel);
            let column = (panel - panels.start) * F::COLUMNS;
            let columns = count * F::COLUMNS;
            for first in (0..steps).step_by(block) {
                let group = first / (GROUP / F::ELEMENTS);
                let start = panel * panel_words + (first + group) * F::COLUMNS;
                let depth = block.min(steps - first);
                let store = if first == 0 { Store::Overwrite } else { Store::Accumulate };
                let words = (depth + depth.div_ceil(GROUP / F::ELEMENTS)) * F::COLUMNS;
                let mut next = following(&memory[start..], words, depth, height > F::ROWS);
                for tile in tiles(F::ROWS, height) {
                    let row = top + tile.start;
                    let words = &x[row * row_words + first..];
                    let left = Left { words, ends: steps - first + 2 * group, stride: row_words };
                    let shape = (Shape::Whole { rows: tile.len(), panels: count }, depth);
                    let next = next.next().unwrap_or_default();
                    let right = Right::Scaled { words: &memory[start..], stride: panel_words, next };
                    if column + columns <= y.columns() {
                        multiply::<F>(isa, shape, left, right, y, (row, column), store);
                    } else {
                        edge::<F>(isa, shape, left, right, y, (row, column), store);
                    }
                }
            }
            panel += count;
        }
    }
}

/// A tile whose last columns are beyond the output.
fn edge<F: Family>(
    isa: Isa,
    (shape, steps): (Shape, usize),
    left: Left<'_>,
    right: Right<'_>,
    y: &mut BlockMut<'_, f32>,
    (row, column): (usize, usize),
    store: Store,
) {
    let Shape::Whole { rows, panels } = shape else { unreachable!("products are whole tiles") };
    let (columns, present) = (panels * F::COLUMNS, y.columns() - column);
    let mut tile = [0.0; LARGEST];
    let tile = &mut tile[..rows * columns];
    for (r, old) in tile.chunks_exact_mut(columns).enumerate() {
        old[..present].copy_from_slice(&y.row_mut(row + r)[column..]);
    }
    multiply::<F>(isa, (shape, steps), left, right, &mut BlockMut::new(tile, columns), (0, 0), store);
    for (r, sums) in tile.chunks_exact(columns).enumerate() {
        y.row_mut(row + r)[column..].copy_from_slice(&sums[..present]);
    }
}
