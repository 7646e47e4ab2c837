//! What a sequence gives does not depend on the company it is read in.

use strata_model::{
    Config, Decoder, Inference, Input, Mixing, ModelError, Positions, SsmShape, Wanted, WeightFormat,
};
use strata_tensor::{Cpu, Isa};

/// Every mixer alone, two together, and attention within a window, with ALiBi and without positions.
const PATTERNS: [&str; 10] = ["A", "S", "L", "D", "N", "SA", "A window", "A alibi", "A none", "SA window"];

fn config(tied: bool) -> Config {
    mixed("A", tied)
}

fn mixed(pattern: &str, tied: bool) -> Config {
    let ssm = SsmShape { head_dim: 8, state: 10, groups: 2, ..SsmShape::default() };
    let bare = pattern == "S";
    let (letters, kind) = pattern.split_once(' ').unwrap_or((pattern, ""));
    let positions = match kind {
        "alibi" => Positions::Alibi,
        "none" => Positions::None,
        _ => Positions::Rotary,
    };
    let window = (kind == "window").then_some(11);
    Config {
        vocab_size: 203,
        width: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        ffn: if bare { 0 } else { 100 },
        max_positions: 128,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied,
        bos: None,
        eos: vec![],
        mixing: Mixing { pattern: letters.into(), ssm, s4d_states: 6, positions, window },
    }
}

const FORMATS: [WeightFormat; 3] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8];

fn inference(tied: bool, cpu: &Cpu, format: WeightFormat) -> Inference {
    Inference::with_format(Decoder::new(&config(tied), 7).unwrap(), cpu, format)
}

/// Numbers that look random, the same in every run.
fn numbers(seed: u64) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(seed), |state| {
        Some(state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407))
    })
    .skip(1)
    .map(|state| (state >> 33) as usize)
}

fn prompt(seed: u64, length: usize) -> Vec<u32> {
    numbers(seed).map(|n| (n % 203) as u32).take(length).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|l| l.is_finite()));
    logits.iter().map(|l| l.to_bits()).collect()
}

/// Logits after every token, read one by one and alone.
fn alone(model: &Inference, cpu: &Cpu, tokens: &[u32]) -> Vec<u32> {
    let mut state = model.new_state();
    let step = |token| {
        let mut input = [Input { state: &mut state, tokens: std::slice::from_ref(token) }];
        bits(&model.step(cpu, &mut input, Wanted::Last).unwrap())
    };
    tokens.iter().flat_map(step).collect()
}

