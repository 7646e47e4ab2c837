//! `strata bench matmul`: the products of a training step, each alone.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use strata_kernels::{Element, MatrixMut, MatrixRef, Store, bf16, matmul};
use strata_tensor::{Cpu, Isa, Precision};

use super::{print_json, print_line};
use crate::failure::BadInput;
use crate::machine::{Place, peak_flops};

/// Arguments of `strata bench matmul`.
#[derive(Args)]
pub struct MatmulBench {
    /// Tokens: rows of the activations
    #[arg(long, default_value_t = 4096)]
    rows: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 384)]
    width: usize,
    /// Width of the inner layer
    #[arg(long, default_value_t = 1024)]
    ffn: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Which of the three products of a linear layer.
#[derive(Clone, Copy)]
enum Form {
    /// `y = x · Wᵀ`
    Forward,
    /// `dx = dy · W`
    InputGradient,
    /// `dW += dyᵀ · x`
    WeightGradient,
}

const FORMS: [(Form, &str); 3] = [
    (Form::Forward, "forward"),
    (Form::InputGradient, "input gradient"),
    (Form::WeightGradient, "weight gradient"),
];
/// Seconds that each product is repeated for.
const SECONDS: f64 = 0.3;

/// Runs the command.
pub fn run(bench: &MatmulBench, place: &Place) -> Result<()> {
    if [bench.rows, bench.width, bench.ffn].iter().any(|size| !(1..=1 << 16).contains(size)) {
        return Err(BadInput("--rows, --width and --ffn must be from 1 to 65536".into()).into());
    }
    let machine = &place.machine;
    let peak = peak_flops(machine, SECONDS);
    let mut results = Vec::new();
    for (name, inputs, outputs) in [
        ("qkv", bench.width, 3 * bench.width),
        ("output", bench.width, bench.width),
        ("gate and up", bench.width, 2 * bench.ffn),
        ("down", bench.ffn, bench.width),
    ] {
        for (form, form_name) in FORMS {
            let rate = match machine.precision {
                Precision::F32 => measure::<f32>(&machine.cpu, form, bench.rows, inputs, outputs),
                Precision::Bf16 => measure::<bf16>(&machine.cpu, form, bench.rows, inputs, outputs),
            };
            if !bench.json {
                print_line(&format!(
                    "{name:12} {:>6} x {:<6} {form_name:16} {:.3} TFLOP/s  {:3.0} % of the peak",
                    inputs,
                    outputs,
                    rate / 1e12,
                    100.0 * rate / peak
                ))?;
            }
            results.push(json!({
                "layer": name, "inputs": inputs, "outputs": outputs, "form": form_name,
                "tflops": rate / 1e12, "utilisation": rate / peak,
            }));
        }
    }
    let (isa, threads) = (machine.cpu.isa().name(), machine.cpu.threads());
    if bench.json {
        return print_json(&json!({
            "rows": bench.rows, "peak_tflops": peak / 1e12, "isa": isa, "threads": threads,
            "amx": Isa::amx_status().to_string(), "products": results,
        }));
    }
    print_line(&format!("{isa} on {threads} threads; {}", Isa::amx_status()))
}

/// Operations per second of one product over `rows` tokens, shared out as a training step does.
fn measure<E: Element>(cpu: &Cpu, form: Form, rows: usize, inputs: usize, outputs: usize) -> f64 {
    let values = |n: usize| (0..n).map(|i| E::from_f32((i % 13) as f32 / 13.0 - 0.5)).collect::<Vec<E>>();
    let (x, weight, d_y) = (values(rows * inputs), values(outputs * inputs), values(rows * outputs));
    let (result_rows, result_columns) = match form {
        Form::Forward => (rows, outputs),
        Form::InputGradient => (rows, inputs),
        Form::WeightGradient => (outputs, inputs),
    };
    let mut narrow = values(result_rows * result_columns);
    let mut wide = vec![0.0f32; if matches!(form, Form::WeightGradient) { outputs * inputs } else { 0 }];
    let once = |narrow: &mut [E], wide: &mut [f32]| {
        let share = cpu.ranges(result_rows, 96).first().map_or(1, |range| range.len());
        let x = MatrixRef::new(&x, rows, inputs);
        let weight = MatrixRef::new(&weight, outputs, inputs);
        let d_y = MatrixRef::new(&d_y, rows, outputs);
        if let Form::WeightGradient = form {
            let items = wide.chunks_mut(share * inputs).enumerate().collect();
            cpu.for_each(items, |(i, piece)| {
                let range = i * share..(i * share + piece.len() / inputs);
                let out = MatrixMut::new(piece, range.len(), inputs);
                matmul(cpu.isa(), d_y.transposed().row_range(range), x, out, Store::Accumulate);
            });
            return;
        }
        let (a, b) = match form {
            Form::Forward => (x, weight.transposed()),
            _ => (d_y, weight),
        };
        let items = narrow.chunks_mut(share * result_columns).enumerate().collect();
        cpu.for_each(items, |(i, piece)| {
            let range = i * share..(i * share + piece.len() / result_columns);
            let out = MatrixMut::new(piece, range.len(), result_columns);
            matmul(cpu.isa(), a.row_range(range), b, out, Store::Overwrite);
        });
    };
    once(&mut narrow, &mut wide);
    let (started, mut times) = (Instant::now(), 0);
    while times < 3 || started.elapsed().as_secs_f64() < SECONDS {
        once(&mut narrow, &mut wide);
        times += 1;
    }
    2.0 * (rows * inputs * outputs * times) as f64 / started.elapsed().as_secs_f64()
}
