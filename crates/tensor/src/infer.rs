//! The operations of decoding: no tape, f32, many sequences of a few new tokens each. What a token gives does not
//! depend, to the bit, on the other tokens or on the number of threads.

use crate::cpu::rows_mut;
use crate::{Cpu, Heads, RotaryTable};
use std::ops::Range;
use strata_kernels::attention_step::attention_step;
use strata_kernels::cache::NewPositions;
pub use strata_kernels::cache::{CacheFormat, KeyValueCache};
use strata_kernels::element::add_assign;
pub use strata_kernels::math::{WEIGHTS, first_largest, log_sum_exp, softmax_weights};
use strata_kernels::projection::Rows;
pub use strata_kernels::projection::{PackedWeight, WeightFormat};
use strata_kernels::{grid, norm, projection, swiglu as kernel};

/// New tokens of a sequence that are one piece of work.
const TOKEN_BLOCK: usize = 64;

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

/// `y[t, n] = Σ_k x[t, k] · weight[n, k]`, shared out by panels of the weight, so that each thread reads its own
/// part of it. `y` is overwritten. `words` is memory for the inputs as the weight's format wants them.
pub fn project(cpu: &Cpu, x: &[f32], weight: &PackedWeight, words: &mut Vec<u32>, y: &mut [f32]) {
    let rows = 0..x.len() / weight.inputs();
    if rows.is_empty() {
        return;
    }
    let inputs = if weight.format() == WeightFormat::F32 {
        Rows::Plain(x)
    } else {
        let needed = rows.len() * weight.row_words();
        if words.len() < needed {
            words.resize(needed, 0);
        }
        let words = &mut words[..needed];
        // Rounding takes the time of some four multiply-adds.
        let ranges = cpu.ranges_for(4 * x.len(), rows.len(), 1);
        let items: Vec<_> = ranges.iter().zip(rows_mut(words, weight.row_words(), &ranges)).collect();
        cpu.for_each(items, |(rows, words)| {
            weight.prepare(&x[rows.start * weight.inputs()..rows.end * weight.inputs()], words);
        });
        Rows::Prepared(words)
    };
    // Few rows are multiplied with up to four panels at a time.
    let grain = if rows.len() <= 2 && weight.panels() >= 16 * cpu.threads() { 4 } else { 1 };
    let panels = cpu.ranges_for(x.len() * weight.outputs(), weight.panels(), grain);
    let columns: Vec<_> = panels.iter().map(|panels| weight.outputs_of(panels.clone())).collect();
    let blocks = grid::split(y, weight.outputs(), std::slice::from_ref(&rows), &columns);
    cpu.for_each(panels.into_iter().zip(blocks).collect(), |(panels, mut y)| {
        weight.project(inputs, panels, &mut y);
    });
}

/// `y = weight · x / sqrt(mean(x²) + epsilon)` for every row of `weight.len()` elements.
pub fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let width = weight.len();
    let ranges = cpu.ranges_for(x.len(), x.len() / width, 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(y, width, &ranges)).collect();
    cpu.for_each(items, |(rows, y)| {
        let x = &x[rows.start * width..rows.end * width];
        norm::rms_norm_forward(cpu.isa(), x, weight, epsilon, y, &mut vec![0.0; rows.len()]);
    });
}

/// `x += delta` for rows of `width` elements.
pub fn add(cpu: &Cpu, x: &mut [f32], delta: &[f32], width: usize) {
    let ranges = cpu.ranges_for(x.len(), x.len() / width, 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(x, width, &ranges)).collect();
    cpu.for_each(items, |(rows, x)| {
        add_assign(cpu.isa(), &delta[rows.start * width..rows.end * width], x);
    });
}

/// `y = silu(gate) · up` for rows of `width` gates, then `width` ups.
pub fn swiglu(cpu: &Cpu, gate_up: &[f32], width: usize, y: &mut [f32]) {
    // An exponential and a division take the time of some ten multiply-adds.
    let ranges = cpu.ranges_for(10 * y.len(), y.len() / width, 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(y, width, &ranges)).collect();
    cpu.for_each(items, |(rows, y)| {
        kernel::swiglu_forward(cpu.isa(), &gate_up[rows.start * 2 * width..rows.end * 2 * width], width, y);
    });
}

