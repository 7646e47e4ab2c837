//! Products with packed weights.

use crate::Cpu;
use crate::cpu::rows_mut;
use std::ops::Range;
use strata_kernels::projection::Rows;
pub use strata_kernels::projection::{PackedWeight, WeightFormat};
use strata_kernels::{grid, projection};

/// Rows that stay in a core's L2 cache while they pass through several operations: those of a prompt, a block at a time.
const ROW_BLOCK: usize = 32;
/// Rows for each thread from which on it computes rows of its own with all of a weight, instead of all rows with a part of it.
const OWN_ROWS: usize = 16;
/// Bytes of weights at most for that: more come from memory, block after block, for each thread anew.
const CACHED_BYTES: usize = 16 << 20;

/// Cuts so many rows into blocks that are best computed apart from each other, each on one thread, also through several
/// operations that together read so many `bytes` of weights; `None` where threads had better share each operation.
pub fn row_blocks(cpu: &Cpu, rows: usize, bytes: usize) -> Option<Vec<Range<usize>>> {
    let threads = cpu.threads();
    // A weight has four bytes at most.
    let worthwhile = threads == 1 || cpu.worth_sharing(rows * (bytes / 4));
    (worthwhile && rows >= threads * OWN_ROWS && bytes <= CACHED_BYTES)
        .then(|| cpu.ranges_up_to(threads * rows.div_ceil(threads * ROW_BLOCK), rows, 1))
}

/// Packs a weight of rows of `inputs` elements for [`project`].
pub fn pack(cpu: &Cpu, format: WeightFormat, weight: &[f32], inputs: usize) -> PackedWeight {
    let mut packed = PackedWeight::zeros(cpu.isa(), format, weight.len() / inputs, inputs);
    let ranges = cpu.ranges_for(weight.len(), packed.panels(), 1);
    let outputs: Vec<_> = ranges.iter().map(|panels| packed.outputs_of(panels.clone())).collect();
    let pieces = packed.pieces_mut(&ranges);
    cpu.for_each(outputs.into_iter().zip(pieces).collect(), |(rows, piece)| {
        let weight = &weight[rows.start * inputs..rows.end * inputs];
        projection::fill_panels(cpu.isa(), format, weight, inputs, piece);
    });
    packed
}

