//! The trial on Linux.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

use half::bf16;

use super::{Check, SelfTestFailure};
use crate::buffer::Buffer;
use crate::isa::AmxStatus;
use crate::matrix::MatrixRef;
use crate::tiles::packed::pack_panels;
use crate::tiles::tile::{
    BLOCK, Block, NativeTiles, Session, TILE_BYTES, TILE_DEPTH, TILE_ROW_BYTES, TILE_ROWS, TileUnit,
};
use crate::tiles::vector::PortableVectors;

/// From Linux' `asm/prctl.h`: asks for an extended register state that is off until asked for.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
/// Number of the tile data among the register states (Intel's manual, volume 1, section 13.1).
const XFEATURE_TILE_DATA: libc::c_long = 18;
/// Tile configuration (17) and tile data (18) in XCR0.
const XCR0_TILES: u64 = 0b11 << 17;
/// Seconds after which a trial is given up. It takes milliseconds.
const TIME_LIMIT_SECONDS: libc::c_uint = 20;

/// Exit codes of the trial: 0, or 1 and the index of the failed check, or from here the error number of the
/// permission request.
const REFUSED: i32 = 64;
/// The trial left in a way that it never should.
const ESCAPED: i32 = 63;

/// Whether AMX works here, given that AVX-512 does. On success the process has tile permission.
pub(crate) fn detect() -> AmxStatus {
    if let Some(feature) = missing_feature() {
        return AmxStatus::CpuLacks(feature);
    }
    let xcr0 = xcr0();
    if xcr0 & XCR0_TILES != XCR0_TILES {
        return AmxStatus::NotEnabled { xcr0 };
    }
    let mut trial = Trial::new();
    let code = match in_child(|| match request_permission() {
        Ok(()) => trial.run().map_or(0, |check| 1 + check as i32),
        Err(errno) => REFUSED + errno,
    }) {
        Ok(code) => code,
        Err(failure) => return AmxStatus::SelfTestFailed(failure),
    };
    match code {
        0 => match request_permission() {
            Ok(()) => AmxStatus::Ready,
            Err(errno) => AmxStatus::PermissionRefused { errno },
        },
        REFUSED.. => AmxStatus::PermissionRefused { errno: code - REFUSED },
        _ => AmxStatus::SelfTestFailed(failure_of(code)),
    }
}

/// What a non-zero exit code below [`REFUSED`] means.
fn failure_of(code: i32) -> SelfTestFailure {
    usize::try_from(code - 1)
        .ok()
        .and_then(|index| Check::ALL.get(index))
        .map_or(SelfTestFailure::Unexplained(code), |&check| SelfTestFailure::Wrong(check))
}

/// The first feature that CPUID does not claim. Leaf 0x1D, which describes the tiles, is not asked: it
/// reads zero under some hypervisors whose tiles work.
fn missing_feature() -> Option<&'static str> {
    if __cpuid(0).eax < 7 {
        return Some("AMX (CPUID has no leaf 7)");
    }
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return Some("XSAVE, or the operating system does not use it");
    }
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let features = __cpuid_count(7, 0).edx;
    if features & AMX_TILE == 0 {
        return Some("AMX-TILE");
    }
    (features & AMX_BF16 == 0).then_some("AMX-BF16")
}

fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 exists wherever XGETBV does.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: `missing_feature` found XSAVE in use, and with it XGETBV.
    unsafe { read() }
}

/// Asks the kernel for tile data, for this process and the threads and children it starts from now on and
/// also for its present threads. Asking twice does no harm.
fn request_permission() -> Result<(), i32> {
    // SAFETY: this call has two plain numbers for arguments and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) };
    // SAFETY: errno belongs to this thread.
    if result == 0 { Ok(()) } else { Err(unsafe { *libc::__errno_location() }) }
}

/// Runs `body` in a forked child and gives its result, an exit code of 0 to 255, or how the child died.
///
/// Other threads do not exist in the child and may have held locks, so `body` must not allocate, print,
/// panic or take a lock.
fn in_child(body: impl FnOnce() -> i32) -> Result<i32, SelfTestFailure> {
    // SAFETY: the child calls only functions that are safe after a fork of a threaded process.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(SelfTestFailure::NotRun(last_errno())),
        0 => {
            let escape = ExitOnDrop;
            be_quiet_and_mortal();
            let code = body();
            std::mem::forget(escape);
            // SAFETY: leaves without running what the parent registered for its own exit.
            unsafe { libc::_exit(code) }
        }
        _ => wait_for(child),
    }
}

/// Ends the child if a panic should pass: it must not unwind into what was the parent's code.
struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        // SAFETY: as at the regular end of the child.
        unsafe { libc::_exit(ESCAPED) }
    }
}

/// In the child: no core file, no handlers of the parent (they would report or resume), a time limit.
fn be_quiet_and_mortal() {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: all of these are safe in a signal handler and so after a fork; the pointers are to live values,
    // and a set of signals is plain data that `sigemptyset` fills.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
        for signal in [libc::SIGILL, libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGTRAP, libc::SIGALRM]
        {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::alarm(TIME_LIMIT_SECONDS);
    }
}

