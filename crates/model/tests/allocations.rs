//! A training step in the steady state takes its buffers from the pool: what it still allocates is bookkeeping.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use strata_model::{Batch, Config, Decoder, Mixing, Training};
use strata_tensor::{AdamW, Cpu, Isa, Precision};

struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    BYTES.fetch_add(bytes, Ordering::Relaxed);
    LARGEST.fetch_max(bytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_steady_training_step_allocates_nothing_but_bookkeeping() {
    let (sequence, rows) = (128, 8);
    let config = Config {
        vocab_size: 512,
        width: 64,
        layers: 2,
        heads: 2,
        kv_heads: 2,
        head_dim: 32,
        ffn: 160,
        max_positions: sequence,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: false,
        bos: None,
        eos: vec![],
        mixing: Mixing::default(),
    };
    let tokens: Vec<u32> = (0..rows * sequence).map(|i| (i * 7919 % 512) as u32).collect();
    let weights = vec![1.0; tokens.len()];
    let starts: Vec<u32> = (0..rows).map(|row| (row * sequence) as u32).collect();
    let batch = Batch { tokens: &tokens, targets: &tokens, weights: &weights, starts: &starts };
    for precision in [Precision::F32, Precision::Bf16] {
        let cpu = Cpu::new(Isa::best(), 2).unwrap();
        let decoder = Decoder::new(&config, 1).unwrap();
        let mut training = Training::new(decoder, cpu, precision, AdamW::default());
        let mut step = || {
            training.loss_and_gradients(batch, tokens.len() as f32).unwrap();
            let norm = training.gradient_norm();
            assert!(norm > 0.0);
            training.optimizer_step(1e-3, 1.0);
        };
        // Which thread takes which piece changes, and each thread has memory of its own that grows at first.
        (0..8).for_each(|_| step());
        BYTES.store(0, Ordering::Relaxed);
        LARGEST.store(0, Ordering::Relaxed);
        step();
        let (bytes, largest) = (BYTES.load(Ordering::Relaxed), LARGEST.load(Ordering::Relaxed));
        eprintln!("{precision:?}: {bytes} bytes in a step, {largest} at once");
        // The smallest buffer of activations (tokens x width) is 128 KiB in bf16. What is left are lists of pieces of
        // work, the tokens that the embedding's gradient needs (4 KiB), and the tape's own nodes.
        assert!(largest <= 16 << 10, "{precision:?}: {largest} bytes at once");
        assert!(bytes <= 256 << 10, "{precision:?}: {bytes} bytes in a step");
    }
}
