//! The diagonal state-space layer S4D (Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State
//! Space Models") as a recurrence: every channel has complex states of its own,
//!
//! `h[t] = ā · h[t − 1] + u[t]`, `v[t] = Σ Re(g · h[t]) + d · u[t]` and `y = silu(v)`.

use crate::math::sigmoid;
use crate::{BlockMut, Element, MatrixRef};

/// Channels that are computed together, beside each other in a register.
pub const LANES: usize = 16;

/// One number per channel of a group.
pub type Lane = [f32; LANES];

/// What belongs to a group of channels; those that are missing are zeros.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct S4dChannels {
    /// Decay of every state: real and imaginary part.
    pub a: Vec<[Lane; 2]>,
    /// Weight of every state in the result.
    pub g: Vec<[Lane; 2]>,
    /// Weight of the input itself.
    pub d: Lane,
}

impl S4dChannels {
    /// Zeros for so many states per channel.
    pub fn zeros(states: usize) -> S4dChannels {
        S4dChannels {
            a: vec![[[0.0; LANES]; 2]; states],
            g: vec![[[0.0; LANES]; 2]; states],
            d: [0.0; LANES],
        }
    }
}

#[inline(always)]
fn load<E: Element>(x: &MatrixRef<'_, E>, t: usize) -> Lane {
    let mut lane = [0.0; LANES];
    for (to, from) in lane.iter_mut().zip(&x.data[t * x.row_stride..][..x.columns]) {
        *to = from.to_f32();
    }
    lane
}

#[inline(always)]
fn advance(a: &[[Lane; 2]], u: &Lane, h: &mut [[Lane; 2]]) {
    for ([ar, ai], [hr, hi]) in a.iter().zip(h) {
        for l in 0..LANES {
            let (re, im) = (hr[l], hi[l]);
            hr[l] = ar[l] * re - ai[l] * im + u[l];
            hi[l] = ar[l] * im + ai[l] * re;
        }
    }
}

#[inline(always)]
fn read(channels: &S4dChannels, u: &Lane, h: &[[Lane; 2]]) -> Lane {
    let mut v = [0.0; LANES];
    for l in 0..LANES {
        v[l] = channels.d[l] * u[l];
    }
    for ([gr, gi], [hr, hi]) in channels.g.iter().zip(h) {
        for l in 0..LANES {
            v[l] += gr[l] * hr[l] - gi[l] * hi[l];
        }
    }
    v
}

per_isa! {
    /// `y` (tokens by channels, [`LANES`] at most) of `u`, from the states `h`, which move on.
    pub fn s4d_forward<E: Element>(
        u: MatrixRef<'_, E>,
        channels: &S4dChannels,
        h: &mut [[Lane; 2]],
        y: &mut BlockMut<'_, E>,
    ) {
        assert!(u.rows == y.rows() && u.columns == y.columns() && u.columns <= LANES, "s4d: shapes");
        assert!(h.len() == channels.a.len() && h.len() == channels.g.len(), "s4d: states");
        for t in 0..u.rows {
            let input = load(&u, t);
            advance(&channels.a, &input, h);
            let v = read(channels, &input, h);
            for (y, v) in y.row_mut(t).iter_mut().zip(v) {
                *y = E::from_f32(v * sigmoid(v));
            }
        }
    }
}

/// Tokens whose states the backward pass keeps at once.
const CHUNK: usize = 32;

