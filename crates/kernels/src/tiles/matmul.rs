//! Products of bf16 matrices on tiles.

use half::bf16;

use super::Bf16Unit;
use super::packed::{PANEL_COLS, PackedB, pack_panel, pack_panels, pack_tile_a};
use super::tile::{
    BLOCK, Block, NativeTiles, PANEL_STEP_BYTES, Session, TILE_BYTES, TILE_DEPTH, TILE_ROW_BYTES, TILE_ROWS,
    TileUnit,
};
use super::vector::{BlockSums, VectorUnit};
use crate::buffer::Buffer;
use crate::matrix::{MatrixRef, span};
use crate::prefetch;

/// Shallowest split of a product whose A has to be transposed. Less deep, loading and storing the sums
/// (8 tiles per block) would take more than a tenth of the time of the products (4 per 32 of depth).
const MIN_SPLIT_DEPTH: usize = 512;

/// Memory that products work in. Keep one per thread: in the steady state nothing is allocated.
#[derive(Debug, Default)]
pub struct Scratch {
    a: Buffer,
    b: Buffer,
    sums: Buffer,
}

impl Scratch {
    /// Without memory yet.
    pub const fn new() -> Self {
        Scratch { a: Buffer::new(), b: Buffer::new(), sums: Buffer::new() }
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.a.len() + self.b.len() + self.sums.len()
    }
}

/// Element types that a product can be written as: `f32` and `bf16`.
pub trait MatmulOutput: sealed::Sealed {}
impl MatmulOutput for f32 {}
impl MatmulOutput for bf16 {}

mod sealed {
    use half::bf16;

    /// The first element of C.
    #[derive(Clone, Copy, Debug)]
    pub enum Output {
        F32(*mut f32),
        Bf16(*mut bf16),
    }

    pub trait Sealed: Copy {
        const ZERO: Self;
        fn output(c: &mut [Self]) -> Output;
    }

    impl Sealed for f32 {
        const ZERO: f32 = 0.0;
        fn output(c: &mut [f32]) -> Output {
            Output::F32(c.as_mut_ptr())
        }
    }

    impl Sealed for bf16 {
        const ZERO: bf16 = bf16::ZERO;
        fn output(c: &mut [bf16]) -> Output {
            Output::Bf16(c.as_mut_ptr())
        }
    }
}
use sealed::Output;

/// C = A·B, or C += A·B with `accumulate`: A [m, k], B [k, n], both in either layout, and row-major C [m, n]
/// with `c_row_stride` elements from row to row. Elements of `c` between the rows are not touched.
///
/// Products are summed in fp32 (on AMX and in dot products subnormal operands and sums count as zero; where
/// [`crate::Isa::sums_in_fp16`] says so, up to 64 of them are summed in fp16 before) and a bf16 C is rounded once, to
/// nearest even. For given operands the result is the same bit for bit each time.
///
/// # Panics
/// The inner dimensions differ, rows of C overlap, or `c` is shorter than the matrix.
pub fn matmul_bf16<C: MatmulOutput>(
    unit: Bf16Unit,
    a: MatrixRef<bf16>,
    b: MatrixRef<bf16>,
    c: &mut [C],
    c_row_stride: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    run(unit, a, B::View(b), c, c_row_stride, accumulate, scratch);
}

/// As [`matmul_bf16`] with a B that was packed before.
///
/// # Panics
/// As [`matmul_bf16`].
pub fn matmul_packed<C: MatmulOutput>(
    unit: Bf16Unit,
    a: MatrixRef<bf16>,
    b: &PackedB,
    c: &mut [C],
    c_row_stride: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    run(unit, a, B::Packed { b, first: (0, 0), k: b.k(), n: b.n() }, c, c_row_stride, accumulate, scratch);
}

