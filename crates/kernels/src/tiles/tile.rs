//! Who multiplies a block of tiles: the processor, or plain Rust with the same contract.

use std::marker::PhantomData;

use half::bf16;

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Columns of a tile of fp32 sums, and of a tile of B.
pub(crate) const TILE_COLS: usize = 16;
/// Depth (values of k) of a tile of A or B.
pub(crate) const TILE_DEPTH: usize = 32;
/// Bytes of a tile row.
pub(crate) const TILE_ROW_BYTES: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = TILE_ROWS * TILE_ROW_BYTES;
/// Rows and columns of the largest block of C that is kept in tiles: 2 × 2 tiles of sums, with 2 tiles of A
/// and 2 of B fill the 8 tile registers, and each loaded tile is used twice.
pub(crate) const BLOCK: usize = 32;
/// Bytes from one depth step of a packed panel of B (or of A) to the next: two tiles.
pub(crate) const PANEL_STEP_BYTES: usize = 2 * TILE_BYTES;

/// Where the operands of one block of C are: C = A·B, or C += A·B with `accumulate`.
///
/// A block is `R` × 2 tiles: 16·R rows and 32 columns of fp32, `R` being 1 or 2. Valid for a call to
/// [`TileUnit::block`] if, for every `t < k_tiles`,
/// - A: 16 rows of 64 bytes, `a_row_bytes` apart, can be read at `a[r] + t * a_step_bytes` for `r < R`;
/// - B: two tiles of pairs, `b_tile_bytes` apart and their 16 rows `b_row_bytes`, can be read at `b + t * PANEL_STEP_BYTES`;
///   units other than AMX's (and its emulation) want them packed, `TILE_BYTES` and `TILE_ROW_BYTES` apart;
/// - C: 16·R rows of 32 fp32, `c_row_bytes` apart, can be written at `c` and are not part of A or B; with
///   `accumulate` they hold values;
/// - `k_tiles` is at least 1.
///
/// Of a unit that converts, A and B are groups of steps instead.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub a: [*const u8; 2],
    pub a_row_bytes: usize,
    pub a_step_bytes: usize,
    /// With [`TileUnit::READS_A_AS_PAIRS`]: row `r` of a tile of A is its column of pairs `r`.
    pub a_as_pairs: bool,
    pub b: *const u8,
    pub b_row_bytes: usize,
    pub b_tile_bytes: usize,
    pub k_tiles: usize,
    pub c: *mut f32,
    pub c_row_bytes: usize,
    pub accumulate: bool,
}

/// Executes blocks of tile products.
pub(crate) trait TileUnit: Copy {
    /// Whether whole tiles of A are read where they lie, if their rows are on cache lines. Else A is always packed.
    const READS_A_IN_PLACE: bool = true;

    /// Whether tiles of a transposed A are packed as pairs, like those of B, which costs less than whole rows.
    const READS_A_AS_PAIRS: bool = false;

    /// Deepest product that keeps its sums in registers from start to end. Deeper ones visit C more than once.
    const MAX_DEPTH: usize = 4096;

    /// Bytes of B that one pass over the rows of A uses. They are read once per 32 rows and should stay in the L2 cache
    /// beside the rows of A and C: half of the 2 MiB of the processors that have AMX.
    const B_BYTES: usize = 1 << 20;

    /// Whether blocks read groups of steps that [`TileUnit::convert_group`] (or [`TileUnit::convert_rows`]) made. Of a block
    /// of such a unit, `a[0]` is the first group of A, `b` that of B, and a row of A lies in it as a column of B does.
    const CONVERTS: bool = false;

    /// Steps that are converted together. The last group of a piece may have fewer.
    const GROUP_STEPS: usize = 1;

    /// Bytes of a converted group, a multiple of 64.
    const GROUP_BYTES: usize = PANEL_STEP_BYTES;

    /// Whether [`TileUnit::convert_rows`] makes a group of one step from rows as they lie.
    const CONVERTS_ROWS: bool = false;

    /// Prepares this thread. Every block runs between `open` and `close` of the same thread.
    fn open(self) {}

    /// Gives back what `open` took.
    fn close(self) {}

    /// Converts packed steps of a panel that follow each other.
    ///
    /// # Safety
    /// There are 1 to [`TileUnit::GROUP_STEPS`] `steps`. Two tiles of pairs for each can be read at `pairs`, and a group
    /// written at `to`, elsewhere; both are on cache lines.
    unsafe fn convert_group(self, _pairs: *const u8, _steps: usize, _to: *mut u8) {}

    /// Converts a step of a panel from 32 rows of 32 columns.
    ///
    /// # Safety
    /// The rows, `row_stride` elements apart, can be read at `rows`, and a group written at `to`, on a cache line.
    unsafe fn convert_rows(self, _rows: *const bf16, _row_stride: usize, _to: *mut u8) {}

    /// One block of 16·R × 32.
    ///
    /// # Safety
    /// `block` is valid as its description says, `R` is 1 or 2, and `open` came before.
    unsafe fn block<const R: usize>(self, block: &Block);
}

