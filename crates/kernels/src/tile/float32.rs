//! Products in f32.

use super::{Four, tiles};
use crate::Isa;
#[cfg(target_arch = "x86_64")]
use crate::Level;
use crate::buffer::as_words;
use crate::math::array;
use crate::tile::{Operands, Tile};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

fn copy(_: Isa, _: usize, x: &[f32], words: &mut [u32]) {
    words.copy_from_slice(as_words(x));
}

tiles! {
    Portable, portable, usable |_: Isa| true,
    1 elements and 1 words a step, prepared by copy,
    vectors of 4: [0.0f32; 4],
        |from: *const f32| from.cast::<Four>().read_unaligned(),
        |to: *mut f32, four: Four| to.cast::<Four>().write_unaligned(four),
        |from: *const u32| from.cast::<Four>().read_unaligned(),
        |from: *const u32| *from.cast::<f32>(),
        |x: f32, right: Four, sum: Four| array::<f32, 4>(|i| sum[i] + x * right[i]);
    4 rows, side by side (4 for 1, 2 for 2, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 4 x 1
}

tiles! {
    #[cfg(target_arch = "x86_64")]
    Avx2, avx2, usable |isa: Isa| isa.level() >= Level::Avx2, features "avx2,fma",
    1 elements and 1 words a step, prepared by copy,
    vectors of 8: _mm256_setzero_ps(),
        _mm256_loadu_ps, _mm256_storeu_ps, |from: *const u32| _mm256_loadu_ps(from.cast()),
        |from: *const u32| _mm256_broadcast_ss(&*from.cast::<f32>()), _mm256_fmadd_ps;
    6 rows, side by side (4 for 1, 2 for 2 | 3, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 3 x 1, 3 x 2, 4 x 1, 5 x 1, 6 x 1
}

tiles! {
    #[cfg(target_arch = "x86_64")]
    Avx512, avx512, usable |isa: Isa| isa.level() >= Level::Avx512, features "avx512f",
    1 elements and 1 words a step, prepared by copy,
    vectors of 16: _mm512_setzero_ps(),
        _mm512_loadu_ps, _mm512_storeu_ps, |from: *const u32| _mm512_loadu_ps(from.cast()),
        |from: *const u32| _mm512_set1_ps(*from.cast::<f32>()), _mm512_fmadd_ps;
    12 rows, side by side (4 for 1 | 2, 2 for 3..=5, 1 for _);
    1 x 1, 1 x 2, 1 x 4, 2 x 1, 2 x 2, 2 x 4, 3 x 1, 3 x 2, 4 x 1, 4 x 2, 5 x 1, 5 x 2,
    6 x 1, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1
}
