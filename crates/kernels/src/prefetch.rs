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

/// Where to ask from and how many words to go on with each step, for `words` to come line by line; `near`, which is there already,
/// where there are none.
#[inline(always)]
pub(crate) fn line_by_line(words: &[u32], near: &[u32]) -> (*const u32, usize) {
    if words.is_empty() { (near.as_ptr(), 0) } else { (words.as_ptr(), LINE) }
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
