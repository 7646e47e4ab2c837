//! `strata bench`

use std::time::Instant;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use strata_data::Batch;
use strata_model::mixers::Letter;
use strata_model::{Config, Decoder, Training};
use strata_tensor::AdamW;
use strata_train::Learner;
use strata_train::plan::{Overrides, flops_per_token, shape_of_width};

use super::bench_attention::AttentionBench;
use super::bench_decode::DecodeBench;
use super::bench_growth::GrowthBench;
use super::bench_matmul::MatmulBench;
use super::{print_json, print_line};
use crate::failure::BadInput;
use crate::machine::{Place, peak_flops};
use crate::show::thousands;

/// Arguments of `strata bench`.
#[derive(Args)]
#[command(after_help = "Example:\n  strata bench train --json")]
pub struct BenchArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Full training steps: forward, backward, clipping, AdamW.
    #[command(after_help = "Example:\n  strata bench train --width 256 --layers 4 --heads 4 --ffn 704")]
    Train(TrainBench),
    /// The matrix products of a training step, each alone.
    #[command(after_help = "Example:\n  strata bench matmul --rows 8192")]
    Matmul(MatmulBench),
    /// Attention alone, forward and backward, over sequences of growing length.
    #[command(after_help = "Example:\n  strata bench attention --lengths 512,2048")]
    Attention(AttentionBench),
    /// Training steps as models get wider and sequences longer.
    #[command(after_help = "Example:\n  strata bench growth --plot growth")]
    Growth(GrowthBench),
    /// Decoding token by token, one sequence or many together.
    #[command(
        after_help = "Example:\n  strata bench decode --weights int8\n  strata bench decode --batch 32"
    )]
    Decode(DecodeBench),
    /// A server with many clients.
    #[command(after_help = "Example:\n  strata bench serve --model demo-dialogue --clients 1,32")]
    Serve(super::bench_serve::ServeBench),
}

#[derive(Args)]
pub struct Shape {
    /// Width of the residual stream
    #[arg(long, default_value_t = 384)]
    width: usize,
    /// Number of blocks
    #[arg(long, default_value_t = 6)]
    layers: usize,
    /// Attention heads per block
    #[arg(long, default_value_t = 6)]
    heads: usize,
    /// Width of the inner layer
    #[arg(long, default_value_t = 1024)]
    ffn: usize,
    /// Size of the vocabulary
    #[arg(long, default_value_t = 8192)]
    vocab: usize,
    /// Tokens per sequence
    #[arg(long, default_value_t = 512)]
    pub seq: usize,
    /// What mixes the sequence, as in `strata train base`; blocks of ssm alone have no inner layer
    #[arg(long, default_value = "attention", value_parser = super::train::mixer)]
    pub mixer: String,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
struct TrainBench {
    #[command(flatten)]
    shape: Shape,
    /// Sequences per step
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Steps that are timed, after two that are not
    #[arg(long, default_value_t = 10)]
    steps: usize,
}

/// Seconds for which a rate of the machine is measured.
pub const PEAK_SECONDS: f64 = 0.5;
/// Seconds for which the peak is measured between two steps.
const STEP_PEAK_SECONDS: f64 = 0.05;

/// Runs the command.
pub fn run(arguments: BenchArguments, place: &Place) -> Result<()> {
    match arguments.what {
        What::Train(bench) => train(&bench, place),
        What::Matmul(bench) => super::bench_matmul::run(&bench, place),
        What::Attention(bench) => super::bench_attention::run(&bench, place),
        What::Growth(bench) => super::bench_growth::run(&bench, place),
        What::Decode(bench) => super::bench_decode::run(&bench, place),
        What::Serve(bench) => super::bench_serve::run(&bench, place),
    }
}

impl Shape {
    /// As a configuration.
    pub fn config(&self) -> Result<Config> {
        let bad = |text: &str| Err(BadInput(text.to_string()).into());
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            return bad("--heads must divide --width");
        }
        if self.seq == 0 {
            return bad("--seq must be at least 1");
        }
        let mut overrides = Overrides {
            mixer: Some(self.mixer.clone()),
            width: Some(self.width),
            layers: Some(self.layers),
            tied: Some(false),
            ..Overrides::default()
        };
        let mixing = overrides.mixing(self.width)?;
        if mixing.has(Letter::Attention, self.layers) {
            overrides.heads = Some(self.heads);
        }
        if !mixing.is_all(Letter::Ssm, self.layers) {
            overrides.ffn = Some(self.ffn);
        }
        let config = shape_of_width(self.width, self.seq, self.vocab, &overrides)?;
        config.check(std::path::Path::new("the shape given"))?;
        Ok(config)
    }

