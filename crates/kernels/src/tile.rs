//! Register tiles: the inner loops of the products in f32, one family per instruction set.
//!
//! B lies in panels of [`Tile::COLUMNS`] columns that are neighbours in memory. A tile is a few rows times one or
//! more panels side by side. Whatever its shape, an element of C is one chain of multiply-adds
//! over k in ascending order, which goes on from the old element where a product is accumulated. So its bits
//! depend neither on the shape of the tile nor on where the depth was cut.

use crate::{BlockMut, Isa, Level, Store};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Most elements of a tile, of all instruction sets.
pub(crate) const LARGEST: usize = 12 * 32;

/// The left operand: element (r, k) at `data[r · row_stride + k · depth_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub depth_stride: usize,
}

/// The right operand: panels that start `stride` elements apart, a step of k `depth_stride` after the one before.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub depth_stride: usize,
}

/// Rows, panels and depth of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub rows: usize,
    pub panels: usize,
    pub depth: usize,
}

/// What the inner loops work on, bounds checked.
pub(crate) struct Operands {
    depth: usize,
    a: *const f32,
    row_stride: usize,
    depth_stride: usize,
    b: *const f32,
    panel_stride: usize,
    panel_depth_stride: usize,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
}

/// The tiles of an instruction set.
pub(crate) trait Tile {
    /// Its level.
    const LEVEL: Level;
    /// Most rows of a tile.
    const ROWS: usize;
    /// Columns of a panel.
    const COLUMNS: usize;

    /// Most panels side by side, a power of two: few rows take several, to have enough independent sums for the
    /// latency of the multiply-adds.
    fn side_by_side(rows: usize) -> usize;

    /// Computes a tile of `rows` up to [`Tile::ROWS`] and a power of two up to [`Tile::side_by_side`] panels.
    ///
    /// # Safety
    /// The CPU has the instructions, and all elements of the tile's operands can be read and written.
    unsafe fn run(rows: usize, panels: usize, operands: &Operands);
}

/// Computes the tile of C that starts at (`row`, `column`) of the block.
///
/// # Panics
/// Where `isa` is below the tile's level or an operand is too short.
#[inline(always)]
pub(crate) fn multiply<K: Tile>(
    isa: Isa,
    shape: Shape,
    a: Left<'_>,
    b: Panels<'_>,
    c: &mut BlockMut<'_, f32>,
    (row, column): (usize, usize),
    store: Store,
) {
    let Shape { rows, panels, depth } = shape;
    assert!(isa.level() >= K::LEVEL && rows > 0 && panels > 0);
    assert!(depth == 0 || a.data.len() > (rows - 1) * a.row_stride + (depth - 1) * a.depth_stride);
    assert!(
        depth == 0 || b.data.len() >= (panels - 1) * b.stride + (depth - 1) * b.depth_stride + K::COLUMNS
    );
    let (c, c_stride) = c.place(row..row + rows, column..column + panels * K::COLUMNS);
    let operands = Operands {
        depth,
        a: a.data.as_ptr(),
        row_stride: a.row_stride,
        depth_stride: a.depth_stride,
        b: b.data.as_ptr(),
        panel_stride: b.stride,
        panel_depth_stride: b.depth_stride,
        c,
        c_stride,
        accumulate: store == Store::Accumulate,
    };
    // SAFETY: the level proves the instructions; the lengths were checked above, the place in C by the block.
    unsafe { K::run(rows, panels, &operands) }
}

/// The largest power of two up to both.
pub(crate) fn power_of_two_up_to(limit: usize, count: usize) -> usize {
    1 << limit.min(count).max(1).ilog2()
}

