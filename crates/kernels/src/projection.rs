//! Products with a weight that was packed once, for decoding: the bits of a row of the result do not depend on the
//! rows beside it, on their number, or on how the work was shared out.

use crate::buffer::Buffer;
use crate::matmul::pack::pack;
use crate::tile::{self, Left, Panels, Shape, Tile, with_tile};
use crate::{BlockMut, Isa, Store};
use std::ops::Range;

/// Rows whose inputs stay in the L2 cache while the weight passes by.
const BLOCK_ROWS: usize = 96;
/// Depth of a block for many rows: 16 columns of a panel take 24 KiB of a 32 KiB L1 cache. Few rows take the
/// whole depth, and so read the weight from front to back.
const BLOCK_DEPTH: usize = 384;

/// A weight of shape (outputs, inputs), laid out for the tiles of one instruction set.
#[derive(Debug)]
pub struct PackedWeight {
    isa: Isa,
    outputs: usize,
    inputs: usize,
    panels: Buffer,
}

impl PackedWeight {
    /// Zeros, to be filled by [`fill_panels`] through [`PackedWeight::pieces_mut`].
    ///
    /// # Panics
    /// Where a dimension is zero.
    pub fn zeros(isa: Isa, outputs: usize, inputs: usize) -> PackedWeight {
        assert!(outputs > 0 && inputs > 0, "packed weight: {outputs} x {inputs}");
        let mut panels = Buffer::new();
        panels.reserve(4 * outputs.next_multiple_of(columns(isa)) * inputs);
        PackedWeight { isa, outputs, inputs, panels }
    }

    /// The instruction set it is laid out for and multiplied with.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of panels, the units in which work can be shared out.
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(columns(self.isa))
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.panels.len()
    }

    /// The outputs of a range of panels.
    pub fn outputs_of(&self, panels: Range<usize>) -> Range<usize> {
        let columns = columns(self.isa);
        (panels.start * columns).min(self.outputs)..(panels.end * columns).min(self.outputs)
    }

    /// The memory of ascending ranges of panels that follow each other, for [`fill_panels`] on several threads.
    pub fn pieces_mut(&mut self, ranges: &[Range<usize>]) -> Vec<&mut [f32]> {
        let panel = columns(self.isa) * self.inputs;
        let mut rest = self.panels.floats_mut();
        let mut piece = |range: &Range<usize>| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(range.len() * panel);
            rest = after;
            piece
        };
        ranges.iter().map(&mut piece).collect()
    }

    /// Row `output` of the weight.
    ///
    /// # Panics
    /// Where `output` is outside the weight or `row` is not `inputs` long.
    pub fn read_row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "packed weight: row {output}");
        let columns = columns(self.isa);
        let panel = &self.panels.floats()[output / columns * columns * self.inputs..];
        for (to, from) in row.iter_mut().zip(panel.chunks_exact(columns)) {
            *to = from[output % columns];
        }
    }

    /// `y[r, n] = Σ_k x[r, k] · weight[n, k]` for the outputs n of `panels`; `y` has their columns alone.
    ///
    /// # Panics
    /// Where the shapes do not fit together.
    pub fn project(&self, x: &[f32], panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
        let outputs = self.outputs_of(panels.clone()).len();
        assert!(
            x.len() == y.rows() * self.inputs && y.columns() == outputs && panels.end <= self.panels(),
            "projection: {} inputs of {} for {}x{outputs} outputs",
            x.len(),
            self.inputs,
            y.rows()
        );
        with_tile!(self.isa, project(self, x, panels, y));
    }
}

/// Packs rows of a weight (`inputs` elements each) into the memory of their panels.
pub fn fill_panels(isa: Isa, rows: &[f32], inputs: usize, panels: &mut [f32]) {
    pack::<f32>(isa, rows, inputs, 1, rows.len() / inputs, inputs, columns(isa), panels);
}

/// Columns of a panel.
pub(crate) fn columns(isa: Isa) -> usize {
    fn of<K: Tile>() -> usize {
        K::COLUMNS
    }
    with_tile!(isa, of())
}

/// Cuts `rows` into tiles of nearly the same number of rows.
pub(crate) fn tiles<K: Tile>(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let height = rows.div_ceil(rows.div_ceil(K::ROWS).max(1)).max(1);
    (0..rows).step_by(height).map(move |row| row..rows.min(row + height))
}

fn project<K: Tile>(weight: &PackedWeight, x: &[f32], panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    let (inputs, rows) = (weight.inputs, y.rows());
    let panel_size = K::COLUMNS * inputs;
    let block_depth = if rows <= K::ROWS { inputs } else { BLOCK_DEPTH };
    for first in (0..rows).step_by(BLOCK_ROWS) {
        let height = BLOCK_ROWS.min(rows - first);
        let tile_rows = tiles::<K>(height).next().map_or(0, |tile| tile.len());
        for start in (0..inputs).step_by(block_depth) {
            let depth = block_depth.min(inputs - start);
            let store = if start == 0 { Store::Overwrite } else { Store::Accumulate };
            let mut panel = panels.start;
            while panel < panels.end {
                let count = tile::power_of_two_up_to(K::side_by_side(tile_rows), panels.end - panel);
                let data = &weight.panels.floats()[panel * panel_size + start * K::COLUMNS..];
                let right = Panels { data, stride: panel_size, depth_stride: K::COLUMNS };
                let column = (panel - panels.start) * K::COLUMNS;
                for tile in tiles::<K>(height) {
                    let row = first + tile.start;
                    let left = Left { data: &x[row * inputs + start..], row_stride: inputs, depth_stride: 1 };
                    let shape = Shape { rows: tile.len(), panels: count, depth };
                    if column + count * K::COLUMNS <= y.columns() {
                        tile::multiply::<K>(weight.isa, shape, left, right, y, (row, column), store);
                    } else {
                        edge::<K>(weight.isa, shape, left, right, y, (row, column), store);
                    }
                }
                panel += count;
            }
        }
    }
}