    /// Tokens that look random, the same in every run.
    pub fn tokens(&self, count: usize) -> Vec<u32> {
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            Some(((*state >> 33) % self.vocab as u64) as u32)
        };
        std::iter::successors(Some(1u64), |_| None)
            .flat_map(|seed| {
                let mut state = seed;
                std::iter::from_fn(move || next(&mut state))
            })
            .take(count)
            .collect()
    }
}

fn train(bench: &TrainBench, place: &Place) -> Result<()> {
    let config = bench.shape.config()?;
    if bench.batch == 0 || bench.steps == 0 {
        return Err(BadInput("--batch and --steps must be at least 1".into()).into());
    }
    let machine = &place.machine;
    let count = bench.batch * bench.shape.seq;
    let mut tokens = bench.shape.tokens(count + 1);
    let targets = tokens[1..].to_vec();
    tokens.truncate(count);
    let starts = (0..bench.batch).map(|row| (row * bench.shape.seq) as u32).collect();
    let batch = Batch { tokens, targets, weights: vec![1.0; count], starts, bytes: 0 };
    let flops = flops_per_token(&config, bench.shape.seq);
    let mut training =
        Training::new(Decoder::new(&config, 1)?, machine.cpu.clone(), machine.precision, AdamW::default());
    let learner: &mut dyn Learner = &mut training;
    let mut step = || -> Result<f64> {
        let loss = learner.loss_and_gradients(&batch, count as f32)?;
        let norm = learner.gradient_norm();
        learner.optimizer_step(1e-4, if norm > 1.0 { 1.0 / norm } else { 1.0 });
        Ok(loss / count as f64)
    };
    let start = place.started.elapsed().as_secs_f64();
    for _ in 0..2 {
        step()?;
    }
    // Every step is compared with the peak right before and after it: a shared machine's speed changes within seconds.
    let (mut seconds, mut utilisation, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let mut before = peak_flops(machine, STEP_PEAK_SECONDS);
    let mut loss = 0.0;
    for _ in 0..bench.steps {
        let started = Instant::now();
        loss = step()?;
        let elapsed = started.elapsed().as_secs_f64();
        let after = peak_flops(machine, STEP_PEAK_SECONDS);
        let peak = (before + after) / 2.0;
        before = after;
        utilisation.push(count as f64 * flops / elapsed / peak);
        seconds.push(elapsed);
        peaks.push(peak);
    }
    let (seconds, utilisation, peak) = (median(seconds), median(utilisation), median(peaks));
    let tokens_per_second = count as f64 / seconds;
    let reached = tokens_per_second * flops;
    let memory = peak_memory();
    if bench.shape.json {
        return print_json(&json!({
            "tokens_per_second": tokens_per_second,
            "tflops": reached / 1e12,
            "peak_tflops": peak / 1e12,
            "utilisation": utilisation,
            "isa": machine.cpu.isa().name(),
            "precision": format!("{:?}", machine.precision).to_lowercase(),
            "threads": machine.cpu.threads(),
            "peak_memory_bytes": memory,
            "parameters": config.parameter_count(),
            "flops_per_token": flops,
            "loss": loss,
            "steps": bench.steps,
            "seconds_per_step": seconds,
            "seconds_to_first_step": start,
        }));
    }
    print_line(&format!(
        "{} tokens/s, {:.3} of {:.3} TFLOP/s ({:.1} %) with {} on {} threads, {} MB of memory at most",
        thousands(tokens_per_second),
        reached / 1e12,
        peak / 1e12,
        100.0 * utilisation,
        machine.cpu.isa().name(),
        machine.cpu.threads(),
        memory.map_or("?".to_string(), |bytes| (bytes >> 20).to_string())
    ))
}

/// The middle value; the upper one of two.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The most memory this process held at once, where the system tells (`VmHWM` of Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}
