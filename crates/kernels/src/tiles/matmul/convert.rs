//! Operands of units that do not multiply bf16 itself: bf16 in memory, converted piece by piece.

use std::ops::Range;

use half::bf16;

use super::{B, Walk, panel_bytes};
use crate::buffer::Buffer;
use crate::matrix::MatrixRef;
use crate::tiles::packed::{PANEL_COLS, pack_panel};
use crate::tiles::tile::{PANEL_STEP_BYTES, TILE_DEPTH, TileUnit};
use crate::tiles::vector::VectorUnit;

/// Most steps of a group.
const MOST_STEPS: usize = 2;

/// Steps of a panel before they are converted.
#[repr(align(64))]
struct Pairs([u8; MOST_STEPS * PANEL_STEP_BYTES]);

impl<T: TileUnit, V: VectorUnit> Walk<'_, T, V> {
    /// Converts B of a piece, panel by panel, from where it lies.
    pub(super) fn convert_b(&self, ks: Range<usize>, cols: Range<usize>, buffer: &mut Buffer) {
        let steps = ks.len().div_ceil(TILE_DEPTH);
        let panels = cols.len().div_ceil(PANEL_COLS);
        buffer.reserve(panels * panel_bytes::<T>(steps));
        for panel in 0..panels {
            let to = buffer.as_mut_ptr().wrapping_add(panel * panel_bytes::<T>(steps));
            let column = cols.start + panel * PANEL_COLS;
            // SAFETY: the buffer has room for the groups of all panels, and a packed B has the steps of the piece.
            unsafe {
                match self.b {
                    B::View(b) => self.convert_panel(b, ks.clone(), column, to),
                    B::Packed { b, first, .. } => {
                        let pairs =
                            b.panel((first.1 + column) / PANEL_COLS, (first.0 + ks.start) / TILE_DEPTH);
                        for (group, step) in (0..steps).step_by(T::GROUP_STEPS).enumerate() {
                            let pairs = pairs.add(step * PANEL_STEP_BYTES);
                            let steps = T::GROUP_STEPS.min(steps - step);
                            self.how.tiles.convert_group(pairs, steps, to.add(group * T::GROUP_BYTES));
                        }
                    }
                }
            }
        }
    }

    /// Converts up to 32 rows of A, which then lie as the columns of a panel do. Returns the first group.
    pub(super) fn convert_a(&self, rows: Range<usize>, ks: Range<usize>, buffer: &mut Buffer) -> *const u8 {
        buffer.reserve(panel_bytes::<T>(self.plan.depth.div_ceil(TILE_DEPTH)));
        // SAFETY: the buffer has room for the groups of the deepest piece.
        unsafe { self.convert_panel(self.a.transposed(), ks, rows.start, buffer.as_mut_ptr()) };
        buffer.as_ptr()
    }

    /// Converts rows `ks` of the 32 columns of a matrix from `column` on; what is outside of it is zero.
    ///
    /// # Safety
    /// A group can be written at `to`, which is on a cache line, for every so many steps of 32 rows begun. `ks` starts at a
    /// multiple of 32 and ends at one or with the matrix.
    unsafe fn convert_panel(&self, matrix: MatrixRef<bf16>, ks: Range<usize>, column: usize, to: *mut u8) {
        const { assert!(T::GROUP_STEPS <= MOST_STEPS && (!T::CONVERTS_ROWS || T::GROUP_STEPS == 1)) };
        let end = ks.end;
        let mut pairs = Pairs([0; MOST_STEPS * PANEL_STEP_BYTES]);
        for (group, k) in ks.step_by(T::GROUP_STEPS * TILE_DEPTH).enumerate() {
            let rows = k..end.min(k + T::GROUP_STEPS * TILE_DEPTH);
            // SAFETY: the caller vouches for this group; 32 rows of 32 columns are inside the matrix where they are taken
            // at once, and `pairs` has room for the steps of a group.
            unsafe {
                let to = to.add(group * T::GROUP_BYTES);
                if T::CONVERTS_ROWS
                    && matrix.is_row_major()
                    && rows.len() == TILE_DEPTH
                    && column + PANEL_COLS <= matrix.columns()
                {
                    let start = matrix.data.as_ptr().add(k * matrix.row_stride + column);
                    self.how.tiles.convert_rows(start, matrix.row_stride, to);
                } else {
                    let steps = rows.len().div_ceil(TILE_DEPTH);
                    pack_panel(self.how.vectors, matrix, rows, column, pairs.0.as_mut_ptr());
                    self.how.tiles.convert_group(pairs.0.as_ptr(), steps, to);
                }
            }
        }
    }
}
