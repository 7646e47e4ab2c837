//! Choosing an instruction set at run time.

use std::fmt;
use std::sync::OnceLock;

use crate::tiles::self_test::SelfTestFailure;
use crate::tiles::{Amx, Bf16Unit};

/// Families of instructions that kernels are written for, ordered from narrow to wide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Level {
    /// Plain Rust, whatever the compiler makes of it (on aarch64 that includes NEON).
    Portable,
    /// AVX2, FMA and F16C: 256-bit vectors.
    Avx2,
    /// AVX-512 F, BW, DQ and VL, and everything of [`Level::Avx2`]: 512-bit vectors.
    Avx512,
    /// AMX tiles with bf16 products, and everything of [`Level::Avx512`].
    Amx,
}

impl Level {
    /// All levels, widest first.
    pub const ALL: [Level; 4] = [Level::Amx, Level::Avx512, Level::Avx2, Level::Portable];

    /// The name that [`Isa::by_name`] understands.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Amx => "amx",
        }
    }
}

/// An instruction set that this process can use.
///
/// A value is a proof: it can only be had where the processor has the instructions and the operating
/// system keeps their registers, so a safe function that takes one may call `target_feature` functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Isa(Level);

/// Why [`Isa::by_name`] gave no instruction set.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IsaError {
    /// No instruction set has this name.
    #[error("unknown instruction set {name:?}; known are amx, avx512, avx2 and portable")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The name is known but its instructions cannot be used here.
    #[error("instruction set {name} cannot be used here: {reason}; {best} is the widest that can")]
    Unsupported {
        /// The name asked for.
        name: &'static str,
        /// What is missing, in words.
        reason: String,
        /// The name of the widest instruction set that can be used.
        best: &'static str,
    },
}

/// Whether AMX is used, and if not, why not. `Display` says it in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AmxStatus {
    /// Every check passed; [`Isa::best`] is AMX.
    Ready,
    /// The program was built for a processor family or an operating system without AMX support.
    NotBuiltIn,
    /// The processor (or the hypervisor) does not offer a feature.
    CpuLacks(&'static str),
    /// The operating system has not enabled tile registers: bits 17 and 18 of XCR0 are not both set.
    NotEnabled {
        /// The value of XCR0.
        xcr0: u64,
    },
    /// `arch_prctl(ARCH_REQ_XCOMP_PERM, 18)` failed.
    PermissionRefused {
        /// The error number of the operating system.
        errno: i32,
    },
    /// Tile instructions were tried in a child process and did not do what they should.
    SelfTestFailed(SelfTestFailure),
}

impl fmt::Display for AmxStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AmxStatus::Ready => write!(f, "AMX works"),
            AmxStatus::NotBuiltIn => write!(f, "this build has no AMX code (it needs Linux on x86-64)"),
            AmxStatus::CpuLacks(feature) => write!(f, "the CPU lacks {feature}"),
            AmxStatus::NotEnabled { xcr0 } => {
                write!(
                    f,
                    "the operating system has not enabled AMX tiles (XCR0 is {xcr0:#x}, bits 17 and 18 are needed)"
                )
            }
            AmxStatus::PermissionRefused { errno } => {
                write!(f, "the kernel refused tile permission: {}", std::io::Error::from_raw_os_error(*errno))
            }
            AmxStatus::SelfTestFailed(failure) => write!(f, "the AMX self-test failed: {failure}"),
        }
    }
}

/// What was found out about this machine, once per process.
struct Detected {
    best: Level,
    /// Why each level above portable is missing; empty when it is not.
    avx2_lacks: Option<&'static str>,
    avx512_lacks: Option<&'static str>,
    avx512_bf16: bool,
    fast_bf16_dot: bool,
    avx512_vnni: bool,
    avx_vnni: bool,
    avx512_fp16: bool,
    amx: AmxStatus,
}

fn detected() -> &'static Detected {
    static DETECTED: OnceLock<Detected> = OnceLock::new();
    DETECTED.get_or_init(detect)
}

impl Isa {
    /// Plain Rust, which every machine runs.
    pub const PORTABLE: Isa = Isa(Level::Portable);

    /// The widest instruction set that this process can use. The first call tries AMX in a child process.
    pub fn best() -> Isa {
        Isa(detected().best)
    }

