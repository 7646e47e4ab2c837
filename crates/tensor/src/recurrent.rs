//! The operations of decoding with states of fixed size: as [`crate::infer`], what a token gives does not depend, to the
//! bit, on the other sequences, on the pieces a prompt is read in or on the number of threads.

use crate::cpu::rows_mut;
use crate::ops::lstm::{Recurrent, lstm_steps};
use crate::ops::{S4dNumbers, ScanShape, Sight};
use crate::{Cpu, Heads};
use std::ops::Range;
pub use strata_kernels::conv::Filter;
use strata_kernels::conv::{Lags, conv_silu_step};
use strata_kernels::local_attention::{Slots, local_attention_steps};
use strata_kernels::projection::PackedWeight;
use strata_kernels::s4d::{LANES, s4d_forward};
pub use strata_kernels::ssm::Decay;
use strata_kernels::ssm::{Scan, ssm_steps};
use strata_kernels::{MatrixRef, gated_norm as kernel, grid};

/// The new tokens of one sequence, and its state.
#[derive(Debug)]
pub struct Carrying<'a> {
    /// New tokens.
    pub new: usize,
    /// Moves on past them.
    pub state: &'a mut [f32],
}

fn rows_of(sequences: &[Carrying<'_>]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |sequence: &Carrying<'_>| {
        end += sequence.new;
        end - sequence.new..end
    };
    sequences.iter().map(next).collect()
}

/// Convolution and SiLU of the columns `columns` of `x` (rows of `width`); a state holds the last `taps − 1` inputs.
pub fn conv_silu(
    cpu: &Cpu,
    x: &[f32],
    width: usize,
    columns: Range<usize>,
    filter: Filter<'_>,
    sequences: Vec<Carrying<'_>>,
    y: &mut [f32],
) {
    let rows = rows_of(&sequences);
    let channels = columns.len();
    let lags = Lags::new(filter);
    // An exponential and a division take the time of some ten multiply-adds.
    let operations = 20 * y.len();
    let outputs = rows_mut(y, channels, &rows);
    let work = |((sequence, rows), y): ((Carrying<'_>, &Range<usize>), &mut [f32])| {
        for (row, y) in rows.clone().zip(y.chunks_exact_mut(channels)) {
            let x = &x[row * width + columns.start..][..channels];
            conv_silu_step(cpu.isa(), x, filter, &lags, sequence.state, y);
        }
    };
    let items = sequences.into_iter().zip(&rows).zip(outputs);
    cpu.for_each_of(operations, items, work);
}

/// The scan of [`crate::Tape::ssm_scan`], token by token: `x` holds rows as [`ScanShape::row`] describes them, `steps`
/// (rows of `width`) the raw time steps from column `first` on. A state has the shape (heads, dimension, state).
#[allow(clippy::too_many_arguments, reason = "a scan is its inputs")]
pub fn ssm(
    cpu: &Cpu,
    shape: ScanShape,
    x: &[f32],
    steps: &[f32],
    (width, first): (usize, usize),
    decay: Decay<'_>,
    sequences: Vec<Carrying<'_>>,
    y: &mut [f32],
) {
    let rows = rows_of(&sequences);
    let places: Vec<_> = (0..shape.blocks()).map(|block| shape.columns_of(block)).collect();
    let operations = 2 * y.len() * shape.state;
    let outputs = grid::split(y, shape.inner(), &rows, &places);
    let size = shape.block() * shape.dimension * shape.state;
    let states = sequences.into_iter().flat_map(|sequence| sequence.state.chunks_exact_mut(size));
    let view = |values, row_width: usize, rows: &Range<usize>, columns: Range<usize>| {
        let values: &[f32] = values;
        let values = &values[rows.start * row_width + columns.start..];
        MatrixRef::with_stride(values, rows.len(), columns.len(), row_width)
    };
    let work = |(item, (state, mut y)): (usize, (&mut [f32], grid::BlockMut<'_, f32>))| {
        let (rows, block) = (&rows[item / places.len()], item % places.len());
        let (heads, (b, c)) = (shape.heads_of(block), shape.shared_of(block));
        let scan = Scan {
            x: view(x, shape.row(), rows, shape.columns_of(block)),
            b: view(x, shape.row(), rows, b),
            c: view(x, shape.row(), rows, c),
            raw: view(steps, width, rows, first + heads.start..first + heads.end),
            decay: decay.of(heads),
        };
        ssm_steps(cpu.isa(), scan, state, &mut y);
    };
    let items = states.zip(outputs).enumerate();
    cpu.for_each_of(operations, items, work);
}

/// [`crate::Tape::gated_norm`] of every row of `gain.len()` elements, with the gates in the columns `columns` of rows of
/// `width`.
#[allow(clippy::too_many_arguments, reason = "a norm is its inputs")]
pub fn gated_norm(
    cpu: &Cpu,
    x: &[f32],
    gates: &[f32],
    width: usize,
    columns: Range<usize>,
    gain: &[f32],
    (groups, epsilon): (usize, f32),
    y: &mut [f32],
) {
    let inner = gain.len();
    let ranges = cpu.ranges_for(10 * y.len(), y.len() / inner, 1);
    let items: Vec<_> = ranges.iter().zip(rows_mut(y, inner, &ranges)).collect();
    cpu.for_each(items, |(rows, y)| {
        let gates = &gates[rows.start * width + columns.start..];
        let gates = MatrixRef::with_stride(gates, rows.len(), inner, width);
        let x = &x[rows.start * inner..rows.end * inner];
        let mut rstd = vec![0.0; rows.len() * groups];
        kernel::gated_norm_forward(cpu.isa(), x, gates, gain, groups, epsilon, y, &mut rstd);
    });
}

/// The layer of [`crate::Tape::lstm`], all sequences of a time step together; a state is the hidden state, then the cell.
pub fn lstm(
    cpu: &Cpu,
    gates: &[f32],
    recurrent: &PackedWeight,
    bias: &[f32],
    sequences: Vec<Carrying<'_>>,
    y: &mut [f32],
) {
    let (lengths, states): (Vec<usize>, Vec<&mut [f32]>) =
        sequences.into_iter().map(|sequence| (sequence.new, sequence.state)).unzip();
    lstm_steps(cpu, gates, Recurrent { weight: recurrent, bias }, &lengths, states, y, None);
}

/// Numbers of a state of [`s4d`].
pub fn s4d_state(channels: usize, states: usize) -> usize {
    channels.div_ceil(LANES) * states * 2 * LANES
}

/// The layer of [`crate::Tape::s4d`] for rows of `width` channels; see [`s4d_state`].
pub fn s4d(
    cpu: &Cpu,
    x: &[f32],
    width: usize,
    numbers: S4dNumbers<'_>,
    sequences: Vec<Carrying<'_>>,
    y: &mut [f32],
) {
    let rows = rows_of(&sequences);
    let channels = numbers.channels();
    let groups: Vec<_> = (0..width).step_by(LANES).map(|start| start..width.min(start + LANES)).collect();
    let states = channels.first().map_or(0, |group| group.a.len());
    let operations = 6 * y.len() * states;
    let outputs = grid::split(y, width, &rows, &groups);
    let parts =
        sequences.into_iter().flat_map(|sequence| sequence.state.chunks_exact_mut(states * 2 * LANES));
    let work = |(item, (state, mut y)): (usize, (&mut [f32], grid::BlockMut<'_, f32>))| {
        let (rows, group) = (&rows[item / groups.len()], item % groups.len());
        let columns = groups[group].clone();
        let u = &x[rows.start * width + columns.start..];
        let u = MatrixRef::with_stride(u, rows.len(), columns.len(), width);
        let (lanes, _) = state.as_chunks_mut::<LANES>();
        let (pairs, _) = lanes.as_chunks_mut::<2>();
        s4d_forward(cpu.isa(), u, &channels[group], pairs, &mut y);
    };
    let items = parts.zip(outputs).enumerate();
    cpu.for_each_of(operations, items, work);
}

/// The keys and values in sight of one sequence, and its new tokens.
#[derive(Debug)]
pub struct Sighted<'a> {
    /// New tokens.
    pub new: usize,
    /// Tokens before them.
    pub position: usize,
    /// Rows of keys, then values: that of token `t` is `t` modulo their number.
    pub rows: &'a mut [f32],
}

/// The attention of [`crate::Tape::attention`], token by token. `qkv` holds a row as [`Heads`] describes it per new
/// token; `frequencies` are radians per position of each pair of a head, where positions are rotary.
pub fn local_attention(
    cpu: &Cpu,
    heads: Heads,
    frequencies: Option<&[f64]>,
    sight: Sight,
    qkv: &[f32],
    sequences: Vec<Sighted<'_>>,
    y: &mut [f32],
) {
    let (row, query_row) = (heads.row(), heads.query_row());
    let (mut rest, mut items, mut operations) = ((qkv, y), Vec::with_capacity(sequences.len()), 0);
    for sequence in sequences {
        let (own, later) = rest.0.split_at(sequence.new * row);
        let (y, later_y) = rest.1.split_at_mut(sequence.new * query_row);
        operations += 2 * y.len() * (sequence.position + sequence.new).min(sight.window);
        items.push((sequence, own, y));
        rest = (later, later_y);
    }
    let work = |(sequence, own, y): (Sighted<'_>, &[f32], &mut [f32])| {
        let slots = Slots { rows: sequence.rows, position: sequence.position };
        local_attention_steps(cpu.isa(), heads, frequencies, sight, own, slots, y);
    };
    cpu.for_each_of(operations, items.into_iter(), work);
}
