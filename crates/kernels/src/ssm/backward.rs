//! The gradients of the scan.

use super::forward::{advance, scale_columns};
use super::time::{HeadSteps, Steps};
use super::{CHUNK, Extent, LANES, Scan, columns, lanes, row, store};
use crate::math::{array, exp, sigmoid, softplus, sum_of, sum_of_lanes, sum_of_pairs};
use crate::{BlockMut, Element, Isa, MatrixMut, MatrixRef, Store, matmul};

/// Where the gradients of a scan go.
#[derive(Debug)]
pub struct ScanGradients<'a, 'b, E> {
    /// Overwritten; as `x`.
    pub x: &'a mut BlockMut<'b, E>,
    /// Overwritten; as `b`.
    pub b: &'a mut BlockMut<'b, f32>,
    /// Overwritten; as `c`.
    pub c: &'a mut BlockMut<'b, f32>,
    /// Overwritten; as `raw`.
    pub raw: &'a mut BlockMut<'b, E>,
    /// Added to; per head.
    pub a: &'a mut [f32],
    /// Added to; per head.
    pub d: &'a mut [f32],
    /// Added to; per head.
    pub bias: &'a mut [f32],
}

/// Gradients of [`ssm_scan_forward`](super::ssm_scan_forward). States are computed again, forwards; then the chunks are
/// gone through backwards.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn ssm_scan_backward<E: Element>(
    isa: Isa,
    scan: Scan<'_, E>,
    d_y: MatrixRef<'_, E>,
    gradients: ScanGradients<'_, '_, E>,
) {
    let extent = scan.extent();
    let Extent { tokens, width, state, dimension, heads } = extent;
    let to = gradients;
    assert!(d_y.rows == tokens && d_y.columns == width, "scan: gradient of the output");
    assert!(to.x.rows() == tokens && to.x.columns() == width && to.raw.columns() == heads, "scan: gradients");
    assert!(to.b.columns() == state && to.c.columns() == state, "scan: gradients");

    let mut steps = Steps::new(heads);
    let mut scaled = vec![E::default(); CHUNK * width];
    let states = states_before(isa, &scan, extent, &mut steps, &mut scaled);
    let mut scaled_y = vec![E::default(); CHUNK * width];
    let mut d_h = vec![0.0f32; state * width];
    let mut narrow = vec![E::default(); state * width];
    let (mut from_end, mut from_start) = (vec![0.0f32; CHUNK * width], vec![0.0f32; CHUNK * width]);
    let mut inside = vec![0.0f32; CHUNK * dimension];
    let (mut scores, mut products, mut d_scores) =
        ([0.0f32; CHUNK * CHUNK], [0.0f32; CHUNK * CHUNK], [0.0f32; CHUNK * CHUNK]);
    let mut masked = [E::default(); CHUNK * CHUNK];
    let mut d_bc = vec![0.0f32; CHUNK * state];
    for (index, start) in (0..tokens).step_by(CHUNK).enumerate().rev() {
        let rows = CHUNK.min(tokens - start);
        let chunk = scan.chunk(start..start + rows);
        let d_y = d_y.row_range(start..start + rows);
        steps.fill(isa, &chunk);
        let h = &states[index * state * width..][..state * width];
        let h_view = MatrixRef::new(h, state, width);
        matmul(isa, chunk.c, chunk.b.transposed(), square(&mut scores, rows), Store::Overwrite);
        d_scores.fill(0.0);
        crate::element::convert(isa, &d_h, &mut narrow);
        let d_h_view = MatrixRef::new(&narrow, state, width);
        let (from_end, from_start) = (&mut from_end[..rows * width], &mut from_start[..rows * width]);
        // What the state behind the chunk asks of each token, and what the state before it gave to each.
        matmul(isa, chunk.b, d_h_view, MatrixMut::new(from_end, rows, width), Store::Overwrite);
        matmul(isa, chunk.c, h_view, MatrixMut::new(from_start, rows, width), Store::Overwrite);
        for head in 0..heads {
            let (from, steps) = (head * dimension, steps.head(head));
            let (mut d_sum, mut d_dt) = ([0.0; CHUNK], [0.0; CHUNK]);
            let (x, d_y) = (columns(&chunk.x, from, dimension), columns(&d_y, from, dimension));
            matmul(isa, d_y, x.transposed(), square(&mut products, rows), Store::Overwrite);
            let pairs = Pairs { rows, scores: &scores, products: &products, steps };
            pair_gradients(isa, pairs, &mut masked, &mut d_scores, &mut d_sum, &mut d_dt);
            let transposed = MatrixRef::with_stride(&masked, rows, rows, CHUNK).transposed();
            let own = MatrixMut::new(&mut inside[..rows * dimension], rows, dimension);
            matmul(isa, transposed, d_y, own, Store::Overwrite);
            let tokens = Tokens {
                x,
                d_y,
                inside: &inside,
                from_end: &from_end[from..],
                from_start: &from_start[from..],
                steps,
                skip: scan.decay.d[head],
            };
            let copies = (&mut scaled[from..], &mut scaled_y[from..]);
            let (asked, d_skip) =
                token_gradients(isa, tokens, (start, from, width), copies, to.x, &mut d_sum, &mut d_dt);
            to.d[head] += d_skip;
            let kept = inner_product(isa, &d_h, h, from, dimension, width);
            d_sum[rows - 1] += asked + steps.whole() * kept;
            let mut slopes = [0.0; CHUNK];
            time_slopes(isa, steps.biased(), scan.decay.limits, &mut slopes);
            let mut total = 0.0;
            for t in (0..rows).rev() {
                total += d_sum[t];
                to.a[head] += steps.dt()[t] * total;
                let d_raw = (d_dt[t] + scan.decay.a[head] * total) * slopes[t];
                to.bias[head] += d_raw;
                to.raw.row_mut(start + t)[head] = E::from_f32(d_raw);
            }
        }
        crate::element::convert(isa, &d_scores, &mut masked);
        let d_scores = MatrixRef::with_stride(&masked, rows, rows, CHUNK);
        let scaled_y = MatrixRef::new(&scaled_y[..rows * width], rows, width);
        let scaled = MatrixRef::new(&scaled[..rows * width], rows, width);
        for (scores, by, values, states, to) in [
            (d_scores, chunk.b, scaled_y, h_view, &mut *to.c),
            (d_scores.transposed(), chunk.c, scaled, d_h_view, &mut *to.b),
        ] {
            let d = &mut d_bc[..rows * state];
            matmul(isa, scores, by, MatrixMut::new(d, rows, state), Store::Overwrite);
            matmul(isa, values, states.transposed(), MatrixMut::new(d, rows, state), Store::Accumulate);
            for (t, d) in d.chunks_exact(state).enumerate() {
                to.row_mut(start + t).copy_from_slice(d);
            }
        }
        if start > 0 {
            for head in 0..heads {
                scale_columns(isa, steps.head(head).whole(), head * dimension, dimension, width, &mut d_h);
            }
            let d_h = MatrixMut::new(&mut d_h, state, width);
            matmul(isa, chunk.c.transposed(), scaled_y, d_h, Store::Accumulate);
        }
    }
}

