//! Causal depthwise convolution over a few tokens, then SiLU: what a Mamba block does before its scan (Gu and Dao,
//! 2023).

use crate::math::sigmoid;
use crate::{BlockMut, Element, Isa, MatrixRef};

/// The weights of a convolution of some channels.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a> {
    /// Shape (channels, taps); the last tap belongs to the token itself.
    pub weight: &'a [f32],
    /// One per channel.
    pub bias: &'a [f32],
}

impl Filter<'_> {
    /// Tokens that one result depends on.
    pub fn taps(&self) -> usize {
        self.weight.len() / self.bias.len()
    }

    /// The weight of every lag, channels beside each other: `(lag, channel)`.
    fn lags(&self) -> Vec<f32> {
        let (taps, channels) = (self.taps(), self.bias.len());
        (0..taps).flat_map(|lag| (0..channels).map(move |c| self.weight[c * taps + taps - 1 - lag])).collect()
    }
}

/// `y[t, c] = silu(u[t, c])` with `u[t, c] = bias[c] + Σ_lag weight[c, taps − 1 − lag] · x[t − lag, c]`, where
/// `x[t − lag]` is left out when token `t` is less than `lag` behind the start of its segment: `positions[t]` is the
/// number of tokens of the segment before `t`.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn conv_silu_forward<E: Element>(
    isa: Isa,
    x: MatrixRef<'_, E>,
    positions: &[u32],
    filter: Filter<'_>,
    y: &mut BlockMut<'_, E>,
) {
    let channels = filter.bias.len();
    assert!(
        x.columns() == channels
            && y.columns() == channels
            && y.rows() == x.rows()
            && positions.len() == x.rows(),
        "conv: shapes"
    );
    let lags = filter.lags();
    let mut u = vec![0.0; channels];
    for (t, &position) in positions.iter().enumerate() {
        u.copy_from_slice(filter.bias);
        for (lag, weight) in lags.chunks_exact(channels).enumerate().take(position as usize + 1) {
            add_product(isa, row(&x, t - lag), weight, &mut u);
        }
        activate(isa, &u, y.row_mut(t));
    }
}

/// Gradients of [`conv_silu_forward`]: `d_x` is overwritten, `d_weight` (as [`Filter::weight`]) and `d_bias` are added
/// to.
///
/// # Panics
/// Where the shapes do not fit together.
#[allow(clippy::too_many_arguments, reason = "kernels take slices and their shape")]
pub fn conv_silu_backward<E: Element>(
    isa: Isa,
    d_y: MatrixRef<'_, E>,
    x: MatrixRef<'_, E>,
    positions: &[u32],
    filter: Filter<'_>,
    d_x: &mut BlockMut<'_, E>,
    d_weight: &mut [f32],
    d_bias: &mut [f32],
) {
    let (channels, taps) = (filter.bias.len(), filter.taps());
    assert!(
        x.columns() == channels && d_y.columns() == channels && d_x.columns() == channels,
        "conv: columns"
    );
    assert!(x.rows() == positions.len() && d_y.rows() == x.rows() && d_x.rows() == x.rows(), "conv: rows");
    assert!(d_weight.len() == filter.weight.len() && d_bias.len() == channels, "conv: gradients");
    let lags = filter.lags();
    let mut d_lags = vec![0.0; lags.len()];
    // The gradients of u at the last `taps` tokens, token t at t modulo taps.
    let mut d_u = vec![0.0; taps * channels];
    let mut sum = vec![0.0; channels];
    let ones = vec![1.0; channels];
    for t in (0..positions.len()).rev() {
        let own = &mut d_u[t % taps * channels..][..channels];
        sum.copy_from_slice(filter.bias);
        for (lag, weight) in lags.chunks_exact(channels).enumerate().take(positions[t] as usize + 1) {
            add_product(isa, row(&x, t - lag), weight, &mut sum);
        }
        deactivate(isa, &sum, row(&d_y, t), own);
        for (lag, d_weight) in d_lags.chunks_exact_mut(channels).enumerate().take(positions[t] as usize + 1) {
            add_product(isa, row(&x, t - lag), own, d_weight);
        }
        add_product(isa, own, &ones, d_bias);
        sum.fill(0.0);
        for (lag, weight) in lags.chunks_exact(channels).enumerate() {
            // Token t + lag read this one where it is of the same segment.
            if positions.get(t + lag).is_some_and(|&position| position as usize >= lag) {
                add_product(isa, &d_u[(t + lag) % taps * channels..][..channels], weight, &mut sum);
            }
        }
        crate::element::convert(isa, &sum, d_x.row_mut(t));
    }
    for (lag, d_lag) in d_lags.chunks_exact(channels).enumerate() {
        for (c, d) in d_lag.iter().enumerate() {
            d_weight[c * taps + taps - 1 - lag] += d;
        }
    }
}

fn row<'a, E: Element>(x: &MatrixRef<'a, E>, t: usize) -> &'a [E] {
    &x.data[t * x.row_stride..][..x.columns]
}

per_isa! {
    /// `sum[c] += x[c] · weight[c]`.
    fn add_product<E: Element>(x: &[E], weight: &[f32], sum: &mut [f32]) {
        for ((sum, x), w) in sum.iter_mut().zip(x).zip(weight) {
            *sum += x.to_f32() * w;
        }
    }
}

per_isa! {
    fn activate<E: Element>(u: &[f32], y: &mut [E]) {
        for (y, &u) in y.iter_mut().zip(u) {
            *y = E::from_f32(u * sigmoid(u));
        }
    }
}

