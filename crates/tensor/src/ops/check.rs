//! Gradient checks of recorded operations against central differences.

use crate::{Buffers, Cpu, Gradients, Isa, Parameters, Tape, Var, random_values};

/// Builds a scalar from `forward` (the sum of its output times fixed random weights) and compares every
/// parameter's recorded gradient with central differences, for every instruction set and one to three threads.
pub(crate) fn parameters(start: &Parameters, tolerance: f64, forward: impl Fn(&mut Tape<'_, f32>) -> Var) {
    for isa in Isa::available() {
        for threads in [1, 3] {
            let cpu = Cpu::new(isa, threads).unwrap();
            let mut buffers = Buffers::new();
            let mut objective = |parameters: &Parameters| {
                let mut tape = Tape::new(&cpu, parameters, None, &mut buffers);
                let output = forward(&mut tape);
                let value = tape.value(output);
                let weights = random_values(99, value.len());
                value.iter().zip(&weights).map(|(v, w)| (v * w) as f64).sum::<f64>()
            };
            let mut gradients = Gradients::zeros(start.layout());
            let mut tape_buffers = Buffers::new();
            let mut tape = Tape::new(&cpu, start, Some(&mut gradients), &mut tape_buffers);
            let output = forward(&mut tape);
            let weights = random_values(99, tape.value(output).len());
            tape.backward_from(output, &weights);
            let mut moved = start.clone();
            for i in 0..start.values().len() {
                // A step of 2^-7 is exact in f32; its truncation error is about step²/6 ≈ 1e-5 of the third derivative.
                let step = 0.0078125;
                let original = start.values()[i];
                moved.values_mut()[i] = original + step;
                let above = objective(&moved);
                moved.values_mut()[i] = original - step;
                let below = objective(&moved);
                moved.values_mut()[i] = original;
                let expected = (above - below) / (2.0 * step as f64);
                let got = gradients.values()[i] as f64;
                let difference = (got - expected).abs();
                assert!(
                    difference <= tolerance * (1.0 + expected.abs()),
                    "{isa:?}, {threads} threads, element {i}: recorded {got}, by differences {expected}"
                );
            }
        }
    }
}
