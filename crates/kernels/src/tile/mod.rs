//! Register tiles: the inner loops of the products, one family per format and instruction set.
//!
//! Operands are words of 32 bits. B lies in panels of [`Tile::COLUMNS`] columns that are neighbours in memory; a word
//! holds an f32 of its column, or two bf16 that are neighbours in depth. A tile is a few rows times one or
//! more panels side by side. Whatever its shape, an element of C is one chain of multiply-adds
//! over the depth in ascending order, which goes on from the old element where a product is accumulated. So its bits
//! depend neither on the shape of the tile nor on where the depth was cut.

pub(crate) mod bfloat16;
pub(crate) mod float32;

use crate::buffer::{Lines, as_words};
use crate::{BlockMut, Isa, Store, prefetch};

/// Most elements of a tile, of all instruction sets.
pub(crate) const LARGEST: usize = 12 * 32;

/// Bytes between what is read and what is fetched, for few rows, which wait for memory.
const AHEAD: usize = 8192;

/// How far ahead is fetched of a right operand with so many words: nothing lies behind its end.
#[inline(always)]
pub(crate) fn ahead(words: usize) -> usize {
    if words * 4 > AHEAD { AHEAD } else { 0 }
}

/// Fetches what a panel has `ahead` bytes behind `right`: two lines, a step of the widest vectors.
#[inline(always)]
pub(crate) fn fetch(rows: usize, right: *const u32, ahead: usize) {
    if rows <= 2 {
        let ahead = right.wrapping_byte_add(ahead);
        prefetch::read(ahead);
        prefetch::read(ahead.wrapping_byte_add(64));
    }
}

/// The left operand: the words of row r and step k from `data[r · row_stride + k · depth_stride]` on.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub data: &'a [u32],
    pub row_stride: usize,
    pub depth_stride: usize,
}

/// The right operand: panels that start `stride` words apart, a step of k `depth_stride` after the one before. Where more than two
/// rows pass by, the caches are asked for `next` meanwhile, a line with each step, and beyond its end where there are more steps.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub data: &'a [u32],
    pub stride: usize,
    pub depth_stride: usize,
    pub next: &'a [u32],
}

/// Rows, panels and steps of depth of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub rows: usize,
    pub panels: usize,
    pub depth: usize,
}

/// What the inner loops work on, bounds checked.
pub(crate) struct Operands {
    depth: usize,
    a: *const u32,
    row_stride: usize,
    depth_stride: usize,
    b: *const u32,
    panel_stride: usize,
    panel_depth_stride: usize,
    ahead: usize,
    next: *const u32,
    next_step: usize,
    c: *mut f32,
    c_stride: usize,
    accumulate: bool,
}

/// The tiles of a format on an instruction set.
pub(crate) trait Tile {
    /// Most rows of a tile.
    const ROWS: usize;
    /// Columns of a panel.
    const COLUMNS: usize;
    /// Elements of a step of depth.
    const ELEMENTS: usize;
    /// Words of the left operand in a step of depth.
    const WORDS: usize;

    /// Whether this process can use them.
    fn usable(isa: Isa) -> bool;

    /// Writes rows of `row` f32 as words of the left operand, [`Tile::row_words`] apart. What a row becomes does not
    /// depend on the others.
    fn prepare(isa: Isa, row: usize, x: &[f32], words: &mut [u32]);

    /// Words of a row of `row` elements.
    fn row_words(row: usize) -> usize {
        row.div_ceil(Self::ELEMENTS) * Self::WORDS
    }

    /// Most panels side by side, a power of two: few rows take several, to have enough independent sums for the
    /// latency of the multiply-adds.
    fn side_by_side(rows: usize) -> usize;

    /// Computes a tile of `rows` up to [`Tile::ROWS`] and a power of two up to [`Tile::side_by_side`] panels.
    ///
    /// # Safety
    /// [`Tile::usable`], and all elements of the tile's operands can be read and written.
    unsafe fn run(rows: usize, panels: usize, operands: &Operands);
}

