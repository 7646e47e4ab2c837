//! Memory for packed operands, aligned for whole cache lines and, when large, in huge pages.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes of a cache line, of a tile row and of the widest vector.
const LINE_BYTES: usize = 64;
/// Bytes of a huge page on x86-64 and on aarch64 with 4 KiB pages.
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// From this size a buffer gets huge pages. Below it most of a huge page would be unused.
const HUGE_PAGE_FROM_BYTES: usize = 512 << 10;

/// A growable run of bytes that starts on a cache line. From 512 KiB on it starts on a 2 MiB border and
/// asks for transparent huge pages: with 4 KiB pages the misses of address translation cost a tile
/// matmul a third of its speed and more.
pub struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the buffer owns its memory alone, like a `Vec<u8>`.
unsafe impl Send for Buffer {}
// SAFETY: shared references give only shared access to the bytes.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer without memory.
    pub const fn new() -> Self {
        Buffer { start: NonNull::<Line>::dangling().cast(), layout: Layout::new::<()>() }
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Whether no memory is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes room for at least `bytes`. When the buffer grows its contents become zeros; otherwise
    /// they stay.
    pub fn reserve(&mut self, bytes: usize) {
        if bytes <= self.len() {
            return;
        }
        let align = if bytes >= HUGE_PAGE_FROM_BYTES { HUGE_PAGE_BYTES } else { LINE_BYTES };
        let layout = Layout::from_size_align(bytes, align).map(|layout| layout.pad_to_align());
        let Ok(layout) = layout else { panic!("{bytes} bytes are more than the address space holds") };
        *self = Buffer::new();
        // SAFETY: the layout has a size above zero, because `bytes` is above the current length.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        if align == HUGE_PAGE_BYTES {
            ask_for_huge_pages(start, layout.size());
        }
        // SAFETY: `start` is valid for writes of the whole layout, which was just allocated.
        unsafe { start.as_ptr().write_bytes(0, layout.size()) };
        *self = Buffer { start, layout };
    }

    /// All of it as f32.
    pub fn floats(&self) -> &[f32] {
        // SAFETY: the buffer holds that many initialised bytes, aligned for f32; every bit pattern is an f32.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() / 4) }
    }

    /// All of it as f32, for writing.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the buffer is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() / 4) }
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer holds that many initialised bytes.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    /// All of it as words of 32 bits.
    pub fn words(&self) -> &[u32] {
        // SAFETY: as for `floats`; every bit pattern is a u32.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() / 4) }
    }

    /// All of it as words of 32 bits, for writing.
    pub fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, and the buffer is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() / 4) }
    }

    /// The first byte; a multiple of 64.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The first byte, for writing; a multiple of 64.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Words as the f32 of the same bits, for writing.
pub(crate) fn as_floats_mut(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: both types have four bytes and the same alignment, every bit pattern is valid for both, and the words are
    // borrowed alone.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// f32 as words of the same bits.
pub(crate) fn as_words(floats: &[f32]) -> &[u32] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), floats.len()) }
}