/// Waits for the child to end. If the host process has children reaped for it, the outcome is unknown.
fn wait_for(child: libc::pid_t) -> Result<i32, SelfTestFailure> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a live integer, `child` a child of this process.
        match unsafe { libc::waitpid(child, &mut status, 0) } {
            -1 if last_errno() == libc::EINTR => continue,
            -1 => return Err(SelfTestFailure::NotRun(last_errno())),
            _ if libc::WIFSIGNALED(status) => return Err(SelfTestFailure::Signal(libc::WTERMSIG(status))),
            _ if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status)),
            _ => continue,
        }
    }
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Depth of the trial's products: two steps.
const DEPTH: usize = 2 * TILE_DEPTH;

/// Operands, expected sums and room for results, all made before the fork.
struct Trial {
    a: Vec<bf16>,
    b: Buffer,
    expected: Vec<f32>,
    c: Vec<f32>,
    tiles: Vec<u8>,
    tiles_after: Vec<u8>,
}

impl Trial {
    /// Small whole numbers, different in each row and column, so that every sum is exact in any order and an
    /// exchanged, missing or repeated row, column or tile shows.
    fn new() -> Self {
        let a_value = |row: usize, k: usize| ((row * 7 + k * 3 + row * k) % 37 % 13) as f32 - 6.0;
        let b_value = |k: usize, col: usize| ((k * 5 + col * 11 + k * col) % 67 % 17) as f32 - 8.0;
        let values = |f: &dyn Fn(usize, usize) -> f32, rows: usize, cols: usize| -> Vec<bf16> {
            (0..rows * cols).map(|i| bf16::from_f32(f(i / cols, i % cols))).collect()
        };
        let a = values(&a_value, BLOCK, DEPTH);
        let b_rows = values(&b_value, DEPTH, BLOCK);
        let mut b = Buffer::new();
        pack_panels(PortableVectors, MatrixRef::new(&b_rows, DEPTH, BLOCK), 0..DEPTH, 0..BLOCK, &mut b);
        let sum = |row: usize, col: usize| (0..DEPTH).map(|k| a_value(row, k) * b_value(k, col)).sum();
        let expected = (0..BLOCK * BLOCK).map(|i| sum(i / BLOCK, i % BLOCK)).collect();
        let tiles = (0..8 * TILE_BYTES).map(|i| (i % 251) as u8).collect();
        Trial { a, b, expected, c: vec![0.0; BLOCK * BLOCK], tiles, tiles_after: vec![0; 8 * TILE_BYTES] }
    }

    /// Runs every check with tile instructions; the first that fails. Only for a child process.
    fn run(&mut self) -> Option<Check> {
        // SAFETY: this runs in a child process, where a fault is survived.
        let tiles = unsafe { NativeTiles::unproven() };
        self.products(tiles).or_else(|| {
            let _session = Session::open(tiles);
            keep_tiles_while_sleeping(&self.tiles, &mut self.tiles_after);
            (self.tiles != self.tiles_after).then_some(Check::Sleep)
        })
    }

    /// The checks of products, on any unit.
    fn products<T: TileUnit>(&mut self, tiles: T) -> Option<Check> {
        let session = Session::open(tiles);
        // The second step of A is 64 bytes on in the same rows.
        let mut block = Block {
            a: [self.a.as_ptr().cast(), self.a.as_ptr().wrapping_add(TILE_ROWS * DEPTH).cast()],
            a_row_bytes: DEPTH * size_of::<bf16>(),
            a_step_bytes: TILE_ROW_BYTES,
            a_as_pairs: false,
            b: self.b.as_ptr(),
            b_row_bytes: TILE_ROW_BYTES,
            b_tile_bytes: TILE_BYTES,
            k_tiles: DEPTH / TILE_DEPTH,
            c: self.c.as_mut_ptr(),
            c_row_bytes: BLOCK * size_of::<f32>(),
            accumulate: false,
        };
        // SAFETY: A has 32 rows of two steps, B two steps, C a whole block.
        unsafe { session.block::<2>(&block) };
        if self.c != self.expected {
            return Some(Check::Product2x2);
        }
        // The lower half of C must keep its values.
        self.c[..TILE_ROWS * BLOCK].fill(f32::NAN);
        // SAFETY: as above, with the upper 16 rows.
        unsafe { session.block::<1>(&block) };
        if self.c != self.expected {
            return Some(Check::Product1x2);
        }
        block.accumulate = true;
        // SAFETY: as above; C holds values.
        unsafe {
            session.block::<2>(&block);
            session.block::<1>(&block);
        }
        let multiplied = |(i, (&c, &expected)): (usize, (&f32, &f32))| {
            c == expected * if i < TILE_ROWS * BLOCK { 3.0 } else { 2.0 }
        };
        (!self.c.iter().zip(&self.expected).enumerate().all(multiplied)).then_some(Check::Accumulate)
    }
}

