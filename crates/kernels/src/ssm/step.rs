//! The scan of one sequence token by token: what decoding computes.

use super::{Extent, Scan, row};
use crate::math::{exp, softplus, sum_of_pairs};
use crate::{BlockMut, Isa};

/// The scan over the tokens of one sequence, one after the other, from `state` (heads, P, N), which moves on. Its bits do
/// not depend on where a sequence is cut.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn ssm_steps(isa: Isa, scan: Scan<'_, f32>, state: &mut [f32], y: &mut BlockMut<'_, f32>) {
    let Extent { tokens, heads, dimension, state: n, width } = scan.extent();
    assert!(state.len() == width * n && y.rows() == tokens && y.columns() == width, "scan: state");
    for (head, state) in state.chunks_exact_mut(dimension * n).enumerate().take(heads) {
        let own = head * dimension..(head + 1) * dimension;
        for t in 0..tokens {
            let (raw, (least, most)) = (scan.raw.at(t, head), scan.decay.limits);
            let dt = softplus(raw + scan.decay.bias[head]).clamp(least, most);
            let factors = [dt, exp(dt * scan.decay.a[head]), scan.decay.d[head]];
            let x = &row(&scan.x, t)[own.clone()];
            head_step(
                isa,
                x,
                row(&scan.b, t),
                row(&scan.c, t),
                factors,
                state,
                &mut y.row_mut(t)[own.clone()],
            );
        }
    }
}

per_isa! {
    fn head_step(x: &[f32], b: &[f32], c: &[f32], factors: [f32; 3], state: &mut [f32], y: &mut [f32]) {
        let [dt, decay, d] = factors;
        for ((state, &x), y) in state.chunks_exact_mut(b.len()).zip(x).zip(y) {
            let input = dt * x;
            for (h, b) in state.iter_mut().zip(b) {
                *h = decay * *h + input * b;
            }
            *y = sum_of_pairs(&state[..c.len()], c, |s, c| s * c) + d * x;
        }
    }
}