/// A value for each pair of a chunk's tokens; rows are [`CHUNK`] apart.
fn square(values: &mut [f32], rows: usize) -> MatrixMut<'_, f32> {
    MatrixMut::with_stride(values, rows, rows, CHUNK)
}

/// The state before every chunk, (N, heads x P) each.
fn states_before<E: Element>(
    isa: Isa,
    scan: &Scan<'_, E>,
    extent: Extent,
    steps: &mut Steps,
    scaled: &mut [E],
) -> Vec<E> {
    let (tokens, size) = (extent.tokens, extent.state * extent.width);
    let mut states = vec![E::default(); tokens.div_ceil(CHUNK) * size];
    let mut h = vec![0.0f32; size];
    for (index, start) in (CHUNK..tokens).step_by(CHUNK).enumerate() {
        let chunk = scan.chunk(start - CHUNK..start);
        steps.fill(isa, &chunk);
        advance(isa, &chunk, steps, extent, scaled, &mut h);
        crate::element::convert(isa, &h, &mut states[(index + 1) * size..][..size]);
    }
    states
}

/// The pairs of tokens of a chunk in one head; rows are [`CHUNK`] apart.
#[derive(Clone, Copy)]
struct Pairs<'a> {
    rows: usize,
    /// `c[t] · b[j]`
    scores: &'a [f32],
    /// `d_y[t] · x[j]`
    products: &'a [f32],
    steps: &'a HeadSteps,
}

