//! Models whose state is of fixed size read without end: a hundred thousand tokens in the memory of the first thousand.

use strata_model::mixers::Mixing;
use strata_model::{Config, Decoder, Inference, Input, SsmShape, Wanted};
use strata_tensor::{Cpu, Isa};

const STREAMED: usize = 100_000;
const PIECE: usize = 250;

fn config(pattern: &str, window: Option<usize>) -> Config {
    let attends = pattern.contains('A');
    let heads = if attends { 2 } else { 0 };
    Config {
        vocab_size: 61,
        width: 16,
        layers: 2,
        heads,
        kv_heads: heads,
        head_dim: if attends { 8 } else { 0 },
        ffn: 32,
        max_positions: 64,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: true,
        bos: None,
        eos: Vec::new(),
        mixing: Mixing {
            pattern: pattern.into(),
            window,
            ssm: SsmShape { state: 8, head_dim: 8, groups: 1, ..SsmShape::default() },
            ..Mixing::default()
        },
    }
}

/// Bytes that this process holds; nothing where the system does not tell.
fn held() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// Both in one test: two at a time would measure each other's memory.
#[test]
fn a_hundred_thousand_tokens_take_the_memory_of_the_first_thousand() {
    let cpu = Cpu::new(Isa::best(), 1).unwrap();
    for (pattern, window) in [("S", None), ("SA", Some(32))] {
        let model = Inference::new(Decoder::new(&config(pattern, window), 3).unwrap(), &cpu);
        assert!(model.context() >= STREAMED, "{pattern}");
        let mut state = model.new_state();
        let mut first = (0, None);
        let mut logits = Vec::new();
        for start in (0..STREAMED).step_by(PIECE) {
            let tokens: Vec<u32> = (start..start + PIECE).map(|at| (at * 7919 % 61) as u32).collect();
            let mut inputs = [Input { state: &mut state, tokens: &tokens }];
            logits = model.step(&cpu, &mut inputs, Wanted::Last).unwrap();
            if start + PIECE == 1_000 {
                first = (state.bytes(), held());
            }
        }
        assert_eq!(state.len(), STREAMED);
        assert_eq!(state.bytes(), first.0, "{pattern}: the state grew");
        assert!(logits.iter().all(|logit| logit.is_finite()), "{pattern}");
        if let (Some(before), Some(after)) = (first.1, held()) {
            // A hundred thousand keys and values would be 25 MB here; 4 MiB are the allocator's own ups and downs.
            assert!(after < before + (4 << 20), "{pattern}: {before} bytes became {after}");
        }
    }
}
