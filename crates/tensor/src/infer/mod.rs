//! The operations of decoding: no tape, f32, many sequences of a few new tokens each. What a token gives does not
//! depend, to the bit, on the other tokens or on the number of threads.

use crate::cpu::rows_mut;
use crate::{Cpu, Heads};
use std::ops::Range;
use strata_kernels::attention_step::attention_step;
use strata_kernels::cache::NewPositions;
pub use strata_kernels::cache::{CacheFormat, KeyValueCache};
use strata_kernels::element::add_assign;
pub use strata_kernels::math::{WEIGHTS, first_largest, log_sum_exp, softmax_weights};
use strata_kernels::{grid, norm, swiglu as kernel};

mod product;

pub use product::{PackedWeight, WeightFormat, pack, pack_with, project, project_then, row_blocks};
pub use strata_kernels::rotary::rotate_rows;

/// New tokens of a sequence that are one piece of work.
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
