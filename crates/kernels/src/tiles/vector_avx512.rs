//! Moving elements with AVX-512.

use std::arch::x86_64::*;

use half::bf16;

use super::Amx;
use super::tile::BLOCK;
use super::vector::{BlockSums, TILE_ELEMENTS, VectorUnit};
use crate::isa::{Isa, Level};
use crate::prefetch;

/// AVX-512 F, BW, DQ and VL; also the bf16 conversion where the CPU has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Avx512Vectors {
    converts_bf16: bool,
}

impl Avx512Vectors {
    /// `None` where the instructions are missing.
    pub fn new(isa: Isa) -> Option<Self> {
        (isa.level() >= Level::Avx512).then(|| Avx512Vectors { converts_bf16: isa.has_avx512_bf16() })
    }

    /// Where AMX works, AVX-512 does.
    pub fn beside(_amx: Amx) -> Self {
        Avx512Vectors { converts_bf16: Isa::best().has_avx512_bf16() }
    }

    /// The same without the bf16 conversion instruction, so that both ways are tested.
    #[cfg(test)]
    pub fn without_bf16(self) -> Self {
        Avx512Vectors { converts_bf16: false }
    }
}

impl VectorUnit for Avx512Vectors {
    #[inline]
    unsafe fn copy_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        // SAFETY: `new` checked for the instructions; the rest is the caller's promise.
        unsafe { copy_tile(src, row_stride, dst) }
    }

    #[inline]
    unsafe fn interleave_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        // SAFETY: as above.
        unsafe { interleave_tile(src, row_stride, dst) }
    }

    #[inline]
    unsafe fn interleave_tiles(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        // SAFETY: as above.
        unsafe { interleave_tiles(src, row_stride, dst) }
    }

    #[inline]
    unsafe fn transpose_tile(self, src: *const bf16, row_stride: usize, dst: *mut bf16) {
        // SAFETY: as above.
        unsafe { transpose_tile(src, row_stride, dst) }
    }

    #[inline]
    unsafe fn write_f32(
        self,
        sums: &BlockSums,
        rows: usize,
        cols: usize,
        c: *mut f32,
        c_row_stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: as above.
        unsafe { write_f32(sums, rows, cols, c, c_row_stride, accumulate) }
    }

    #[inline]
    unsafe fn write_bf16(
        self,
        sums: &BlockSums,
        rows: usize,
        cols: usize,
        c: *mut bf16,
        c_row_stride: usize,
        accumulate: bool,
    ) {
        // SAFETY: as above; `converts_bf16` says that the conversion instruction exists too.
        unsafe {
            if self.converts_bf16 {
                write_bf16_converting(sums, rows, cols, c, c_row_stride, accumulate)
            } else {
                write_bf16_rounding(sums, rows, cols, c, c_row_stride, accumulate)
            }
        }
    }
}

/// # Safety
/// As [`VectorUnit::copy_tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn copy_tile(src: *const bf16, row_stride: usize, dst: *mut bf16) {
    for row in 0..16 {
        // SAFETY: 64 bytes of one of the 16 rows on both sides; `dst` and its rows are 64-byte aligned.
        unsafe {
            let values = _mm512_loadu_si512(src.add(row * row_stride).cast());
            _mm512_store_si512(dst.add(32 * row).cast(), values);
        }
    }
}

/// # Safety
/// As [`VectorUnit::interleave_tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn interleave_tile(src: *const bf16, row_stride: usize, dst: *mut bf16) {
    for pair in 0..16 {
        // SAFETY: 32 bytes each of rows 2·pair and 2·pair + 1; `dst` and its rows are 64-byte aligned.
        unsafe {
            let row = src.add(2 * pair * row_stride);
            let even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.cast()));
            let odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256(row.add(row_stride).cast()));
            let pairs = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
            _mm512_store_si512(dst.add(32 * pair).cast(), pairs);
        }
    }
}

/// # Safety
/// As [`VectorUnit::interleave_tiles`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn interleave_tiles(src: *const bf16, row_stride: usize, dst: *mut bf16) {
    for pair in 0..16 {
        // SAFETY: 64 bytes each of rows 2·pair and 2·pair + 1; `dst` and its rows are 64-byte aligned.
        unsafe {
            let row = src.add(2 * pair * row_stride);
            // The next tiles': rows far apart are nothing that the processor foresees.
            prefetch::read(row.wrapping_add(32 * row_stride));
            prefetch::read(row.wrapping_add(33 * row_stride));
            let even = _mm512_loadu_si512(row.cast());
            let odd = _mm512_loadu_si512(row.add(row_stride).cast());
            let pairs = |even: __m256i, odd: __m256i| {
                let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd));
                _mm512_or_si512(_mm512_cvtepu16_epi32(even), odd)
            };
            let low = pairs(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd));
            let high = pairs(_mm512_extracti64x4_epi64::<1>(even), _mm512_extracti64x4_epi64::<1>(odd));
            _mm512_store_si512(dst.add(32 * pair).cast(), low);
            _mm512_store_si512(dst.add(TILE_ELEMENTS + 32 * pair).cast(), high);
        }
    }
}

