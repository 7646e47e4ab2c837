//! Products with weights as decoding holds them, on tiles: panels of 32 columns whose rows are pairs, as
//! [`crate::projection`] packs them. A row of the result is the same bit for bit whatever other rows are computed with it.

use std::cell::Cell;
use std::ops::Range;

use super::tile::{BLOCK, Block, PANEL_STEP_BYTES, Session, TILE_ROW_BYTES, TILE_ROWS, TileUnit};
use crate::buffer::Buffer;
use crate::grid::BlockMut;

/// Pairs of a step of depth. Rows of inputs and panels are filled up with zeros to whole steps.
pub(crate) const STEP_PAIRS: usize = 16;
/// Columns of a panel.
pub(crate) const COLUMNS: usize = BLOCK;
/// Bytes of inputs that are multiplied with one panel after the other: half of the L2 of a processor with AMX.
const INPUT_BYTES: usize = 1 << 20;

thread_local! {
    /// Room for rows that do not fill a tile.
    static REST: Cell<Buffer> = const { Cell::new(Buffer::new()) };
}

/// Y = X·Wᵀ for rows X of `row_words` pairs each, a multiple of [`STEP_PAIRS`], and the panels `panels` of W, one after the
/// other in `weights`, each of `row_words` rows of [`COLUMNS`] pairs. `y` has the rows of X and the columns of those panels;
/// of the last panel some may be missing.
///
/// # Panics
/// Where the shapes do not fit together.
pub(crate) fn project<T: TileUnit>(
    tiles: T,
    x: &[u32],
    row_words: usize,
    weights: &[u32],
    panels: Range<usize>,
    y: &mut BlockMut<'_, f32>,
) {
    let (rows, columns, panel_words) = (y.rows(), y.columns(), row_words * COLUMNS);
    assert!(row_words > 0 && row_words.is_multiple_of(STEP_PAIRS), "projection: rows of {row_words} pairs");
    assert!(x.len() == rows * row_words, "projection: {} pairs of inputs for {rows} rows", x.len());
    assert!(weights.len() >= panels.end * panel_words, "projection: panels {panels:?}");
    assert!(columns.div_ceil(COLUMNS) == panels.len(), "projection: {columns} columns of panels {panels:?}");
    let session = Session::open(tiles);
    let at_once = (INPUT_BYTES / (4 * row_words)).max(BLOCK) / BLOCK * BLOCK;
    // Rows that do not fill a tile are copied, since a tile reads sixteen. What the others hold does not matter.
    let whole = rows / TILE_ROWS * TILE_ROWS;
    let mut rest = REST.take();
    rest.reserve(4 * TILE_ROWS * row_words);
    rest.words_mut()[..(rows - whole) * row_words].copy_from_slice(&x[whole * row_words..]);
    let mut sums = Sums([0.0; BLOCK * BLOCK]);
    for top in (0..rows).step_by(at_once) {
        let bottom = rows.min(top + at_once);
        for (at, panel) in panels.clone().enumerate() {
            let across = at * COLUMNS..columns.min((at + 1) * COLUMNS);
            let mut row = top;
            while row < bottom {
                let (height, a) = match whole.min(bottom).saturating_sub(row) {
                    0 => (bottom - row, rest.as_ptr().cast()),
                    left => (left.min(BLOCK), x[row * row_words..].as_ptr()),
                };
                let is_whole = height.is_multiple_of(TILE_ROWS) && across.len() == COLUMNS;
                let (c, c_stride) = match is_whole {
                    true => y.place(row..row + height, across.clone()),
                    false => (sums.0.as_mut_ptr(), BLOCK),
                };
                let block = Block {
                    a: [a.cast(), a.wrapping_add(TILE_ROWS * row_words).cast()],
                    a_row_bytes: 4 * row_words,
                    a_step_bytes: TILE_ROW_BYTES,
                    a_as_pairs: false,
                    b: weights[panel * panel_words..].as_ptr().cast(),
                    b_row_bytes: 4 * COLUMNS,
                    b_tile_bytes: TILE_ROW_BYTES,
                    k_tiles: row_words / STEP_PAIRS,
                    c,
                    c_row_bytes: 4 * c_stride,
                    accumulate: false,
                };
                // SAFETY: A has 16 or 32 rows of `row_words` pairs at `row`, or the 16 of `rest`; the panel has as many
                // rows of 32 pairs, a step of which is as long as two tiles; C is a place in `y` or `sums`.
                unsafe {
                    if height > TILE_ROWS {
                        session.block::<2>(&block);
                    } else {
                        session.block::<1>(&block);
                    }
                }
                if !is_whole {
                    for (row, sums) in (row..row + height).zip(sums.0.chunks_exact(BLOCK)) {
                        y.row_mut(row)[across.clone()].copy_from_slice(&sums[..across.len()]);
                    }
                }
                row += height;
            }
        }
    }
    REST.set(rest);
}
const _: () = assert!(STEP_PAIRS * COLUMNS * 4 == PANEL_STEP_BYTES);

/// A block of C.
#[repr(C, align(64))]
struct Sums([f32; BLOCK * BLOCK]);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiles::tile::EmulatedTiles;

    /// Small whole numbers, so that every sum is exact.
    fn value(row: usize, k: usize) -> f32 {
        ((row * 7 + k * 3 + row * k) % 101 % 13) as f32 - 6.0
    }

    fn pair(row: usize, k: usize, inputs: usize) -> u32 {
        let bits = |k: usize| if k < inputs { value(row, k).to_bits() >> 16 } else { 0 };
        bits(2 * k) | bits(2 * k + 1) << 16
    }

    fn check<T: TileUnit>(tiles: T) {
        let shapes: [(usize, usize, usize); 7] =
            [(1, 1, 1), (3, 37, 31), (16, 64, 32), (17, 33, 65), (31, 129, 100), (48, 96, 64), (70, 40, 96)];
        for (rows, inputs, outputs) in shapes {
            let row_words = inputs.div_ceil(2).next_multiple_of(STEP_PAIRS);
            let x: Vec<u32> =
                (0..rows * row_words).map(|at| pair(at / row_words, at % row_words, inputs)).collect();
            let panels = outputs.div_ceil(COLUMNS);
            let mut weights = Buffer::new();
            weights.reserve(4 * panels * row_words * COLUMNS);
            for (at, word) in weights.words_mut()[..panels * row_words * COLUMNS].iter_mut().enumerate() {
                let (panel, k, column) = (at / (row_words * COLUMNS), at / COLUMNS % row_words, at % COLUMNS);
                let output = panel * COLUMNS + column;
                *word = if output < outputs { pair(output + 5, k, inputs) } else { 0 };
            }
            for first in 0..panels {
                let columns = outputs - first * COLUMNS;
                let mut y = vec![f32::NAN; rows * columns];
                project(
                    tiles,
                    &x,
                    row_words,
                    weights.words(),
                    first..panels,
                    &mut BlockMut::new(&mut y, columns),
                );
                for (at, y) in y.iter().enumerate() {
                    let (row, output) = (at / columns, first * COLUMNS + at % columns);
                    let expected: f32 = (0..inputs).map(|k| value(row, k) * value(output + 5, k)).sum();
                    assert!(
                        *y == expected,
                        "{rows}x{inputs}x{outputs} at {row},{output}: {y} for {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn projections_of_whole_numbers_are_exact_on_emulated_tiles() {
        check(EmulatedTiles);
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn projections_of_whole_numbers_are_exact_by_the_instructions_of_amx() {
        check(crate::tiles::trap::tiles());
    }
}