/// A thread that is ready for tile products; dropping it closes the unit, also when a panic passes.
pub(crate) struct Session<T: TileUnit> {
    unit: T,
    /// Tile state belongs to a thread, so a session must not leave it.
    _thread: PhantomData<*const ()>,
}

impl<T: TileUnit> Session<T> {
    pub fn open(unit: T) -> Self {
        unit.open();
        Session { unit, _thread: PhantomData }
    }

    /// # Safety
    /// As [`TileUnit::block`]; being open is given.
    #[inline(always)]
    pub unsafe fn block<const R: usize>(&self, block: &Block) {
        // SAFETY: the caller vouches for the block, and the unit is open while `self` lives.
        unsafe { self.unit.block::<R>(block) }
    }
}

impl<T: TileUnit> Drop for Session<T> {
    fn drop(&mut self) {
        self.unit.close();
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use native::NativeTiles;

/// Elsewhere no [`super::Amx`] exists, so this is compiled but never run.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) type NativeTiles = EmulatedTiles;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
impl EmulatedTiles {
    /// Never reached: no [`super::Amx`] exists here.
    pub fn new(_amx: super::Amx) -> Self {
        EmulatedTiles
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native {
    use std::arch::asm;

    use super::{Block, TileUnit};
    use crate::tiles::Amx;

    /// The processor's tile registers.
    ///
    /// Inside one `asm!` block the registers hold what the block put there; no block relies on contents
    /// that an earlier one left. Only the configuration stays from `open` to `close`: the compiler never
    /// emits tile instructions by itself, and the kernel keeps it across context switches.
    #[derive(Clone, Copy)]
    pub(crate) struct NativeTiles(());

    impl NativeTiles {
        pub fn new(_amx: Amx) -> Self {
            NativeTiles(())
        }

        /// For the self-test alone.
        ///
        /// # Safety
        /// Tile instructions may fault: run them only where a fault is survived.
        pub unsafe fn unproven() -> Self {
            NativeTiles(())
        }
    }

    /// The argument of `ldtilecfg`: palette 1 with 8 tiles of 16 rows of 64 bytes. The numbers are the
    /// architecture's maxima for palette 1. They are fixed here and not read from CPUID leaf 0x1D, which
    /// some hypervisors fill with zeros though the tiles work.
    #[repr(C, align(64))]
    struct TileConfig {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static TILE_CONFIG: TileConfig = TileConfig {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };
    const _: () = assert!(size_of::<TileConfig>() == 64);

    impl TileUnit for NativeTiles {
        // Configuring and releasing costs some tens of cycles, a matrix product at least tens of thousands.
        // In exchange no thread depends on what another piece of code left behind, and released tiles
        // are not saved at context switches (8 KiB each time).
        fn open(self) {
            // SAFETY: `self` exists only where tile instructions run or a fault is survived. The operand is
            // 64 readable bytes with a valid configuration.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]",
                    config = in(reg) &raw const TILE_CONFIG,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, readonly, preserves_flags),
                );
            }
        }

        fn close(self) {
            // SAFETY: as in `open`; the instruction has no operand.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, nomem, preserves_flags),
                );
            }
        }

        #[inline(always)]
        unsafe fn block<const R: usize>(self, block: &Block) {
            // SAFETY: the caller's promise is the same.
            unsafe {
                if R == 2 {
                    block_2x2(block);
                } else {
                    block_1x2(block);
                }
            }
        }
    }

    // In a tile address `[base + stride*1]` the base is the first row and the index register the number
    // of bytes from a row to the next.

