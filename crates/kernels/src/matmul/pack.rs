//! Packing of operands into the panels that the microkernels read.

use crate::buffer::Lines;
use crate::{Element, Isa, MatrixRef};

/// The buffers a thread packs into; they grow to the largest size asked for and stay.
pub(super) struct Scratch {
    b: Lines,
    a: Lines,
}

impl Scratch {
    pub(super) const fn new() -> Scratch {
        Scratch { b: Lines::new(), a: Lines::new() }
    }

    /// A buffer for panels of B and one for a block of A.
    pub(super) fn buffers(&mut self, b: usize, a: usize) -> (&mut [f32], &mut [f32]) {
        (self.b.at_least(b), self.a.at_least(a))
    }
}

/// A block of A as the microkernel reads it.
pub(super) enum Operand<'a> {
    /// Rows read where they lie; only for whole tiles.
    InPlace { data: &'a [f32], row_stride: usize, whole_rows: usize, edge: &'a [f32] },
    /// Tiles of `MR` rows, element (row, k) at `k * MR + row`.
    Packed(&'a [f32]),
}

impl Operand<'_> {
    /// The tile that starts at `row`: its elements, the stride of rows, the stride of k.
    pub(super) fn tile(&self, row: usize, depth: usize, mr: usize) -> (&[f32], usize, usize) {
        match self {
            Operand::InPlace { data, row_stride, whole_rows, .. } if row < *whole_rows => {
                (&data[row * row_stride..], *row_stride, 1)
            }
            Operand::InPlace { edge, .. } => (edge, 1, mr),
            Operand::Packed(packed) => (&packed[row * depth..], 1, mr),
        }
    }
}

/// Readies rows `row..row+height`, depth `start..start+depth` of A. Rows that are contiguous f32 are read in
/// place: the microkernel broadcasts single elements, for which a few row streams are as good as a panel.
#[allow(clippy::too_many_arguments, reason = "a block is its ranges")]
pub(super) fn pack_a<'a, A: Element>(
    isa: Isa,
    a: MatrixRef<'a, A>,
    row: usize,
    height: usize,
    start: usize,
    depth: usize,
    mr: usize,
    buffer: &'a mut [f32],
) -> Operand<'a> {
    let origin = (row * a.row_stride + start * a.column_stride).min(a.data.len());
    let data = &a.data[origin..];
    match A::as_f32(data) {
        Some(data) if a.column_stride == 1 => {
            let whole_rows = height - height % mr;
            if whole_rows < height {
                let edge = &data[whole_rows * a.row_stride..];
                pack(isa, edge, a.row_stride, 1, height - whole_rows, depth, mr, buffer);
            }
            Operand::InPlace { data, row_stride: a.row_stride, whole_rows, edge: buffer }
        }
        _ => {
            pack(isa, data, a.row_stride, a.column_stride, height, depth, mr, buffer);
            Operand::Packed(buffer)
        }
    }
}

/// Packs depth `start..start+depth`, columns `column..column+width` of B into panels of `nr` columns.
#[allow(clippy::too_many_arguments, reason = "a block is its ranges")]
pub(super) fn pack_b<B: Element>(
    isa: Isa,
    b: MatrixRef<'_, B>,
    start: usize,
    depth: usize,
    column: usize,
    width: usize,
    nr: usize,
    panels: &mut [f32],
) {
    let origin = (start * b.row_stride + column * b.column_stride).min(b.data.len());
    pack(isa, &b.data[origin..], b.column_stride, b.row_stride, width, depth, nr, panels);
}

/// Packs a whole group of `N` neighbouring vectors.
#[inline(always)]
fn copy_groups<T: Element, const N: usize>(source: &[T], depth_stride: usize, panel: &mut [f32]) {
    assert!(panel.len().is_multiple_of(N));
    for (k, row) in panel.as_chunks_mut::<N>().0.iter_mut().enumerate() {
        if let Some(from) = source[k * depth_stride..].first_chunk::<N>() {
            for (to, from) in row.iter_mut().zip(from) {
                *to = from.to_f32();
            }
        }
    }
}

per_isa! {
    /// Packs `count` vectors of length `depth` in groups of `group`: element k of vector v goes to
    /// `(v / group) * group * depth + k * group + v % group`; missing vectors of the last group become zero.
    pub(crate) fn pack<T: Element>(
        data: &[T],
        vector_stride: usize,
        depth_stride: usize,
        count: usize,
        depth: usize,
        group: usize,
        packed: &mut [f32],
    ) {
        for (first, panel) in (0..count).step_by(group).zip(packed.chunks_mut((group * depth).max(1))) {
            let present = group.min(count - first);
            if present < group {
                panel.fill(0.0);
            }
            if vector_stride == 1 && present == group {
                let source = &data[first..];
                // Copies of a length known here are a few registers; others would be calls.
                match group {
                    6 => copy_groups::<T, 6>(source, depth_stride, panel),
                    8 => copy_groups::<T, 8>(source, depth_stride, panel),
                    12 => copy_groups::<T, 12>(source, depth_stride, panel),
                    16 => copy_groups::<T, 16>(source, depth_stride, panel),
                    32 => copy_groups::<T, 32>(source, depth_stride, panel),
                    4 => copy_groups::<T, 4>(source, depth_stride, panel),
                    _ => unreachable!("no microkernel has tiles of {group}"),
                }
            } else if vector_stride == 1 {
                for (k, row) in panel.chunks_exact_mut(group).enumerate() {
                    let source = &data[k * depth_stride + first..][..present];
                    for (to, from) in row.iter_mut().zip(source) {
                        *to = from.to_f32();
                    }
                }
            } else {
                // Eight steps of every vector at a time: reads stay in a line, writes in a few.
                for k0 in (0..depth).step_by(8) {
                    let steps = 8.min(depth - k0);
                    for v in 0..present {
                        let at = (first + v) * vector_stride + k0 * depth_stride;
                        if depth_stride == 1 {
                            for (k, from) in data[at..at + steps].iter().enumerate() {
                                panel[(k0 + k) * group + v] = from.to_f32();
                            }
                        } else {
                            for k in 0..steps {
                                panel[(k0 + k) * group + v] = data[at + k * depth_stride].to_f32();
                            }
                        }
                    }
                }
            }
        }
    }
}
