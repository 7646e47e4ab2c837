//! `strata bench decode`: how fast text is written and prompts are read, and what of the machine that takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use strata_model::{Inference, Input, State, Wanted};
use strata_train::plan::matmul_parameters;

use super::bench::{PEAK_SECONDS, Shape};
use super::{print_json, print_line};
use crate::failure::BadInput;
use crate::machine::{Place, WeightsArgument, read_bandwidth};
use crate::show::thousands;

/// Arguments of `strata bench decode`.
#[derive(Args)]
pub struct DecodeBench {
    #[command(flatten)]
    shape: Shape,
    /// Tokens that are decoded per sequence; the rest of --seq is the prompt
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Sequences that are decoded together
    #[arg(long, default_value_t = 1)]
    batch: usize,
    #[command(flatten)]
    weights: WeightsArgument,
}

/// Runs that are timed at least, and for how long at least; the middle one counts.
const ROUNDS: usize = 3;
const LEAST: Duration = Duration::from_secs(1);

/// Runs the command.
pub fn run(bench: &DecodeBench, place: &Place) -> Result<()> {
    let config = bench.shape.config()?;
    let count = bench.tokens.min(bench.shape.seq.saturating_sub(1));
    if count == 0 {
        return Err(BadInput("--tokens and --seq leave nothing to decode".into()).into());
    }
    if bench.batch == 0 {
        return Err(BadInput("--batch must be at least 1".into()).into());
    }
    let machine = &place.machine;
    let before = read_bandwidth(machine, PEAK_SECONDS);
    let model = Inference::made_up(&config, &machine.cpu, bench.weights.format())?;
    let prompt = bench.shape.tokens(bench.shape.seq - count);
    let step = |states: &mut [State], tokens: &[u32]| -> Result<()> {
        let mut inputs: Vec<_> = states.iter_mut().map(|state| Input { state, tokens }).collect();
        model.step(&machine.cpu, &mut inputs, Wanted::Last)?;
        Ok(())
    };
    let (mut reading, mut writing) = (Vec::new(), Vec::new());
    // The first round brings everything into memory and is not counted.
    let begun = Instant::now();
    while reading.len() <= ROUNDS || begun.elapsed() < LEAST {
        let mut state = [model.new_state()];
        let started = Instant::now();
        step(&mut state, &prompt)?;
        reading.push(prompt.len() as f64 / started.elapsed().as_secs_f64());
        let copy = |_| state[0].prefix(usize::MAX).context("a prompt leaves a state that can be copied");
        let mut states = (0..bench.batch).map(copy).collect::<Result<Vec<State>>>()?;
        let started = Instant::now();
        for token in bench.shape.tokens(count) {
            step(&mut states, &[token])?;
        }
        writing.push(count as f64 / started.elapsed().as_secs_f64());
    }
    // Other guests of a virtual machine's host use its memory too: what it gives changes.
    let bandwidth = (before + read_bandwidth(machine, PEAK_SECONDS)) / 2.0;
    let (prompt_rate, steps_per_second) = (middle(&mut reading[1..]), middle(&mut writing[1..]));
    let tokens_per_second = steps_per_second * bench.batch as f64;
    // Every weight of a matrix product is read once per step, whatever the batch.
    let bytes_per_step = model.weight_bytes() as f64;
    let read = bytes_per_step * steps_per_second;
    let operations = prompt_rate * 2.0 * matmul_parameters(&config);
    if bench.shape.json {
        return print_json(&json!({
            "tokens_per_second": tokens_per_second,
            "prompt_tokens_per_second": prompt_rate,
            "prompt_tokens": prompt.len(),
            "batch": bench.batch,
            "weights": bench.weights.name().name(),
            "bytes_per_token": bytes_per_step / bench.batch as f64,
            "bytes_per_step": bytes_per_step,
            "read_bytes_per_second": read,
            "read_bandwidth": bandwidth,
            "bandwidth_share": read / bandwidth,
            "prompt_tflops": operations / 1e12,
            "isa": machine.cpu.isa().name(),
            "threads": machine.cpu.threads(),
        }));
    }
    print_line(&format!(
        "{} tokens/s decoded, {} tokens/s of prompt read ({:.2} TFLOP/s); weights in {} read at {:.1} GB/s, {:.0} % of \
         the {:.1} GB/s that {} threads read from memory",
        thousands(tokens_per_second),
        thousands(prompt_rate),
        operations / 1e12,
        bench.weights.name().name(),
        read / 1e9,
        100.0 * read / bandwidth,
        bandwidth / 1e9,
        machine.cpu.threads(),
    ))
}

fn middle(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
