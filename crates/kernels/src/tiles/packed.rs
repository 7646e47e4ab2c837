//! Operands in the order in which tiles are loaded.

use half::bf16;

use super::tile::{PANEL_STEP_BYTES, TILE_BYTES, TILE_COLS, TILE_DEPTH, TILE_ROWS};
use super::vector::{PortableVectors, TILE_ELEMENTS, VectorUnit};
use crate::buffer::Buffer;
use crate::isa::Isa;
use crate::matrix::MatrixRef;

/// Columns of a panel of B: two tiles.
pub(crate) const PANEL_COLS: usize = 2 * TILE_COLS;

/// A matrix B [k, n] as tiles of pairs, for products that use it more than once, such as with a weight.
///
/// It is a row of panels of 32 columns; a panel is a column of steps of 32 rows; a step is two tiles of
/// 1 KiB. Rows and columns are filled up with zeros to multiples of 32.
#[derive(Debug, Default)]
pub struct PackedB {
    tiles: Buffer,
    k: usize,
    n: usize,
}

/// Packs `b` [k, n], row-major or transposed (a weight [n, k] row-major is B transposed). The order does not
/// depend on `isa`; the speed does.
pub fn pack_b(isa: Isa, b: MatrixRef<bf16>) -> PackedB {
    let mut packed = PackedB::default();
    packed.refresh(isa, b);
    packed
}

impl PackedB {
    /// Packs another matrix, or new values of the same; memory is kept if it is large enough.
    pub fn refresh(&mut self, isa: Isa, b: MatrixRef<bf16>) {
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = super::vector_avx512::Avx512Vectors::new(isa) {
            return self.refresh_with(vectors, b);
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = super::vector_avx2::Avx2Vectors::new(isa) {
            return self.refresh_with(vectors, b);
        }
        let _ = isa;
        self.refresh_with(PortableVectors, b);
    }

    pub(crate) fn refresh_with<V: VectorUnit>(&mut self, vectors: V, b: MatrixRef<bf16>) {
        (self.k, self.n) = (b.rows(), b.columns());
        pack_panels(vectors, b, 0..b.rows(), 0..b.columns(), &mut self.tiles);
    }

    /// Rows of B, the depth of the product.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of B and of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.tiles.len()
    }

    /// Depth step `step` of panel `panel`: two tiles, and behind them the later steps of the panel.
    pub(crate) fn panel(&self, panel: usize, step: usize) -> *const u8 {
        let steps = self.k.div_ceil(TILE_DEPTH);
        assert!(step < steps && panel < self.n.div_ceil(PANEL_COLS), "panel outside the packed matrix");
        self.tiles.as_ptr().wrapping_add((panel * steps + step) * PANEL_STEP_BYTES)
    }
}

/// Packs a part of B into `buffer`. `rows` starts at a multiple of 32 and ends at one or with the matrix.
pub(crate) fn pack_panels<V: VectorUnit>(
    vectors: V,
    b: MatrixRef<bf16>,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    buffer: &mut Buffer,
) {
    let steps = rows.len().div_ceil(TILE_DEPTH);
    let panels = cols.len().div_ceil(PANEL_COLS);
    buffer.reserve(panels * steps * PANEL_STEP_BYTES);
    let start = buffer.as_mut_ptr();
    for panel in 0..panels {
        // SAFETY: the buffer was made large enough for all panels, so for this one; buffer and offset are multiples
        // of 64.
        unsafe {
            let dst = start.add(panel * steps * PANEL_STEP_BYTES);
            pack_panel(vectors, b, rows.clone(), cols.start + panel * PANEL_COLS, dst);
        }
    }
}

