//! Weights narrower than f32, for decoding: bf16 in pairs, and int8 with a scale per group.
//!
//! Both lie in words of 32 bits that hold neighbours in depth (two bf16, or four int8), word after word for the columns
//! of a panel, so that an instruction which multiplies and adds within words does a step for a whole vector of
//! columns. As with f32 (`crate::tile`), an element is one chain in ascending depth, whatever the rows, the tile or
//! the threads.

mod bf16;
mod int8;

use crate::projection::{WeightFormat, tiles};
use crate::tile::{LARGEST, power_of_two_up_to};
use crate::{BlockMut, Isa, prefetch};
use std::ops::Range;

/// Rows whose inputs stay in the L2 cache while the weight passes by.
const BLOCK_ROWS: usize = 96;
/// Steps of depth of a block for many rows: 32 columns of a panel take 24 KiB of a 32 KiB L1 cache. A multiple of
/// [`int8::GROUP_STEPS`].
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

/// Bytes between what is read and what is fetched, for few rows, which wait for memory.
const AHEAD: usize = 8192;

/// Fetches what a panel has [`AHEAD`] of `right`: two lines, a step of the widest vectors.
#[inline(always)]
fn prefetch(rows: usize, right: *const u32) {
    if rows <= 2 {
        let ahead = right.wrapping_byte_add(AHEAD);
        prefetch::read(ahead);
        prefetch::read(ahead.wrapping_byte_add(64));
    }
}

/// Steps of depth: words per column.
fn steps(format: WeightFormat, inputs: usize) -> usize {
    inputs.div_ceil(if format == WeightFormat::Int8 { 4 } else { 2 })
}

/// Words of a panel.
pub(crate) fn panel_words(format: WeightFormat, inputs: usize, columns: usize) -> usize {
    let scales = if format == WeightFormat::Int8 { int8::groups(inputs) } else { 0 };
    (steps(format, inputs) + scales) * columns
}

/// Words of a row of inputs as the inner loops of `isa` read it.
pub(crate) fn row_words(isa: Isa, format: WeightFormat, inputs: usize) -> usize {
    match format {
        WeightFormat::Int8 => int8::row_words(inputs),
        _ if isa.has_avx512_bf16() => steps(format, inputs),
        _ => 2 * steps(format, inputs),
    }
}

/// Writes rows of inputs as the inner loops of `isa` read them.
pub(crate) fn prepare(isa: Isa, format: WeightFormat, inputs: usize, x: &[f32], words: &mut [u32]) {
    match format {
        WeightFormat::Int8 => int8::prepare(isa, inputs, x, words),
        _ if isa.has_avx512_bf16() => bf16::prepare_pairs(isa, inputs, x, words),
        _ => bf16::prepare_floats(inputs, x, words),
    }
}

/// Packs rows of a weight (`inputs` elements each) into the memory of their panels.
pub(crate) fn fill(isa: Isa, format: WeightFormat, rows: &[f32], inputs: usize, panels: &mut [u32]) {
    let columns = crate::projection::columns(isa);
    let panel_words = panel_words(format, inputs, columns);
    for (rows, panel) in rows.chunks(columns * inputs).zip(panels.chunks_mut(panel_words)) {
        match format {
            WeightFormat::Int8 => int8::fill(isa, rows, inputs, columns, panel),
            _ => bf16::fill(isa, rows, inputs, columns, panel),
        }
    }
}

/// Reads column `column` of a panel back.
pub(crate) fn read(format: WeightFormat, panel: &[u32], columns: usize, column: usize, row: &mut [f32]) {
    match format {
        WeightFormat::Int8 => int8::read(panel, columns, column, row),
        _ => bf16::read(panel, columns, column, row),
    }
}

/// What a product reads: prepared rows and packed panels.
pub(crate) struct Product<'a> {
    pub isa: Isa,
    pub format: WeightFormat,
    pub inputs: usize,
    pub x: &'a [u32],
    pub panels: &'a [u32],
}

/// `y[r, n] = Σ_k x[r, k] · weight[n, k]` for the outputs n of a range of panels.
pub(crate) fn project(product: &Product<'_>, panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    let isa = product.isa;
    match (product.format, isa.level()) {
        #[cfg(target_arch = "x86_64")]
        (WeightFormat::Int8, crate::Level::Avx512 | crate::Level::Amx) if isa.has_avx512_vnni() => {
            run::<int8::Vnni>(product, panels, y);
        }
        #[cfg(target_arch = "x86_64")]
        (WeightFormat::Int8, crate::Level::Avx512 | crate::Level::Amx) => {
            run::<int8::Avx512>(product, panels, y)
        }
        #[cfg(target_arch = "x86_64")]
        (WeightFormat::Int8, crate::Level::Avx2) => run::<int8::Avx2>(product, panels, y),
        (WeightFormat::Int8, _) => run::<int8::Portable>(product, panels, y),
        #[cfg(target_arch = "x86_64")]
        (_, crate::Level::Avx512 | crate::Level::Amx) if isa.has_avx512_bf16() => {
            run::<bf16::Dot>(product, panels, y);
        }
        #[cfg(target_arch = "x86_64")]
        (_, crate::Level::Avx512 | crate::Level::Amx) => run::<bf16::Avx512>(product, panels, y),
        #[cfg(target_arch = "x86_64")]
        (_, crate::Level::Avx2) => run::<bf16::Avx2>(product, panels, y),
        _ => run::<bf16::Portable>(product, panels, y),
    }
}

fn run<F: Family>(product: &Product<'_>, panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    let &Product { isa, format, inputs, x, panels: memory } = product;
    let (rows, steps) = (y.rows(), steps(format, inputs));
    let (row_words, panel_words) = (row_words(isa, format, inputs), panel_words(format, inputs, F::COLUMNS));
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
