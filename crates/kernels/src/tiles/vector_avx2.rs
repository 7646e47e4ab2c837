//! Moving elements with AVX2: the plain Rust, compiled for it.

use half::bf16;

use super::vector::{BlockSums, PortableVectors, VectorUnit};
use crate::isa::{Isa, Level};

/// A value is a proof of AVX2 and FMA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx2Vectors(());

impl Avx2Vectors {
    /// `None` where the instructions are missing.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx2).then_some(Avx2Vectors(()))
    }
}

/// Defines methods that call those of [`PortableVectors`], inlined into functions with AVX2 switched on.
macro_rules! compiled_for_avx2 {
    ($(fn $name:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            #[inline]
            unsafe fn $name(self, $($argument: $type),*) {
                /// # Safety
                /// As the method, on a CPU with AVX2.
                #[target_feature(enable = "avx2,fma")]
                unsafe fn compiled($($argument: $type),*) {
                    // SAFETY: the caller's promise.
                    unsafe { PortableVectors.$name($($argument),*) }
                }
                // SAFETY: `new` checked for the instructions; the rest is the caller's promise.
                unsafe { compiled($($argument),*) }
            }
        )*
    };
}

impl VectorUnit for Avx2Vectors {
    compiled_for_avx2! {
        fn copy_tile(src: *const bf16, row_stride: usize, dst: *mut bf16);
        fn interleave_tile(src: *const bf16, row_stride: usize, dst: *mut bf16);
        fn transpose_tile(src: *const bf16, row_stride: usize, dst: *mut bf16);
        fn write_f32(
            sums: &BlockSums, rows: usize, cols: usize, c: *mut f32, c_row_stride: usize, accumulate: bool
        );
        fn write_bf16(
            sums: &BlockSums, rows: usize, cols: usize, c: *mut bf16, c_row_stride: usize, accumulate: bool
        );
    }
}
