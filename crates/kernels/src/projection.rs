//! Products with a weight that was packed once, for decoding: the bits of a row of the result do not depend on the
//! rows beside it, on their number, or on how the work was shared out.

use crate::buffer::{Buffer, as_floats_mut, as_words};
#[cfg(target_arch = "x86_64")]
use crate::grouped::fp16;
use crate::grouped::{self, int8};
use crate::matmul::pack::pack;
use crate::tile::{self, Left, Panels, Shape, Tile, bfloat16, with_tile};
use crate::{BlockMut, Isa, Store, prefetch};
use std::ops::Range;
use std::slice::Chunks;

/// Rows that pass by a block of the weight at most, and bytes of their inputs, which stay in an L2 cache of 1 MiB meanwhile.
const BLOCK_ROWS: usize = 96;
const BLOCK_INPUTS: usize = 768 << 10;
/// Bytes of a panel that stay in a 32 KiB L1 cache while many rows pass by. Few rows take the whole depth, and so read
/// the weight from front to back.
const BLOCK_BYTES: usize = 24 << 10;

/// What a packed weight is held in. Sums are f32 (within groups of int8: exact integers).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum WeightFormat {
    /// f32: the reference.
    #[default]
    F32,
    /// bf16: half the bytes. Inputs are rounded to bf16 where dot products of it are used ([`Isa::prefers_bf16_dot`]) or AMX,
    /// else they stay f32. Where [`Isa::sums_in_fp16`] says so, weights and inputs are held in fp16 instead, with a scale per 128.
    Bf16,
    /// int8 with an f32 scale per 128 inputs: a quarter of the bytes, and 3 %. Inputs are rounded in the same way.
    Int8,
}

/// A weight of shape (outputs, inputs), laid out for the tiles of one instruction set.
#[derive(Debug)]
pub struct PackedWeight {
    isa: Isa,
    format: WeightFormat,
    outputs: usize,
    inputs: usize,
    panels: Buffer,
}

impl PackedWeight {
    /// Zeros, to be filled by [`fill_panels`] through [`PackedWeight::pieces_mut`].
    ///
    /// # Panics
    /// Where a dimension is zero.
    pub fn zeros(isa: Isa, format: WeightFormat, outputs: usize, inputs: usize) -> PackedWeight {
        assert!(outputs > 0 && inputs > 0, "packed weight: {outputs} x {inputs}");
        let mut panels = Buffer::new();
        panels.reserve(4 * outputs.div_ceil(columns(isa)) * panel_words(isa, format, inputs));
        PackedWeight { isa, format, outputs, inputs, panels }
    }

    /// What it is held in.
    pub fn format(&self) -> WeightFormat {
        self.format
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

    /// Bytes that a product reads, all panels and scales; the memory held ends on a page.
    pub fn bytes(&self) -> usize {
        4 * self.panels() * panel_words(self.isa, self.format, self.inputs)
    }

    /// The outputs of a range of panels.
    pub fn outputs_of(&self, panels: Range<usize>) -> Range<usize> {
        let columns = columns(self.isa);
        (panels.start * columns).min(self.outputs)..(panels.end * columns).min(self.outputs)
    }

    /// The memory of ascending ranges of panels that follow each other, for [`fill_panels`] on several threads.
    pub fn pieces_mut(&mut self, ranges: &[Range<usize>]) -> Vec<&mut [u32]> {
        let panel = panel_words(self.isa, self.format, self.inputs);
        let mut rest = self.panels.words_mut();
        let mut piece = |range: &Range<usize>| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(range.len() * panel);
            rest = after;
            piece
        };
        ranges.iter().map(&mut piece).collect()
    }

    /// Row `output` of the weight, as it is held.
    ///
    /// # Panics
    /// Where `output` is outside the weight or `row` is not `inputs` long.
    pub fn read_row(&self, output: usize, row: &mut [f32]) {
        assert!(output < self.outputs && row.len() == self.inputs, "packed weight: row {output}");
        let columns = columns(self.isa);
        let start = output / columns * panel_words(self.isa, self.format, self.inputs);
        let (panel, column) = (&self.panels.words()[start..], output % columns);
        match self.layout() {
            Layout::F32 => {
                let elements = panel.chunks_exact(columns);
                row.iter_mut().zip(elements).for_each(|(to, from)| *to = f32::from_bits(from[column]));
            }
            Layout::Bf16 => bfloat16::read(panel, columns, column, row),
            #[cfg(target_arch = "x86_64")]
            Layout::Fp16 => fp16::read(self.isa, panel, columns, column, row),
            Layout::Int8 => int8::read(panel, columns, column, row),
        }
    }

