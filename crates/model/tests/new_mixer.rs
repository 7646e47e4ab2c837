//! The mixer that `docs/new-mixer.md` adds, by the steps of that page alone: it compiles against what the crate shows,
//! learns, decodes what it learnt, and packs.

use std::sync::Arc;
use strata_model::mixers::{
    AnyMixer, CacheFormat, Carried, Kind, Mixer, Packed, Piece, Start, Step, Weight, Whole,
};
use strata_model::{Batch, Config, Decoder, Inference, Input, Mixing, Training, Wanted};
use strata_tensor::recurrent::{self, Carrying, Filter};
use strata_tensor::{Activation, AdamW, Cpu, Isa, Precision, Tape, Var, infer};

/// Looks at the last few tokens, each channel by itself: a projection, a short convolution, a projection back.
#[derive(Debug)]
struct Short {
    width: usize,
    taps: usize,
}

impl Mixer for Short {
    fn weights(&self) -> Vec<Weight> {
        let (width, taps) = (self.width, self.taps);
        vec![
            Weight::projection("mixer.in_proj.weight", width, width, Start::Normal),
            Weight {
                shape: (width, taps),
                kind: Kind::Table,
                tensors: vec![("mixer.filter", vec![width, taps])],
                start: Start::Normal,
            },
            Weight::vector("mixer.bias", width, Start::Fill(0.0)),
            Weight::projection("mixer.out_proj.weight", width, width, Start::Residual),
        ]
    }

    fn forward<E: Activation>(&self, tape: &mut Tape<'_, E>, whole: &Whole<'_>) -> Var {
        let &[input, filter, bias, output] = whole.weights else { unreachable!("four weights") };
        let projected = tape.linear(whole.x, input);
        let mixed = tape.conv_silu(projected, 0..self.width, filter, bias, whole.starts);
        tape.linear_residual(mixed, output, whole.residual)
    }

    fn new_state(&self, _: Isa, _: CacheFormat) -> Carried {
        Carried::Fixed(vec![0.0; (self.taps - 1) * self.width])
    }

    fn step(&self, cpu: &Cpu, weights: &[Packed], step: Step<'_, '_>) {
        let mut projected = step.buffers.take::<f32>(step.x.len());
        infer::project(cpu, step.x, weights[0].projection(), step.words, &mut projected);
        let mut sequences = Vec::new();
        for Piece { carried, new, .. } in step.pieces.iter_mut() {
            sequences.push(Carrying { new: *new, state: carried.fixed() });
        }
        let filter = Filter { weight: weights[1].plain(), bias: weights[2].plain() };
        let mut mixed = step.buffers.take::<f32>(step.x.len());
        recurrent::conv_silu(cpu, &projected, self.width, 0..self.width, filter, sequences, &mut mixed);
        let wanted = step.keep_wanted(&mut mixed, self.width);
        infer::project(cpu, &mixed[..wanted * self.width], weights[3].projection(), step.words, step.y);
        step.buffers.give(projected);
        step.buffers.give(mixed);
    }

    fn state_bytes(&self, _: usize, _: CacheFormat) -> usize {
        (self.taps - 1) * self.width * size_of::<f32>()
    }

    fn flops(&self, _: usize) -> f64 {
        2.0 * (self.taps * self.width) as f64
    }
}

const VOCABULARY: usize = 16;

fn decoder() -> Decoder {
    let config = Config {
        vocab_size: VOCABULARY,
        width: 24,
        layers: 2,
        heads: 0,
        kv_heads: 0,
        head_dim: 0,
        ffn: 32,
        max_positions: 64,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: false,
        bos: None,
        eos: vec![],
        mixing: Mixing { pattern: "N".into(), ..Mixing::default() },
    };
    let short: Arc<dyn AnyMixer> = Arc::new(Short { width: 24, taps: 3 });
    Decoder::with_mixers(&config, vec![short.clone(), short], 1).unwrap()
}

/// What follows is the sum of the last two, which no token tells by itself.
fn sequence(mut last: (u32, u32), length: usize) -> Vec<u32> {
    let mut next = || {
        last = (last.1, (last.0 + last.1) % VOCABULARY as u32);
        last.1
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn the_mixer_of_the_page_learns_what_needs_mixing_and_decodes_it() {
    let cpu = Cpu::new(Isa::best(), 2).unwrap();
    let decoder = decoder();
    let names: Vec<String> = decoder.tensors().into_iter().map(|tensor| tensor.name).collect();
    assert!(names.contains(&"model.layers.1.mixer.filter".to_string()), "{names:?}");
    for precision in [Precision::F32, Precision::Bf16] {
        let mut training = Training::new(decoder.clone(), cpu.clone(), precision, AdamW::default());
        let (mut inputs, mut targets, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for seed in 1..20 {
            let tokens = sequence((seed, 2 * seed + 1), 33);
            starts.push(inputs.len() as u32);
            inputs.extend_from_slice(&tokens[..32]);
            targets.extend_from_slice(&tokens[1..]);
        }
        // The first token of a segment says nothing about the next one.
        let weights: Vec<f32> = (0..inputs.len()).map(|i| if i % 32 == 0 { 0.0 } else { 1.0 }).collect();
        let batch = Batch { tokens: &inputs, targets: &targets, weights: &weights, starts: &starts };
        let count: f32 = weights.iter().sum();
        for _ in 0..150 {
            training.loss_and_gradients(batch, count).unwrap();
            training.optimizer_step(1e-2, 1.0);
        }
        let loss = training.loss(batch).unwrap() / f64::from(count);
        // Without mixing, 16 next tokens are about as likely: 2.8 nats.
        assert!(loss < 0.3, "{precision:?}: {loss}");

        let model = Inference::new(training.into_decoder(), &cpu);
        let expected = sequence((1, 3), 20);
        let mut state = model.new_state();
        let mut read = |tokens: &[u32]| {
            let mut input = [Input { state: &mut state, tokens }];
            let logits = model.step(&cpu, &mut input, Wanted::Last).unwrap();
            (0..VOCABULARY).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
        };
        let mut written = expected[..2].to_vec();
        written.push(read(&expected[..2]));
        while written.len() < 20 {
            let next = read(&written[written.len() - 1..]);
            written.push(next);
        }
        assert_eq!(written, expected, "{precision:?}");
    }
}
