//! The world's source of chance: one seed and one label give one stream, on every machine.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// FNV-1a, 64 bits (Fowler, Noll and Vo). Stable across releases, unlike the standard library's hasher.
pub(super) fn fnv1a(bytes: &[u8], start: u64) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325 ^ start, |hash, &byte| (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3))
}

/// A repeatable stream of choices.
#[derive(Clone, Debug)]
pub(super) struct Random(ChaCha8Rng);

impl Random {
    /// The stream called `label` of the world with this seed.
    pub fn new(seed: u64, label: &str) -> Self {
        Self(ChaCha8Rng::seed_from_u64(fnv1a(label.as_bytes(), seed)))
    }

    /// A whole number in `0..limit`. Drawn as `u32`, so that 32-bit machines agree with 64-bit ones.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit as u32) as usize
    }

    /// A whole number in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True in half of the cases.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// One of the items.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// `count` items from different positions, in random order.
    pub fn pick_distinct<T: Copy>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut taken: Vec<usize> = Vec::with_capacity(count);
        while taken.len() < count {
            let index = self.below(items.len());
            if !taken.contains(&index) {
                taken.push(index);
            }
        }
        taken.into_iter().map(|index| items[index]).collect()
    }

    /// Puts the items in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
