//! Matrix multiplication by packed panels and a register-tiled microkernel per instruction set.
//!
//! The scheme is the classic one of Goto and van de Geijn ("Anatomy of High-Performance Matrix
//! Multiplication", 2008): B is packed into panels of columns that stay in the L1 cache, blocks of A in
//! the L2 cache, and a tile of C stays in registers for the whole depth.

pub(crate) mod pack;

use crate::buffer::as_words;
use crate::tile::{self, Left, Panels, Shape, Tile, with_tile};
use crate::{BlockMut, Element, Isa, MatrixMut, MatrixRef, tiles};
use pack::{Operand, pack_a, pack_b};
use std::cell::RefCell;

/// What happens to the old contents of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// `C = A·B`
    Overwrite,
    /// `C += A·B`
    Accumulate,
}

/// Depth of a block: a panel of B this deep and 16 wide takes 24 KiB of a 32 KiB L1 cache.
const BLOCK_DEPTH: usize = 384;
/// Rows of a block of A: with the depth above 144 KiB, well inside L2.
const BLOCK_ROWS: usize = 96;
/// Columns of a block of B.
const BLOCK_COLUMNS: usize = 2048;

thread_local! {
    static SCRATCH: RefCell<pack::Scratch> = const { RefCell::new(pack::Scratch::new()) };
    static TILE_SCRATCH: RefCell<tiles::Scratch> = const { RefCell::new(tiles::Scratch::new()) };
}

/// `C = A·B` or `C += A·B`, with `A` of shape (m, k), `B` (k, n) and `C` (m, n), on the calling thread.
///
/// Two bf16 operands are multiplied by the unit of [`Isa::bf16_unit`] where there is one. Otherwise operands of either
/// element type are widened to f32 while they are packed, sums are f32. Panels live in a
/// buffer that each thread keeps, so a repeated call allocates nothing. The order of additions depends on k
/// alone, so a row of C is the same bit for bit whatever other rows are computed with it.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn matmul<A: Element, B: Element, C: Element>(
    isa: Isa,
    a: MatrixRef<'_, A>,
    b: MatrixRef<'_, B>,
    c: MatrixMut<'_, C>,
    store: Store,
) {
    assert!(
        a.columns == b.rows && a.rows == c.rows && b.columns == c.columns,
        "matmul: {}x{} · {}x{} does not give {}x{}",
        a.rows,
        a.columns,
        b.rows,
        b.columns,
        c.rows,
        c.columns
    );
    if let (Some(unit), Some(a_data), Some(b_data)) =
        (isa.bf16_unit(), A::as_bf16(a.data), B::as_bf16(b.data))
    {
        let (a, b) = (a.with_data(a_data), b.with_data(b_data));
        let accumulate = store == Store::Accumulate;
        return TILE_SCRATCH.with_borrow_mut(|scratch| {
            tiles::matmul_bf16(unit, a, b, c.data, c.row_stride, accumulate, scratch)
        });
    }
    SCRATCH.with_borrow_mut(|scratch| with_tile!(f32 isa, blocked, <A, B, C>(isa, a, b, c, store, scratch)));
}

/// As [`matmul`] with a B of bf16 that was packed before.
///
/// # Panics
/// Where the shapes do not fit together, A is not bf16, or the CPU has no products of bf16 ([`Isa::bf16_unit`]).
pub fn matmul_packed<A: Element, C: Element>(
    isa: Isa,
    a: MatrixRef<'_, A>,
    b: &tiles::PackedB,
    c: MatrixMut<'_, C>,
    store: Store,
) {
    let (Some(unit), Some(data)) = (isa.bf16_unit(), A::as_bf16(a.data)) else {
        panic!("matmul: a packed operand for {isa} and {}", std::any::type_name::<A>());
    };
    let accumulate = store == Store::Accumulate;
    TILE_SCRATCH.with_borrow_mut(|scratch| {
        tiles::matmul_packed(unit, a.with_data(data), b, c.data, c.row_stride, accumulate, scratch);
    });
}