    /// Every instruction set that this process can use, widest first; the last is always portable.
    pub fn available() -> Vec<Isa> {
        let best = detected().best;
        Level::ALL.into_iter().filter(|&level| level <= best).map(Isa).collect()
    }

    /// As [`Isa::available`], and AMX even where its instructions have to be carried out by a handler of the signal that
    /// they raise.
    #[cfg(test)]
    pub(crate) fn available_or_trapped() -> Vec<Isa> {
        let all = Isa::available();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if all[0].level() == Level::Avx512 {
            crate::tiles::trap::install();
            return [vec![Isa(Level::Amx)], all].concat();
        }
        all
    }

    /// The instruction set called `amx`, `avx512`, `avx2` or `portable`.
    ///
    /// # Errors
    /// The name is not known, or what it names cannot be used here; the error says what is missing.
    pub fn by_name(name: &str) -> Result<Isa, IsaError> {
        let level = Level::ALL
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| IsaError::Unknown { name: name.to_owned() })?;
        let detected = detected();
        if level <= detected.best {
            return Ok(Isa(level));
        }
        let lacks =
            |feature: Option<&str>| format!("the CPU lacks {}", feature.unwrap_or("a feature it needs"));
        let reason = match level {
            Level::Amx => detected.amx.to_string(),
            Level::Avx512 => lacks(detected.avx512_lacks),
            _ => lacks(detected.avx2_lacks),
        };
        Err(IsaError::Unsupported { name: level.name(), reason, best: detected.best.name() })
    }

    /// Whether AMX can be used and, if not, the reason.
    pub fn amx_status() -> AmxStatus {
        detected().amx
    }

    /// The name that [`Isa::by_name`] understands.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The family of instructions, for choosing a kernel with `match` or by order.
    pub fn level(self) -> Level {
        self.0
    }

    /// Whether AVX-512 has bf16 conversion and dot products here; false below [`Level::Avx512`].
    pub fn has_avx512_bf16(self) -> bool {
        self.0 >= Level::Avx512 && detected().avx512_bf16
    }

    /// Whether AVX-512's dot products of bf16 do more per cycle than its multiply-adds of f32. Those of AMD do twice as
    /// many operations; Intel's do half as many on the processors that also have AMX (which a hypervisor may hide), and as
    /// many on the one generation before. Decided by vendor and not by a clock, so that it is the same in every run.
    pub fn prefers_bf16_dot(self) -> bool {
        self.has_avx512_bf16() && detected().fast_bf16_dot
    }

    /// Whether AVX-512 has arithmetic of fp16 here; false below [`Level::Avx512`].
    pub fn has_avx512_fp16(self) -> bool {
        self.0 >= Level::Avx512 && detected().avx512_fp16
    }

    /// Whether sums of products of bf16 are begun in fp16: where AVX-512 has its arithmetic, and neither AMX nor fast dot
    /// products of bf16 are there. Up to 64 products (128 in decoding) then add up with fp16's 11 bits, and their sums in f32.
    pub fn sums_in_fp16(self) -> bool {
        self.has_avx512_fp16() && self.amx().is_none() && !self.prefers_bf16_dot()
    }

    /// Whether decoding holds keys and values in fp16 beside rounded weights (or in int8 beside int8), and attends to them in its arithmetic: where AVX-512
    /// has it, and no fast dot products of bf16. Beside AMX too: attention of a token is a few rows, which are no tiles.
    pub fn attends_in_fp16(self) -> bool {
        self.has_avx512_fp16() && !self.prefers_bf16_dot()
    }

    /// Whether AVX-512 has dot products of bytes here; false below [`Level::Avx512`].
    pub fn has_avx512_vnni(self) -> bool {
        self.0 >= Level::Avx512 && detected().avx512_vnni
    }

    /// Whether AVX has dot products of bytes here, as processors for desks have them that lack AVX-512; false below [`Level::Avx2`].
    pub fn has_avx_vnni(self) -> bool {
        self.0 >= Level::Avx2 && detected().avx_vnni
    }

    /// The proof that products of bf16 are no slower than those of f32 here: by AMX tiles, AVX-512's dot products, or
    /// multiply-adds of fp16 or f32.
    pub fn bf16_unit(self) -> Option<Bf16Unit> {
        Bf16Unit::of(self)
    }

    /// The proof that tile functions ask for; `None` below [`Level::Amx`].
    pub fn amx(self) -> Option<Amx> {
        (self.0 == Level::Amx).then(Amx::proven)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Detected {
    // A macro because the detection macro wants literals. It also checks that the operating system
    // saves the wider registers.
    macro_rules! first_missing {
        ($($feature:tt as $name:literal),*) => {{
            let mut missing = None;
            $(if missing.is_none() && !std::arch::is_x86_feature_detected!($feature) {
                missing = Some($name);
            })*
            missing
        }};
    }
    let avx2_lacks = first_missing!("avx2" as "AVX2", "fma" as "FMA", "f16c" as "F16C");
    let avx512_lacks = avx2_lacks.or(first_missing!(
        "avx512f" as "AVX-512F",
        "avx512bw" as "AVX-512BW",
        "avx512dq" as "AVX-512DQ",
        "avx512vl" as "AVX-512VL"
    ));
    let amx = match avx512_lacks {
        Some(feature) => AmxStatus::CpuLacks(feature),
        None => crate::tiles::self_test::detect(),
    };
    let best = match (avx2_lacks, avx512_lacks, amx) {
        (None, None, AmxStatus::Ready) => Level::Amx,
        (None, None, _) => Level::Avx512,
        (None, Some(_), _) => Level::Avx2,
        _ => Level::Portable,
    };
    let avx512_bf16 = avx512_lacks.is_none() && std::arch::is_x86_feature_detected!("avx512bf16");
    // Intel's name for itself, in the order of CPUID's registers.
    let vendor = std::arch::x86_64::__cpuid(0);
    let is_intel = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == *b"GenuineIntel";
    let avx512_vnni = avx512_lacks.is_none() && std::arch::is_x86_feature_detected!("avx512vnni");
    let avx_vnni = avx2_lacks.is_none() && std::arch::is_x86_feature_detected!("avxvnni");
    let avx512_fp16 = avx512_lacks.is_none() && std::arch::is_x86_feature_detected!("avx512fp16");
    let fast_bf16_dot = !is_intel;
    Detected {
        best,
        avx2_lacks,
        avx512_lacks,
        avx512_bf16,
        fast_bf16_dot,
        avx512_vnni,
        avx_vnni,
        avx512_fp16,
        amx,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Detected {
    let lacks = Some("x86-64 instructions");
    Detected {
        best: Level::Portable,
        avx2_lacks: lacks,
        avx512_lacks: lacks,
        avx512_bf16: false,
        fast_bf16_dot: false,
        avx512_vnni: false,
        avx_vnni: false,
        avx512_fp16: false,
        amx: AmxStatus::NotBuiltIn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_goes_from_best_to_portable() {
        let available = Isa::available();
        assert_eq!(available.first(), Some(&Isa::best()));
        assert_eq!(available.last(), Some(&Isa::PORTABLE));
        assert!(available.windows(2).all(|pair| pair[0].level() > pair[1].level()));
    }

    #[test]
    fn every_available_set_is_found_by_its_name() {
        for isa in Isa::available() {
            assert_eq!(Isa::by_name(isa.name()), Ok(isa));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = Isa::by_name("avx9").unwrap_err().to_string();
        for word in ["\"avx9\"", "amx", "avx512", "avx2", "portable"] {
            assert!(message.contains(word), "{word} is not in {message}");
        }
    }

    #[test]
    fn a_known_name_that_cannot_run_says_what_is_missing() {
        let available = Isa::available();
        for level in Level::ALL {
            if available.iter().all(|isa| isa.level() != level) {
                let message = Isa::by_name(level.name()).unwrap_err().to_string();
                assert!(message.contains(level.name()), "{message}");
                let amx_words = Isa::amx_status().to_string();
                assert!(message.contains("the CPU lacks") || message.contains(&amx_words), "{message}");
            }
        }
    }

    #[test]
    fn amx_status_and_best_agree() {
        assert_eq!(Isa::best().amx().is_some(), Isa::amx_status() == AmxStatus::Ready);
        eprintln!("best instruction set: {}; {}", Isa::best(), Isa::amx_status());
    }

    #[test]
    fn only_the_amx_level_gives_the_amx_proof() {
        for isa in Isa::available() {
            assert_eq!(isa.amx().is_some(), isa.level() == Level::Amx);
        }
    }
}