/// Packs `rows` of the 32 columns of B from column `n` on: per 32 rows two tiles, as pairs.
///
/// # Safety
/// For every 32 rows begun, two tiles can be written at `dst`, which is 64-byte aligned.
pub(crate) unsafe fn pack_panel<V: VectorUnit>(
    vectors: V,
    b: MatrixRef<bf16>,
    rows: std::ops::Range<usize>,
    n: usize,
    dst: *mut u8,
) {
    for (step, k) in rows.step_by(TILE_DEPTH).enumerate() {
        // SAFETY: the caller vouches for two tiles per step. 32 rows of 32 columns of B are inside the slice where
        // they are taken at once.
        unsafe {
            let dst: *mut bf16 = dst.add(step * PANEL_STEP_BYTES).cast();
            if b.is_row_major() && k + TILE_DEPTH <= b.rows() && n + PANEL_COLS <= b.columns() {
                vectors.interleave_tiles(b.data.as_ptr().add(k * b.row_stride + n), b.row_stride, dst);
                continue;
            }
            for half in 0..2 {
                pack_tile_b(vectors, b, k, n + half * TILE_COLS, dst.byte_add(half * TILE_BYTES));
            }
        }
    }
}

/// Rows `k..k + 32`, columns `n..n + 16` of B as pairs; what is outside the matrix is zero.
///
/// # Safety
/// A tile can be written at `dst`, which is 64-byte aligned.
unsafe fn pack_tile_b<V: VectorUnit>(vectors: V, b: MatrixRef<bf16>, k: usize, n: usize, dst: *mut bf16) {
    if k + TILE_DEPTH <= b.rows() && n + TILE_COLS <= b.columns() {
        // SAFETY: 32 rows of 16 columns of B are inside the slice, and `dst` is what the caller vouches for.
        unsafe {
            if b.is_row_major() {
                vectors.interleave_tile(b.data.as_ptr().add(k * b.row_stride + n), b.row_stride, dst);
            } else {
                vectors.transpose_tile(b.data.as_ptr().add(n * b.column_stride + k), b.column_stride, dst);
            }
        }
        return;
    }
    // SAFETY: the caller vouches for one tile.
    let dst = unsafe { zeroed_tile(dst) };
    for row in k..b.rows().min(k + TILE_DEPTH) {
        for col in n..b.columns().min(n + TILE_COLS) {
            let (row_in, col_in) = (row - k, col - n);
            dst[(row_in / 2) * TILE_DEPTH + 2 * col_in + row_in % 2] = b.at(row, col);
        }
    }
}

/// Rows `m..m + 16`, columns `k..k + 32` of A; what is outside the matrix is zero.
///
/// # Safety
/// A tile can be written at `dst`, which is 64-byte aligned.
pub(crate) unsafe fn pack_tile_a<V: VectorUnit>(
    vectors: V,
    a: MatrixRef<bf16>,
    m: usize,
    k: usize,
    dst: *mut bf16,
) {
    if m + TILE_ROWS <= a.rows() && k + TILE_DEPTH <= a.columns() {
        // SAFETY: 16 rows of 32 columns of A are inside the slice, `dst` is what the caller vouches for, and
        // `pairs` is an aligned tile that can be read as 16 rows of 32 elements.
        unsafe {
            if a.is_row_major() {
                vectors.copy_tile(a.data.as_ptr().add(m * a.row_stride + k), a.row_stride, dst);
            } else {
                let mut pairs = Tile([bf16::ZERO; TILE_ELEMENTS]);
                let src = a.data.as_ptr().add(k * a.column_stride + m);
                vectors.interleave_tile(src, a.column_stride, pairs.0.as_mut_ptr());
                vectors.transpose_tile(pairs.0.as_ptr(), TILE_DEPTH, dst);
            }
        }
        return;
    }
    // SAFETY: the caller vouches for one tile.
    let dst = unsafe { zeroed_tile(dst) };
    for row in m..a.rows().min(m + TILE_ROWS) {
        for col in k..a.columns().min(k + TILE_DEPTH) {
            dst[(row - m) * TILE_DEPTH + (col - k)] = a.at(row, col);
        }
    }
}

#[repr(align(64))]
struct Tile([bf16; TILE_ELEMENTS]);

/// # Safety
/// A tile can be written at `dst`, and nothing else uses it while the result lives.
unsafe fn zeroed_tile<'a>(dst: *mut bf16) -> &'a mut [bf16; TILE_ELEMENTS] {
    // SAFETY: zeroed first, so initialised; the rest is the caller's promise. All bits zero is bf16 zero.
    unsafe {
        dst.write_bytes(0, TILE_ELEMENTS);
        &mut *dst.cast()
    }
}