    /// Sums in tmm0 to tmm3 (row-major), A in tmm4 and tmm5, B in tmm6 and tmm7.
    ///
    /// # Safety
    /// As [`TileUnit::block`] with `R` 2.
    #[inline(never)]
    unsafe fn block_2x2(block: &Block) {
        // SAFETY: reads and writes are those that a valid block allows: the loop runs `k_tiles` times
        // and moves A and B one step each time. Every register written is declared.
        unsafe {
            asm!(
                "test {accumulate:e}, {accumulate:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c0} + {c_row}*1]",
                "tileloadd tmm1, [{c0} + {c_row}*1 + 64]",
                "tileloadd tmm2, [{c1} + {c_row}*1]",
                "tileloadd tmm3, [{c1} + {c_row}*1 + 64]",
                "3:",
                "tileloadd tmm6, [{b} + {b_row}*1]",
                "tileloadd tmm4, [{a0} + {a_row}*1]",
                "tileloadd tmm7, [{b1} + {b_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {a_row}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, {a_step}",
                "add {a1}, {a_step}",
                "add {b}, 2048",
                "add {b1}, 2048",
                "dec {k}",
                "jnz 3b",
                "tilestored [{c0} + {c_row}*1], tmm0",
                "tilestored [{c0} + {c_row}*1 + 64], tmm1",
                "tilestored [{c1} + {c_row}*1], tmm2",
                "tilestored [{c1} + {c_row}*1 + 64], tmm3",
                accumulate = in(reg) u32::from(block.accumulate),
                c0 = in(reg) block.c,
                c1 = in(reg) block.c.wrapping_byte_add(16 * block.c_row_bytes),
                c_row = in(reg) block.c_row_bytes,
                a0 = inout(reg) block.a[0] => _,
                a1 = inout(reg) block.a[1] => _,
                a_row = in(reg) block.a_row_bytes,
                a_step = in(reg) block.a_step_bytes,
                b = inout(reg) block.b => _,
                b1 = inout(reg) block.b.wrapping_add(block.b_tile_bytes) => _,
                b_row = in(reg) block.b_row_bytes,
                k = inout(reg) block.k_tiles => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Sums in tmm0 and tmm1, A in tmm4, B in tmm6 and tmm7.
    ///
    /// # Safety
    /// As [`TileUnit::block`] with `R` 1.
    #[inline(never)]
    unsafe fn block_1x2(block: &Block) {
        // SAFETY: as in `block_2x2`, with one tile of A.
        unsafe {
            asm!(
                "test {accumulate:e}, {accumulate:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c} + {c_row}*1]",
                "tileloadd tmm1, [{c} + {c_row}*1 + 64]",
                "3:",
                "tileloadd tmm6, [{b} + {b_row}*1]",
                "tileloadd tmm4, [{a} + {a_row}*1]",
                "tileloadd tmm7, [{b1} + {b_row}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, {a_step}",
                "add {b}, 2048",
                "add {b1}, 2048",
                "dec {k}",
                "jnz 3b",
                "tilestored [{c} + {c_row}*1], tmm0",
                "tilestored [{c} + {c_row}*1 + 64], tmm1",
                accumulate = in(reg) u32::from(block.accumulate),
                c = in(reg) block.c,
                c_row = in(reg) block.c_row_bytes,
                a = inout(reg) block.a[0] => _,
                a_row = in(reg) block.a_row_bytes,
                a_step = in(reg) block.a_step_bytes,
                b = inout(reg) block.b => _,
                b1 = inout(reg) block.b.wrapping_add(block.b_tile_bytes) => _,
                b_row = in(reg) block.b_row_bytes,
                k = inout(reg) block.k_tiles => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    // The offsets inside the assembly.
    const _: () =
        assert!(super::PANEL_STEP_BYTES == 2048 && super::TILE_ROW_BYTES == 64 && super::TILE_ROWS == 16);
}

/// Tile products in plain Rust, for tests on machines without AMX. It sums in the order that the
/// instruction's description gives; unlike the instruction it keeps subnormal numbers.
#[cfg(any(test, not(all(target_arch = "x86_64", target_os = "linux"))))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmulatedTiles;

#[cfg(any(test, not(all(target_arch = "x86_64", target_os = "linux"))))]
impl TileUnit for EmulatedTiles {
    unsafe fn block<const R: usize>(self, block: &Block) {
        type Tile = [[u16; TILE_DEPTH]; TILE_ROWS];
        /// # Safety
        /// 16 rows of 64 bytes, `row_bytes` apart, can be read at `start`.
        unsafe fn load(start: *const u8, row_bytes: usize) -> Tile {
            // SAFETY: the caller vouches for 16 rows; they need not be aligned.
            crate::math::array(|row| unsafe {
                start.add(row * row_bytes).cast::<[u16; TILE_DEPTH]>().read_unaligned()
            })
        }
        let value = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        for row_tile in 0..R {
            for col_tile in 0..2 {
                let c = |row: usize, col: usize| {
                    block
                        .c
                        .wrapping_byte_add((row_tile * TILE_ROWS + row) * block.c_row_bytes)
                        .wrapping_add(col_tile * TILE_COLS + col)
                };
                let mut sums = [[0.0f32; TILE_COLS]; TILE_ROWS];
                if block.accumulate {
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (col, sum) in sums.iter_mut().enumerate() {
                            // SAFETY: a valid block that accumulates has values in C.
                            *sum = unsafe { c(row, col).read_unaligned() };
                        }
                    }
                }
                for t in 0..block.k_tiles {
                    // SAFETY: both addresses are tiles of a valid block.
                    let (a, b) = unsafe {
                        (
                            load(block.a[row_tile].add(t * block.a_step_bytes), block.a_row_bytes),
                            load(
                                block.b.add(t * PANEL_STEP_BYTES + col_tile * block.b_tile_bytes),
                                block.b_row_bytes,
                            ),
                        )
                    };
                    for (a, sums) in a.iter().zip(&mut sums) {
                        let (mut even, mut odd) = ([0.0f32; TILE_COLS], [0.0f32; TILE_COLS]);
                        for (a, b) in a.chunks_exact(2).zip(&b) {
                            for (col, b) in b.chunks_exact(2).enumerate() {
                                // As exact as a fused operation: bf16 products fit fp32.
                                even[col] += value(a[0]) * value(b[0]);
                                odd[col] += value(a[1]) * value(b[1]);
                            }
                        }
                        for ((sum, even), odd) in sums.iter_mut().zip(even).zip(odd) {
                            *sum += even + odd;
                        }
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    for (col, &sum) in sums.iter().enumerate() {
                        // SAFETY: a valid block lets 16·R rows of 32 fp32 be written.
                        unsafe { c(row, col).write_unaligned(sum) };
                    }
                }
            }
        }
    }
}
