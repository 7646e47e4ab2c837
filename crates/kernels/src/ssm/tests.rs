//! The scan and its gradients against the recurrence in float64.

use super::*;
use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};
use crate::{BlockMut, Isa};

const P: usize = 3;
const N: usize = 5;
const HEADS: usize = 2;
const WIDTH: usize = HEADS * P;

/// x, b, c, raw, a, d, bias.
type Inputs = [Vec<f32>; 7];

fn inputs(random: &mut Random, tokens: usize) -> Inputs {
    let mut make = |n: usize| random.elements::<f32>(n);
    let (x, b, c, raw) = (make(tokens * WIDTH), make(tokens * N), make(tokens * N), make(tokens * HEADS));
    let a = vec![-0.05, -1.5];
    [x, b, c, raw, a, make(HEADS), vec![-2.0, 0.3]]
}

fn scan(inputs: &Inputs) -> Scan<'_, f32> {
    let [x, b, c, raw, a, d, bias] = inputs;
    let tokens = x.len() / WIDTH;
    Scan {
        x: MatrixRef::new(x, tokens, WIDTH),
        b: MatrixRef::new(b, tokens, N),
        c: MatrixRef::new(c, tokens, N),
        raw: MatrixRef::new(raw, tokens, HEADS),
        decay: Decay { a, d, bias, limits: (0.02, 1.0) },
    }
}

fn reference(inputs: &[Vec<f64>; 7]) -> Vec<f64> {
    let [x, b, c, raw, a, d, bias] = inputs;
    let tokens = x.len() / WIDTH;
    let mut y = vec![0.0; x.len()];
    let mut h = vec![0.0; WIDTH * N];
    for t in 0..tokens {
        for i in 0..WIDTH {
            let head = i / P;
            let dt = (raw[t * HEADS + head] + bias[head]).exp().ln_1p().clamp(0.02, 1.0);
            let decay = (dt * a[head]).exp();
            let x = x[t * WIDTH + i];
            let mut sum = d[head] * x;
            for n in 0..N {
                let h = &mut h[i * N + n];
                *h = decay * *h + dt * x * b[t * N + n];
                sum += *h * c[t * N + n];
            }
            y[t * WIDTH + i] = sum;
        }
    }
    y
}

#[test]
fn the_chunked_scan_and_the_steps_equal_the_float64_recurrence_around_chunk_borders() {
    let mut random = Random::new(21);
    for isa in Isa::available_or_trapped() {
        for tokens in [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK + 7] {
            let inputs = inputs(&mut random, tokens);
            let expected = reference(&inputs.each_ref().map(|values| to_f64(values)));
            let mut y = vec![f32::NAN; tokens * WIDTH];
            ssm_scan_forward(isa, scan(&inputs), &mut BlockMut::new(&mut y, WIDTH));
            // States of magnitude ten; chunks and recurrence add in other orders.
            assert_all_close(&y, &expected, 1e-5, 1e-5, "y");
            let mut state = vec![0.0; WIDTH * N];
            let mut stepped = vec![f32::NAN; tokens * WIDTH];
            ssm_steps(isa, scan(&inputs), &mut state, &mut BlockMut::new(&mut stepped, WIDTH));
            assert_all_close(&stepped, &expected, 1e-5, 1e-5, "stepped y");
        }
    }
}

#[test]
fn the_gradients_of_the_scan_equal_the_float64_differences() {
    let mut random = Random::new(22);
    for tokens in [3, CHUNK + 5, 2 * CHUNK + 2] {
        let inputs = inputs(&mut random, tokens);
        let wide = inputs.each_ref().map(|values| to_f64(values));
        let d_y: Vec<f32> = random.elements(tokens * WIDTH);
        let expected: Vec<Vec<f64>> = (0..7)
            .map(|i| {
                numeric_gradient(&wide[i], &d_y, |values| {
                    let mut moved = wide.clone();
                    moved[i] = values.to_vec();
                    reference(&moved)
                })
            })
            .collect();
        for isa in Isa::available_or_trapped() {
            let (mut x, mut raw) = (vec![f32::NAN; tokens * WIDTH], vec![f32::NAN; tokens * HEADS]);
            let (mut b, mut c) = (vec![f32::NAN; tokens * N], vec![f32::NAN; tokens * N]);
            let (mut a, mut d, mut bias) = (vec![0.0; HEADS], vec![0.0; HEADS], vec![0.0; HEADS]);
            let gradients = ScanGradients {
                x: &mut BlockMut::new(&mut x, WIDTH),
                b: &mut BlockMut::new(&mut b, N),
                c: &mut BlockMut::new(&mut c, N),
                raw: &mut BlockMut::new(&mut raw, HEADS),
                a: &mut a,
                d: &mut d,
                bias: &mut bias,
            };
            let d_y = MatrixRef::new(&d_y, tokens, WIDTH);
            ssm_scan_backward(isa, scan(&inputs), d_y, gradients);
            let names = ["x", "b", "c", "raw", "a", "d", "bias"];
            for ((got, expected), name) in [x, b, c, raw, a, d, bias].iter().zip(&expected).zip(names) {
                // Sums of up to 130 tokens in f32; those of the decays cancel.
                let largest = expected.iter().fold(1.0f64, |m, e| m.max(e.abs()));
                assert_all_close(got, expected, 2e-5 * largest, 1e-4, name);
            }
        }
    }
}

#[test]
fn pieces_of_a_sequence_give_the_bits_of_the_whole() {
    let inputs = inputs(&mut Random::new(23), 20);
    for isa in Isa::available_or_trapped() {
        let run = |cuts: &[usize]| {
            let (mut state, mut y, mut start) = (vec![0.0; WIDTH * N], vec![0.0; 20 * WIDTH], 0);
            for &end in cuts {
                let piece = &mut y[start * WIDTH..end * WIDTH];
                let scan = scan(&inputs);
                ssm_steps(isa, scan.chunk(start..end), &mut state, &mut BlockMut::new(piece, WIDTH));
                start = end;
            }
            y
        };
        assert_eq!(run(&[20]), run(&[1, 2, 7, 19, 20]), "{isa:?}");
    }
}