per_isa! {
    /// `d_u = d_y · silu'(u)`.
    fn deactivate<E: Element>(u: &[f32], d_y: &[E], d_u: &mut [f32]) {
        for ((d_u, d_y), &u) in d_u.iter_mut().zip(d_y).zip(u) {
            let gate = sigmoid(u);
            *d_u = d_y.to_f32() * gate * (1.0 + u * (1.0 - gate));
        }
    }
}

/// One token of one sequence: `state` holds the inputs of the last `taps − 1` tokens, oldest first (zeros before the
/// first), and takes up `x`. `y` gets what [`conv_silu_forward`] gives.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn conv_silu_step(
    isa: Isa,
    x: &[f32],
    filter: Filter<'_>,
    lags: &Lags,
    state: &mut [f32],
    y: &mut [f32],
) {
    let channels = filter.bias.len();
    let history = (filter.taps() - 1) * channels;
    assert!(x.len() == channels && y.len() == channels && state.len() == history, "conv: shapes");
    // In place of u: bias, then the lags from the token itself backwards, as the forward adds them up.
    y.copy_from_slice(filter.bias);
    for (lag, weight) in lags.0.chunks_exact(channels).enumerate() {
        let input = if lag == 0 { x } else { &state[history - lag * channels..][..channels] };
        add_product(isa, input, weight, y);
    }
    activate_in_place(isa, y);
    if history > 0 {
        state.copy_within(channels.., 0);
        state[history - channels..].copy_from_slice(x);
    }
}

per_isa! {
    fn activate_in_place(u: &mut [f32]) {
        for u in u {
            *u *= sigmoid(*u);
        }
    }
}

/// The weights of a [`Filter`] in the order in which steps read them.
#[derive(Clone, Debug)]
pub struct Lags(Vec<f32>);

impl Lags {
    /// Of a filter.
    pub fn new(filter: Filter<'_>) -> Lags {
        Lags(filter.lags())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

    const POSITIONS: [u32; 9] = [0, 1, 0, 0, 1, 2, 3, 4, 5];

    fn reference(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let (channels, taps) = (bias.len(), weight.len() / bias.len());
        let mut y = Vec::new();
        for (t, &position) in POSITIONS.iter().enumerate() {
            for c in 0..channels {
                let lags = 0..taps.min(position as usize + 1);
                let terms = lags.map(|lag| weight[c * taps + taps - 1 - lag] * x[(t - lag) * channels + c]);
                let u: f64 = bias[c] + terms.sum::<f64>();
                y.push(u / (1.0 + (-u).exp()));
            }
        }
        y
    }

    #[test]
    fn the_convolution_and_its_gradients_equal_the_float64_reference() {
        let mut random = Random::new(11);
        for isa in Isa::available() {
            for (channels, taps) in [(1, 1), (3, 4), (37, 4), (64, 2)] {
                let rows = POSITIONS.len();
                let x: Vec<f32> = random.elements(rows * channels);
                let (weight, bias): (Vec<f32>, Vec<f32>) =
                    (random.elements(taps * channels), random.elements(channels));
                let filter = Filter { weight: &weight, bias: &bias };
                let view = MatrixRef::new(&x, rows, channels);
                let mut y = vec![f32::NAN; x.len()];
                conv_silu_forward(isa, view, &POSITIONS, filter, &mut BlockMut::new(&mut y, channels));
                let (wx, ww, wb) = (to_f64(&x), to_f64(&weight), to_f64(&bias));
                assert_all_close(&y, &reference(&wx, &ww, &wb), 1e-6, 1e-5, "y");

                let d_y: Vec<f32> = random.elements(x.len());
                let (mut d_x, mut d_weight, mut d_bias) =
                    (vec![f32::NAN; x.len()], vec![0.5; weight.len()], vec![0.25; channels]);
                let d_view = MatrixRef::new(&d_y, rows, channels);
                let mut block = BlockMut::new(&mut d_x, channels);
                conv_silu_backward(
                    isa,
                    d_view,
                    view,
                    &POSITIONS,
                    filter,
                    &mut block,
                    &mut d_weight,
                    &mut d_bias,
                );
                let expected = numeric_gradient(&wx, &d_y, |x| reference(x, &ww, &wb));
                assert_all_close(&d_x, &expected, 2e-5, 1e-4, "d_x");
                let mut expected = numeric_gradient(&ww, &d_y, |w| reference(&wx, w, &wb));
                expected.iter_mut().for_each(|e| *e += 0.5);
                assert_all_close(&d_weight, &expected, 2e-5, 1e-4, "d_weight");
                let mut expected = numeric_gradient(&wb, &d_y, |b| reference(&wx, &ww, b));
                expected.iter_mut().for_each(|e| *e += 0.25);
                assert_all_close(&d_bias, &expected, 2e-5, 1e-4, "d_bias");
            }
        }
    }

    #[test]
    fn steps_give_the_bits_of_the_whole() {
        let mut random = Random::new(12);
        for isa in Isa::available() {
            let (channels, taps) = (21, 4);
            let x: Vec<f32> = random.elements(7 * channels);
            let (weight, bias): (Vec<f32>, Vec<f32>) =
                (random.elements(taps * channels), random.elements(channels));
            let filter = Filter { weight: &weight, bias: &bias };
            let positions: Vec<u32> = (0..7).collect();
            let mut whole = vec![0.0; x.len()];
            let view = MatrixRef::new(&x, 7, channels);
            conv_silu_forward(isa, view, &positions, filter, &mut BlockMut::new(&mut whole, channels));
            let mut state = vec![0.0; 3 * channels];
            let mut y = vec![0.0; channels];
            for (x, whole) in x.chunks(channels).zip(whole.chunks(channels)) {
                conv_silu_step(isa, x, filter, &Lags::new(filter), &mut state, &mut y);
                assert_eq!(y, whole, "{isa:?}");
            }
        }
    }
}
