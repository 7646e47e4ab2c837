//! The state-space scan of Mamba-2 over packed segments.

use super::segments::{Segments, columns_of};
use crate::cpu::rows_mut;
use crate::tape::{Operation, Tape, Var};
use crate::{Activation, ParameterId};
use std::ops::Range;
use strata_kernels::ssm::{Decay, Scan, ScanGradients, ssm_scan_backward, ssm_scan_forward};
use strata_kernels::{Isa, grid};

/// The extents of a state-space scan.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ScanShape {
    /// Heads, each with decay and time step of its own.
    pub heads: usize,
    /// Elements of a head.
    pub dimension: usize,
    /// Groups of heads that share `b` and `c`; divides the heads.
    pub groups: usize,
    /// Elements of `b` and `c`: a head's state has so many per element.
    pub state: usize,
    /// Bounds of the time steps.
    pub limits: (f32, f32),
}

/// Heads that are one piece of work at most: their products with the states are as wide as tiles like it.
const BLOCK_HEADS: usize = 8;

impl ScanShape {
    /// Elements of all heads.
    pub fn inner(&self) -> usize {
        self.heads * self.dimension
    }

    /// Elements of a token before the scan: all heads, then `b` and then `c` of every group.
    pub fn row(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// Heads that are computed together: of one group.
    pub(crate) fn block(&self) -> usize {
        let heads = self.heads / self.groups;
        (1..=BLOCK_HEADS).rev().find(|block| heads.is_multiple_of(*block)).unwrap_or(1)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.heads / self.block()
    }

    /// How often the scores of a chunk are computed: once per group, and again for each block of heads in it.
    pub fn score_blocks(&self) -> usize {
        self.blocks()
    }

    /// The heads of a block.
    pub(crate) fn heads_of(&self, block: usize) -> Range<usize> {
        block * self.block()..(block + 1) * self.block()
    }

    /// The columns of `x` of a block.
    pub(crate) fn columns_of(&self, block: usize) -> Range<usize> {
        let heads = self.heads_of(block);
        heads.start * self.dimension..heads.end * self.dimension
    }

    /// Where `b` and `c` of a block's heads lie in a token.
    pub(crate) fn shared_of(&self, block: usize) -> (Range<usize>, Range<usize>) {
        let group = block * self.block() / (self.heads / self.groups);
        let b = self.inner() + group * self.state;
        let c = b + self.groups * self.state;
        (b..b + self.state, c..c + self.state)
    }
}

/// The parameters of a scan, one number per head each.
#[derive(Clone, Copy, Debug)]
pub struct ScanParameters {
    /// `ln(−a)`.
    pub a_log: ParameterId,
    /// Weight of the input itself.
    pub d: ParameterId,
    /// Added to the raw time steps.
    pub bias: ParameterId,
}

impl<E: Activation> Tape<'_, E> {
    /// The scan of [`strata_kernels::ssm`] over each segment by itself. `x` holds rows as [`ScanShape::row`] describes
    /// them, `steps` the raw time steps of the heads from column `first` on.
    ///
    /// # Panics
    /// Where the shapes do not fit together.
    pub fn ssm_scan(
        &mut self,
        x: Var,
        (steps, first): (Var, usize),
        parameters: ScanParameters,
        shape: ScanShape,
        starts: &[u32],
    ) -> Var {
        let (rows, inner) = (self.rows(x), shape.inner());
        assert!(self.width(x) == shape.row() && self.width(steps) >= first + shape.heads, "scan: shapes");
        let segments = Segments::new(starts, rows);
        let mut y = self.buffers.take::<E>(rows * inner);
        let places: Vec<_> = (0..shape.blocks()).map(|block| shape.columns_of(block)).collect();
        let outputs = grid::split(&mut y, inner, &segments.0, &places);
        let operation = SsmScan { x, steps, first, parameters, shape, segments };
        let a = operation.a(self);
        let items = outputs.into_iter().enumerate().map(|(item, y)| (operation.scan(self, &a, item), y));
        self.cpu.for_each(items.collect(), |(scan, mut y)| {
            if y.rows() > 0 {
                ssm_scan_forward(self.cpu.isa(), scan, &mut y);
            }
        });
        self.push(inner, y, operation)
    }
}

struct SsmScan {
    x: Var,
    steps: Var,
    first: usize,
    parameters: ScanParameters,
    shape: ScanShape,
    segments: Segments,
}

