//! Causal depthwise convolution over a few tokens, then SiLU: what a Mamba block does before its scan (Gu and Dao,
//! 2023).

use crate::math::{array, sigmoid};
use crate::{BlockMut, Element, Isa, MatrixRef, prefetch};
use std::ops::Range;

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

/// Channels that go through the tokens side by side: a register of AVX-512.
const LANES: usize = 16;
/// Tokens that all channels pass before the next ones come: their rows, and those asked for, stay in the L1 cache meanwhile.
const TOKENS: usize = 16;

/// Asks for rows of a matrix: they lie pages apart, which is nothing that the processor foresees.
#[inline(always)]
fn ask_for<E: Element>(x: &MatrixRef<'_, E>, tokens: Range<usize>) {
    const LINE: usize = 64;
    for t in tokens {
        let row = &x.data[t * x.row_stride..][..x.columns];
        for element in row.iter().step_by(LINE / size_of::<E>()).chain(row.last()) {
            prefetch::read(element);
        }
    }
}

/// What the sums of a convolution are made of.
struct Inputs<'a, E> {
    x: MatrixRef<'a, E>,
    positions: &'a [u32],
    /// As [`Filter::lags`] gives them.
    lags: &'a [f32],
    bias: &'a [f32],
}

impl<E: Element> Inputs<'_, E> {
    fn tokens(&self) -> usize {
        self.positions.len()
    }

    fn channels(&self) -> usize {
        self.bias.len()
    }

    /// Inputs that token `t` reads: as many as the filter has, or as its segment has so far.
    #[inline(always)]
    fn seen(&self, t: usize) -> usize {
        (self.lags.len() / self.channels()).min(self.positions[t] as usize + 1)
    }

    /// Channels `c..c + L` of the input `lag` tokens before `t`.
    #[inline(always)]
    fn input<const L: usize>(&self, t: usize, lag: usize, c: usize) -> [f32; L] {
        let row = &self.x.data[(t - lag) * self.x.row_stride + c..][..L];
        array(|l| row[l].to_f32())
    }

    #[inline(always)]
    fn weight<const L: usize>(&self, lag: usize, c: usize) -> [f32; L] {
        lanes(&self.lags[lag * self.channels() + c..])
    }

    /// What is activated: `u[t, c..c + L]`, of `seen` inputs.
    #[inline(always)]
    fn sums<const L: usize>(&self, t: usize, seen: usize, c: usize) -> [f32; L] {
        let mut u = lanes(&self.bias[c..]);
        for lag in 0..seen {
            add_products(&mut u, self.input(t, lag, c), self.weight(lag, c));
        }
        u
    }
}

#[inline(always)]
fn lanes<const L: usize>(values: &[f32]) -> [f32; L] {
    let values = &values[..L];
    array(|l| values[l])
}