/// f32 as words of the same bits, for writing.
fn as_words_mut(floats: &mut [f32]) -> &mut [u32] {
    // SAFETY: as above, and they are borrowed alone.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A vector of f32 that starts on a cache line and keeps its contents when it grows.
#[derive(Clone, Debug)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    pub(crate) const fn new() -> Lines {
        Lines(Vec::new())
    }

    /// Makes it `length` long, or a little more; what is new is zero.
    pub(crate) fn resize(&mut self, length: usize) {
        self.0.resize(length.div_ceil(16), Line([0.0; 16]));
    }

    /// Makes room for `length` elements.
    pub(crate) fn reserve(&mut self, length: usize) {
        self.0.reserve(length.div_ceil(16).saturating_sub(self.0.len()));
    }

    /// The first `length` elements; grows where there are fewer.
    pub(crate) fn at_least(&mut self, length: usize) -> &mut [f32] {
        if self.0.len() * 16 < length {
            self.resize(length);
        }
        &mut self.floats_mut()[..length]
    }

    /// As [`Lines::at_least`], as words of 32 bits.
    pub(crate) fn words_at_least(&mut self, length: usize) -> &mut [u32] {
        as_words_mut(self.at_least(length))
    }

    /// All of it as words of 32 bits.
    pub(crate) fn words(&self) -> &[u32] {
        as_words(self.floats())
    }

    /// All of it as words of 32 bits, for writing.
    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        as_words_mut(self.floats_mut())
    }

    /// A copy of the beginning, `length` elements or a little more, with room for `room` elements in all.
    pub(crate) fn prefix(&self, length: usize, room: usize) -> Lines {
        let mut copy = Vec::with_capacity(room.max(length).div_ceil(16));
        copy.extend_from_slice(&self.0[..length.div_ceil(16)]);
        Lines(copy)
    }

    /// Bytes that are held, used or not.
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * LINE_BYTES
    }

    pub(crate) fn floats(&self) -> &[f32] {
        // SAFETY: a `Line` is sixteen f32 without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the vector is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// A vector with room for `capacity` elements, in huge pages where it is large and the system has some.
pub fn vec_with_capacity<T>(capacity: usize) -> Vec<T> {
    let mut vec: Vec<T> = Vec::with_capacity(capacity);
    let bytes = vec.capacity() * size_of::<T>();
    if bytes >= 2 * HUGE_PAGE_BYTES {
        let start = vec.as_mut_ptr().cast::<u8>();
        // Only whole huge pages inside the vector.
        let skipped = start.align_offset(HUGE_PAGE_BYTES);
        let whole = bytes.saturating_sub(skipped) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        if let Some(start) = NonNull::new(start.wrapping_add(skipped)).filter(|_| whole > 0) {
            ask_for_huge_pages(start, whole);
        }
    }
    vec
}

/// A vector of `length` times `value`, in huge pages where it is large and the system has some.
pub fn filled_vec<T: Copy>(length: usize, value: T) -> Vec<T> {
    let mut vec = vec_with_capacity(length);
    vec.resize(length, value);
    vec
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: NonNull<u8>, bytes: usize) {
    // SAFETY: the range was just allocated and belongs to the caller; the advice changes how it is backed,
    // not what it holds. A refusal costs speed only, so the result is not looked at.
    unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_start: NonNull<u8>, _bytes: usize) {}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.is_empty() {
            // SAFETY: a buffer with a size was allocated by `reserve` with this very layout.
            unsafe { dealloc(self.start.as_ptr(), self.layout) };
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::new()
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("bytes", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_any_size_hold_what_they_were_filled_with() {
        for length in [0, 1, 1000, (4 << 20) / 4, (9 << 20) / 4 + 1] {
            let vec = filled_vec(length, 3.0f32);
            assert!(vec.len() == length && vec.iter().all(|&v| v == 3.0));
        }
    }

    #[test]
    fn buffers_are_aligned_zeroed_and_keep_their_contents_when_large_enough() {
        let mut buffer = Buffer::new();
        assert!(buffer.is_empty());
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        for bytes in [1, 100, 4096, (512 << 10) + 1, 5 << 20] {
            buffer.reserve(bytes);
            assert!(buffer.len() >= bytes);
            let align = if bytes < 512 << 10 { 64 } else { 2 << 20 };
            assert_eq!(buffer.as_ptr() as usize % align, 0);
            // SAFETY: the buffer holds at least `bytes` initialised bytes.
            let contents = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), bytes) };
            assert!(contents.iter().all(|&byte| byte == 0));
            contents.fill(7);
            buffer.reserve(bytes / 2);
            // SAFETY: as above; `reserve` with less than the length changes nothing.
            assert_eq!(unsafe { *buffer.as_ptr().add(bytes - 1) }, 7);
        }
    }
}
