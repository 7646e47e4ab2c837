//! Operands of units that multiply f32: bf16 in memory, widened piece by piece.

use std::ops::Range;

use half::bf16;

use super::{B, Walk};
use crate::buffer::Buffer;
use crate::matrix::MatrixRef;
use crate::tiles::packed::{PANEL_COLS, pack_panel};
use crate::tiles::tile::{PANEL_STEP_BYTES, TILE_DEPTH, TileUnit};
use crate::tiles::vector::VectorUnit;

/// A step of a panel before it is widened.
#[repr(align(64))]
struct Pairs([u8; PANEL_STEP_BYTES]);

impl<T: TileUnit, V: VectorUnit> Walk<'_, T, V> {
    /// Widens B of a piece, panel by panel, from where it lies.
    pub(super) fn widen_b(&self, ks: Range<usize>, cols: Range<usize>, buffer: &mut Buffer) {
        let steps = ks.len().div_ceil(TILE_DEPTH);
        let panels = cols.len().div_ceil(PANEL_COLS);
        buffer.reserve(panels * steps * T::STEP_BYTES);
        for panel in 0..panels {
            let wide = buffer.as_mut_ptr().wrapping_add(panel * steps * T::STEP_BYTES);
            let column = cols.start + panel * PANEL_COLS;
            // SAFETY: the buffer has room for the steps of all panels, and a packed B has those of the piece.
            unsafe {
                match self.b {
                    B::View(b) => self.widen_panel(b, ks.clone(), column, wide),
                    B::Packed { b, first, .. } => {
                        let pairs =
                            b.panel((first.1 + column) / PANEL_COLS, (first.0 + ks.start) / TILE_DEPTH);
                        for step in 0..steps {
                            let pairs = pairs.add(step * PANEL_STEP_BYTES);
                            self.how.tiles.widen_pairs(pairs, wide.add(step * T::STEP_BYTES));
                        }
                    }
                }
            }
        }
    }

    /// Widens up to 32 rows of A, which then lie as the columns of a panel do. Returns the first step.
    pub(super) fn widen_a(&self, rows: Range<usize>, ks: Range<usize>, buffer: &mut Buffer) -> *const u8 {
        buffer.reserve(self.plan.depth.div_ceil(TILE_DEPTH) * T::STEP_BYTES);
        // SAFETY: the buffer has room for the steps of the deepest piece.
        unsafe { self.widen_panel(self.a.transposed(), ks, rows.start, buffer.as_mut_ptr()) };
        buffer.as_ptr()
    }

    /// Widens rows `ks` of the 32 columns of a matrix from `column` on; what is outside of it is zero.
    ///
    /// # Safety
    /// A wide step can be written at `wide`, which is on a cache line, for every 32 rows begun. `ks` starts at a multiple
    /// of 32 and ends at one or with the matrix.
    unsafe fn widen_panel(&self, matrix: MatrixRef<bf16>, ks: Range<usize>, column: usize, wide: *mut u8) {
        let end = ks.end;
        let mut pairs = Pairs([0; PANEL_STEP_BYTES]);
        for (step, k) in ks.step_by(TILE_DEPTH).enumerate() {
            let rows = k..end.min(k + TILE_DEPTH);
            // SAFETY: the caller vouches for this step; 32 rows of 32 columns are inside the matrix where they are taken
            // at once, and `pairs` has room for a step.
            unsafe {
                let wide = wide.add(step * T::STEP_BYTES);
                if matrix.is_row_major()
                    && rows.len() == TILE_DEPTH
                    && column + PANEL_COLS <= matrix.columns()
                {
                    let start = matrix.data.as_ptr().add(k * matrix.row_stride + column);
                    self.how.tiles.widen_rows(start, matrix.row_stride, wide);
                } else {
                    pack_panel(self.how.vectors, matrix, rows, column, pairs.0.as_mut_ptr());
                    self.how.tiles.widen_pairs(pairs.0.as_ptr(), wide);
                }
            }
        }
    }
}
