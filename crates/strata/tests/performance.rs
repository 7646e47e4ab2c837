//! The engine is as fast as it was: shares of the peak that is measured in the same run, never absolute times.

use std::process::{Command, Stdio};

use serde_json::Value;

/// A shape small enough for continuous integration, and large enough that products decide.
const SHAPE: &str = "--width 256 --layers 2 --heads 4 --ffn 704 --vocab 1024 --seq 256 --batch 16 --steps 7";

/// Share of the peak that a training step of this shape reached when the engine was last tuned, on a Zen 4 and on an
/// Emerald Rapids without AMX, with the checks of a test build, which cost half of the speed (a release build reaches two
/// thirds in bf16). The third figure is that of an Intel without arithmetic of fp16, which has half of the peak for bf16: it was
/// measured on the same processor before that was used. What is not listed was not measured.
const REACHED: [(&str, &str, [Option<f64>; 3]); 4] = [
    ("avx512", "bf16", [Some(0.30), Some(0.19), Some(0.51)]),
    ("avx512", "f32", [Some(0.25), Some(0.17), Some(0.20)]),
    ("avx2", "bf16", [None, Some(0.41), Some(0.41)]),
    ("avx2", "f32", [Some(0.36), Some(0.27), Some(0.27)]),
];
/// What may be missing from it. Below this, something has become slow.
const DROP: f64 = 0.3;
/// Times it is measured before it counts as slow: another guest of the host can disturb one run.
const TRIES: usize = 4;

#[test]
fn training_reaches_the_share_of_the_peak_that_it_reached_before() {
    for (isa, precision, reached) in REACHED {
        let Some(reached) = processor().and_then(|processor| reached[processor]) else {
            eprintln!("SKIPPED: {isa}, {precision}: what it reaches on this processor was never measured");
            continue;
        };
        let measure = || {
            let output = Command::new(env!("CARGO_BIN_EXE_strata"))
                .args(["bench", "train", "--json", "--precision", precision])
                .args(SHAPE.split_whitespace())
                .env("STRATA_ISA", isa)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let out = String::from_utf8_lossy(&output.stdout).into_owned();
            output.status.success().then(|| serde_json::from_str::<Value>(&out).unwrap())
        };
        let mut best = 0.0f64;
        for _ in 0..TRIES {
            let Some(result) = measure() else {
                eprintln!("SKIPPED: {isa} cannot be used here");
                break;
            };
            best = best.max(result["utilisation"].as_f64().unwrap());
            if best >= reached * (1.0 - DROP) {
                break;
            }
        }
        eprintln!("{isa}, {precision}: {:.0} % of the peak, {:.0} % before", 100.0 * best, 100.0 * reached);
        assert!(best == 0.0 || best >= reached * (1.0 - DROP), "{isa}, {precision}: {best:.2} of the peak");
    }
}

/// Which of the figures is that of this processor.
fn processor() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        let id = std::arch::x86_64::__cpuid(0);
        let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
        match vendor.as_slice() {
            b"AuthenticAMD" => Some(0),
            b"GenuineIntel" if std::arch::is_x86_feature_detected!("avx512fp16") => Some(1),
            b"GenuineIntel" => Some(2),
            _ => None,
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}