/// A tile whose last columns are beyond the output.
fn edge<K: Tile>(
    isa: Isa,
    shape: Shape,
    left: Left<'_>,
    right: Panels<'_>,
    y: &mut BlockMut<'_, f32>,
    (row, column): (usize, usize),
    store: Store,
) {
    let mut tile = [0.0; tile::LARGEST];
    let (columns, present) = (shape.panels * K::COLUMNS, y.columns() - column);
    let tile = &mut tile[..shape.rows * columns];
    if store == Store::Accumulate {
        for (r, old) in tile.chunks_exact_mut(columns).enumerate() {
            old[..present].copy_from_slice(&y.row_mut(row + r)[column..]);
        }
    }
    tile::multiply::<K>(isa, shape, left, right, &mut BlockMut::new(tile, columns), (0, 0), store);
    for (r, sums) in tile.chunks_exact(columns).enumerate() {
        y.row_mut(row + r)[column..].copy_from_slice(&sums[..present]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::split;
    use crate::reference::{Random, assert_close};

    fn packed(isa: Isa, weight: &[f32], inputs: usize) -> PackedWeight {
        let mut packed = PackedWeight::zeros(isa, weight.len() / inputs, inputs);
        let whole = 0..packed.panels();
        let memory = packed.pieces_mut(std::slice::from_ref(&whole)).remove(0);
        fill_panels(isa, weight, inputs, memory);
        packed
    }

    /// The product, its panels cut at `cuts`, as several threads would share them.
    fn product(weight: &PackedWeight, x: &[f32], cuts: &[usize]) -> Vec<f32> {
        let mut y = vec![f32::NAN; x.len() / weight.inputs() * weight.outputs()];
        let borders: Vec<usize> =
            [0].into_iter().chain(cuts.iter().copied()).chain([weight.panels()]).collect();
        let ranges: Vec<_> = borders.windows(2).map(|b| b[0]..b[1].max(b[0])).collect();
        let columns: Vec<_> = ranges.iter().map(|r| weight.outputs_of(r.clone())).collect();
        let rows = 0..x.len() / weight.inputs();
        let blocks = split(&mut y, weight.outputs(), std::slice::from_ref(&rows), &columns);
        for (range, mut block) in ranges.into_iter().zip(blocks) {
            weight.project(x, range, &mut block);
        }
        y
    }

    #[test]
    fn a_projection_equals_the_float64_product_on_odd_shapes() {
        let mut random = Random::new(23);
        for isa in Isa::available() {
            for (rows, inputs, outputs) in
                [(1, 1, 1), (1, 37, 129), (2, 5, 64), (3, 33, 47), (5, 8, 200), (7, 400, 31), (100, 801, 33)]
            {
                let weight: Vec<f32> = random.elements(outputs * inputs);
                let x: Vec<f32> = random.elements(rows * inputs);
                let packed = packed(isa, &weight, inputs);
                let y = product(&packed, &x, &[]);
                let mut row = vec![0.0; inputs];
                for n in 0..outputs {
                    packed.read_row(n, &mut row);
                    assert_eq!(row, weight[n * inputs..][..inputs]);
                    for r in 0..rows {
                        let products = x[r * inputs..][..inputs].iter().zip(&row);
                        let expected = products.map(|(a, b)| *a as f64 * *b as f64).sum();
                        // Up to 801 products of magnitude one, added one after the other in f32.
                        let what = format!("{isa:?} {rows}x{inputs}x{outputs} at {r},{n}");
                        assert_close(y[r * outputs + n] as f64, expected, 1e-4, 1e-5, &what);
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_in_any_batch_and_however_the_panels_are_shared_out() {
        let mut random = Random::new(29);
        let (inputs, outputs) = (900, 211);
        let weight: Vec<f32> = random.elements(outputs * inputs);
        let x: Vec<f32> = random.elements(200 * inputs);
        for isa in Isa::available() {
            let packed = packed(isa, &weight, inputs);
            let alone: Vec<f32> = x.chunks(inputs).flat_map(|row| product(&packed, row, &[])).collect();
            let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            for rows in (1..=40).chain([97, 200]) {
                let first = random.below(201 - rows);
                let mut cuts = [random.below(packed.panels() + 1), random.below(packed.panels() + 1)];
                cuts.sort_unstable();
                let together = product(&packed, &x[first * inputs..][..rows * inputs], &cuts);
                let expected = &alone[first * outputs..][..rows * outputs];
                assert!(bits(&together) == bits(expected), "{isa:?}: {rows} rows, panels cut at {cuts:?}");
            }
        }
    }
}