/// As [`pack`], for a weight of which `fill` writes any range of rows: it never exists as a whole in f32.
pub fn pack_with(
    cpu: &Cpu,
    format: WeightFormat,
    outputs: usize,
    inputs: usize,
    fill: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> PackedWeight {
    let mut packed = PackedWeight::zeros(cpu.isa(), format, outputs, inputs);
    let ranges: Vec<_> = (0..packed.panels()).map(|panel| panel..panel + 1).collect();
    let outputs: Vec<_> = ranges.iter().map(|panels| packed.outputs_of(panels.clone())).collect();
    let pieces = packed.pieces_mut(&ranges);
    cpu.for_each(outputs.into_iter().zip(pieces).collect(), |(rows, piece)| {
        let mut weight = vec![0.0; rows.len() * inputs];
        fill(rows, &mut weight);
        projection::fill_panels(cpu.isa(), format, &weight, inputs, piece);
    });
    packed
}

/// `y[t, n] = Σ_k x[t, k] · weight[n, k]`. `y` is overwritten. `words` is memory for the inputs as the weight's format
/// wants them.
///
/// # Panics
/// Where `x` and `y` are not whole rows, as many of each.
pub fn project(cpu: &Cpu, x: &[f32], weight: &PackedWeight, words: &mut Vec<u32>, y: &mut [f32]) {
    if !project_by_rows(cpu, x, weight, words, y, |_, _| {}) {
        project_by_panels(cpu, x, weight, words, y);
    }
}

/// As [`project`]; `then` gets the results, a range of rows and what they hold, each row once. Where rows are many, those that
/// its thread has just computed.
///
/// # Panics
/// As there.
pub fn project_then(
    cpu: &Cpu,
    x: &[f32],
    weight: &PackedWeight,
    words: &mut Vec<u32>,
    y: &mut [f32],
    then: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    if project_by_rows(cpu, x, weight, words, y, &then) {
        return;
    }
    project_by_panels(cpu, x, weight, words, y);
    let ranges = cpu.ranges_for(4 * y.len(), y.len() / weight.outputs(), 1);
    let items: Vec<_> = ranges.iter().cloned().zip(rows_mut(y, weight.outputs(), &ranges)).collect();
    cpu.for_each(items, |(rows, y)| then(rows, y));
}

/// The product where each thread had better compute rows of its own with all of the weight, `then` behind each block of them; else
/// nothing, and `false`.
fn project_by_rows(
    cpu: &Cpu,
    x: &[f32],
    weight: &PackedWeight,
    words: &mut Vec<u32>,
    y: &mut [f32],
    then: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> bool {
    let rows = rows_of(x, weight, y);
    let Some(blocks) = row_blocks(cpu, rows, weight.bytes()) else { return false };
    let (words, row_words) = words_for(rows, weight, words);
    let pieces = rows_mut(words, row_words, &blocks).into_iter().zip(rows_mut(y, weight.outputs(), &blocks));
    cpu.for_each(blocks.iter().zip(pieces).collect(), |(rows, (words, y))| {
        let x = &x[rows.start * weight.inputs()..rows.end * weight.inputs()];
        let x = if words.is_empty() {
            Rows::Plain(x)
        } else {
            weight.prepare(x, words);
            Rows::Prepared(words)
        };
        weight.project(x, 0..weight.panels(), &mut grid::BlockMut::new(y, weight.outputs()));
        then(rows.clone(), y);
    });
    true
}

/// The product shared out by panels of the weight, so that each thread reads its own part of it.
fn project_by_panels(cpu: &Cpu, x: &[f32], weight: &PackedWeight, words: &mut Vec<u32>, y: &mut [f32]) {
    let (rows, inputs, outputs) = (rows_of(x, weight, y), weight.inputs(), weight.outputs());
    if rows == 0 {
        return;
    }
    let (words, row_words) = words_for(rows, weight, words);
    let prepared = if words.is_empty() {
        Rows::Plain(x)
    } else {
        // Rounding takes the time of some four multiply-adds.
        let ranges = cpu.ranges_for(4 * x.len(), rows, 1);
        let items: Vec<_> = ranges.iter().zip(rows_mut(words, row_words, &ranges)).collect();
        cpu.for_each(items, |(rows, words)| {
            weight.prepare(&x[rows.start * inputs..rows.end * inputs], words);
        });
        Rows::Prepared(words)
    };
    // Few rows are multiplied with up to four panels at a time.
    let grain = if rows <= 2 && weight.panels() >= 16 * cpu.threads() { 4 } else { 1 };
    let panels = cpu.ranges_for(x.len() * outputs, weight.panels(), grain);
    let columns: Vec<_> = panels.iter().map(|panels| weight.outputs_of(panels.clone())).collect();
    let blocks = grid::split(y, outputs, std::slice::from_ref(&(0..rows)), &columns);
    cpu.for_each(panels.into_iter().zip(blocks).collect(), |(panels, mut y)| {
        weight.project(prepared, panels, &mut y);
    });
}

/// How many rows `x` and `y` are.
fn rows_of(x: &[f32], weight: &PackedWeight, y: &[f32]) -> usize {
    let (inputs, outputs) = (weight.inputs(), weight.outputs());
    let rows = x.len() / inputs;
    assert!(
        x.len() == rows * inputs && y.len() == rows * outputs,
        "projection: {} inputs and {} outputs are no rows of {inputs} and {outputs}",
        x.len(),
        y.len()
    );
    rows
}

/// Memory for so many rows of inputs as the weight's format wants them, and the words of one; none where they are multiplied as
/// they are.
fn words_for<'a>(rows: usize, weight: &PackedWeight, words: &'a mut Vec<u32>) -> (&'a mut [u32], usize) {
    let row_words = if weight.format() == WeightFormat::F32 { 0 } else { weight.row_words() };
    if words.len() < rows * row_words {
        words.resize(rows * row_words, 0);
    }
    (&mut words[..rows * row_words], row_words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, random_values};

    #[test]
    fn a_projection_has_the_same_bits_for_every_row_count_and_thread_count() {
        // Enough multiply-adds to be shared out among all threads.
        let (inputs, outputs) = (150, 1003);
        let weight = random_values(1, inputs * outputs);
        let x = random_values(2, 40 * inputs);
        let formats = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8];
        for (isa, format) in Isa::available().into_iter().flat_map(|isa| formats.map(|format| (isa, format)))
        {
            let alone = Cpu::new(isa, 1).unwrap();
            let packed = pack(&alone, format, &weight, inputs);
            let words = &mut Vec::new();
            let mut expected = vec![0.0; 40 * outputs];
            for (x, y) in x.chunks(inputs).zip(expected.chunks_mut(outputs)) {
                project(&alone, x, &packed, words, y);
                for (n, y) in y.iter().enumerate() {
                    let products = x.iter().zip(&weight[n * inputs..]);
                    let sum: f64 = products.map(|(a, b)| *a as f64 * *b as f64).sum();
                    // 150 products of magnitude one: in f32; rounded twice to 8 bits (each up to 1/512, bf16, or to 1/254
                    // of the largest), of which the sum is below six deviations.
                    let tolerance = if format == WeightFormat::F32 { 2e-5 } else { 0.12 };
                    assert!((*y as f64 - sum).abs() <= tolerance, "{isa:?} {format:?}: {y} not {sum}");
                }
            }
            for threads in [1, 2, 3] {
                let cpu = Cpu::new(isa, threads).unwrap();
                let packed = pack(&cpu, format, &weight, inputs);
                for rows in 1..=40 {
                    let mut y = vec![f32::NAN; rows * outputs];
                    project(&cpu, &x[..rows * inputs], &packed, words, &mut y);
                    let same = y.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa:?} {format:?}: {rows} rows, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn every_row_is_handed_on_once_with_its_results_whether_rows_are_few_or_many() {
        let (inputs, outputs) = (40, 70);
        let (weight, x) = (random_values(3, inputs * outputs), random_values(4, 200 * inputs));
        for threads in [1, 2, 3] {
            let cpu = Cpu::new(Isa::best(), threads).unwrap();
            for format in [WeightFormat::F32, WeightFormat::Int8] {
                let packed = pack(&cpu, format, &weight, inputs);
                for rows in [1, 2, 31, 48, 49, 200] {
                    let x = &x[..rows * inputs];
                    let (mut plain, mut marked) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
                    let words = &mut Vec::new();
                    project(&cpu, x, &packed, words, &mut plain);
                    project_then(&cpu, x, &packed, words, &mut marked, |range, y| {
                        assert_eq!(y.len(), range.len() * outputs);
                        y.chunks_mut(outputs).zip(range).for_each(|(y, row)| y[outputs - 1] += row as f32);
                    });
                    for (row, (y, plain)) in marked.chunks(outputs).zip(plain.chunks(outputs)).enumerate() {
                        assert_eq!(y[..outputs - 1], plain[..outputs - 1], "{threads} {format:?} {rows}");
                        assert_eq!(
                            y[outputs - 1],
                            plain[outputs - 1] + row as f32,
                            "{threads} {format:?} {rows}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn blocks_of_rows_are_for_many_rows_alone_and_equal_shares_for_the_threads() {
        for (threads, rows, heights) in [
            (1, 15, None),
            (1, 16, Some(vec![16])),
            (2, 31, None),
            (2, 32, Some(vec![16, 16])),
            (2, 64, Some(vec![32, 32])),
            (2, 65, Some(vec![17, 17, 17, 14])),
            (3, 150, Some(vec![25; 6])),
        ] {
            let cpu = Cpu::new(Isa::best(), threads).unwrap();
            assert!(row_blocks(&cpu, rows, CACHED_BYTES + 1).is_none());
            assert!(threads == 1 || row_blocks(&cpu, rows, 1000).is_none(), "not worth a meeting");
            let blocks = row_blocks(&cpu, rows, CACHED_BYTES);
            let got = blocks.map(|blocks| blocks.iter().map(Range::len).collect::<Vec<_>>());
            assert_eq!(got, heights, "{threads} threads, {rows} rows");
        }
    }
}
