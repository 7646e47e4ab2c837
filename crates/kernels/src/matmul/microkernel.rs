//! Register-tiled inner loops: `tile[MR x NR] = A-tile · B-panel`.

use crate::Isa;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// An inner loop with its tile shape.
pub(super) trait Microkernel {
    /// Rows of the tile.
    const MR: usize;
    /// Columns of the tile.
    const NR: usize;

    /// `tile[r][j] = Σ_k a[r * row_stride + k * column_stride] * panel[k * NR + j]` for k below `depth`.
    /// `isa` proves that the instructions exist.
    fn run(
        isa: Isa,
        depth: usize,
        a: &[f32],
        row_stride: usize,
        column_stride: usize,
        panel: &[f32],
        tile: &mut [f32],
    );
}

/// Checks, once per tile, everything the inner loops rely on.
fn check<K: Microkernel>(
    depth: usize,
    a: &[f32],
    row_stride: usize,
    column_stride: usize,
    panel: &[f32],
    tile: &[f32],
) {
    assert!(panel.len() >= depth * K::NR && tile.len() >= K::MR * K::NR);
    assert!(depth == 0 || a.len() > (K::MR - 1) * row_stride + (depth - 1) * column_stride);
}

/// Plain Rust, vectorised by the compiler with its baseline instructions.
pub(super) struct Portable;

impl Microkernel for Portable {
    const MR: usize = 4;
    const NR: usize = 8;

    fn run(
        _: Isa,
        depth: usize,
        a: &[f32],
        row_stride: usize,
        column_stride: usize,
        panel: &[f32],
        tile: &mut [f32],
    ) {
        check::<Self>(depth, a, row_stride, column_stride, panel, tile);
        let mut sums = [[0.0f32; 8]; 4];
        for k in 0..depth {
            let b: &[f32; 8] = panel[k * 8..k * 8 + 8].first_chunk().unwrap_or(&[0.0; 8]);
            for (r, row) in sums.iter_mut().enumerate() {
                let x = a[r * row_stride + k * column_stride];
                for (s, b) in row.iter_mut().zip(b) {
                    *s += x * b;
                }
            }
        }
        tile[..32].copy_from_slice(sums.as_flattened());
    }
}

/// 6 x 16 in twelve 256-bit registers.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Microkernel for Avx2 {
    const MR: usize = 6;
    const NR: usize = 16;

    fn run(
        isa: Isa,
        depth: usize,
        a: &[f32],
        row_stride: usize,
        column_stride: usize,
        panel: &[f32],
        tile: &mut [f32],
    ) {
        check::<Self>(depth, a, row_stride, column_stride, panel, tile);
        assert!(isa.level() >= crate::Level::Avx2);
        // SAFETY: the level proves AVX2 and FMA; `check` proved that every address the loop forms is inside
        // `a`, `panel` and `tile`.
        unsafe { avx2_6x16(depth, a.as_ptr(), row_stride, column_stride, panel.as_ptr(), tile.as_mut_ptr()) }
    }
}

/// # Safety
/// Needs AVX2 and FMA, and the bounds that [`check`] checks.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2_6x16(
    depth: usize,
    a: *const f32,
    row_stride: usize,
    column_stride: usize,
    panel: *const f32,
    tile: *mut f32,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; 6];
    // SAFETY: see the caller's contract.
    unsafe {
        let (mut a, mut b) = (a, panel);
        for _ in 0..depth {
            let b0 = _mm256_loadu_ps(b);
            let b1 = _mm256_loadu_ps(b.add(8));
            for (r, row) in sums.iter_mut().enumerate() {
                let x = _mm256_broadcast_ss(&*a.add(r * row_stride));
                row[0] = _mm256_fmadd_ps(x, b0, row[0]);
                row[1] = _mm256_fmadd_ps(x, b1, row[1]);
            }
            a = a.wrapping_add(column_stride);
            b = b.add(16);
        }
        for (r, row) in sums.iter().enumerate() {
            _mm256_storeu_ps(tile.add(r * 16), row[0]);
            _mm256_storeu_ps(tile.add(r * 16 + 8), row[1]);
        }
    }
}

/// 12 x 32 in twenty-four 512-bit registers.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Microkernel for Avx512 {
    const MR: usize = 12;
    const NR: usize = 32;

    fn run(
        isa: Isa,
        depth: usize,
        a: &[f32],
        row_stride: usize,
        column_stride: usize,
        panel: &[f32],
        tile: &mut [f32],
    ) {
        check::<Self>(depth, a, row_stride, column_stride, panel, tile);
        assert!(isa.level() >= crate::Level::Avx512);
        // SAFETY: the level proves AVX-512F; `check` proved the bounds.
        unsafe {
            avx512_12x32(depth, a.as_ptr(), row_stride, column_stride, panel.as_ptr(), tile.as_mut_ptr())
        }
    }
}

/// # Safety
/// Needs AVX-512F, and the bounds that [`check`] checks.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_12x32(
    depth: usize,
    a: *const f32,
    row_stride: usize,
    column_stride: usize,
    panel: *const f32,
    tile: *mut f32,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; 12];
    // SAFETY: see the caller's contract.
    unsafe {
        let (mut a, mut b) = (a, panel);
        for _ in 0..depth {
            let b0 = _mm512_loadu_ps(b);
            let b1 = _mm512_loadu_ps(b.add(16));
            for (r, row) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * row_stride));
                row[0] = _mm512_fmadd_ps(x, b0, row[0]);
                row[1] = _mm512_fmadd_ps(x, b1, row[1]);
            }
            a = a.wrapping_add(column_stride);
            b = b.add(32);
        }
        for (r, row) in sums.iter().enumerate() {
            _mm512_storeu_ps(tile.add(r * 32), row[0]);
            _mm512_storeu_ps(tile.add(r * 32 + 16), row[1]);
        }
    }
}
