//! Matrix products of bf16 with fp32 sums, tile by tile: on Intel AMX, or by the dot products of AVX-512 where the
//! processor has fast ones and no AMX, or by multiply-adds of operands that are converted on the way, to fp16 (sums are then
//! begun in fp16) or to f32.
//!
//! A tile of AMX is a register of 16 rows of 64 bytes. `tdpbf16ps` multiplies a tile of 16 × 32 bf16 values (A)
//! with a tile of 32 × 16 (B) and adds the 16 × 16 fp32 products to a third. B is held in *pairs*: row
//! `p` of its tile has the values of rows `2p` and `2p + 1` of the matrix side by side, column by column.
//! The instructions are described in Intel's "Software Developer's Manual", volume 2, and the
//! programming model in volume 1, chapter 18.
//!
//! The code that walks matrices is generic over who executes a block of tiles (`tile`) and who moves
//! elements (`vector`), so that it is tested on machines without AMX.

#[cfg(target_arch = "x86_64")]
mod dot;
#[cfg(target_arch = "x86_64")]
mod fma;
#[cfg(target_arch = "x86_64")]
mod fp16;
mod matmul;
mod packed;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) mod panels;
pub mod self_test;
mod tile;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod trap;
mod vector;
#[cfg(target_arch = "x86_64")]
mod vector_avx2;
#[cfg(target_arch = "x86_64")]
mod vector_avx512;

pub(crate) use matmul::matmul_packed_part;
pub use matmul::{MatmulOutput, Scratch, matmul_bf16, matmul_packed};
pub use packed::{PackedB, pack_b};

/// Proof that AMX works in this process: the CPU has it, the kernel granted it and the self-test passed.
/// [`crate::Isa::amx`] gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Amx(());

impl Amx {
    /// To be called only by whoever has checked [`crate::Isa::amx_status`].
    pub(crate) fn proven() -> Amx {
        Amx(())
    }
}

/// Proof that products of bf16 are no slower than those of f32 here, and by what. [`crate::Isa::bf16_unit`] gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bf16Unit(Which);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Which {
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    #[cfg(target_arch = "x86_64")]
    Dot(dot::Avx512Dot),
    #[cfg(target_arch = "x86_64")]
    Fp16(fp16::Avx512Fp16),
    #[cfg(target_arch = "x86_64")]
    Fma512(fma::Avx512Fma),
    #[cfg(target_arch = "x86_64")]
    Fma256(fma::Avx2Fma),
}

impl Bf16Unit {
    pub(crate) fn of(isa: crate::Isa) -> Option<Bf16Unit> {
        #[cfg(target_arch = "x86_64")]
        {
            let dot = || isa.prefers_bf16_dot().then(|| dot::Avx512Dot::new(isa).map(Which::Dot)).flatten();
            let fp16 = || isa.sums_in_fp16().then(|| fp16::Avx512Fp16::new(isa).map(Which::Fp16)).flatten();
            let fma512 = || fma::Avx512Fma::new(isa).map(Which::Fma512);
            let fma256 = || fma::Avx2Fma::new(isa).map(Which::Fma256);
            isa.amx().map(Which::Amx).or_else(dot).or_else(fp16).or_else(fma512).or_else(fma256).map(Bf16Unit)
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = isa;
            None
        }
    }
}

/// [`panels::project`] on AMX.
#[cfg(target_arch = "x86_64")]
pub(crate) fn project_on_amx(
    amx: Amx,
    x: &[u32],
    row_words: usize,
    weights: &[u32],
    panels: std::ops::Range<usize>,
    y: &mut crate::grid::BlockMut<'_, f32>,
) {
    panels::project(tile::NativeTiles::new(amx), x, row_words, weights, panels, y);
}

/// Configures this thread's tiles until the result is dropped; `None` without AMX.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn tile_session() -> Option<tile::Session<tile::NativeTiles>> {
    let amx = crate::isa::Isa::best().amx()?;
    Some(tile::Session::open(tile::NativeTiles::new(amx)))
}