impl SsmScan {
    fn a<E: Activation>(&self, tape: &Tape<'_, E>) -> Vec<f32> {
        tape.parameters.get(self.parameters.a_log).iter().map(|a| -a.exp()).collect()
    }

    /// The inputs of an item: segments outer, blocks of heads inner.
    fn scan<'a, E: Activation>(&self, tape: &'a Tape<'_, E>, a: &'a [f32], item: usize) -> Scan<'a, E> {
        let (shape, block) = (self.shape, item % self.shape.blocks());
        let rows = self.segments.0[item / shape.blocks()].clone();
        let (x, steps) = (tape.value(self.x), tape.value(self.steps));
        let part = |columns| columns_of(x, shape.row(), columns).row_range(rows.clone());
        let (heads, (b, c)) = (shape.heads_of(block), shape.shared_of(block));
        let raw = self.first + heads.start..self.first + heads.end;
        let decay = Decay {
            a,
            d: tape.parameters.get(self.parameters.d),
            bias: tape.parameters.get(self.parameters.bias),
            limits: shape.limits,
        };
        Scan {
            x: part(shape.columns_of(block)),
            b: part(b),
            c: part(c),
            raw: columns_of(steps, tape.width(self.steps), raw).row_range(rows.clone()),
            decay: decay.of(heads),
        }
    }
}

impl<E: Activation> Operation<E> for SsmScan {
    fn backward(self: Box<Self>, tape: &mut Tape<'_, E>, _: &[E], d_y: Vec<E>) {
        let shape = self.shape;
        let (rows, inner, blocks, state) = (tape.rows(self.x), shape.inner(), shape.blocks(), shape.state);
        let mut d_x = tape.buffers.take::<E>(rows * shape.row());
        let mut d_steps = tape.take_column_gradient(self.steps);
        // Every block of heads has its own part of the gradients of b and c, which are then added up in order.
        let mut shared = tape.buffers.take::<f32>(rows * blocks * 2 * state);
        let a = self.a(tape);
        let places: Vec<_> = (0..blocks).map(|block| shape.columns_of(block)).collect();
        let step_places: Vec<_> = (0..blocks)
            .map(|block| shape.heads_of(block))
            .map(|heads| self.first + heads.start..self.first + heads.end)
            .collect();
        let shared_places: Vec<_> = (0..2 * blocks).map(|i| i * state..(i + 1) * state).collect();
        let segments = &self.segments.0;
        let x_blocks = grid::split(&mut d_x, shape.row(), segments, &places);
        let step_blocks = grid::split(&mut d_steps, tape.width(self.steps), segments, &step_places);
        let mut shared_blocks =
            grid::split(&mut shared, blocks * 2 * state, segments, &shared_places).into_iter();
        let mut items = Vec::with_capacity(x_blocks.len());
        for (item, (x, steps)) in x_blocks.into_iter().zip(step_blocks).enumerate() {
            if let (Some(b), Some(c)) = (shared_blocks.next(), shared_blocks.next()) {
                items.push((item, self.scan(tape, &a, item), x, steps, b, c));
            }
        }
        let parts = tape.cpu.map(items, |(item, scan, mut x, mut raw, mut b, mut c)| {
            let heads = shape.block();
            let (mut d_a, mut d_d, mut d_bias) = (vec![0.0; heads], vec![0.0; heads], vec![0.0; heads]);
            if x.rows() > 0 {
                let rows = segments[item / blocks].clone();
                let d_y = columns_of(&d_y, inner, shape.columns_of(item % blocks)).row_range(rows);
                let gradients = ScanGradients {
                    x: &mut x,
                    b: &mut b,
                    c: &mut c,
                    raw: &mut raw,
                    a: &mut d_a,
                    d: &mut d_d,
                    bias: &mut d_bias,
                };
                ssm_scan_backward(tape.cpu.isa(), scan, d_y, gradients);
            }
            (d_a, d_d, d_bias)
        });
        let ranges = tape.cpu.ranges(rows, 1);
        let items: Vec<_> = ranges.iter().zip(rows_mut(&mut d_x, shape.row(), &ranges)).collect();
        tape.cpu.for_each(items, |(range, d_x)| {
            let shared = &shared[range.start * blocks * 2 * state..range.end * blocks * 2 * state];
            add_up(tape.cpu.isa(), shape, shared, d_x);
        });
        tape.buffers.give(shared);
        tape.set_gradient(self.steps, d_steps);
        tape.add_gradient(self.x, d_x);
        let mut sums = [vec![0.0f32; shape.heads], vec![0.0; shape.heads], vec![0.0; shape.heads]];
        for (item, (d_a, d_d, d_bias)) in parts.into_iter().enumerate() {
            for (sum, part) in sums.iter_mut().zip([d_a, d_d, d_bias]) {
                for (sum, value) in sum[shape.heads_of(item % blocks)].iter_mut().zip(part) {
                    *sum += value;
                }
            }
        }
        let [d_a, d_d, d_bias] = sums;
        tape.add_to_parameter(self.parameters.a_log, d_a.iter().zip(&a).map(|(d, a)| d * a));
        tape.add_to_parameter(self.parameters.d, d_d);
        tape.add_to_parameter(self.parameters.bias, d_bias);
        tape.buffers.give(d_y);
    }
}

