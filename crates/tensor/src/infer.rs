//! The operations of decoding: no tape, f32, many sequences of a few new tokens each.

use crate::cpu::rows_mut;
pub use crate::ops::project;
use crate::{Cpu, Heads};
use strata_kernels::attention_step::attention_step;
use strata_kernels::{grid, norm, swiglu as kernel};

/// `y = weight · x / sqrt(mean(x²) + epsilon)` for every row of `weight.len()` elements.
pub fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let rows = x.len() / weight.len();
    norm::rms_norm_forward(cpu.isa(), x, weight, epsilon, y, &mut vec![0.0; rows]);
}

/// `y = silu(gate) · up` for rows of `width` gates, then `width` ups.
pub fn swiglu(cpu: &Cpu, gate_up: &[f32], width: usize, y: &mut [f32]) {
    let ranges = cpu.ranges(y.len() / width, 8);
    let items: Vec<_> = ranges.iter().zip(rows_mut(y, width, &ranges)).collect();
    cpu.for_each(items, |(range, y)| {
        kernel::swiglu_forward(cpu.isa(), &gate_up[range.start * 2 * width..range.end * 2 * width], width, y);
    });
}

/// One sequence: how many of its tokens are new, and all its keys and values, new ones included
/// (positions x `key_value_heads · dimension`, keys turned to their positions).
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// New tokens.
    pub new: usize,
    /// Keys.
    pub keys: &'a [f32],
    /// Values.
    pub values: &'a [f32],
}

/// Attention of the new tokens of every sequence over its own keys and values. `qkv` holds a row as [`Heads`]
/// describes it per new token, sequence after sequence, the queries turned to their positions; `output` gets
/// their results (new tokens x `heads · dimension`).
pub fn attention(cpu: &Cpu, heads: Heads, qkv: &[f32], sequences: &[Cached<'_>], output: &mut [f32]) {
    let row = heads.query_row();
    let mut queries = Vec::with_capacity(output.len());
    for from in qkv.chunks_exact(heads.row()) {
        queries.extend_from_slice(&from[..row]);
    }
    let mut end = 0;
    let rows: Vec<_> = sequences
        .iter()
        .map(|s| {
            end += s.new;
            end - s.new..end
        })
        .collect();
    let width = heads.group() * heads.dimension;
    let columns: Vec<_> = (0..heads.key_value_heads).map(|g| g * width..(g + 1) * width).collect();
    let blocks = grid::split(output, row, &rows, &columns);
    let items: Vec<_> = blocks.into_iter().enumerate().collect();
    cpu.for_each(items, |(i, mut block)| {
        let (sequence, group) = (i / columns.len(), i % columns.len());
        let cached = sequences[sequence];
        let queries = &queries[rows[sequence].start * row..rows[sequence].end * row];
        let first = cached.keys.len() / (heads.key_value_heads * heads.dimension) - cached.new;
        attention_step(cpu.isa(), heads, group, queries, cached.keys, cached.values, first, &mut block);
    });
}