/// As [`matmul_packed`] with a part of B: from row and column `first` on, both multiples of 32, as many rows as A has
/// columns, and `n` columns.
///
/// # Panics
/// As [`matmul_bf16`], or where B has fewer rows or columns, or the part begins inside a tile.
#[allow(clippy::too_many_arguments, reason = "a product, and how much of B takes part")]
pub(crate) fn matmul_packed_part<C: MatmulOutput>(
    unit: Bf16Unit,
    a: MatrixRef<bf16>,
    b: &PackedB,
    first: (usize, usize),
    n: usize,
    c: &mut [C],
    c_row_stride: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    let k = a.columns();
    assert!(
        first.0 + k <= b.k() && first.1 + n <= b.n(),
        "{k} x {n} from {first:?} on of a packed {} x {}",
        b.k(),
        b.n()
    );
    assert!(
        first.0.is_multiple_of(TILE_DEPTH) && first.1.is_multiple_of(PANEL_COLS),
        "a part of a packed matrix from {first:?} on, which is inside a tile"
    );
    run(unit, a, B::Packed { b, first, k, n }, c, c_row_stride, accumulate, scratch);
}

#[cfg(target_arch = "x86_64")]
fn run<C: MatmulOutput>(
    unit: Bf16Unit,
    a: MatrixRef<bf16>,
    b: B,
    c: &mut [C],
    c_row_stride: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    use super::{Which, vector_avx512::Avx512Vectors};
    macro_rules! run {
        ($tiles:expr, $vectors:expr) => {
            Product { tiles: $tiles, vectors: $vectors, accumulate }.run(a, b, c, c_row_stride, scratch)
        };
    }
    match unit.0 {
        Which::Amx(amx) => run!(NativeTiles::new(amx), Avx512Vectors::beside(amx)),
        Which::Dot(tiles) => run!(tiles, tiles.vectors()),
        Which::Fp16(tiles) => run!(tiles, tiles.vectors()),
        Which::Fma512(tiles) => run!(tiles, tiles.vectors()),
        Which::Fma256(tiles) => run!(tiles, tiles.vectors()),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run<C: MatmulOutput>(
    unit: Bf16Unit,
    _a: MatrixRef<bf16>,
    _b: B,
    _c: &mut [C],
    _c_row_stride: usize,
    _accumulate: bool,
    _scratch: &mut Scratch,
) {
    match unit.0 {}
}

/// The right operand.
#[derive(Clone, Copy)]
pub(crate) enum B<'a> {
    View(MatrixRef<'a, bf16>),
    /// `k` rows and `n` columns from the row and column `first` on. A is filled up with zeros to whole tiles, so that it
    /// does not matter what comes after the rows.
    Packed {
        b: &'a PackedB,
        first: (usize, usize),
        k: usize,
        n: usize,
    },
}

/// How a product is carried out.
#[derive(Clone, Copy)]
pub(crate) struct Product<T, V> {
    pub tiles: T,
    pub vectors: V,
    pub accumulate: bool,
}

/// Sizes of the pieces of a product: B is used in pieces of `depth` × `width`, both multiples of 32 except
/// where the matrix is smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub depth: usize,
    pub width: usize,
}

impl Plan {
    /// Pieces of B stay in L2. A wide piece is preferred if A must be transposed, since that is repeated for
    /// each piece's columns; otherwise a deep one, because then C is visited once.
    pub fn new<T: TileUnit>(k: usize, n: usize, transposes_a: bool) -> Self {
        let most = if transposes_a {
            (T::B_BYTES / (2 * n.next_multiple_of(BLOCK))).clamp(MIN_SPLIT_DEPTH, T::MAX_DEPTH)
        } else {
            T::MAX_DEPTH
        };
        let depth = equal_parts(k, most);
        let width = equal_parts(n, (T::B_BYTES / (2 * depth)).max(BLOCK));
        Plan { depth, width }
    }
}

/// The size of the parts, a multiple of 32, when `whole` is cut into as few and as equal parts of at most
/// `most` (itself cut down to a multiple of 32) as possible.
fn equal_parts(whole: usize, most: usize) -> usize {
    let most = most / BLOCK * BLOCK;
    whole.div_ceil(whole.div_ceil(most)).next_multiple_of(BLOCK)
}

impl<T: TileUnit, V: VectorUnit> Product<T, V> {
    pub fn run<C: MatmulOutput>(
        self,
        a: MatrixRef<bf16>,
        b: B,
        c: &mut [C],
        c_row_stride: usize,
        scratch: &mut Scratch,
    ) {
        let (k, n) = match b {
            B::View(b) => (b.rows(), b.columns()),
            B::Packed { k, n, .. } => (k, n),
        };
        let m = a.rows();
        assert!(a.columns() == k, "A is {m} x {}, B is {k} x {n}: the inner sizes differ", a.columns());
        assert!(c_row_stride >= n || m <= 1, "row stride {c_row_stride} of C is less than its {n} columns");
        assert!(
            span(m, n, c_row_stride).is_some_and(|needed| needed <= c.len()),
            "a {m} x {n} matrix with row stride {c_row_stride} does not fit {} elements",
            c.len()
        );
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 {
            if !self.accumulate {
                (0..m).for_each(|row| c[row * c_row_stride..][..n].fill(C::ZERO));
            }
            return;
        }
        let plan = Plan::new::<T>(k, n, !a.is_row_major());
        let walk = Walk {
            how: self,
            session: Session::open(self.tiles),
            a,
            b,
            output: C::output(c),
            c_row_stride,
            plan,
            k,
        };
        for first_col in (0..n).step_by(plan.width) {
            let cols = first_col..n.min(first_col + plan.width);
            for first_k in (0..k).step_by(plan.depth) {
                walk.piece(first_k..k.min(first_k + plan.depth), cols.clone(), scratch);
            }
        }
    }
}

/// Bytes of so many steps of a panel as blocks read them.
const fn panel_bytes<T: TileUnit>(steps: usize) -> usize {
    steps.div_ceil(T::GROUP_STEPS) * T::GROUP_BYTES
}

/// A product under way. `output` points to an m × n matrix with `c_row_stride`, checked by `run`.
struct Walk<'a, T: TileUnit, V> {
    how: Product<T, V>,
    session: Session<T>,
    a: MatrixRef<'a, bf16>,
    b: B<'a>,
    output: Output,
    c_row_stride: usize,
    plan: Plan,
    k: usize,
}

