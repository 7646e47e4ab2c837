//! Hints to the caches. They change nothing but time, so any address is allowed.

/// Asks for the cache line of `address`, which will be read.
#[inline(always)]
pub(crate) fn read<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    let _ = address;
}

/// Words of a cache line.
pub(crate) const LINE: usize = 16;

/// Asks for the cache line of `address`, which will be read soon, but not before much else: the second cache, L2, is near enough.
#[inline(always)]
pub(crate) fn read_soon<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    let _ = address;
}

/// Asks for the cache line of `address`, which will be written.
#[inline(always)]
pub(crate) fn write<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(address.cast());
    }
    let _ = address;
}
