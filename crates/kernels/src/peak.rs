//! What one thread of this machine can do at most, as the yardstick for the kernels.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Level;

/// Rounds of a loop between two looks at the clock: some microseconds.
const ROUNDS: usize = 2048;

/// Floating-point operations per second (a multiplication and an addition are two) of one thread on `isa`, from
/// registers alone, by fp32 fused multiply-adds. It runs for `seconds` or a little longer. For a machine's peak, call
/// it on all threads at once and add up.
pub fn peak_flops_f32(isa: Isa, seconds: f64) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if isa.level() >= Level::Avx512 {
        // SAFETY: the instruction set is at least AVX-512.
        return rate(seconds, || unsafe { x86::avx512_round(ROUNDS) });
    } else if isa.level() >= Level::Avx2 {
        // SAFETY: the instruction set is AVX2 with FMA.
        return rate(seconds, || unsafe { x86::avx2_round(ROUNDS) });
    }
    let _ = isa;
    rate(seconds, || portable_round(ROUNDS))
}

/// As [`peak_flops_f32`] by the fastest products of bf16 that `isa` has: tiles of AMX, dot products of AVX-512, its
/// multiply-adds of fp16, to which bf16 is then converted, or else those of f32.
pub fn peak_flops_bf16(isa: Isa, seconds: f64) -> f64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if isa.amx().is_some() {
        return amx::peak(seconds);
    }
    #[cfg(target_arch = "x86_64")]
    if isa.prefers_bf16_dot() {
        // SAFETY: the instruction set has bf16 dot products.
        return rate(seconds, || unsafe { x86::avx512_bf16_round(ROUNDS) });
    } else if isa.sums_in_fp16() {
        // SAFETY: the instruction set has arithmetic of fp16.
        return rate(seconds, || unsafe { x86::avx512_fp16_round(ROUNDS) });
    }
    peak_flops_f32(isa, seconds)
}

/// Bytes per second that one thread reads from `buffer`, from start to end and again for `seconds` or a
/// little longer. To measure memory and not a cache, pass several times the size of the last-level
/// cache, already written to. NaN if `buffer` has no 512 bytes.
pub fn read_bandwidth(isa: Isa, buffer: &[u8], seconds: f64) -> f64 {
    if buffer.len() < READ_STEP {
        return f64::NAN;
    }
    rate(seconds, || {
        black_box(read_all(isa, black_box(buffer)));
        (buffer.len() / READ_STEP * READ_STEP) as f64
    })
}

/// Repeats `work` until `seconds` are over; the sum of what it returns, per second.
fn rate(seconds: f64, mut work: impl FnMut() -> f64) -> f64 {
    // Warms up: wide vector units take some microseconds to power up.
    let limit = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO);
    work();
    let start = Instant::now();
    let mut done = 0.0;
    loop {
        done += work();
        let elapsed = start.elapsed();
        if elapsed >= limit && !elapsed.is_zero() {
            return done / elapsed.as_secs_f64();
        }
    }
}

/// Bytes read per turn of the loop: eight vectors of 64 bytes, each into its own sum.
const READ_STEP: usize = 512;

fn read_all(isa: Isa, buffer: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if isa.level() >= Level::Avx512 {
        // SAFETY: the instruction set is at least AVX-512.
        return unsafe { x86::sum_avx512(buffer) };
    } else if isa.level() >= Level::Avx2 {
        // SAFETY: the instruction set is at least AVX2.
        return unsafe { x86::sum_avx2(buffer) };
    }
    let _ = isa;
    sum_words(buffer)
}