/// Loads all 8 tiles, sleeps a millisecond, so that the kernel has reason to run something else, and stores
/// them. To be called between `open` and `close`.
fn keep_tiles_while_sleeping(before: &[u8], after: &mut [u8]) {
    assert!(before.len() == 8 * TILE_BYTES && after.len() == 8 * TILE_BYTES);
    let millisecond = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    // SAFETY: 8 tiles are read and written, which the slices hold. The system call (its number in rax, two
    // pointers, the second null) changes rax, rcx and r11 and no memory.
    unsafe {
        asm!(
            "tileloadd tmm0, [{before} + {row}*1]",
            "tileloadd tmm1, [{before} + {row}*1 + 1024]",
            "tileloadd tmm2, [{before} + {row}*1 + 2048]",
            "tileloadd tmm3, [{before} + {row}*1 + 3072]",
            "tileloadd tmm4, [{before} + {row}*1 + 4096]",
            "tileloadd tmm5, [{before} + {row}*1 + 5120]",
            "tileloadd tmm6, [{before} + {row}*1 + 6144]",
            "tileloadd tmm7, [{before} + {row}*1 + 7168]",
            "syscall",
            "tilestored [{after} + {row}*1], tmm0",
            "tilestored [{after} + {row}*1 + 1024], tmm1",
            "tilestored [{after} + {row}*1 + 2048], tmm2",
            "tilestored [{after} + {row}*1 + 3072], tmm3",
            "tilestored [{after} + {row}*1 + 4096], tmm4",
            "tilestored [{after} + {row}*1 + 5120], tmm5",
            "tilestored [{after} + {row}*1 + 6144], tmm6",
            "tilestored [{after} + {row}*1 + 7168], tmm7",
            before = in(reg) before.as_ptr(),
            after = in(reg) after.as_mut_ptr(),
            row = in(reg) TILE_ROW_BYTES,
            inout("rax") libc::SYS_nanosleep => _,
            in("rdi") &raw const millisecond,
            in("rsi") 0_usize,
            out("rcx") _,
            out("r11") _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiles::tile::EmulatedTiles;

    #[test]
    fn a_child_that_meets_an_illegal_instruction_is_reported() {
        // SAFETY: `ud2` raises SIGILL, in a child process, and nothing after it runs.
        let outcome = in_child(|| unsafe { asm!("ud2", options(noreturn)) });
        assert_eq!(outcome, Err(SelfTestFailure::Signal(libc::SIGILL)));
        let words = AmxStatus::SelfTestFailed(SelfTestFailure::Signal(libc::SIGILL)).to_string();
        assert!(words.contains("SIGILL"), "{words}");
    }

    #[test]
    fn a_child_that_faults_on_memory_is_reported() {
        // SAFETY: raises SIGSEGV in a child process; kept from the compiler in assembly.
        let outcome = in_child(|| unsafe {
            asm!("mov byte ptr [{address}], 1", address = in(reg) 8_usize);
            0
        });
        assert_eq!(outcome, Err(SelfTestFailure::Signal(libc::SIGSEGV)));
    }

    #[test]
    fn a_child_with_a_wrong_result_is_a_mismatch() {
        let code = in_child(|| 1 + Check::Accumulate as i32);
        assert_eq!(code.map(failure_of), Ok(SelfTestFailure::Wrong(Check::Accumulate)));
        assert_eq!(failure_of(ESCAPED), SelfTestFailure::Unexplained(ESCAPED));
    }

    #[test]
    fn a_child_that_panics_never_returns_into_the_parents_code() {
        let outcome = in_child(|| {
            // Not `panic!`, which would print: resuming skips the hook.
            std::panic::resume_unwind(Box::new(()))
        });
        assert_eq!(outcome, Ok(ESCAPED));
    }

    #[test]
    fn exit_codes_name_each_check() {
        for check in Check::ALL {
            assert_eq!(failure_of(1 + check as i32), SelfTestFailure::Wrong(check));
        }
    }

    #[test]
    fn on_a_cpu_without_tiles_the_trial_ends_in_sigill() {
        if missing_feature().is_none() {
            eprintln!("skipped: this CPU claims to have AMX");
            return;
        }
        let mut trial = Trial::new();
        let outcome = in_child(|| trial.run().map_or(0, |check| 1 + check as i32));
        assert_eq!(outcome, Err(SelfTestFailure::Signal(libc::SIGILL)));
    }

    #[test]
    fn the_trial_expects_what_the_emulated_tiles_compute() {
        let mut trial = Trial::new();
        assert_eq!(trial.products(EmulatedTiles), None);
        // No two rows and no two columns are alike, so that an exchange shows.
        let line = |start: usize, step: usize| -> Vec<u32> {
            trial.expected.iter().skip(start).step_by(step).take(BLOCK).map(|sum| sum.to_bits()).collect()
        };
        let rows: std::collections::HashSet<Vec<u32>> = (0..BLOCK).map(|row| line(row * BLOCK, 1)).collect();
        let cols: std::collections::HashSet<Vec<u32>> = (0..BLOCK).map(|col| line(col, BLOCK)).collect();
        assert_eq!((rows.len(), cols.len()), (BLOCK, BLOCK));
    }
}