    /// Words of 32 bits of a row that [`PackedWeight::prepare`] writes.
    pub fn row_words(&self) -> usize {
        match self.layout() {
            Layout::F32 => self.inputs,
            Layout::Bf16 => bfloat16::row_words(self.isa, self.inputs),
            #[cfg(target_arch = "x86_64")]
            Layout::Fp16 => grouped::row_words(self.inputs, fp16::ELEMENTS),
            Layout::Int8 => grouped::row_words(self.inputs, int8::ELEMENTS),
        }
    }

    /// Writes rows of inputs in the form that [`PackedWeight::project`] reads: f32, or rounded as the format says. What a
    /// row becomes does not depend on the others.
    ///
    /// # Panics
    /// Where `words` has not [`PackedWeight::row_words`] for every row of `x`.
    pub fn prepare(&self, x: &[f32], words: &mut [u32]) {
        let rows = x.len() / self.inputs;
        assert!(
            x.len() == rows * self.inputs && words.len() == rows * self.row_words(),
            "projection: inputs"
        );
        match self.layout() {
            Layout::F32 => words.copy_from_slice(as_words(x)),
            Layout::Bf16 => bfloat16::prepare(self.isa, self.inputs, x, words),
            #[cfg(target_arch = "x86_64")]
            Layout::Fp16 => fp16::prepare(self.isa, self.inputs, x, words),
            Layout::Int8 => int8::prepare(self.isa, self.inputs, x, words),
        }
    }

    /// `y[r, n] = Σ_k x[r, k] · weight[n, k]` for the outputs n of `panels`; `y` has their columns alone.
    ///
    /// # Panics
    /// Where the shapes do not fit together.
    pub fn project(&self, x: Rows<'_>, panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
        let outputs = self.outputs_of(panels.clone()).len();
        let (words, row) = match x {
            Rows::Plain(x) => (x.len(), self.inputs),
            Rows::Prepared(x) => (x.len(), self.row_words()),
        };
        assert!(
            words == y.rows() * row && y.columns() == outputs && panels.end <= self.panels(),
            "projection: {words} words of inputs, {row} a row, for {}x{outputs} outputs",
            y.rows()
        );
        let x = match x {
            Rows::Plain(x) if self.format == WeightFormat::F32 => as_words(x),
            Rows::Plain(_) => panic!("projection: inputs must be prepared for {:?}", self.format),
            Rows::Prepared(x) => x,
        };
        let &PackedWeight { isa, inputs, .. } = self;
        let product = grouped::Product { isa, inputs, x, panels: self.panels.words() };
        match self.layout() {
            Layout::F32 => with_tile!(f32 self.isa, project(self, x, panels, y)),
            #[cfg(target_arch = "x86_64")]
            Layout::Bf16 if let Some(amx) = self.isa.amx() => {
                crate::tiles::project_on_amx(amx, x, row, self.panels.words(), panels, y)
            }
            Layout::Bf16 => with_tile!(bf16 self.isa, project(self, x, panels, y)),
            #[cfg(target_arch = "x86_64")]
            Layout::Fp16 => grouped::project::<fp16::Fp16>(&product, panels, y),
            Layout::Int8 => int8::project(&product, panels, y),
        }
    }

    fn layout(&self) -> Layout {
        layout(self.isa, self.format)
    }
}

/// What panels and prepared rows hold.
#[derive(Clone, Copy)]
enum Layout {
    F32,
    Bf16,
    #[cfg(target_arch = "x86_64")]
    Fp16,
    Int8,
}

fn layout(isa: Isa, format: WeightFormat) -> Layout {
    match format {
        WeightFormat::F32 => Layout::F32,
        #[cfg(target_arch = "x86_64")]
        WeightFormat::Bf16 if isa.sums_in_fp16() => Layout::Fp16,
        WeightFormat::Bf16 => Layout::Bf16,
        WeightFormat::Int8 => Layout::Int8,
    }
}

