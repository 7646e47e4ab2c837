//! `strata bench attention`: attention alone, forward and backward.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use strata_kernels::attention::{Attention, AttentionSaved, Sight, attention_backward, attention_forward};
use strata_kernels::{BlockMut, Element, Isa, bf16};
use strata_tensor::{Heads, Precision, RotaryTable};

use super::bench::median;
use super::{print_json, print_line};
use crate::failure::BadInput;
use crate::machine::{Place, peak_flops};

/// Arguments of `strata bench attention`.
#[derive(Args)]
pub struct AttentionBench {
    /// Tokens per sequence, one or more lengths
    #[arg(long, value_delimiter = ',', default_values_t = [512, 1024, 2048, 4096])]
    lengths: Vec<usize>,
    /// Elements of a head, even
    #[arg(long, default_value_t = 64)]
    head: usize,
    /// Times that each length is measured
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Seconds of the peak before and after each measurement.
const PEAK_SECONDS: f64 = 0.05;
/// Tokens that a thread computes per measurement, at least one sequence.
const TOKENS: usize = 16_384;

/// Runs the command.
pub fn run(bench: &AttentionBench, place: &Place) -> Result<()> {
    if bench.lengths.iter().any(|length| !(1..=1 << 16).contains(length)) {
        return Err(BadInput("--lengths must be from 1 to 65536".into()).into());
    }
    if bench.head < 2 || !bench.head.is_multiple_of(2) || bench.head > 1024 || bench.repeats == 0 {
        return Err(BadInput("--head must be even, from 2 to 1024, and --repeats at least 1".into()).into());
    }
    let machine = &place.machine;
    let mut results = Vec::new();
    for &length in &bench.lengths {
        let (mut rates, mut shares) = (Vec::new(), Vec::new());
        let mut before = peak_flops(machine, PEAK_SECONDS);
        for repeat in 0..=bench.repeats {
            let rate = match machine.precision {
                Precision::F32 => measure::<f32>(place, bench.head, length),
                Precision::Bf16 => measure::<bf16>(place, bench.head, length),
            };
            let after = peak_flops(machine, PEAK_SECONDS);
            // The first one allocates.
            if repeat > 0 {
                rates.push(rate);
                shares.push(rate / ((before + after) / 2.0));
            }
            before = after;
        }
        let (rate, share) = (median(rates), median(shares));
        if !bench.json {
            print_line(&format!(
                "{length:>6} tokens, heads of {:<4} {:.3} TFLOP/s  {:3.0} % of the peak",
                bench.head,
                rate / 1e12,
                100.0 * share
            ))?;
        }
        results.push(json!({"length": length, "tflops": rate / 1e12, "utilisation": share}));
    }
    let (isa, threads) = (machine.cpu.isa().name(), machine.cpu.threads());
    if bench.json {
        return print_json(&json!({
            "head": bench.head, "isa": isa, "threads": threads, "lengths": results,
            "precision": format!("{:?}", machine.precision).to_lowercase(),
        }));
    }
    print_line(&format!("{isa} on {threads} threads, forward and backward, operations counted as causal"))
}

/// Operations per second of all threads, each with sequences of its own. A causal pair of tokens costs two products of
/// `head` elements forward and four backward.
fn measure<E: Element>(place: &Place, head: usize, length: usize) -> f64 {
    let (cpu, sequences) = (&place.machine.cpu, (TOKENS / length).max(1));
    let heads = Heads { heads: 1, key_value_heads: 1, dimension: head };
    let frequencies: Vec<f64> = (0..head / 2).map(|i| 1e4f64.powf(-(2.0 * i as f64) / head as f64)).collect();
    let table = RotaryTable::new(&frequencies, length);
    let value = |i: usize| E::from_f32((i * 7919 % 251) as f32 / 125.0 - 1.0);
    let qkv: Vec<E> = (0..length * heads.row()).map(value).collect();
    let work = |()| {
        let mut output = vec![E::default(); length * head];
        let mut gradients = vec![vec![E::default(); length * head]; 3];
        let mut log_sums = vec![0.0; length];
        let started = Instant::now();
        for _ in 0..sequences {
            let attention = Attention { heads, table: Some(&table), sight: Sight::ALL };
            once(cpu.isa(), attention, &qkv, &mut output, &mut log_sums, &mut gradients);
        }
        started.elapsed().as_secs_f64()
    };
    let slowest = cpu.map(vec![(); cpu.threads()], work).into_iter().fold(0.0, f64::max);
    let operations = 6.0 * head as f64 * length as f64 * length as f64;
    operations * (sequences * cpu.threads()) as f64 / slowest
}

fn once<E: Element>(
    isa: Isa,
    attention: Attention<'_>,
    qkv: &[E],
    output: &mut [E],
    log_sums: &mut [f32],
    gradients: &mut [Vec<E>],
) {
    let head = attention.heads.dimension;
    attention_forward(
        isa,
        attention,
        0,
        qkv,
        &mut BlockMut::new(output, head),
        &mut BlockMut::new(log_sums, 1),
    );
    let d_output = &qkv[..output.len()];
    let saved = AttentionSaved { qkv, output, d_output, log_sums };
    let [queries, keys, values] = gradients else { return };
    let [mut queries, mut keys, mut values] = [queries, keys, values].map(|g| BlockMut::new(g, head));
    attention_backward(isa, attention, 0, saved, &mut queries, &mut keys, &mut values);
}
