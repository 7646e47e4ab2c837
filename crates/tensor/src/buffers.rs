//! A pool of buffers, so that a training step in the steady state allocates nothing: fresh pages cost more
//! than the arithmetic of a small model.

use crate::parameters::Activation;
use strata_kernels::bf16;
use strata_kernels::buffer::vec_with_capacity;

/// Buffers that wait to be used again.
#[derive(Default, Debug)]
pub struct Buffers {
    f32: Vec<Vec<f32>>,
    bf16: Vec<Vec<bf16>>,
}

impl Buffers {
    /// An empty pool.
    pub fn new() -> Buffers {
        Buffers::default()
    }

    /// A buffer of `length` elements with arbitrary contents.
    pub fn take<E: Activation>(&mut self, length: usize) -> Vec<E> {
        let free = E::free(self);
        let best =
            (0..free.len()).filter(|&i| free[i].capacity() >= length).min_by_key(|&i| free[i].capacity());
        let mut buffer = match best {
            Some(i) if free[i].capacity() <= 2 * length.max(1024) => free.swap_remove(i),
            _ => vec_with_capacity(length),
        };
        buffer.resize(length, E::default());
        buffer
    }

    /// A buffer of `length` zeros.
    pub fn zeroed<E: Activation>(&mut self, length: usize) -> Vec<E> {
        let mut buffer = self.take(length);
        buffer.fill(E::default());
        buffer
    }

    /// Gives a buffer back.
    pub fn give<E: Activation>(&mut self, buffer: Vec<E>) {
        if buffer.capacity() > 0 {
            E::free(self).push(buffer);
        }
    }

    pub(crate) fn f32_list(&mut self) -> &mut Vec<Vec<f32>> {
        &mut self.f32
    }

    pub(crate) fn bf16_list(&mut self) -> &mut Vec<Vec<bf16>> {
        &mut self.bf16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_given_back_is_used_again() {
        let mut buffers = Buffers::new();
        let first: Vec<f32> = buffers.take(5000);
        let address = first.as_ptr();
        buffers.give(first);
        let again: Vec<f32> = buffers.zeroed(4000);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again.len(), 4000);
        buffers.give(again);
        let small: Vec<f32> = buffers.take(10);
        assert_ne!(small.as_ptr(), address, "a large buffer is not spent on a small need");
    }
}