per_isa! {
    /// Gradients of [`s4d_forward`] from states of zeros: `d_u` is overwritten, `to` is added to. That of a complex number
    /// is the gradient of its real part plus i times that of its imaginary part.
    pub fn s4d_backward<E: Element>(
        u: MatrixRef<'_, E>,
        d_y: MatrixRef<'_, E>,
        channels: &S4dChannels,
        d_u: &mut BlockMut<'_, E>,
        to: &mut S4dChannels,
    ) {
        let (rows, states) = (u.rows, channels.a.len());
        assert!(d_y.rows == rows && d_u.rows() == rows && d_u.columns() == u.columns, "s4d: shapes");
        assert!(to.a.len() == states && to.g.len() == states, "s4d: states");
        let zero = [[0.0; LANES]; 2];
        // The states before every chunk, then those of one chunk after the other from the last on.
        let mut starts = vec![zero; rows.div_ceil(CHUNK) * states];
        let mut h = vec![zero; states];
        for t in 0..rows {
            if t % CHUNK == 0 {
                starts[t / CHUNK * states..][..states].copy_from_slice(&h);
            }
            advance(&channels.a, &load(&u, t), &mut h);
        }
        let mut kept = vec![zero; (CHUNK + 1) * states];
        let mut d_h = vec![zero; states];
        for start in (0..rows).step_by(CHUNK).rev() {
            let end = rows.min(start + CHUNK);
            kept[..states].copy_from_slice(&starts[start / CHUNK * states..][..states]);
            for t in start..end {
                let (before, after) = kept[(t - start) * states..][..2 * states].split_at_mut(states);
                after.copy_from_slice(before);
                advance(&channels.a, &load(&u, t), after);
            }
            for t in (start..end).rev() {
                let (before, after) = kept[(t - start) * states..][..2 * states].split_at(states);
                let input = load(&u, t);
                let v = read(channels, &input, after);
                let mut d_v = load(&d_y, t);
                let mut d_input = [0.0; LANES];
                for l in 0..LANES {
                    let gate = sigmoid(v[l]);
                    d_v[l] *= gate * (1.0 + v[l] * (1.0 - gate));
                    to.d[l] += d_v[l] * input[l];
                    d_input[l] = d_v[l] * channels.d[l];
                }
                for m in 0..states {
                    let ([gr, gi], [ar, ai]) = (&channels.g[m], &channels.a[m]);
                    let ([br, bi], [hr, hi]) = (&before[m], &after[m]);
                    let [dr, di] = &mut d_h[m];
                    let ([to_gr, to_gi], [to_ar, to_ai]) = (&mut to.g[m], &mut to.a[m]);
                    for l in 0..LANES {
                        to_gr[l] += d_v[l] * hr[l];
                        to_gi[l] -= d_v[l] * hi[l];
                        let (re, im) = (dr[l] + d_v[l] * gr[l], di[l] - d_v[l] * gi[l]);
                        to_ar[l] += re * br[l] + im * bi[l];
                        to_ai[l] += im * br[l] - re * bi[l];
                        d_input[l] += re;
                        dr[l] = ar[l] * re + ai[l] * im;
                        di[l] = ar[l] * im - ai[l] * re;
                    }
                }
                for (to, d) in d_u.row_mut(t).iter_mut().zip(d_input) {
                    *to = E::from_f32(d);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

    const STATES: usize = 3;

    /// Decays, weights and skips of `columns` channels: (STATES, 2, columns) twice, then (columns).
    fn reference(u: &[f64], numbers: &[f64], columns: usize) -> Vec<f64> {
        let (a, rest) = numbers.split_at(2 * STATES * columns);
        let (g, d) = rest.split_at(2 * STATES * columns);
        let mut y = vec![0.0; u.len()];
        for c in 0..columns {
            let mut h = [(0.0, 0.0); STATES];
            for t in 0..u.len() / columns {
                let u = u[t * columns + c];
                let mut v = d[c] * u;
                for (m, (hr, hi)) in h.iter_mut().enumerate() {
                    let at = |x: &[f64], part: usize| x[(2 * m + part) * columns + c];
                    (*hr, *hi) = (at(a, 0) * *hr - at(a, 1) * *hi + u, at(a, 0) * *hi + at(a, 1) * *hr);
                    v += at(g, 0) * *hr - at(g, 1) * *hi;
                }
                y[t * columns + c] = v / (1.0 + (-v).exp());
            }
        }
        y
    }

    fn channels(numbers: &[f32], columns: usize) -> S4dChannels {
        let mut channels = S4dChannels::zeros(STATES);
        let lane = |i: usize| {
            let mut lane = [0.0; LANES];
            lane[..columns].copy_from_slice(&numbers[i * columns..(i + 1) * columns]);
            lane
        };
        for m in 0..STATES {
            channels.a[m] = [lane(2 * m), lane(2 * m + 1)];
            channels.g[m] = [lane(2 * (STATES + m)), lane(2 * (STATES + m) + 1)];
        }
        channels.d = lane(4 * STATES);
        channels
    }

    fn numbers(channels: &S4dChannels, columns: usize) -> Vec<f32> {
        let pairs = channels.a.iter().chain(&channels.g).flatten();
        pairs.chain([&channels.d]).flat_map(|lane| lane[..columns].to_vec()).collect()
    }

    #[test]
    fn the_recurrence_and_its_gradients_equal_the_float64_reference() {
        let mut random = Random::new(51);
        for isa in Isa::available_or_trapped() {
            for (rows, columns) in [(1, 1), (5, 3), (CHUNK + 1, LANES), (2 * CHUNK + 3, 2)] {
                let u: Vec<f32> = random.elements(rows * columns);
                // Decays of magnitude below one, so that states stay bounded.
                let mut given: Vec<f32> = random.elements((4 * STATES + 1) * columns);
                given[..2 * STATES * columns].iter_mut().for_each(|a| *a *= 0.65);
                let own = channels(&given, columns);
                let (mut h, mut y) = (vec![[[0.0; LANES]; 2]; STATES], vec![f32::NAN; rows * columns]);
                let view = MatrixRef::new(&u, rows, columns);
                s4d_forward(isa, view, &own, &mut h, &mut BlockMut::new(&mut y, columns));
                let (wide_u, wide) = (to_f64(&u), to_f64(&given));
                assert_all_close(&y, &reference(&wide_u, &wide, columns), 1e-5, 1e-5, "y");

                let d_y: Vec<f32> = random.elements(rows * columns);
                let (mut d_u, mut to) = (vec![f32::NAN; rows * columns], S4dChannels::zeros(STATES));
                let d_view = MatrixRef::new(&d_y, rows, columns);
                s4d_backward(isa, view, d_view, &own, &mut BlockMut::new(&mut d_u, columns), &mut to);
                let expected = numeric_gradient(&wide_u, &d_y, |u| reference(u, &wide, columns));
                assert_all_close(&d_u, &expected, 5e-5, 1e-4, "d_u");
                let expected = numeric_gradient(&wide, &d_y, |numbers| reference(&wide_u, numbers, columns));
                // Sums of up to 67 tokens of states of some units.
                assert_all_close(&numbers(&to, columns), &expected, 3e-4, 1e-4, "parameters");
            }
        }
    }
}