/// Part of the product that is summed in one go: rows and columns of C, and a range of k.
struct Part {
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    is_first: bool,
    is_last: bool,
    /// fp32 sums of an unfinished bf16 C for these rows and columns, and bytes between its rows.
    unfinished: *mut f32,
    unfinished_row_bytes: usize,
}

impl<T: TileUnit, V: VectorUnit> Walk<'_, T, V> {
    /// Adds the products over `ks` to all rows of the columns `cols`.
    fn piece(&self, ks: std::ops::Range<usize>, cols: std::ops::Range<usize>, scratch: &mut Scratch) {
        let m = self.a.rows();
        let k_tiles = ks.len().div_ceil(TILE_DEPTH);
        match self.b {
            _ if T::CONVERTS => self.convert_b(ks.clone(), cols.clone(), &mut scratch.b),
            B::View(b) => pack_panels(self.how.vectors, b, ks.clone(), cols.clone(), &mut scratch.b),
            B::Packed { .. } => {}
        }
        let (is_first, is_last) = (ks.start == 0, ks.end == self.k);
        let padded_cols = cols.len().next_multiple_of(BLOCK);
        if matches!(self.output, Output::Bf16(_)) && !(is_first && is_last) {
            // The largest that any piece needs, so that it does not grow, and lose its sums, on the way.
            scratch.sums.reserve(m.next_multiple_of(BLOCK) * self.plan.width * size_of::<f32>());
        }
        let mut sums = BlockSums([0.0; BLOCK * BLOCK]);
        for first_row in (0..m).step_by(BLOCK) {
            let rows = first_row..m.min(first_row + BLOCK);
            let (a, a_row_bytes, a_step_bytes) = self.a_tiles(rows.clone(), ks.clone(), &mut scratch.a);
            for panel in 0..padded_cols / PANEL_COLS {
                let b = match self.b {
                    B::Packed { b, first, .. } if !T::CONVERTS => {
                        let (row, column) = (first.0 + ks.start, first.1 + cols.start);
                        b.panel(column / PANEL_COLS + panel, row / TILE_DEPTH)
                    }
                    _ => scratch.b.as_ptr().wrapping_add(panel * panel_bytes::<T>(k_tiles)),
                };
                let block = Block {
                    a,
                    a_row_bytes,
                    a_step_bytes,
                    a_as_pairs: T::READS_A_AS_PAIRS && !self.a.is_row_major(),
                    b,
                    b_row_bytes: TILE_ROW_BYTES,
                    b_tile_bytes: TILE_BYTES,
                    k_tiles,
                    c: std::ptr::null_mut(),
                    c_row_bytes: BLOCK * size_of::<f32>(),
                    accumulate: false,
                };
                let first_col = cols.start + panel * PANEL_COLS;
                let part = Part {
                    rows: rows.clone(),
                    cols: first_col..cols.end.min(first_col + PANEL_COLS),
                    is_first,
                    is_last,
                    unfinished: scratch
                        .sums
                        .as_mut_ptr()
                        .cast::<f32>()
                        .wrapping_add(first_row * padded_cols + panel * PANEL_COLS),
                    unfinished_row_bytes: padded_cols * size_of::<f32>(),
                };
                // SAFETY: A and B of the block are `k_tiles` steps that were found or packed above for these
                // rows, these columns and this range of k. `part` is inside C, and its unfinished sums
                // are inside the scratch memory, which holds whole blocks.
                unsafe {
                    if rows.len() > TILE_ROWS {
                        self.block::<2>(block, part, &mut sums);
                    } else {
                        self.block::<1>(block, part, &mut sums);
                    }
                }
            }
        }
    }

    /// Where the tiles of these rows (1 to 32) of A start, and bytes between rows and between steps:
    /// in A itself if its tiles are whole and on cache lines, else packed, with zeros around, and perhaps converted.
    fn a_tiles(
        &self,
        rows: std::ops::Range<usize>,
        ks: std::ops::Range<usize>,
        buffer: &mut Buffer,
    ) -> ([*const u8; 2], usize, usize) {
        let a = self.a;
        if T::CONVERTS {
            return ([self.convert_a(rows, ks, buffer); 2], 0, 0);
        }
        if T::READS_A_IN_PLACE
            && a.is_row_major()
            && rows.len().is_multiple_of(TILE_ROWS)
            && ks.len().is_multiple_of(TILE_DEPTH)
        {
            let row_bytes = a.row_stride * size_of::<bf16>();
            let start = a.data.as_ptr().wrapping_add(rows.start * a.row_stride + ks.start).cast::<u8>();
            // A tile row that straddles two cache lines costs two accesses each time it is loaded.
            if start.addr().is_multiple_of(TILE_ROW_BYTES) && row_bytes.is_multiple_of(TILE_ROW_BYTES) {
                return ([start, start.wrapping_add(TILE_ROWS * row_bytes)], row_bytes, TILE_ROW_BYTES);
            }
        }
        let row_tiles = rows.len().div_ceil(TILE_ROWS);
        buffer.reserve(self.plan.depth.div_ceil(TILE_DEPTH) * PANEL_STEP_BYTES);
        if T::READS_A_AS_PAIRS && !a.is_row_major() {
            // SAFETY: the buffer has room for the steps of the deepest piece.
            unsafe { pack_panel(self.how.vectors, a.transposed(), ks, rows.start, buffer.as_mut_ptr()) };
            let start = buffer.as_ptr();
            return ([start, start.wrapping_add(TILE_BYTES)], TILE_ROW_BYTES, PANEL_STEP_BYTES);
        }
        let start = buffer.as_mut_ptr();
        for (step, k) in ks.step_by(TILE_DEPTH).enumerate() {
            for tile in 0..row_tiles {
                // SAFETY: a step has room for two tiles, and the buffer for the steps of the deepest piece.
                unsafe {
                    let dst = start.add(step * PANEL_STEP_BYTES + tile * TILE_BYTES).cast();
                    pack_tile_a(self.how.vectors, a, rows.start + tile * TILE_ROWS, k, dst);
                }
            }
        }
        let start = start.cast_const();
        ([start, start.wrapping_add(TILE_BYTES)], TILE_ROW_BYTES, PANEL_STEP_BYTES)
    }

    /// Asks for the block of C before its products are computed: its lines lie apart, and are often in memory only.
    fn prefetch_c(&self, part: &Part) {
        let lines = |start: *const u8, row_bytes: usize, bytes: usize| {
            for row in 0..part.rows.len() {
                for line in (0..bytes).step_by(64) {
                    prefetch::write(start.wrapping_add(row * row_bytes + line));
                }
            }
        };
        let offset = part.rows.start * self.c_row_stride + part.cols.start;
        match self.output {
            Output::F32(c) => {
                lines(c.wrapping_add(offset).cast(), 4 * self.c_row_stride, 4 * part.cols.len())
            }
            Output::Bf16(_) if !part.is_last => {}
            Output::Bf16(c) => {
                lines(c.wrapping_add(offset).cast(), 2 * self.c_row_stride, 2 * part.cols.len())
            }
        }
    }

    /// One block of 16·R rows: products, by way of `sums` if they cannot go to C at once, then C.
    ///
    /// # Safety
    /// A and B of `block` are valid for `R`; `part` is inside C with at most 16·R rows and 32 columns; if
    /// C is bf16 and `part` is not both first and last, its unfinished sums have 16·R rows of 32 elements.
    unsafe fn block<const R: usize>(&self, mut block: Block, part: Part, sums: &mut BlockSums) {
        let (rows, cols) = (part.rows.len(), part.cols.len());
        let offset = part.rows.start * self.c_row_stride + part.cols.start;
        let accumulate = self.how.accumulate || !part.is_first;
        self.prefetch_c(&part);
        match self.output {
            Output::F32(c) if rows == R * TILE_ROWS && cols == BLOCK => {
                block.c = c.wrapping_add(offset);
                block.c_row_bytes = self.c_row_stride * size_of::<f32>();
                block.accumulate = accumulate;
                // SAFETY: the whole block is inside C.
                unsafe { self.session.block::<R>(&block) };
            }
            Output::F32(c) => {
                block.c = sums.0.as_mut_ptr();
                // SAFETY: `sums` holds a block; `rows` and `cols` of C are inside the matrix.
                unsafe {
                    self.session.block::<R>(&block);
                    let c = c.wrapping_add(offset);
                    self.how.vectors.write_f32(sums, rows, cols, c, self.c_row_stride, accumulate);
                }
            }
            Output::Bf16(_) if !part.is_last => {
                block.c = part.unfinished;
                block.c_row_bytes = part.unfinished_row_bytes;
                block.accumulate = !part.is_first;
                // SAFETY: the caller vouches for the unfinished sums.
                unsafe { self.session.block::<R>(&block) };
            }
            Output::Bf16(c) => {
                if !part.is_first {
                    block.accumulate = true;
                    for (row, sums) in sums.0.chunks_exact_mut(BLOCK).take(R * TILE_ROWS).enumerate() {
                        let unfinished = part.unfinished.wrapping_byte_add(row * part.unfinished_row_bytes);
                        // SAFETY: the caller vouches for 16·R rows of unfinished sums.
                        unsafe { sums.as_mut_ptr().copy_from_nonoverlapping(unfinished, BLOCK) };
                    }
                }
                block.c = sums.0.as_mut_ptr();
                // SAFETY: `sums` holds a block; `rows` and `cols` of C are inside the matrix.
                unsafe {
                    self.session.block::<R>(&block);
                    let c = c.wrapping_add(offset);
                    let accumulate = self.how.accumulate;
                    self.how.vectors.write_bf16(sums, rows, cols, c, self.c_row_stride, accumulate);
                }
            }
        }
    }
}

mod convert;

#[cfg(test)]
mod tests;
