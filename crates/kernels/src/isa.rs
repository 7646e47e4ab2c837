//! Instruction sets.

/// The instruction sets, in rising order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Whatever the compiler may assume.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512.
    Avx512,
    /// AMX.
    Amx,
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Isa(Level);

impl Isa {
    /// The best.
    pub fn best() -> Isa {
        Isa::available()[0]
    }
    /// All, best first.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.insert(0, Isa(Level::Avx2));
        }
        all
    }
    /// Level.
    pub fn level(self) -> Level {
        self.0
    }
}