per_isa! {
    /// The decayed scores again, and the gradients of scores, decays and time steps, which are added to.
    fn pair_gradients<E: Element>(
        pairs: Pairs<'_>,
        masked: &mut [E],
        d_scores: &mut [f32],
        d_sum: &mut [f32; CHUNK],
        d_dt: &mut [f32; CHUNK],
    ) {
        const HALF: usize = CHUNK / 2;
        for t in 0..pairs.rows {
            // Loops of a length that the compiler knows; the columns behind the token are computed for nothing.
            if t < HALF {
                masked[t * CHUNK + HALF..(t + 1) * CHUNK].fill(E::default());
                pairs_of::<HALF, E>(pairs, t, masked, d_scores, d_sum, d_dt, exp);
            } else {
                pairs_of::<CHUNK, E>(pairs, t, masked, d_scores, d_sum, d_dt, exp);
            }
        }
    }
}

/// Token `t` and the first `N` of its chunk, of which those after it do not count: what is there may be anything, even no
/// number.
#[inline(always)]
fn pairs_of<const N: usize, E: Element>(
    pairs: Pairs<'_>,
    t: usize,
    masked: &mut [E],
    d_scores: &mut [f32],
    d_sum: &mut [f32; CHUNK],
    d_dt: &mut [f32; CHUNK],
    exp: impl Fn(f32) -> f32,
) {
    let own = t * CHUNK..t * CHUNK + N;
    let (scores, products) = (&pairs.scores[own.clone()], &pairs.products[own.clone()]);
    let (masked, d_scores) = (&mut masked[own.clone()], &mut d_scores[own]);
    let (dt, sum) = (&pairs.steps.dt()[..N], &pairs.steps.sum()[..N]);
    let last = sum[t];
    let (mut weights, mut pulls) = ([0.0f32; N], [0.0f32; N]);
    for j in 0..N {
        weights[j] = if j as u32 <= t as u32 { exp(last - sum[j]) } else { 0.0 };
    }
    for j in 0..N {
        let (product, score) = if j as u32 <= t as u32 { (products[j], scores[j]) } else { (0.0, 0.0) };
        let (product, dt) = (product * weights[j], if j as u32 <= t as u32 { dt[j] } else { 0.0 });
        masked[j] = E::from_f32(score * weights[j] * dt);
        d_scores[j] += product * dt;
        weights[j] = product * score;
        pulls[j] = product * score * dt;
    }
    for j in 0..N {
        d_dt[j] += weights[j];
        d_sum[j] -= pulls[j];
    }
    d_sum[t] += sum_of(&pulls[..N], |p| p);
}

/// The tokens of a chunk in one head.
#[derive(Clone, Copy)]
struct Tokens<'a, E> {
    x: MatrixRef<'a, E>,
    d_y: MatrixRef<'a, E>,
    /// The part of the gradient of `x` that comes from the pairs.
    inside: &'a [f32],
    /// What the state behind the chunk asks of each token.
    from_end: &'a [f32],
    /// What the state before the chunk gave to each.
    from_start: &'a [f32],
    steps: &'a HeadSteps,
    skip: f32,
}

