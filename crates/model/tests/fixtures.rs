//! The decoder against reference checkpoints: logits, greedy continuations, gradients and training losses that
//! PyTorch and transformers gave for them.

use serde_json::Value;
use std::path::PathBuf;
use strata_model::{Batch, Decoder, Inference, Input, Training, Wanted};
use strata_tensor::{AdamW, Cpu, Isa, Precision};

fn shared() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").to_string();
    let path = PathBuf::from(std::env::var("STRATA_SHARED").unwrap_or(default)).join("fixtures");
    if !path.is_dir() {
        eprintln!("SKIPPED: no fixtures at {}", path.display());
        return None;
    }
    Some(path)
}

fn json(path: PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

#[test]
fn reference_checkpoints_give_their_logits_and_greedy_continuations() {
    let Some(shared) = shared() else { return };
    for family in ["llama", "llama3", "mamba2"] {
        let folder = shared.join("hf").join(family);
        let decoder = Decoder::load(&folder).unwrap();
        let vocabulary = decoder.config().vocab_size;
        let expected = json(folder.join("expected.json"));
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2).unwrap();
            let inference = Inference::new(decoder.clone(), &cpu);
            for sequence in expected["sequences"].as_array().unwrap() {
                let ids = tokens(&sequence["input_ids"]);
                let mut state = inference.new_state();
                let mut input = [Input { state: &mut state, tokens: &ids }];
                let logits = inference.step(&cpu, &mut input, Wanted::All).unwrap();
                let best: Vec<u32> = logits.chunks(vocabulary).map(argmax).collect();
                assert_eq!(best, tokens(&sequence["argmax"]), "{family}");
                let last = &logits[logits.len() - vocabulary..];
                for (got, expected) in last.iter().zip(floats(&sequence["last_logits"])) {
                    // The fixture's own tolerance for f32 logits.
                    let difference = (*got as f64 - expected).abs();
                    assert!(difference <= 2e-3, "{family} on {isa:?}: {got} not {expected}");
                }
                let mut next = argmax(last);
                let mut cached = vec![next];
                while cached.len() < 24 {
                    let mut input = [Input { state: &mut state, tokens: &[next] }];
                    next = argmax(&inference.step(&cpu, &mut input, Wanted::Last).unwrap());
                    cached.push(next);
                }
                assert_eq!(cached, tokens(&sequence["greedy"]), "{family} with a cache");
                let mut whole = ids.clone();
                while whole.len() < ids.len() + 24 {
                    let mut fresh = inference.new_state();
                    let mut input = [Input { state: &mut fresh, tokens: &whole }];
                    whole.push(argmax(&inference.step(&cpu, &mut input, Wanted::Last).unwrap()));
                }
                assert_eq!(whole[ids.len()..], cached, "{family} recomputed");
            }
        }
    }
}

/// The fixture's two sequences, packed: inputs without the last token, targets without the first.
fn batch(fixture: &Value) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let (mut inputs, mut targets, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for ids in fixture["input_ids"].as_array().unwrap() {
        let ids = tokens(ids);
        starts.push(inputs.len() as u32);
        inputs.extend_from_slice(&ids[..ids.len() - 1]);
        targets.extend_from_slice(&ids[1..]);
    }
    (inputs, targets, starts)
}

#[test]
fn f32_training_reproduces_the_gradients_and_ten_losses_of_pytorch() {
    let Some(shared) = shared() else { return };
    for family in ["llama", "mamba2"] {
        reproduces_the_training(&shared, family);
    }
}

fn reproduces_the_training(shared: &std::path::Path, family: &str) {
    let fixture = json(shared.join(format!("train/{family}.json")));
    let decoder = Decoder::load(&shared.join("hf").join(family)).unwrap();
    let (inputs, targets, starts) = batch(&fixture);
    let weights = vec![1.0; inputs.len()];
    let batch = Batch { tokens: &inputs, targets: &targets, weights: &weights, starts: &starts };
    let count = inputs.len() as f32;
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2).unwrap();
        let optimizer = AdamW { betas: (0.9, 0.95), epsilon: 1e-8, weight_decay: 0.1 };
        let mut training = Training::new(decoder.clone(), cpu, Precision::F32, optimizer);
        for (step, expected) in floats(&fixture["ten_losses"]).into_iter().enumerate() {
            let loss = training.loss_and_gradients(batch, count).unwrap() / count as f64;
            let relative = (loss - expected).abs() / expected;
            assert!(relative <= 1e-3, "{isa:?}: loss {loss} of step {step}, expected {expected}");
            let norm = training.gradient_norm();
            if step == 0 {
                let expected = fixture["gradient_norm"].as_f64().unwrap();
                assert!(
                    (norm - expected).abs() <= 1e-4 * expected,
                    "gradient norm {norm}, expected {expected}"
                );
                check_gradients(&training, &fixture["gradients"]);
            }
            training.optimizer_step(1e-3, (1.0 / norm).min(1.0) as f32);
        }
    }
}

/// Relative to the largest element or the norm: single elements near zero are differences of larger numbers.
fn check_gradients(training: &Training, expected: &Value) {
    let tensors = training.decoder().named(training.gradients());
    assert_eq!(tensors.len(), expected.as_object().unwrap().len());
    for tensor in tensors {
        let expected = &expected[&tensor.name];
        let norm = tensor.data.iter().map(|&g| (g as f64).powi(2)).sum::<f64>().sqrt();
        let expected_norm = expected["norm"].as_f64().unwrap();
        assert!((norm - expected_norm).abs() <= 1e-4 * expected_norm, "{}: norm {norm}", tensor.name);
        let sum = tensor.data.iter().map(|&g| g as f64).sum::<f64>();
        let difference = (sum - expected["sum"].as_f64().unwrap()).abs();
        assert!(difference <= 1e-4 * expected_norm, "{}: sum {sum}", tensor.name);
        let largest = tensor.data.iter().fold(0.0f32, |m, g| m.max(g.abs())) as f64;
        let (first, last) = (floats(&expected["first"]), floats(&expected["last"]));
        let tail = &tensor.data[tensor.data.len() - last.len()..];
        for (got, expected) in tensor.data.iter().zip(&first).chain(tail.iter().zip(&last)) {
            assert!(
                (*got as f64 - expected).abs() <= 1e-4 * largest,
                "{}: {got} not {expected}",
                tensor.name
            );
        }
    }
}