#[inline(always)]
fn add_products<const L: usize>(sums: &mut [f32; L], a: [f32; L], b: [f32; L]) {
    for l in 0..L {
        sums[l] += a[l] * b[l];
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
    forward(isa, &Inputs { x, positions, lags: &lags, bias: filter.bias }, y);
}

per_isa! {
    fn forward<E: Element>(inputs: &Inputs<'_, E>, y: &mut BlockMut<'_, E>) {
        let (tokens, channels) = (inputs.tokens(), inputs.channels());
        let whole = channels - channels % LANES;
        for start in (0..tokens).step_by(TOKENS) {
            let next = start + TOKENS;
            ask_for(&inputs.x, next.min(tokens)..tokens.min(next + TOKENS));
            let tokens = start..tokens.min(next);
            for c in (0..whole).step_by(LANES) {
                forward_lanes::<LANES, E>(inputs, tokens.clone(), c, y, sigmoid);
            }
            for c in whole..channels {
                forward_lanes::<1, E>(inputs, tokens.clone(), c, y, sigmoid);
            }
        }
    }
}

#[inline(always)]
fn forward_lanes<const L: usize, E: Element>(
    inputs: &Inputs<'_, E>,
    tokens: Range<usize>,
    c: usize,
    y: &mut BlockMut<'_, E>,
    sigmoid: impl Fn(f32) -> f32,
) {
    for t in tokens {
        let u = inputs.sums::<L>(t, inputs.seen(t), c);
        let y = &mut y.row_mut(t)[c..c + L];
        for l in 0..L {
            y[l] = E::from_f32(u[l] * sigmoid(u[l]));
        }
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
    let mut ahead = vec![0.0; lags.len()];
    let inputs = Inputs { x, positions, lags: &lags, bias: filter.bias };
    backward(isa, &inputs, &d_y, &mut Gradients { d_x, d_lags: &mut d_lags, d_bias, ahead: &mut ahead });
    for (lag, d_lag) in d_lags.chunks_exact(channels).enumerate() {
        for (c, d) in d_lag.iter().enumerate() {
            d_weight[c * taps + taps - 1 - lag] += d;
        }
    }
}

/// Where gradients of a convolution go.
struct Gradients<'a, 'b, E> {
    d_x: &'a mut BlockMut<'b, E>,
    d_lags: &'a mut [f32],
    d_bias: &'a mut [f32],
    /// `(lag, channel)`: the gradients of the sums of the token itself and of those behind it, which read it.
    ahead: &'a mut [f32],
}

per_isa! {
    fn backward<E: Element>(inputs: &Inputs<'_, E>, d_y: &MatrixRef<'_, E>, to: &mut Gradients<'_, '_, E>) {
        let (tokens, channels) = (inputs.tokens(), inputs.channels());
        let whole = channels - channels % LANES;
        for start in (0..tokens).step_by(TOKENS).rev() {
            let before = start.saturating_sub(TOKENS)..start;
            ask_for(&inputs.x, before.clone());
            ask_for(d_y, before);
            let tokens = start..tokens.min(start + TOKENS);
            for c in (0..whole).step_by(LANES) {
                backward_lanes::<LANES, E>(inputs, d_y, tokens.clone(), c, to, sigmoid);
            }
            for c in whole..channels {
                backward_lanes::<1, E>(inputs, d_y, tokens.clone(), c, to, sigmoid);
            }
        }
    }
}

#[inline(always)]
fn backward_lanes<const L: usize, E: Element>(
    inputs: &Inputs<'_, E>,
    d_y: &MatrixRef<'_, E>,
    tokens: Range<usize>,
    c: usize,
    to: &mut Gradients<'_, '_, E>,
    sigmoid: impl Fn(f32) -> f32,
) {
    let channels = inputs.channels();
    let taps = inputs.lags.len() / channels;
    for t in tokens.rev() {
        let seen = inputs.seen(t);
        let u = inputs.sums::<L>(t, seen, c);
        let d_y = &d_y.data[t * d_y.row_stride + c..][..L];
        let d_u: [f32; L] = array(|l| {
            let gate = sigmoid(u[l]);
            d_y[l].to_f32() * gate * (1.0 + u[l] * (1.0 - gate))
        });
        for lag in (1..taps).rev() {
            let nearer = (lag - 1) * channels + c;
            to.ahead.copy_within(nearer..nearer + L, lag * channels + c);
        }
        to.ahead[c..c + L].copy_from_slice(&d_u);
        for lag in 0..seen {
            let sums = &mut to.d_lags[lag * channels + c..][..L];
            let input = inputs.input::<L>(t, lag, c);
            for l in 0..L {
                sums[l] += input[l] * d_u[l];
            }
        }
        let d_bias = &mut to.d_bias[c..c + L];
        for l in 0..L {
            d_bias[l] += d_u[l];
        }
        let mut sums = [0.0; L];
        for lag in 0..taps {
            // Token t + lag read this one where it is of the same segment.
            if inputs.positions.get(t + lag).is_some_and(|&position| position as usize >= lag) {
                add_products(&mut sums, lanes(&to.ahead[lag * channels + c..]), inputs.weight(lag, c));
            }
        }
        let d_x = &mut to.d_x.row_mut(t)[c..c + L];
        for l in 0..L {
            d_x[l] = E::from_f32(sums[l]);
        }
    }
}

per_isa! {
    /// `sum[c] += x[c] · weight[c]`.
    fn add_product(x: &[f32], weight: &[f32], sum: &mut [f32]) {
        for ((sum, x), w) in sum.iter_mut().zip(x).zip(weight) {
            *sum += x * w;
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

    /// Segments of 2, 1 and more tokens than pass at a time.
    const POSITIONS: [u32; TOKENS + 8] = {
        let mut positions = [0; TOKENS + 8];
        positions[1] = 1;
        let mut t = 3;
        while t < positions.len() {
            positions[t] = t as u32 - 3;
            t += 1;
        }
        positions
    };

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
        for isa in Isa::available_or_trapped() {
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
        for isa in Isa::available_or_trapped() {
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
