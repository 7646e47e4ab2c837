//! Products for decoding with a scale for every 128 neighbours of a row, of weights and of inputs: prepared rows times
//! packed panels.
//!
//! A word of 32 bits holds neighbours in depth, four int8 or two fp16, word after word for the columns of a panel, so that an
//! instruction which multiplies and adds within words does a step for a whole vector of columns. What a group adds up to is
//! scaled and added in f32. As with `crate::tile`, an element is one chain in ascending depth, whatever the rows, the tile or
//! the threads.
//!
//! Rows of inputs are words, then for each group its scale and the word that its sums start from. A panel is for each group
//! the words of its columns, then their scales.

#[cfg(target_arch = "x86_64")]
pub(crate) mod fp16;
pub(crate) mod int8;
mod loops;

use crate::projection::tiles;
use crate::tile::{LARGEST, power_of_two_up_to};
use crate::{BlockMut, Isa};
use std::ops::Range;

/// Neighbours that share a scale.
const GROUP: usize = 128;
/// Rows whose inputs stay in the L2 cache while the weight passes by.
const BLOCK_ROWS: usize = 96;
/// Words of depth of a block for many rows: 32 columns of a panel take 24 KiB of a 32 KiB L1 cache. A multiple of
/// the words of a group.
const BLOCK_STEPS: usize = 192;

/// What an inner loop works on, bounds checked.
pub(crate) struct Operands {
    /// First row of the inputs, from its beginning on, and how far the next one is.
    left: *const u32,
    left_stride: usize,
    /// Steps of depth before and in this block, and words of inputs in all.
    first: usize,
    steps: usize,
    inputs: usize,
    /// First panel from its beginning on, and how far the next one is.
    right: *const u32,
    right_stride: usize,
    c: *mut f32,
    c_stride: usize,
}

/// The inner loops of a format on an instruction set.
pub(crate) trait Family {
    /// Most rows of a tile.
    const ROWS: usize;
    /// Columns of a panel.
    const COLUMNS: usize;
    /// Elements of a word.
    const ELEMENTS: usize;

    /// Whether this process can use them.
    fn usable(isa: Isa) -> bool;

    /// Most panels side by side, a power of two.
    fn side_by_side(rows: usize) -> usize;

    /// Computes a tile of `rows` up to [`Family::ROWS`] and a power of two up to [`Family::side_by_side`] panels;
    /// from the second block of depth on it goes on from what is there.
    ///
    /// # Safety
    /// [`Family::usable`], and all elements of the tile's operands can be read and written.
    unsafe fn run(rows: usize, panels: usize, operands: &Operands);
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
    for top in (0..rows).step_by(BLOCK_ROWS) {
        let height = BLOCK_ROWS.min(rows - top);
        let tile_rows = tiles(F::ROWS, height).next().map_or(0, |tile| tile.len());
        for first in (0..steps).step_by(block) {
            let mut panel = panels.start;
            while panel < panels.end {
                let count = power_of_two_up_to(F::side_by_side(tile_rows), panels.end - panel);
                let column = (panel - panels.start) * F::COLUMNS;
                let columns = count * F::COLUMNS;
                for tile in tiles(F::ROWS, height) {
                    let row = top + tile.start;
                    let mut operands = Operands {
                        left: x[row * row_words..].as_ptr(),
                        left_stride: row_words,
                        first,
                        steps: block.min(steps - first),
                        inputs,
                        right: memory[panel * panel_words..].as_ptr(),
                        right_stride: panel_words,
                        c: std::ptr::null_mut(),
                        c_stride: 0,
                    };
                    let present = columns.min(y.columns() - column);
                    if present == columns {
                        (operands.c, operands.c_stride) =
                            y.place(row..row + tile.len(), column..column + columns);
                        // SAFETY: usable, and the lengths were checked above, the place in C by the block.
                        unsafe { F::run(tile.len(), count, &operands) };
                        continue;
                    }
                    // The last columns are beyond the output.
                    let mut edge = [0.0; LARGEST];
                    assert!(tile.len() * columns <= LARGEST);
                    for (r, old) in edge.chunks_exact_mut(columns).enumerate().take(tile.len()) {
                        old[..present].copy_from_slice(&y.row_mut(row + r)[column..]);
                    }
                    (operands.c, operands.c_stride) = (edge.as_mut_ptr(), columns);
                    // SAFETY: as above; the tile fits into the array.
                    unsafe { F::run(tile.len(), count, &operands) };
                    for (r, sums) in edge.chunks_exact(columns).enumerate().take(tile.len()) {
                        y.row_mut(row + r)[column..].copy_from_slice(&sums[..present]);
                    }
                }
                panel += count;
            }
        }
    }
}
