//! Speed of the tiled matrix product of bf16 on one thread, as a share of the peak measured in the same run:
//! `cargo run --release -p strata-kernels --example tile_matmul`, and the name of an instruction set if not the widest.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use strata_kernels::peak::peak_flops_bf16;
use strata_kernels::tiles::{Bf16Unit, MatmulOutput, Scratch, matmul_bf16, matmul_packed, pack_b};
use strata_kernels::{Isa, MatrixRef};

/// Seconds for each measurement.
const SECONDS: f64 = 0.3;

fn main() {
    let isa = std::env::args().nth(1).map_or(Ok(Isa::best()), |name| Isa::by_name(&name));
    let isa = isa.unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2)
    });
    let Some(unit) = isa.bf16_unit() else {
        println!("nothing to measure: no fast products of bf16; {}", Isa::amx_status());
        return;
    };
    let peak = (0..20).map(|_| peak_flops_bf16(isa, SECONDS / 20.0)).fold(0.0, f64::max);
    println!("peak {:.2} TFLOP/s on one thread", peak / 1e12);
    println!("{:>6} {:>6} {:>6}  forward packed  forward  input gradient  weight gradient", "m", "k", "n");
    for (m, k, n) in [
        (256, 384, 384),
        (512, 384, 384),
        (512, 384, 1024),
        (512, 1024, 384),
        (512, 384, 8192),
        (2048, 2048, 2048),
        (16, 2048, 2048),
    ] {
        let shares = measure(isa, unit, m, k, n).map(|flops| 100.0 * flops / peak);
        let [packed, forward, input, weight] = shares;
        println!("{m:>6} {k:>6} {n:>6}  {packed:>12.1} % {forward:>6.1} % {input:>13.1} % {weight:>14.1} %");
    }
}

/// Operations per second of Y = X·Wᵀ with packed and plain W, dX = dY·W, and dW += dYᵀ·X.
fn measure(isa: Isa, unit: Bf16Unit, m: usize, k: usize, n: usize) -> [f64; 4] {
    let (x, w, dy) = (ones(m * k), ones(n * k), ones(m * n));
    let (x, w, dy) = (MatrixRef::new(&x, m, k), MatrixRef::new(&w, n, k), MatrixRef::new(&dy, m, n));
    let packed = pack_b(isa, w.transposed());
    let mut scratch = Scratch::new();
    let (mut y, mut dx, mut dw) = (ones(m * n), ones(m * k), vec![0.0f32; n * k]);
    let operations = 2.0 * m as f64 * k as f64 * n as f64;
    let mut plain = |a, b, c: &mut [bf16], stride| view(unit, a, b, c, stride, false, &mut scratch);
    let forward = rate(operations, || plain(x, w.transposed(), &mut y, n));
    let input = rate(operations, || plain(dy, w, &mut dx, k));
    let weight = rate(operations, || view(unit, dy.transposed(), x, &mut dw, k, true, &mut scratch));
    let packed = rate(operations, || matmul_packed(unit, x, &packed, &mut y, n, false, &mut scratch));
    [packed, forward, input, weight]
}

fn view<C: MatmulOutput>(
    unit: Bf16Unit,
    a: MatrixRef<bf16>,
    b: MatrixRef<bf16>,
    c: &mut [C],
    stride: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    matmul_bf16(unit, a, b, black_box(c), stride, accumulate, scratch);
}

fn ones(len: usize) -> Vec<bf16> {
    vec![bf16::ONE; len]
}

/// Of the fastest call: others were disturbed by whoever else uses the machine.
fn rate(operations: f64, mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut fastest = f64::INFINITY;
    while start.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        work();
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    operations / fastest
}