/// Defines the tiles of one instruction set: two vectors per panel.
macro_rules! tiles {
    (
        $(#[$meta:meta])* $tile:ident, $function:ident, $level:ident, $(features $features:literal,)?
        vectors of $lanes:literal: $zero:expr, $load:expr, $store:expr, $broadcast:expr, $multiply_add:expr;
        $rows:literal rows, side by side ($($most:literal for $few:pat),+);
        $($shape_rows:literal x $shape_panels:literal),+
    ) => {
        $(#[$meta])*
        pub(crate) struct $tile;

        $(#[$meta])*
        impl Tile for $tile {
            const LEVEL: Level = Level::$level;
            const ROWS: usize = $rows;
            const COLUMNS: usize = 2 * $lanes;

            fn side_by_side(rows: usize) -> usize {
                match rows {
                    $($few => $most,)+
                }
            }

            #[inline(always)]
            unsafe fn run(rows: usize, panels: usize, operands: &Operands) {
                match (rows, panels) {
                    // SAFETY: the caller's contract is that of the tile.
                    $(($shape_rows, $shape_panels) => unsafe { $function::<$shape_rows, $shape_panels>(operands) },)+
                    _ => unreachable!("no tile of {rows} rows and {panels} panels"),
                }
            }
        }

        /// # Safety
        /// That of [`Tile::run`].
        $(#[$meta])*
        $(#[target_feature(enable = $features)])?
        unsafe fn $function<const ROWS: usize, const PANELS: usize>(operands: &Operands) {
            let Operands { depth, row_stride, depth_stride, panel_stride, c, c_stride, .. } = *operands;
            // SAFETY: see the caller's contract.
            unsafe {
                let at = |row: usize, panel: usize, half: usize| {
                    c.add(row * c_stride + panel * 2 * $lanes + half * $lanes)
                };
                let mut sums = [[[$zero; 2]; PANELS]; ROWS];
                if operands.accumulate {
                    for row in 0..ROWS {
                        for panel in 0..PANELS {
                            sums[row][panel] = [$load(at(row, panel, 0)), $load(at(row, panel, 1))];
                        }
                    }
                }
                let (mut a, mut b) = (operands.a, operands.b);
                for _ in 0..depth {
                    let mut right = [[$zero; 2]; PANELS];
                    for panel in 0..PANELS {
                        let b = b.add(panel * panel_stride);
                        right[panel] = [$load(b), $load(b.add($lanes))];
                    }
                    for row in 0..ROWS {
                        let x = $broadcast(a.add(row * row_stride));
                        for panel in 0..PANELS {
                            for half in 0..2 {
                                sums[row][panel][half] =
                                    $multiply_add(x, right[panel][half], sums[row][panel][half]);
                            }
                        }
                    }
                    a = a.wrapping_add(depth_stride);
                    b = b.wrapping_add(operands.panel_depth_stride);
                }
                for row in 0..ROWS {
                    for panel in 0..PANELS {
                        $store(at(row, panel, 0), sums[row][panel][0]);
                        $store(at(row, panel, 1), sums[row][panel][1]);
                    }
                }
            }
        }
    };
}

/// Four neighbours: a register of the baseline instructions, which the compiler finds itself.
type Four = [f32; 4];

tiles! {
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Portable, portable, Portable,
    vectors of 4: [0.0f32; 4],
        |from: *const f32| from.cast::<Four>().read_unaligned(),
        |to: *mut f32, four: Four| to.cast::<Four>().write_unaligned(four),
        |from: *const f32| *from,
        |x: f32, right: Four, sum: Four| std::array::from_fn::<f32, 4, _>(|i| sum[i] + x * right[i]);
    4 rows, side by side (4 for 1, 2 for 2, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 4 x 1
}

tiles! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Avx2, avx2, Avx2, features "avx2,fma",
    vectors of 8: _mm256_setzero_ps(),
        _mm256_loadu_ps, _mm256_storeu_ps, |from: *const f32| _mm256_broadcast_ss(&*from), _mm256_fmadd_ps;
    6 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1
}

tiles! {
    #[cfg(target_arch = "x86_64")]
    #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
    Avx512, avx512, Avx512, features "avx512f",
    vectors of 16: _mm512_setzero_ps(),
        _mm512_loadu_ps, _mm512_storeu_ps, |from: *const f32| _mm512_set1_ps(*from), _mm512_fmadd_ps;
    12 rows, side by side (4 for 1 | 2, 2 for 3..=5, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 2 x 4, 3 x 1, 3 x 2, 4 x 1, 4 x 2, 5 x 1, 5 x 2,
    6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}

/// Calls a function generic in its [`Tile`] with the one of an instruction set.
macro_rules! with_tile {
    ($isa:expr, $function:ident $(, <$($generic:ty),+>)? ($($argument:expr),* $(,)?)) => {
        match $isa.level() {
            $crate::Level::Portable => $function::<$crate::tile::Portable $(, $($generic),+)?>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx2 => $function::<$crate::tile::Avx2 $(, $($generic),+)?>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512 | $crate::Level::Amx => {
                $function::<$crate::tile::Avx512 $(, $($generic),+)?>($($argument),*)
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => $function::<$crate::tile::Portable $(, $($generic),+)?>($($argument),*),
        }
    };
}
pub(crate) use with_tile;
