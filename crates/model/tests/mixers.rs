//! Every mixer: what training computes over whole sequences is what decoding computes step by step.

use strata_model::{Batch, Config, Decoder, Inference, Input, Mixing, Positions, SsmShape, Training, Wanted};
use strata_tensor::{AdamW, Cpu, Isa, Precision};

const VOCABULARY: usize = 61;

fn config(pattern: &str, ffn: usize) -> Config {
    let (pattern, kind) = pattern.split_once(' ').unwrap_or((pattern, ""));
    let positions = if kind == "alibi" { Positions::Alibi } else { Positions::Rotary };
    let window = (kind == "window").then_some(50);
    Config {
        vocab_size: VOCABULARY,
        width: 32,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        ffn,
        max_positions: 1024,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: false,
        bos: None,
        eos: vec![],
        mixing: Mixing {
            pattern: pattern.into(),
            ssm: SsmShape { head_dim: 16, state: 16, groups: 2, ..SsmShape::default() },
            s4d_states: 16,
            positions,
            window,
        },
    }
}

const SHAPES: [(&str, usize); 9] = [
    ("A", 48),
    ("S", 0),
    ("L", 48),
    ("D", 48),
    ("N", 48),
    ("SSSA", 48),
    ("A window", 48),
    ("A alibi", 48),
    ("SSSA window", 48),
];

fn tokens(count: usize, mut state: u64) -> Vec<u32> {
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % VOCABULARY as u64) as u32
    };
    (0..count).map(|_| next()).collect()
}

/// Minus the logarithm of the probability of `target`.
fn loss(logits: &[f32], target: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&logit| (logit as f64 - largest).exp()).sum();
    sum.ln() + largest - logits[target as usize] as f64
}

/// A decoder after some steps of training, so that its mixers do something.
fn trained(config: &Config) -> Training {
    let cpu = Cpu::new(Isa::best(), 2).unwrap();
    let mut training = Training::new(Decoder::new(config, 5).unwrap(), cpu, Precision::F32, AdamW::default());
    let (inputs, targets) =
        (tokens(300, 1), tokens(300, 1)[1..].iter().copied().chain([0]).collect::<Vec<u32>>());
    let starts = [0, 7, 200];
    let batch = Batch { tokens: &inputs, targets: &targets, weights: &[1.0; 300], starts: &starts };
    let mut losses = Vec::new();
    for _ in 0..12 {
        losses.push(training.loss_and_gradients(batch, 300.0).unwrap() / 300.0);
        training.optimizer_step(3e-3, 1.0);
    }
    assert!(losses[11] < losses[0] - 0.2, "{}: {losses:?}", config.mixing.pattern);
    training
}

#[test]
fn training_and_decoding_agree_over_a_thousand_tokens_and_around_every_border() {
    for (pattern, ffn) in SHAPES {
        let mut training = trained(&config(pattern, ffn));
        let cpu = Cpu::new(Isa::best(), 2).unwrap();
        let model = Inference::new(training.decoder().clone(), &cpu);
        let inputs = tokens(1000, 9);
        let mut state = model.new_state();
        let mut input = [Input { state: &mut state, tokens: &inputs }];
        let logits = model.step(&cpu, &mut input, Wanted::All).unwrap();
        let targets = tokens(1000, 10);
        for position in [0, 1, 31, 32, 62, 63, 64, 65, 127, 128, 129, 639, 640, 998, 999] {
            let mut weights = vec![0.0; 1000];
            weights[position] = 1.0;
            let batch = Batch { tokens: &inputs, targets: &targets, weights: &weights, starts: &[0] };
            let whole = training.loss(batch).unwrap();
            let stepped = loss(&logits[position * VOCABULARY..][..VOCABULARY], targets[position]);
            // What is asked of two orders of the same f32 sums.
            assert!((whole - stepped).abs() <= 1e-4, "{pattern} at {position}: {whole} and {stepped}");
        }
    }
}

#[test]
fn packed_segments_do_not_see_each_other() {
    for (pattern, ffn) in SHAPES {
        let mut training = trained(&config(pattern, ffn));
        let (inputs, targets) = (tokens(200, 3), tokens(200, 4));
        let mut of = |inputs: &[u32], targets: &[u32], starts: &[u32]| {
            let weights = vec![1.0; inputs.len()];
            let batch = Batch { tokens: inputs, targets, weights: &weights, starts };
            training.loss(batch).unwrap()
        };
        let apart = of(&inputs[..70], &targets[..70], &[0]) + of(&inputs[70..], &targets[70..], &[0]);
        let packed = of(&inputs, &targets, &[0, 70]);
        let joined = of(&inputs, &targets, &[0]);
        assert!((apart - packed).abs() <= 1e-3, "{pattern}: {apart} and {packed}");
        assert!(pattern == "N" || (apart - joined).abs() > 1e-2, "{pattern}: {apart} and {joined}");
    }
}

#[test]
fn a_model_comes_back_from_disk_and_weights_of_another_mixer_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (pattern, ffn) in SHAPES {
        let config = config(pattern, ffn);
        let decoder = Decoder::new(&config, 3).unwrap();
        let path = folder.path().join(pattern);
        std::fs::create_dir(&path).unwrap();
        config.save(&path).unwrap();
        strata_model::write_weights(&path.join("model.safetensors"), &decoder.tensors()).unwrap();
        let back = Decoder::load(&path).unwrap();
        assert_eq!(back.tensors(), decoder.tensors(), "{pattern}");
        let (back, mixing) = (&back.config().mixing, &config.mixing);
        assert_eq!((&back.pattern, back.positions), (&mixing.pattern, mixing.positions));
        assert_eq!(back.window, mixing.window);
    }
    for (weights, pattern) in [("S", "A"), ("A", "S"), ("L", "D"), ("SSSA", "L"), ("N", "A")] {
        let path = folder.path().join(format!("{weights} as {pattern}"));
        std::fs::create_dir(&path).unwrap();
        let copy =
            |from: &str, name: &str| std::fs::copy(folder.path().join(from).join(name), path.join(name));
        copy(weights, "model.safetensors").unwrap();
        copy(pattern, "config.json").unwrap();
        let message = Decoder::load(&path).unwrap_err().to_string();
        assert!(message.contains("tensor \"") && message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn states_of_fixed_size_stream_past_the_trained_length_and_stay_what_they_are() {
    let cpu = Cpu::new(Isa::best(), 2).unwrap();
    for pattern in ["S", "SSSA window", "L", "D"] {
        let config = config(pattern, if pattern == "S" { 0 } else { 48 });
        let model = Inference::new(trained(&config).into_decoder(), &cpu);
        let mut state = model.new_state();
        let bytes = state.bytes();
        let piece = tokens(500, 6);
        // Five times the 1,024 positions of the configuration.
        for _ in 0..11 {
            let mut input = [Input { state: &mut state, tokens: &piece }];
            let logits = model.step(&cpu, &mut input, Wanted::Last).unwrap();
            assert!(logits.iter().all(|logit| logit.is_finite()), "{pattern}");
        }
        assert_eq!((state.len(), state.bytes()), (5500, bytes), "{pattern}");
    }
}