fn blocked<K: Tile, A: Element, B: Element, C: Element>(
    isa: Isa,
    a: MatrixRef<'_, A>,
    b: MatrixRef<'_, B>,
    mut c: MatrixMut<'_, C>,
    store: Store,
    scratch: &mut pack::Scratch,
) {
    let (m, n, k) = (c.rows, c.columns, a.columns);
    if m == 0 || n == 0 {
        return;
    }
    // A narrow output cannot hold partial sums without rounding them, so it takes the whole depth at once.
    let depth_limit = if C::as_f32(c.data).is_some() { BLOCK_DEPTH } else { k.max(1) };
    for column in (0..n).step_by(BLOCK_COLUMNS) {
        let width = BLOCK_COLUMNS.min(n - column);
        let mut depth_start = 0;
        while depth_start < k || depth_start == 0 {
            let depth = depth_limit.min(k - depth_start);
            let accumulate = store == Store::Accumulate || depth_start > 0;
            let (panels, a_buffer) = scratch.buffers(
                width.next_multiple_of(K::COLUMNS) * depth,
                BLOCK_ROWS.next_multiple_of(K::ROWS) * depth,
            );
            pack_b::<B>(isa, b, depth_start, depth, column, width, K::COLUMNS, panels);
            for row in (0..m).step_by(BLOCK_ROWS) {
                let height = BLOCK_ROWS.min(m - row);
                let operand = pack_a::<A>(isa, a, row, height, depth_start, depth, K::ROWS, a_buffer);
                block::<K, C>(
                    isa,
                    &operand,
                    panels,
                    depth,
                    &mut c,
                    (row, height),
                    (column, width),
                    accumulate,
                );
            }
            depth_start += depth.max(1);
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "a block is its ranges")]
fn block<K: Tile, C: Element>(
    isa: Isa,
    operand: &Operand<'_>,
    panels: &[f32],
    depth: usize,
    c: &mut MatrixMut<'_, C>,
    (row, height): (usize, usize),
    (column, width): (usize, usize),
    accumulate: bool,
) {
    let mut tile = [0.0f32; tile::LARGEST];
    let tile = &mut tile[..K::ROWS * K::COLUMNS];
    let shape = Shape { rows: K::ROWS, panels: 1, depth };
    for (p, panel_column) in (0..width).step_by(K::COLUMNS).enumerate() {
        let panel = &panels[p * K::COLUMNS * depth..][..K::COLUMNS * depth];
        let tile_width = K::COLUMNS.min(width - panel_column);
        for tile_row in (0..height).step_by(K::ROWS) {
            let tile_height = K::ROWS.min(height - tile_row);
            let (a, row_stride, column_stride) = operand.tile(tile_row, depth, K::ROWS);
            let left = Left { data: as_words(a), row_stride, depth_stride: column_stride };
            let right = Panels { data: as_words(panel), stride: 0, depth_stride: K::COLUMNS, next: &[] };
            let mut sums = BlockMut::new(tile, K::COLUMNS);
            tile::multiply::<K>(isa, shape, left, right, &mut sums, (0, 0), Store::Overwrite);
            for r in 0..tile_height {
                let start = (row + tile_row + r) * c.row_stride + column + panel_column;
                let out = &mut c.data[start..start + tile_width];
                let sums = &tile[r * K::COLUMNS..][..tile_width];
                if accumulate {
                    for (o, s) in out.iter_mut().zip(sums) {
                        *o = C::from_f32(o.to_f32() + s);
                    }
                } else {
                    for (o, s) in out.iter_mut().zip(sums) {
                        *o = C::from_f32(*s);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, assert_close, sum_error};
    use half::bf16;

    fn check<A: Element, B: Element, C: Element>(
        random: &mut Random,
        m: usize,
        n: usize,
        k: usize,
        tolerance: impl Fn(Isa) -> f64,
    ) {
        for isa in Isa::available_or_trapped() {
            let tolerance = tolerance(isa);
            for transposed in 0..4 {
                for store in [Store::Overwrite, Store::Accumulate] {
                    let gap = random.below(3);
                    let shape = |flip: bool, r: usize, c: usize| if flip { (c, r) } else { (r, c) };
                    let (ar, ac) = shape(transposed & 1 == 1, m, k);
                    let (br, bc) = shape(transposed & 2 == 2, k, n);
                    let a: Vec<A> = random.elements(ar * (ac + gap));
                    let b: Vec<B> = random.elements(br * (bc + gap));
                    let before: Vec<C> = random.elements(m * (n + gap));
                    let mut c = before.clone();
                    let mut a_view = MatrixRef::with_stride(&a, ar, ac, ac + gap);
                    let mut b_view = MatrixRef::with_stride(&b, br, bc, bc + gap);
                    if transposed & 1 == 1 {
                        a_view = a_view.transposed();
                    }
                    if transposed & 2 == 2 {
                        b_view = b_view.transposed();
                    }
                    matmul(isa, a_view, b_view, MatrixMut::with_stride(&mut c, m, n, n + gap), store);
                    let at = |v: &MatrixRef<'_, A>, i: usize, j: usize| {
                        v.data[i * v.row_stride + j * v.column_stride].to_f32() as f64
                    };
                    for i in 0..m {
                        for j in 0..n + gap {
                            let old = before[i * (n + gap) + j].to_f32() as f64;
                            let expected = if j >= n {
                                old
                            } else {
                                let sum: f64 = (0..k)
                                    .map(|p| {
                                        let b = b_view.data[p * b_view.row_stride + j * b_view.column_stride];
                                        at(&a_view, i, p) * b.to_f32() as f64
                                    })
                                    .sum();
                                if store == Store::Accumulate { old + sum } else { sum }
                            };
                            let got = c[i * (n + gap) + j].to_f32() as f64;
                            let what =
                                format!("{isa:?} {m}x{n}x{k} transposed {transposed} {store:?} at {i},{j}");
                            assert_close(got, expected, tolerance, tolerance, &what);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn matmul_equals_the_float64_product_on_odd_shapes() {
        let mut random = Random::new(1);
        let sizes = [1, 2, 5, 6, 7, 15, 16, 17, 31, 33, 97];
        for _ in 0..24 {
            let mut pick = || sizes[random.below(sizes.len())];
            let (m, n, k) = (pick(), pick(), pick());
            // f32 sums of up to 97 products of magnitude about one.
            check::<f32, f32, f32>(&mut random, m, n, k, |_| 1e-5);
        }
        // Two blocks in depth and in rows.
        check::<f32, f32, f32>(&mut random, 100, 18, 400, |_| 1e-4);
        check::<f32, f32, f32>(&mut random, 3, 2050, 3, |_| 1e-5);
    }

    #[test]
    fn matmul_of_bf16_equals_the_float64_product_up_to_the_rounding_of_its_output() {
        let mut random = Random::new(2);
        for (m, n, k) in [(1, 1, 1), (7, 17, 33), (33, 31, 400), (13, 16, 5)] {
            check::<bf16, bf16, f32>(&mut random, m, n, k, |isa| sum_error(isa, k, 32));
            // One rounding to 8 bits of mantissa: relative 2^-9, doubled for the cancelling accumulate.
            check::<bf16, bf16, bf16>(&mut random, m, n, k, |isa| sum_error(isa, k, 32) + 4e-3 * 4.0);
            check::<bf16, f32, f32>(&mut random, m, n, k, |_| 1e-4);
            check::<f32, bf16, f32>(&mut random, m, n, k, |_| 1e-4);
        }
    }

    #[test]
    fn a_product_over_an_empty_depth_is_zero() {
        for isa in Isa::available_or_trapped() {
            let mut c = [7.0f32; 4];
            let empty: &[f32] = &[];
            let a = MatrixRef::new(empty, 2, 0);
            matmul(isa, a, MatrixRef::new(empty, 0, 2), MatrixMut::new(&mut c, 2, 2), Store::Overwrite);
            assert_eq!(c, [0.0; 4]);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let mut random = Random::new(3);
        let (m, n, k) = (23, 37, 500);
        let a: Vec<f32> = random.elements(m * k);
        let b: Vec<f32> = random.elements(k * n);
        for isa in Isa::available_or_trapped() {
            let mut whole = vec![0.0; m * n];
            let (va, vb) = (MatrixRef::new(&a, m, k), MatrixRef::new(&b, k, n));
            matmul(isa, va, vb, MatrixMut::new(&mut whole, m, n), Store::Overwrite);
            for r in 0..m {
                let mut one = vec![0.0; n];
                let row = MatrixRef::new(&a[r * k..][..k], 1, k);
                matmul(isa, row, vb, MatrixMut::new(&mut one, 1, n), Store::Overwrite);
                assert_eq!(one, whole[r * n..][..n], "row {r} on {isa:?}");
            }
        }
    }
}
