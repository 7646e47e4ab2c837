//! Weights in int8 with a scale per group, for decoding: products of prepared inputs with packed panels.
//!
//! Weights lie in words of 32 bits that hold four neighbours in depth, word after word for the columns
//! of a panel, so that an instruction which multiplies and adds within words does a step for a whole vector of
//! columns. As with `crate::tile`, an element is one chain in ascending depth, whatever the rows, the tile or
//! the threads.

mod loops;

pub(crate) use loops::{fill, prepare, read, row_words};

#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::projection::tiles;
use crate::tile::{LARGEST, power_of_two_up_to};
use crate::{BlockMut, Isa};
#[cfg(target_arch = "x86_64")]
use loops::{Avx2, Avx512, Vnni};
use loops::{Portable, groups};
use std::ops::Range;

/// Rows whose inputs stay in the L2 cache while the weight passes by.
const BLOCK_ROWS: usize = 96;
/// Steps of depth of a block for many rows: 32 columns of a panel take 24 KiB of a 32 KiB L1 cache. A multiple of
/// the steps of a group.
const BLOCK_STEPS: usize = 192;

/// What an inner loop works on, bounds checked.
struct Operands {
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

/// The inner loops of an instruction set.
trait Family {
    /// Most rows of a tile.
    const ROWS: usize;
    /// Columns of a panel.
    const COLUMNS: usize;

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

/// Words of a panel, scales included.
pub(crate) fn panel_words(inputs: usize, columns: usize) -> usize {
    (inputs.div_ceil(4) + groups(inputs)) * columns
}

/// What a product reads: prepared rows and packed panels.
pub(crate) struct Product<'a> {
    pub isa: Isa,
    pub inputs: usize,
    pub x: &'a [u32],
    pub panels: &'a [u32],
}

/// `y[r, n] = Σ_k x[r, k] · weight[n, k]` for the outputs n of a range of panels.
pub(crate) fn project(product: &Product<'_>, panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    match product.isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx if product.isa.has_avx512_vnni() => run::<Vnni>(product, panels, y),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => run::<Avx512>(product, panels, y),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => run::<Avx2>(product, panels, y),
        _ => run::<Portable>(product, panels, y),
    }
}

fn run<F: Family>(product: &Product<'_>, panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    let &Product { isa, inputs, x, panels: memory } = product;
    let (rows, steps) = (y.rows(), inputs.div_ceil(4));
    let (row_words, panel_words) = (row_words(inputs), panel_words(inputs, F::COLUMNS));
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