/// Sum of the 64-bit words of whole steps. Inlined into functions with wider vectors switched on.
#[inline(always)]
fn sum_words(buffer: &[u8]) -> u64 {
    let mut sums = [0u64; READ_STEP / 8];
    for step in buffer.chunks_exact(READ_STEP) {
        for (sum, word) in sums.iter_mut().zip(step.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |total, &sum| total.wrapping_add(sum))
}

/// Multiplies and adds in an array that vectors of any width fit.
fn portable_round(rounds: usize) -> f64 {
    // x86-64's baseline has no fused instruction, and calling a library for each would be measured instead.
    const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));
    const SUMS: usize = 40;
    let mut sums = black_box([1.0f32; SUMS]);
    let (factor, term) = (black_box(0.5f32), black_box(0.5f32));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = if FUSED { sum.mul_add(factor, term) } else { *sum * factor + term };
        }
    }
    black_box(sums);
    (2 * SUMS * rounds) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// 12 chains: two units with a latency of 4 to 6 need 8 to 12.
    macro_rules! round {
        ($name:ident, $features:literal, $instruction:literal, $products:literal, $class:literal, [$($sum:literal),*], $x:literal, $y:literal) => {
            /// Operations done in `rounds` (at least 1) turns.
            #[target_feature(enable = $features)]
            pub fn $name(rounds: usize) -> f64 {
                // SAFETY: only the declared registers change; no memory is touched. Sums start at zero
                // and stay there (0 + 0·0): the time does not depend on values that are not subnormal.
                unsafe {
                    asm!(
                        $(concat!("vxorps xmm", $sum, ", xmm", $sum, ", xmm", $sum),)*
                        concat!("vxorps xmm", $x, ", xmm", $x, ", xmm", $x),
                        concat!("vxorps xmm", $y, ", xmm", $y, ", xmm", $y),
                        "2:",
                        $(concat!($instruction, " ", $class, $sum, ", ", $class, $x, ", ", $class, $y),)*
                        "dec {rounds}",
                        "jnz 2b",
                        rounds = inout(reg) rounds.max(1) => _,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _,
                        out("xmm5") _, out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _,
                        out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _,
                        options(nostack, nomem),
                    );
                }
                let chains = [$($sum),*].len();
                (2 * $products * chains * rounds.max(1)) as f64
            }
        };
    }

    round!(
        avx2_round,
        "avx2,fma",
        "vfmadd231ps",
        8,
        "ymm",
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"],
        "12",
        "13"
    );
    round!(
        avx512_round,
        "avx512f",
        "vfmadd231ps",
        16,
        "zmm",
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"],
        "12",
        "13"
    );

    round!(
        avx512_bf16_round,
        "avx512f,avx512bf16",
        "vdpbf16ps",
        32,
        "zmm",
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"],
        "12",
        "13"
    );

    round!(
        avx512_fp16_round,
        "avx512f,avx512fp16",
        "vfmadd231ph",
        32,
        "zmm",
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"],
        "12",
        "13"
    );

    #[target_feature(enable = "avx2")]
    pub fn sum_avx2(buffer: &[u8]) -> u64 {
        super::sum_words(buffer)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn sum_avx512(buffer: &[u8]) -> u64 {
        super::sum_words(buffer)
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use std::arch::asm;

    use super::{ROUNDS, rate};
    use crate::tiles::tile_session;

    /// Operations of one `tdpbf16ps`: 16 × 16 sums of 32 products.
    const OPERATIONS: usize = 2 * 16 * 16 * 32;
    /// Independent sums: the instruction starts every 16 cycles and takes 52, so 4 would do.
    const CHAINS: usize = 6;

    pub fn peak(seconds: f64) -> f64 {
        let Some(_session) = tile_session() else { return f64::NAN };
        rate(seconds, || {
            // SAFETY: tiles are configured while the session lives, and AMX was proven when it opened.
            unsafe { round(ROUNDS) };
            (OPERATIONS * CHAINS * ROUNDS) as f64
        })
    }

    /// # Safety
    /// Tiles are configured, all with 16 rows of 64 bytes; `rounds` is at least 1.
    unsafe fn round(rounds: usize) {
        // SAFETY: only declared registers change and no memory is touched.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "tilezero tmm4",
                "tilezero tmm5",
                "tilezero tmm6",
                "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_a_plausible_peak() {
        for isa in Isa::available() {
            for (name, flops) in [("f32", peak_flops_f32(isa, 0.01)), ("bf16", peak_flops_bf16(isa, 0.01))] {
                // From an emulator's thousandth to ten times the best core there is.
                assert!(flops > 1e6 && flops < 1e14, "{isa} {name}: {flops}");
                eprintln!("{isa} {name}: {:.1} GFLOP/s", flops / 1e9);
            }
        }
    }

    #[test]
    fn reading_sums_every_whole_step_on_every_instruction_set() {
        let buffer: Vec<u8> = (0..10 * READ_STEP + 100).map(|i| (i * i % 253) as u8).collect();
        let words = buffer[..10 * READ_STEP].chunks_exact(8);
        let expected =
            words.map(|w| u64::from_ne_bytes(w.try_into().unwrap())).fold(0, |a: u64, w| a.wrapping_add(w));
        for isa in Isa::available() {
            assert_eq!(read_all(isa, &buffer), expected, "{isa}");
            let rate = read_bandwidth(isa, &buffer, 0.001);
            assert!(rate > 1e5 && rate < 1e13, "{isa}: {rate}");
        }
    }

    #[test]
    fn a_buffer_too_small_to_measure_gives_no_number() {
        assert!(read_bandwidth(Isa::PORTABLE, &[0; 100], 0.001).is_nan());
    }
}