/// Rows j, j + 4, j + 8 and j + 12 meet in the four lanes of one register, which costs no shuffle because
/// an insert from memory is a masked load; then four registers are transposed lane by lane. So 32
/// shuffles do what takes 64 on whole rows, and the port for shuffles is the bottleneck.
///
/// # Safety
/// As [`VectorUnit::transpose_tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn transpose_tile(src: *const bf16, row_stride: usize, dst: *mut bf16) {
    for quad in 0..4 {
        // SAFETY: 16 bytes (pairs 4·quad to 4·quad + 3) of one of the 16 rows.
        let row = |row: usize| unsafe { _mm_loadu_si128(src.add(row * row_stride + 8 * quad).cast()) };
        let lanes = |j: usize| {
            let lane0 = _mm512_castsi128_si512(row(j));
            let lanes01 = _mm512_inserti32x4::<1>(lane0, row(j + 4));
            let lanes012 = _mm512_inserti32x4::<2>(lanes01, row(j + 8));
            _mm512_inserti32x4::<3>(lanes012, row(j + 12))
        };
        let (rows0, rows1, rows2, rows3) = (lanes(0), lanes(1), lanes(2), lanes(3));
        let low01 = _mm512_unpacklo_epi32(rows0, rows1);
        let high01 = _mm512_unpackhi_epi32(rows0, rows1);
        let low23 = _mm512_unpacklo_epi32(rows2, rows3);
        let high23 = _mm512_unpackhi_epi32(rows2, rows3);
        let columns = [
            _mm512_unpacklo_epi64(low01, low23),
            _mm512_unpackhi_epi64(low01, low23),
            _mm512_unpacklo_epi64(high01, high23),
            _mm512_unpackhi_epi64(high01, high23),
        ];
        for (i, column) in columns.into_iter().enumerate() {
            // SAFETY: tile row 4·quad + i is one of the 16 of `dst`, whose rows are 64-byte aligned.
            unsafe { _mm512_store_si512(dst.add(32 * (4 * quad + i)).cast(), column) };
        }
    }
}
const _: () = assert!(TILE_ELEMENTS == 16 * 32 && BLOCK == 32);

/// The low `count` of 16 lanes; all of them for 16 and more.
fn mask16(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// # Safety
/// As [`VectorUnit::write_f32`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn write_f32(
    sums: &BlockSums,
    rows: usize,
    cols: usize,
    c: *mut f32,
    c_row_stride: usize,
    accumulate: bool,
) {
    for (row, sums) in sums.0.chunks_exact(BLOCK).take(rows).enumerate() {
        for (half, sums) in sums.chunks_exact(16).enumerate() {
            let mask = mask16(cols.saturating_sub(16 * half));
            // Only enabled lanes are touched, but even a pointer must stay inside the matrix.
            if mask == 0 {
                continue;
            }
            // SAFETY: 16 sums are read; of C only the lanes of columns below `cols` are.
            unsafe {
                let c = c.add(row * c_row_stride + 16 * half);
                let mut values = _mm512_loadu_ps(sums.as_ptr());
                if accumulate {
                    values = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), values);
                }
                _mm512_mask_storeu_ps(c, mask, values);
            }
        }
    }
}

/// Sixteen bf16 of C, widened.
///
/// # Safety
/// The lanes of `mask` can be read at `c`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
unsafe fn widen(c: *const bf16, mask: __mmask16) -> __m512 {
    // SAFETY: the caller vouches for the enabled lanes.
    let bits = unsafe { _mm256_maskz_loadu_epi16(mask, c.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// A macro because functions with different features are not inlined into one another.
macro_rules! write_bf16 {
    ($name:ident, $features:literal, $round:expr) => {
        /// # Safety
        /// As [`VectorUnit::write_bf16`].
        #[target_feature(enable = $features)]
        unsafe fn $name(
            sums: &BlockSums,
            rows: usize,
            cols: usize,
            c: *mut bf16,
            c_row_stride: usize,
            accumulate: bool,
        ) {
            let masks = [mask16(cols), mask16(cols.saturating_sub(16))];
            for (row, sums) in sums.0.chunks_exact(BLOCK).take(rows).enumerate() {
                for (half, sums) in sums.chunks_exact(16).enumerate() {
                    if masks[half] == 0 {
                        continue;
                    }
                    // SAFETY: 16 sums are read; of C only the lanes of columns below `cols` are.
                    unsafe {
                        let c = c.add(row * c_row_stride + 16 * half);
                        let mut values = _mm512_loadu_ps(sums.as_ptr());
                        if accumulate {
                            values = _mm512_add_ps(widen(c, masks[half]), values);
                        }
                        _mm256_mask_storeu_epi16(c.cast(), masks[half], $round(values));
                    }
                }
            }
        }
    };
}

write_bf16!(write_bf16_rounding, "avx512f,avx512bw,avx512dq,avx512vl", round_to_bf16);
write_bf16!(write_bf16_converting, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", |values| {
    // Both are 16 values of 16 bits.
    std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values))
});

/// Nearest bf16, ties to even: adds just under half of the last place kept, or half when that place is odd,
/// and cuts. A NaN stays one: its top bits are kept and it is made quiet.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn round_to_bf16(values: __m512) -> __m256i {
    let bits = _mm512_castps_si512(values);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet)))
}
