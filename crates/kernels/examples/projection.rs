//! Speed of products with packed weights, as prompts and batches need them, on one thread, as a share of the peak of f32
//! measured in the same run: `cargo run --release -p strata-kernels --example projection`, and the name of an instruction set if not the
//! widest.

use std::time::Instant;

use strata_kernels::peak::peak_flops_f32;
use strata_kernels::projection::{PackedWeight, Rows, WeightFormat, fill_panels};
use strata_kernels::{BlockMut, Isa};

/// Seconds for each measurement.
const SECONDS: f64 = 0.3;

fn main() {
    let isa = std::env::args().nth(1).map_or(Ok(Isa::best()), |name| Isa::by_name(&name));
    let isa = isa.unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2)
    });
    let peak = (0..20).map(|_| peak_flops_f32(isa, SECONDS / 20.0)).fold(0.0, f64::max);
    println!("peak of f32 {:.3} TFLOP/s on one thread", peak / 1e12);
    println!("{:>6} {:>6} {:>7} {:>8} {:>8} {:>8}", "rows", "inputs", "outputs", "f32", "bf16", "int8");
    for (rows, inputs, outputs) in [
        (448, 384, 1152),
        (448, 1024, 384),
        (16, 128, 384),
        (32, 384, 2048),
        (12, 384, 1152),
        (4, 384, 1152),
        (1, 384, 1152),
        (448, 2048, 2048),
    ] {
        let [f32, bf16, int8] = [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8]
            .map(|format| 100.0 * measure(isa, format, rows, inputs, outputs) / peak);
        println!("{rows:>6} {inputs:>6} {outputs:>7} {f32:>6.0} % {bf16:>6.0} % {int8:>6.0} %");
    }
}

/// Operations per second of the fastest call.
fn measure(isa: Isa, format: WeightFormat, rows: usize, inputs: usize, outputs: usize) -> f64 {
    let mut weight = PackedWeight::zeros(isa, format, outputs, inputs);
    let whole = 0..weight.panels();
    let elements = vec![1.0; outputs * inputs];
    for piece in weight.pieces_mut(std::slice::from_ref(&whole)) {
        fill_panels(isa, format, &elements, inputs, piece);
    }
    let mut words = vec![0; rows * weight.row_words()];
    weight.prepare(&vec![1.0; rows * inputs], &mut words);
    let mut y = vec![0.0; rows * outputs];
    let start = Instant::now();
    let mut fastest = f64::INFINITY;
    while start.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        weight.project(Rows::Prepared(&words), whole.clone(), &mut BlockMut::new(&mut y, outputs));
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    2.0 * (rows * inputs * outputs) as f64 / fastest
}