/// Rows of inputs.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// As they are; for weights in f32 only.
    Plain(&'a [f32]),
    /// As [`PackedWeight::prepare`] wrote them.
    Prepared(&'a [u32]),
}

/// Packs rows of a weight (`inputs` elements each) into the memory of their panels.
pub fn fill_panels(isa: Isa, format: WeightFormat, rows: &[f32], inputs: usize, panels: &mut [u32]) {
    let (columns, size) = (columns(isa), panel_words(isa, format, inputs));
    let pack_panel = |rows: &[f32], panel: &mut [u32]| match layout(isa, format) {
        Layout::F32 => {
            let count = rows.len() / inputs;
            pack::<f32>(isa, rows, inputs, 1, count, inputs, columns, as_floats_mut(panel));
        }
        Layout::Bf16 => bfloat16::fill(isa, rows, inputs, columns, panel),
        #[cfg(target_arch = "x86_64")]
        Layout::Fp16 => fp16::fill(isa, rows, inputs, columns, panel),
        Layout::Int8 => int8::fill(isa, rows, inputs, columns, panel),
    };
    for (rows, panel) in rows.chunks(columns * inputs).zip(panels.chunks_mut(size)) {
        pack_panel(rows, panel);
    }
}

/// Words of a panel.
fn panel_words(isa: Isa, format: WeightFormat, inputs: usize) -> usize {
    let columns = columns(isa);
    match layout(isa, format) {
        Layout::F32 => columns * inputs,
        Layout::Bf16 => columns * bfloat16::panel_rows(isa, inputs),
        #[cfg(target_arch = "x86_64")]
        Layout::Fp16 => grouped::panel_words(inputs, fp16::ELEMENTS, columns),
        Layout::Int8 => grouped::panel_words(inputs, int8::ELEMENTS, columns),
    }
}

/// Columns of a panel.
pub(crate) fn columns(isa: Isa) -> usize {
    fn of<K: Tile>() -> usize {
        K::COLUMNS
    }
    with_tile!(f32 isa, of())
}

/// Cuts `rows` into tiles of nearly the same number of rows, `most` of them at most.
pub(crate) fn tiles(most: usize, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let height = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    (0..rows).step_by(height).map(move |row| row..rows.min(row + height))
}

fn project<K: Tile>(weight: &PackedWeight, x: &[u32], panels: Range<usize>, y: &mut BlockMut<'_, f32>) {
    let (rows, steps) = (y.rows(), weight.inputs.div_ceil(K::ELEMENTS));
    let (row_words, panel_words) = (K::row_words(weight.inputs), K::COLUMNS * steps);
    let block = if rows <= K::ROWS { steps } else { BLOCK_BYTES / (4 * K::COLUMNS) };
    let most = block_rows(row_words);
    for top in (0..rows).step_by(most) {
        let height = most.min(rows - top);
        let tile_rows = tiles(K::ROWS, height).next().map_or(0, |tile| tile.len());
        let mut panel = panels.start;
        while panel < panels.end {
            let count = tile::power_of_two_up_to(K::side_by_side(tile_rows), panels.end - panel);
            let column = (panel - panels.start) * K::COLUMNS;
            for start in (0..steps).step_by(block) {
                let depth = block.min(steps - start);
                let store = if start == 0 { Store::Overwrite } else { Store::Accumulate };
                let data = &weight.panels.words()[panel * panel_words + start * K::COLUMNS..];
                let mut next = following(data, depth * K::COLUMNS, depth, height > K::ROWS);
                for tile in tiles(K::ROWS, height) {
                    let next = next.next().unwrap_or_default();
                    let right = Panels { data, stride: panel_words, depth_stride: K::COLUMNS, next };
                    let row = top + tile.start;
                    let data = &x[row * row_words + start * K::WORDS..];
                    let left = Left { data, row_stride: row_words, depth_stride: K::WORDS };
                    let shape = Shape { rows: tile.len(), panels: count, depth };
                    if column + count * K::COLUMNS <= y.columns() {
                        tile::multiply::<K>(weight.isa, shape, left, right, y, (row, column), store);
                    } else {
                        edge::<K>(weight.isa, shape, left, right, y, (row, column), store);
                    }
                }
            }
            panel += count;
        }
    }
}

/// Rows of so many words that pass by the weight together.
pub(crate) fn block_rows(row_words: usize) -> usize {
    (BLOCK_INPUTS / (4 * row_words)).clamp(BLOCK_ROWS / 4, BLOCK_ROWS)
}

/// While several tiles of rows pass by the first `words` of a weight, as many that follow come nearer: a line with each of a tile's
/// `steps`, since more at one time would keep the tile waiting for them.
pub(crate) fn following(weight: &[u32], words: usize, steps: usize, several: bool) -> Chunks<'_, u32> {
    // A single tile is done before they would be there.
    let next = if several { words..2 * words } else { 0..0 };
    weight[next.start.min(weight.len())..next.end.min(weight.len())].chunks(steps * prefetch::LINE)
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
    use crate::bf16;
    use crate::grid::split;
    use crate::reference::{Random, assert_close, sum_error};

    const FORMATS: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8];

    fn packed(isa: Isa, format: WeightFormat, weight: &[f32], inputs: usize) -> PackedWeight {
        let mut packed = PackedWeight::zeros(isa, format, weight.len() / inputs, inputs);
        let whole = 0..packed.panels();
        let memory = packed.pieces_mut(std::slice::from_ref(&whole)).remove(0);
        fill_panels(isa, format, weight, inputs, memory);
        packed
    }

    /// The product, its panels cut at `cuts`, as several threads would share them.
    fn product(weight: &PackedWeight, x: &[f32], cuts: &[usize]) -> Vec<f32> {
        let rows = 0..x.len() / weight.inputs();
        let mut words = vec![0; rows.len() * weight.row_words()];
        weight.prepare(x, &mut words);
        let mut y = vec![f32::NAN; rows.len() * weight.outputs()];
        let borders: Vec<usize> =
            [0].into_iter().chain(cuts.iter().copied()).chain([weight.panels()]).collect();
        let ranges: Vec<_> = borders.windows(2).map(|b| b[0]..b[1].max(b[0])).collect();
        let columns: Vec<_> = ranges.iter().map(|r| weight.outputs_of(r.clone())).collect();
        let blocks = split(&mut y, weight.outputs(), std::slice::from_ref(&rows), &columns);
        for (range, mut block) in ranges.into_iter().zip(blocks) {
            weight.project(Rows::Prepared(&words), range, &mut block);
        }
        y
    }

    /// What a format makes of the elements of a row: weights in any case, inputs where they are rounded.
    fn rounded(isa: Isa, format: WeightFormat, row: &[f32]) -> Vec<f64> {
        match format {
            WeightFormat::Bf16 if isa.sums_in_fp16() => {
                // Scales are powers of two, and no group of the tests has anything far below its largest.
                row.iter().map(|v| half::f16::from_f32(v * 8.0).to_f64() / 8.0).collect()
            }
            WeightFormat::F32 => row.iter().map(|v| *v as f64).collect(),
            WeightFormat::Bf16 => row.iter().map(|v| bf16::from_f32(*v).to_f32() as f64).collect(),
            WeightFormat::Int8 => {
                let group = |group: &[f32]| {
                    let scale = group.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    group
                        .iter()
                        .map(|v| (v * inverse).round_ties_even() as f64 * scale as f64)
                        .collect::<Vec<_>>()
                };
                row.chunks(128).flat_map(group).collect()
            }
        }
    }

    #[test]
    fn a_projection_equals_the_float64_product_on_odd_shapes() {
        let mut random = Random::new(23);
        for (isa, format) in
            Isa::available_or_trapped().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)))
        {
            for (rows, inputs, outputs) in [
                (1, 1, 1),
                (1, 37, 129),
                (2, 5, 64),
                (3, 33, 47),
                (5, 8, 200),
                (7, 400, 31),
                (11, 129, 65),
                (100, 801, 33),
            ] {
                let weight: Vec<f32> = random.elements(outputs * inputs);
                let x: Vec<f32> = random.elements(rows * inputs);
                let packed = packed(isa, format, &weight, inputs);
                let y = product(&packed, &x, &[]);
                let rounds = isa.prefers_bf16_dot() || isa.amx().is_some() || isa.sums_in_fp16();
                let exact = format == WeightFormat::Bf16 && !rounds;
                let in_fp16 = format == WeightFormat::Bf16 && isa.sums_in_fp16();
                let x_format = if exact { WeightFormat::F32 } else { format };
                let x_rounded: Vec<Vec<f64>> =
                    x.chunks(inputs).map(|row| rounded(isa, x_format, row)).collect();
                let mut row = vec![0.0; inputs];
                for n in 0..outputs {
                    packed.read_row(n, &mut row);
                    let expected_row = rounded(isa, format, &weight[n * inputs..][..inputs]);
                    for (held, expected) in row.iter().zip(&expected_row) {
                        assert_close(
                            *held as f64,
                            *expected,
                            0.0,
                            1e-6,
                            &format!("{isa:?} {format:?} row {n}"),
                        );
                    }
                    for r in 0..rows {
                        let products = x_rounded[r].iter().zip(&expected_row);
                        let expected = products.map(|(a, b)| a * b).sum();
                        // Up to 801 products of magnitude one, added one after the other in f32.
                        let tolerance = if in_fp16 { sum_error(isa, inputs, 64) } else { 1e-4 };
                        let what = format!("{isa:?} {format:?} {rows}x{inputs}x{outputs} at {r},{n}");
                        assert_close(y[r * outputs + n] as f64, expected, tolerance, 1e-5, &what);
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
        for (isa, format) in
            Isa::available_or_trapped().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)))
        {
            let packed = packed(isa, format, &weight, inputs);
            let alone: Vec<f32> = x.chunks(inputs).flat_map(|row| product(&packed, row, &[])).collect();
            let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            for rows in (1..=40).chain([97, 200]) {
                let first = random.below(201 - rows);
                let mut cuts = [random.below(packed.panels() + 1), random.below(packed.panels() + 1)];
                cuts.sort_unstable();
                let together = product(&packed, &x[first * inputs..][..rows * inputs], &cuts);
                let expected = &alone[first * outputs..][..rows * outputs];
                assert!(
                    bits(&together) == bits(expected),
                    "{isa:?} {format:?}: {rows} rows, cut at {cuts:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_number_shows_in_all_results_of_its_row_and_in_no_other() {
        let (inputs, outputs) = (200, 40);
        for (isa, format) in
            Isa::available_or_trapped().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)))
        {
            let packed = packed(isa, format, &vec![0.5; outputs * inputs], inputs);
            for odd in [f32::NAN, f32::INFINITY] {
                let mut x = vec![1.0; 3 * inputs];
                x[inputs + 150] = odd;
                let y = product(&packed, &x, &[]);
                let finite: Vec<bool> =
                    y.chunks(outputs).map(|row| row.iter().any(|y| y.is_finite())).collect();
                assert_eq!(finite, [true, false, true], "{isa:?} {format:?} {odd}");
            }
        }
    }

    #[test]
    fn sums_of_the_largest_values_do_not_overflow() {
        let (inputs, outputs) = (256, 33);
        for (isa, format) in
            Isa::available_or_trapped().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)))
        {
            for value in [1.9921875, 1e15, 1e-15] {
                let packed = packed(isa, format, &vec![value; outputs * inputs], inputs);
                let expected = inputs as f64 * f64::from(value) * f64::from(value);
                for y in product(&packed, &vec![value; inputs], &[]) {
                    assert_close(f64::from(y), expected, 0.0, 0.02, &format!("{isa:?} {format:?} {value}"));
                }
            }
        }
    }

    #[test]
    fn sums_of_bytes_are_the_same_integers_on_every_instruction_set() {
        // One group and scales that are powers of two: what is left after the integers is exact.
        let mut random = Random::new(41);
        let (inputs, outputs, rows) = (128, 70, 13);
        let mut bytes = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|i| if i % inputs == 0 { 127.0 } else { random.below(255) as f32 - 127.0 })
                .collect()
        };
        let (weight, x) = (bytes(outputs * inputs), bytes(rows * inputs));
        for isa in Isa::available_or_trapped() {
            let y = product(&packed(isa, WeightFormat::Int8, &weight, inputs), &x, &[1]);
            for (i, y) in y.iter().enumerate() {
                let (r, n) = (i / outputs, i % outputs);
                let products = x[r * inputs..][..inputs].iter().zip(&weight[n * inputs..]);
                assert_eq!(*y, products.map(|(a, b)| a * b).sum::<f32>(), "{isa:?} at {r},{n}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_shows_in_its_own_row_alone() {
        for (isa, format) in
            Isa::available_or_trapped().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)))
        {
            let inputs = 131;
            let packed = packed(isa, format, &vec![0.5; 40 * inputs], inputs);
            let mut x = vec![1.0; 3 * inputs];
            x[inputs + 130] = f32::NAN;
            for (r, row) in product(&packed, &x, &[]).chunks(40).enumerate() {
                assert!(row.iter().all(|y| y.is_nan() == (r == 1)), "{isa:?} {format:?}: {row:?}");
            }
        }
    }

    #[test]
    fn long_rows_have_the_same_bits_alone_and_among_more_than_a_block_of_them() {
        let (rows, inputs, outputs) = (100, 3100, 40);
        let mut random = Random::new(41);
        let (x, weight) = (random.elements::<f32>(rows * inputs), random.elements::<f32>(outputs * inputs));
        for (isa, format) in Isa::available().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format)))
        {
            let weight = packed(isa, format, &weight, inputs);
            assert!(rows > block_rows(weight.row_words()));
            let all = product(&weight, &x, &[]);
            let alone = x.chunks(inputs).flat_map(|row| product(&weight, row, &[]));
            assert!(all.iter().zip(alone).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?} {format:?}");
        }
    }
}