/// Computes the tile of C that starts at (`row`, `column`) of the block.
///
/// # Panics
/// Where `isa` lacks the tile's instructions or an operand is too short.
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
    assert!(K::usable(isa) && rows > 0 && panels > 0);
    assert!(
        depth == 0 || a.data.len() >= (rows - 1) * a.row_stride + (depth - 1) * a.depth_stride + K::WORDS
    );
    assert!(
        depth == 0 || b.data.len() >= (panels - 1) * b.stride + (depth - 1) * b.depth_stride + K::COLUMNS
    );
    let (c, c_stride) = c.place(row..row + rows, column..column + panels * K::COLUMNS);
    let (next, next_step) = prefetch::line_by_line(b.next, b.data);
    let operands = Operands {
        depth,
        a: a.data.as_ptr(),
        row_stride: a.row_stride,
        depth_stride: a.depth_stride,
        b: b.data.as_ptr(),
        panel_stride: b.stride,
        panel_depth_stride: b.depth_stride,
        ahead: ahead(b.data.len()),
        next,
        next_step,
        c,
        c_stride,
        accumulate: store == Store::Accumulate,
    };
    // SAFETY: usable as the type asks; the lengths were checked above, the place in C by the block.
    unsafe { K::run(rows, panels, &operands) }
}

/// Rows of `row` f32 as the left operand: as they lie where they can be, else written to `memory`.
pub(crate) fn prepared<'a, K: Tile>(isa: Isa, row: usize, x: &'a [f32], memory: &'a mut Lines) -> &'a [u32] {
    if K::ELEMENTS == 1 {
        return as_words(x);
    }
    let words = memory.words_at_least(x.len() / row * K::row_words(row));
    K::prepare(isa, row, x, words);
    words
}

/// The largest power of two up to both.
pub(crate) fn power_of_two_up_to(limit: usize, count: usize) -> usize {
    1 << limit.min(count).max(1).ilog2()
}

/// Four neighbours: a register of the baseline instructions, which the compiler finds itself.
type Four = [f32; 4];

/// Defines the tiles of one format on one instruction set: two vectors per panel.
macro_rules! tiles {
    (
        $(#[$meta:meta])* $tile:ident, $function:ident, usable $usable:expr, $(features $features:literal,)?
        $elements:literal elements and $words:literal words a step, prepared by $prepare:path,
        vectors of $lanes:literal: $zero:expr, $load:expr, $store:expr, $right:expr, $broadcast:expr, $multiply_add:expr;
        $rows:literal rows, side by side ($($most:literal for $few:pat),+);
        $($shape_rows:literal x $shape_panels:literal),+
    ) => {
        $(#[$meta])*
        pub(crate) struct $tile;

        $(#[$meta])*
        impl Tile for $tile {
            const ROWS: usize = $rows;
            const COLUMNS: usize = 2 * $lanes;
            const ELEMENTS: usize = $elements;
            const WORDS: usize = $words;

            fn usable(isa: Isa) -> bool {
                $usable(isa)
            }

            fn prepare(isa: Isa, row: usize, x: &[f32], words: &mut [u32]) {
                $prepare(isa, row, x, words);
            }

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
        #[allow(clippy::needless_range_loop, reason = "the indices are those of registers")]
        $(#[target_feature(enable = $features)])?
        unsafe fn $function<const ROWS: usize, const PANELS: usize>(operands: &Operands) {
            let &Operands { depth, row_stride, depth_stride, panel_stride, ahead, .. } = operands;
            let &Operands { mut next, next_step, c, c_stride, .. } = operands;
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
                    if ROWS > 2 {
                        $crate::prefetch::read_soon(next);
                        next = next.wrapping_add(next_step);
                    }
                    let mut right = [[$right(b); 2]; PANELS];
                    for panel in 0..PANELS {
                        let b = b.add(panel * panel_stride);
                        $crate::tile::fetch(ROWS, b, ahead);
                        right[panel] = [$right(b), $right(b.add($lanes))];
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

use tiles;

/// Calls a function generic in its [`Tile`] with the one of a format (a module here) on an instruction set.
macro_rules! with_tile {
    (bf16 $isa:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $isa.level() {
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512 | $crate::Level::Amx if $isa.prefers_bf16_dot() => {
                $function::<$crate::tile::bfloat16::Dot>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512 | $crate::Level::Amx => $function::<$crate::tile::bfloat16::Avx512>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx2 => $function::<$crate::tile::bfloat16::Avx2>($($argument),*),
            _ => $function::<$crate::tile::bfloat16::Portable>($($argument),*),
        }
    };
    (f32 $isa:expr, $function:ident $(, <$($generic:ty),+>)? ($($argument:expr),* $(,)?)) => {
        match $isa.level() {
            $crate::Level::Portable => $function::<$crate::tile::float32::Portable $(, $($generic),+)?>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx2 => $function::<$crate::tile::float32::Avx2 $(, $($generic),+)?>($($argument),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Level::Avx512 | $crate::Level::Amx => {
                $function::<$crate::tile::float32::Avx512 $(, $($generic),+)?>($($argument),*)
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => $function::<$crate::tile::float32::Portable $(, $($generic),+)?>($($argument),*),
        }
    };
}
pub(crate) use with_tile;