/// The gradients of `b` and `c` of every group: the sums over its blocks of heads.
fn add_up<E: Activation>(isa: Isa, shape: ScanShape, shared: &[f32], d_x: &mut [E]) {
    let (blocks, state) = (shape.blocks(), shape.state);
    let per_group = blocks / shape.groups;
    let mut sum = vec![0.0f32; state];
    for (shared, d_x) in shared.chunks_exact(blocks * 2 * state).zip(d_x.chunks_exact_mut(shape.row())) {
        for group in 0..shape.groups {
            let (b, c) = shape.shared_of(group * per_group);
            for (which, to) in [b, c].into_iter().enumerate() {
                sum.fill(0.0);
                for block in group * per_group..(group + 1) * per_group {
                    let part = &shared[(2 * block + which) * state..][..state];
                    strata_kernels::element::add_assign(isa, part, &mut sum);
                }
                strata_kernels::element::convert(isa, &sum, &mut d_x[to]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check;
    use crate::{Buffers, Cpu, Layout, Parameters, random_values};

    const SHAPE: ScanShape =
        ScanShape { heads: 4, dimension: 2, groups: 2, state: 3, limits: (0.0, f32::INFINITY) };

    fn parameters() -> (Parameters, ParameterId, ParameterId, ScanParameters) {
        let mut layout = Layout::new();
        let (table, steps) = (layout.matrix(3, SHAPE.row()), layout.matrix(5, SHAPE.row()));
        let scan = ScanParameters { a_log: layout.vector(4), d: layout.vector(4), bias: layout.vector(4) };
        let mut parameters = Parameters::zeros(layout);
        let values = random_values(10, parameters.values().len());
        parameters.values_mut().copy_from_slice(&values);
        // Time steps of about a fifth, so that a state lives for some tokens.
        parameters.get_mut(scan.bias).fill(-1.5);
        (parameters, table, steps, scan)
    }

    #[test]
    fn the_scan_of_grouped_heads_over_segments_passes_the_gradient_check() {
        let (parameters, table, steps, scan) = parameters();
        let tokens: Vec<u32> = (0..9).map(|i| i * i % 3).collect();
        // Truncation of the differences: the time steps stand in exponents.
        check::parameters(&parameters, 3e-3, |tape| {
            let x = tape.embedding(table, &tokens);
            let raw = tape.linear(x, steps);
            tape.ssm_scan(x, (raw, 1), scan, SHAPE, &[0, 2])
        });
    }

    #[test]
    fn a_segment_gives_the_same_bits_alone_and_packed() {
        let (parameters, table, steps, scan) = parameters();
        for isa in Isa::available() {
            let run = |tokens: &[u32], starts: &[u32], threads| {
                let cpu = Cpu::new(isa, threads).unwrap();
                let mut buffers = Buffers::new();
                let mut tape = Tape::<f32>::new(&cpu, &parameters, None, &mut buffers);
                let x = tape.embedding(table, tokens);
                let raw = tape.linear(x, steps);
                let y = tape.ssm_scan(x, (raw, 1), scan, SHAPE, starts);
                tape.value(y).to_vec()
            };
            let alone: Vec<u32> = (0..150).map(|i| i * i % 3).collect();
            let packed = [&[1, 2], &alone[..], &[0]].concat();
            let inner = SHAPE.inner();
            let packed = run(&packed, &[0, 2, 152], 3);
            assert_eq!(packed[2 * inner..152 * inner], run(&alone, &[0], 1), "{isa:?}");
        }
    }
}