per_isa! {
    /// The gradient of `x`, written to `d_x` at row and column of `at` (its third is the distance of rows of what comes and
    /// goes in `f32` or as a copy); those of decays and time steps past the pairs, which are added to. Leaves in the copies
    /// `x` scaled to the chunk's end and `d_y` scaled since its start. Returns the gradient of the decay over what is left of
    /// the chunk, and `Σ d_y · x`.
    fn token_gradients<E: Element>(
        tokens: Tokens<'_, E>,
        at: (usize, usize, usize),
        copies: (&mut [E], &mut [E]),
        d_x: &mut BlockMut<'_, E>,
        d_sum: &mut [f32; CHUNK],
        d_dt: &mut [f32; CHUNK],
    ) -> (f32, f32) {
        let Tokens { x, d_y, steps, .. } = tokens;
        let (n, (start, from, distance)) = (x.columns, at);
        let whole = n - n % LANES;
        let (mut asked, mut d_skip) = (0.0, 0.0);
        for t in 0..x.rows {
            let (to_end, since_start) = (steps.to_end()[t], steps.since_start()[t]);
            let place = t * distance..t * distance + n;
            let mut token = Token {
                x: row(&x, t),
                d_y: row(&d_y, t),
                inside: &tokens.inside[t * n..][..n],
                from_end: &tokens.from_end[place.clone()],
                from_start: &tokens.from_start[place.clone()],
                factors: [tokens.skip, to_end, since_start],
                scaled: &mut copies.0[place.clone()],
                scaled_y: &mut copies.1[place],
                d_x: &mut d_x.row_mut(start + t)[from..from + n],
            };
            let mut dots = [[0.0; LANES]; 3];
            for p in (0..whole).step_by(LANES) {
                token.elements::<LANES>(p, &mut dots);
            }
            let mut rest = [[0.0; 1]; 3];
            for p in whole..n {
                token.elements::<1>(p, &mut rest);
            }
            let [x_by_end, y_by_start, y_by_x] =
                array(|i| sum_of_lanes(&dots[i]) + rest[i][0]);
            // to_end is the decay to the end times dt; the decay alone comes without a division.
            d_dt[t] += steps.left()[t] * x_by_end;
            d_sum[t] += since_start * y_by_start - to_end * x_by_end;
            asked += to_end * x_by_end;
            d_skip += y_by_x;
        }
        (asked, d_skip)
    }
}

/// One token of [`Tokens`], and where its results go.
struct Token<'a, 'b, E> {
    x: &'a [E],
    d_y: &'a [E],
    inside: &'a [f32],
    from_end: &'a [f32],
    from_start: &'a [f32],
    /// The skip, what is left at the chunk's end, decay since its start.
    factors: [f32; 3],
    scaled: &'b mut [E],
    scaled_y: &'b mut [E],
    d_x: &'b mut [E],
}

impl<E: Element> Token<'_, '_, E> {
    /// Elements `p..p + L`; adds to `x · from_end`, `d_y · from_start` and `d_y · x`.
    #[inline(always)]
    fn elements<const L: usize>(&mut self, p: usize, dots: &mut [[f32; L]; 3]) {
        let (x, d_y) = (lanes::<L, E>(self.x, p), lanes::<L, E>(self.d_y, p));
        let (inside, end) = (lanes::<L, f32>(self.inside, p), lanes::<L, f32>(self.from_end, p));
        let begin = lanes::<L, f32>(self.from_start, p);
        let [skip, to_end, since_start] = self.factors;
        store::<L, E>(array(|l| inside[l] + skip * d_y[l] + to_end * end[l]), self.d_x, p);
        store::<L, E>(array(|l| to_end * x[l]), self.scaled, p);
        store::<L, E>(array(|l| since_start * d_y[l]), self.scaled_y, p);
        for l in 0..L {
            dots[0][l] += x[l] * end[l];
            dots[1][l] += d_y[l] * begin[l];
            dots[2][l] += d_y[l] * x[l];
        }
    }
}

per_isa! {
    /// The derivatives of the time steps by the raw ones.
    fn time_slopes(biased: &[f32], limits: (f32, f32), slopes: &mut [f32; CHUNK]) {
        for (slope, &biased) in slopes.iter_mut().zip(biased) {
            let step = softplus(biased);
            let held = step < limits.0 || step > limits.1;
            *slope = if held { 0.0 } else { sigmoid(biased) };
        }
    }
}

per_isa! {
    /// `Σ a[n, p] · b[n, p]` over the columns `from..from + count` of matrices of `width` columns.
    fn inner_product<E: Element>(a: &[f32], b: &[E], from: usize, count: usize, width: usize) -> f32 {
        let mut total = 0.0;
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            let (a, b) = (&a[from..from + count], &b[from..from + count]);
            total += sum_of_pairs(&a[..count], &b[..count], |a, b| a * b.to_f32());
        }
        total
    }
}