/// Turns the queries and keys of every row of `qkv` (as [`Heads`] describes it) to their positions, in place.
pub fn rotate(cpu: &Cpu, heads: Heads, table: &RotaryTable, positions: &[usize], qkv: &mut [f32]) {
    let ranges = cpu.ranges_for(4 * qkv.len(), positions.len(), 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(qkv, heads.row(), &ranges)).collect();
    cpu.for_each(items, |(rows, qkv)| {
        for (row, position) in qkv.chunks_exact_mut(heads.row()).zip(&positions[rows.clone()]) {
            for head in row[..heads.value_start(0)].chunks_exact_mut(heads.dimension) {
                table.rotate(head, *position);
            }
        }
    });
}

/// Adds the keys and values of new tokens to the caches of their sequences, so many to each. `qkv` holds a row as [`Heads`]
/// describes it per new token, sequence after sequence, the keys turned to their positions.
pub fn extend<'a>(
    cpu: &Cpu,
    heads: Heads,
    qkv: &'a [f32],
    sequences: impl Iterator<Item = (usize, &'a mut KeyValueCache)>,
) {
    let (mut rest, mut pieces) = (qkv, Vec::new());
    for (new, cache) in sequences {
        let (own, others) = rest.split_at(new * heads.row());
        rest = others;
        pieces.extend(cache.extend(own));
    }
    assert!(rest.is_empty(), "{} elements of no sequence", rest.len());
    // Rounding takes the time of some four multiply-adds.
    cpu.for_each_of(4 * qkv.len(), pieces.into_iter(), NewPositions::write);
}

/// One sequence: how many of its tokens are new, and all its keys and values, new ones included.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// New tokens.
    pub new: usize,
    /// Keys and values.
    pub cache: &'a KeyValueCache,
}

/// Attention of the new tokens of every sequence over its own keys and values. `qkv` holds a row as [`Heads`]
/// describes it per new token, sequence after sequence, the queries turned to their positions; `output` gets
/// their results (new tokens x `heads · dimension`).
pub fn attention(cpu: &Cpu, heads: Heads, qkv: &[f32], sequences: &[Cached<'_>], output: &mut [f32]) {
    struct Piece<'a> {
        cache: &'a KeyValueCache,
        rows: Range<usize>,
        position: usize,
    }
    let (mut pieces, mut end, mut operations) = (Vec::new(), 0, 0);
    for &Cached { new, cache } in sequences {
        for start in (0..new).step_by(TOKEN_BLOCK) {
            let rows = end + start..end + new.min(start + TOKEN_BLOCK);
            let position = cache.len() - new + start;
            operations += 2 * rows.len() * (position + rows.len()) * heads.query_row();
            pieces.push(Piece { cache, rows, position });
        }
        end += new;
    }
    let rows: Vec<_> = pieces.iter().map(|piece| piece.rows.clone()).collect();
    let shared = cpu.worth_sharing(operations);
    // Several heads are faster at once than one after the other.
    let side_by_side = if shared { 1 } else { heads.key_value_heads };
    let groups: Vec<_> =
        (0..heads.key_value_heads).step_by(side_by_side).map(|head| head..head + side_by_side).collect();
    let width = heads.group() * heads.dimension;
    let columns: Vec<_> = groups.iter().map(|heads| heads.start * width..heads.end * width).collect();
    let blocks = grid::split(output, heads.query_row(), &rows, &columns);
    let work = |(i, mut block): (usize, grid::BlockMut<'_, f32>)| {
        let Piece { cache, rows, position } = &pieces[i / groups.len()];
        let qkv = &qkv[rows.start * heads.row()..rows.end * heads.row()];
        attention_step(cache, groups[i % groups.len()].clone(), qkv, *position, &mut block);
    };
    let items = blocks.into_iter().enumerate();
    if shared { cpu.for_each(items.collect(), work) } else { items.for_each(work) }
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
}
