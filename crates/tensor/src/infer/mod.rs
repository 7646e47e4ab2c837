//! The operations of decoding: no tape, f32, many sequences of a few new tokens each. What a token gives does not
//! depend, to the bit, on the other tokens or on the number of threads.

use crate::cpu::rows_mut;
use crate::{Cpu, Heads};
use strata_kernels::attention_step::attention_step;
use strata_kernels::cache::NewPositions;
pub use strata_kernels::cache::{CacheFormat, KeyValueCache};
use strata_kernels::element::add_assign;
pub use strata_kernels::math::{WEIGHTS, first_largest, log_sum_exp, softmax_weights};
use strata_kernels::{grid, norm, swiglu as kernel};

mod product;

pub use product::{PackedWeight, WeightFormat, pack, pack_with, project, project_then, row_blocks};
pub use strata_kernels::rotary::rotate_rows;

/// New tokens of a sequence that are one piece of shared work.
const TOKEN_BLOCK: usize = 64;

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

/// A sequence with new tokens.
#[derive(Debug)]
pub struct Attending<'a> {
    /// How many are new.
    pub new: usize,
    /// Of how many of them, the last ones, results are wanted.
    pub wanted: usize,
    /// The keys and values of those before.
    pub cache: &'a mut KeyValueCache,
}

/// Adds the keys and values of new tokens to those of their sequences, and attends to them. `qkv` holds a row as [`Heads`]
/// describes it per new token, sequence after sequence, queries and keys turned to their positions; `output` gets the results
/// that are wanted (tokens x `heads · dimension`).
pub fn attention(cpu: &Cpu, heads: Heads, qkv: &[f32], sequences: Vec<Attending<'_>>, output: &mut [f32]) {
    let operations = |sequence: &Attending<'_>| {
        2 * sequence.wanted * (sequence.cache.len() + sequence.new) * heads.query_row()
    };
    if cpu.worth_sharing(sequences.iter().map(operations).sum()) {
        return shared_attention(cpu, heads, qkv, sequences, output);
    }
    let (mut rest, mut output) = (qkv, output);
    for Attending { new, wanted, cache } in sequences {
        let own = rest.split_off(..new * heads.row()).unwrap_or_default();
        // What was just written is still near when it is read.
        cache.extend(own).for_each(NewPositions::write);
        let results = output.split_off_mut(..wanted * heads.query_row()).unwrap_or_default();
        let queries = &own[(new - wanted) * heads.row()..];
        let mut results = grid::BlockMut::new(results, heads.query_row());
        attention_step(cache, 0..heads.key_value_heads, queries, cache.len() - wanted, &mut results);
    }
    assert!(rest.is_empty() && output.is_empty(), "attention: elements of no sequence");
}

fn shared_attention(
    cpu: &Cpu,
    heads: Heads,
    qkv: &[f32],
    mut sequences: Vec<Attending<'_>>,
    output: &mut [f32],
) {
    let (mut rest, mut new_positions) = (qkv, Vec::new());
    for Attending { new, cache, .. } in &mut sequences {
        new_positions.extend(cache.extend(rest.split_off(..*new * heads.row()).unwrap_or_default()));
    }
    assert!(rest.is_empty(), "attention: {} elements of no sequence", rest.len());
    // Rounding takes the time of some four multiply-adds.
    cpu.for_each_of(4 * qkv.len(), new_positions.into_iter(), NewPositions::write);

    struct Piece<'a> {
        cache: &'a KeyValueCache,
        qkv: &'a [f32],
        position: usize,
    }
    let (mut pieces, mut rows, mut start, mut end) = (Vec::new(), Vec::new(), 0, 0);
    for Attending { new, wanted, cache } in &sequences {
        start += new - wanted;
        for first in (0..*wanted).step_by(TOKEN_BLOCK) {
            let count = TOKEN_BLOCK.min(wanted - first);
            let qkv = &qkv[(start + first) * heads.row()..][..count * heads.row()];
            pieces.push(Piece { cache, qkv, position: cache.len() - wanted + first });
            rows.push(end + first..end + first + count);
        }
        (start, end) = (start + wanted, end + wanted);
    }
    let width = heads.group() * heads.dimension;
    let columns: Vec<_> = (0..heads.key_value_heads).map(|head| head * width..(head + 1) * width).collect();
    let blocks = grid::split(output, heads.query_row(), &rows, &columns);
    cpu.for_each(blocks.into_iter().enumerate().collect(), |(i, mut block)| {
        let (Piece { cache, qkv, position }, head) = (&pieces[i / columns.len()], i % columns.len());
        attention_step(cache, head..head + 1, qkv, *position, &mut block);
    });
}