#[test]
fn logits_have_the_same_bits_alone_in_ragged_batches_and_for_any_pieces_and_threads() {
    for isa in Isa::available() {
        let each = PATTERNS.into_iter().enumerate().flat_map(|(index, pattern)| {
            let formats = if index < 4 { &FORMATS[..] } else { &FORMATS[..1] };
            formats.iter().map(move |&format| (index, pattern, format))
        });
        for (index, pattern, format) in each {
            let one = Cpu::new(isa, 1).unwrap();
            let decoder = Decoder::new(&mixed(pattern, index % 2 == 0), 7).unwrap();
            let model = Inference::with_format(decoder, &one, format);
            let prompts: Vec<Vec<u32>> = (0..17).map(|i| prompt(i, 20 + 5 * i as usize)).collect();
            let expected: Vec<Vec<u32>> = prompts.iter().map(|tokens| alone(&model, &one, tokens)).collect();
            for (threads, wanted) in [(1, Wanted::All), (2, Wanted::All), (3, Wanted::Last)] {
                let cpu = Cpu::new(isa, threads).unwrap();
                let mut random = numbers(threads as u64);
                let mut states: Vec<_> = prompts.iter().map(|_| model.new_state()).collect();
                loop {
                    // Every sequence that has tokens left brings some, or rests.
                    let mut inputs = Vec::new();
                    let mut at = Vec::new();
                    for (i, (state, tokens)) in states.iter_mut().zip(&prompts).enumerate() {
                        let (start, choice) = (state.len(), random.next().unwrap());
                        let longest = if choice % 3 == 0 { 40 } else { 1 };
                        let end = tokens.len().min(start + 1 + choice / 8 % longest);
                        if start < end && choice % 5 != 0 {
                            inputs.push(Input { state, tokens: &tokens[start..end] });
                            at.push((i, start..end));
                        }
                    }
                    let logits = model.step(&cpu, &mut inputs, wanted).unwrap();
                    let mut rows = logits.chunks(203);
                    for (i, range) in at {
                        let read = if wanted == Wanted::All { range } else { range.end - 1..range.end };
                        for position in read {
                            let expected = &expected[i][position * 203..][..203];
                            let got = bits(rows.next().unwrap());
                            assert!(
                                got == expected,
                                "{isa:?}, {pattern}, {format:?}: sequence {i} at {position}, {threads} threads"
                            );
                        }
                    }
                    assert!(rows.next().is_none());
                    if states.iter().zip(&prompts).all(|(state, tokens)| state.len() == tokens.len()) {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_long_prompt_at_once_has_the_same_bits_as_token_by_token_for_any_number_of_threads() {
    for (isa, format) in Isa::available().into_iter().flat_map(|isa| FORMATS.map(|format| (isa, format))) {
        for (index, pattern) in PATTERNS.into_iter().enumerate() {
            let one = Cpu::new(isa, 1).unwrap();
            let decoder = Decoder::new(&mixed(pattern, index % 2 == 0), 7).unwrap();
            let model = Inference::with_format(decoder, &one, format);
            // More rows than one block for each of three threads.
            let tokens = prompt(3, 127);
            let expected = alone(&model, &one, &tokens);
            for (threads, length) in [(1, 127), (2, 127), (2, 31), (2, 32), (3, 127), (3, 47), (3, 48)] {
                let (cpu, mut state) = (Cpu::new(isa, threads).unwrap(), model.new_state());
                let mut input = [Input { state: &mut state, tokens: &tokens[..length] }];
                let got = bits(&model.step(&cpu, &mut input, Wanted::All).unwrap());
                assert!(
                    got == expected[..length * 203],
                    "{isa:?}, {pattern}, {format:?}: {threads}, {length}"
                );
            }
        }
    }
}

#[test]
fn a_cut_state_goes_on_as_if_the_rest_had_never_been_read() {
    for pattern in ["A", "A alibi", "A none"] {
        cut_states_go_on(pattern);
    }
}

fn cut_states_go_on(pattern: &str) {
    let cpu = Cpu::new(Isa::best(), 1).unwrap();
    for format in FORMATS {
        let decoder = Decoder::new(&mixed(pattern, true), 7).unwrap();
        let model = Inference::with_format(decoder, &cpu, format);
        // Two layers of 50 keys and values of 24 elements, narrow where they are in a cache beside narrow weights.
        let elements = match format {
            WeightFormat::Int8 if pattern == "A" && cpu.isa().attends_in_fp16() => 4,
            WeightFormat::Bf16 | WeightFormat::Int8 if pattern == "A" => 2,
            _ => 1,
        };
        assert_eq!(model.state_bytes(50), 2 * 2 * 50 * 24 * 4 / elements, "{pattern} {format:?}");
        cut_and_go_on(&model, &cpu);
    }
}

fn cut_and_go_on(model: &Inference, cpu: &Cpu) {
    let tokens = prompt(3, 50);
    let mut state = model.new_state();
    model.step(cpu, &mut [Input { state: &mut state, tokens: &tokens }], Wanted::Last).unwrap();
    assert!(state.bytes() >= model.state_bytes(50));
    for cut in [40, 33, 32, 1] {
        assert_eq!(state.reach(cut), cut);
        let mut prefix = state.prefix(cut).unwrap();
        assert!(prefix.bytes() <= state.bytes());
        assert_eq!(prefix.len(), cut);
        let mut input = [Input { state: &mut prefix, tokens: &tokens[cut..] }];
        let logits = bits(&model.step(cpu, &mut input, Wanted::Last).unwrap());
        assert!(logits == alone(model, cpu, &tokens)[49 * 203..], "cut at {cut}");
    }
}

#[test]
fn a_state_of_fixed_size_is_had_whole_or_not_at_all() {
    let cpu = Cpu::new(Isa::best(), 1).unwrap();
    for pattern in ["S", "L", "D", "SA", "A window", "SA window"] {
        let model = Inference::new(Decoder::new(&mixed(pattern, true), 7).unwrap(), &cpu);
        let tokens = prompt(3, 50);
        let mut state = model.new_state();
        model.step(&cpu, &mut [Input { state: &mut state, tokens: &tokens[..40] }], Wanted::Last).unwrap();
        assert_eq!((state.reach(39), state.reach(40), state.reach(100)), (0, 40, 40), "{pattern}");
        assert!(state.prefix(39).is_none());
        let bytes = state.bytes();
        if pattern != "SA" {
            assert_eq!(bytes, model.new_state().bytes(), "{pattern} holds the same after 40 tokens");
            assert_eq!(bytes, model.state_bytes(1 << 20), "{pattern}");
            assert!(model.context() > 100_000, "{pattern}");
        }
        for mut state in [state.prefix(40).unwrap(), state] {
            let mut input = [Input { state: &mut state, tokens: &tokens[40..] }];
            let logits = bits(&model.step(&cpu, &mut input, Wanted::Last).unwrap());
            assert!(logits == alone(&model, &cpu, &tokens)[49 * 203..], "{pattern}");
        }
    }
}

#[test]
fn a_step_reads_all_of_its_sequences_or_none() {
    let cpu = Cpu::new(Isa::best(), 1).unwrap();
    let model = inference(false, &cpu, WeightFormat::F32);
    let other = Inference::new(Decoder::new(&Config { layers: 3, ..config(false) }, 1).unwrap(), &cpu);
    let (mut good, mut bad, mut foreign) = (model.new_state(), model.new_state(), other.new_state());
    let good_tokens = [1, 2, 3];
    for tokens in [&[][..], &[5, 203], &[0; 129]] {
        let mut inputs =
            [Input { state: &mut good, tokens: &good_tokens }, Input { state: &mut bad, tokens }];
        let result = model.step(&cpu, &mut inputs, Wanted::Last);
        assert!(matches!(result, Err(ModelError::Batch(_))), "{result:?}");
        assert!(good.is_empty() && bad.is_empty());
    }
    let mut inputs = [Input { state: &mut foreign, tokens: &good_tokens }];
    let message = model.step(&cpu, &mut inputs, Wanted::Last).unwrap_err().to_string();
    assert!(message.contains("another model"), "{message}");
    assert!(model.step(&cpu, &mut [], Wanted::All).unwrap().is_empty());
}

#[test]
fn narrow_weights_give_nearly_the_logits_of_f32() {
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2).unwrap();
        let logits = |format| {
            let model = inference(false, &cpu, format);
            let mut state = model.new_state();
            let tokens = prompt(5, 60);
            model.step(&cpu, &mut [Input { state: &mut state, tokens: &tokens }], Wanted::All).unwrap()
        };
        let exact = logits(WeightFormat::F32);
        let size = (exact.iter().map(|l| l * l).sum::<f32>() / exact.len() as f32).sqrt();
        for (format, limit) in [(WeightFormat::Bf16, 0.02), (WeightFormat::Int8, 0.04)] {
            let narrow = logits(format);
            let squares: f32 = exact.iter().zip(&narrow).map(|(a, b)| (a - b) * (a - b)).sum();
            let error = (squares / exact.len() as f32).sqrt() / size;
            // Roundings of weights and inputs (each at most 0.4 % of a value in bf16; in int8 up to 1/254 of a group's
            // largest, one percent of a typical value), a dozen products deep.
            assert!(error <= limit && error > 1e-5, "{isa:?} {format:?}: {error}");
        }
    }
}

#[test]
fn a_made_up_model_decodes_and_repeats_itself() {
    let cpu = Cpu::new(Isa::best(), 2).unwrap();
    for (format, tied) in FORMATS.into_iter().flat_map(|format| [(format, false), (format, true)]) {
        let model = || Inference::made_up(&config(tied), &cpu, format).unwrap();
        assert_eq!(alone(&model(), &cpu, &[1, 2, 3]), alone(&model(), &cpu, &[1, 2, 3]));
        // 203 x 48 of the head, and per layer 96 x 48, 48 x 48, 200 x 48 and 48 x 100, with what panels are filled up with.
        let elements = 203 * 48 + 2 * (96 * 48 + 48 * 48 + 200 * 48 + 48 * 100);
        let bytes = match format {
            WeightFormat::F32 => 4 * elements,
            WeightFormat::Bf16 => 2 * elements,
            WeightFormat::Int8 => elements,
        };
        assert!((bytes..bytes * 3 / 2).contains(&model().weight_bytes()), "{format:?}");
    }
}
