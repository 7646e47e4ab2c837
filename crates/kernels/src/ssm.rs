//! The state-space scan of Mamba-2 (Dao and Gu, 2024, "Transformers are SSMs"): per head, a state of shape (P, N)
//!
//! `h[t] = exp(dt[t] · a) · h[t − 1] + dt[t] · x[t] ⊗ b[t]` and `y[t] = h[t] · c[t] + d · x[t]`,
//!
//! with `dt = clamp(softplus(raw + bias))`. Over whole sequences it is computed chunk by chunk, so that all but the
//! decays are matrix products: inside a chunk `y = ((c · bᵀ) ⊙ decay · dt) · x`, between chunks `y += decay · c · h`.

use crate::math::{exp, sum_by};
use crate::{BlockMut, Element, Isa, MatrixMut, MatrixRef, Store, matmul};

/// Tokens of a chunk. The products inside a chunk grow with it, those between chunks shrink.
pub const CHUNK: usize = 64;

/// What belongs to each head of a scan, and the limits of the time steps.
#[derive(Clone, Copy, Debug)]
pub struct Decay<'a> {
    /// `a` of every head; negative.
    pub a: &'a [f32],
    /// Weight of the input itself, per head.
    pub d: &'a [f32],
    /// Added to the raw time step, per head.
    pub bias: &'a [f32],
    /// Bounds of the time steps.
    pub limits: (f32, f32),
}

impl<'a> Decay<'a> {
    /// The same for some of the heads.
    pub fn of(&self, heads: std::ops::Range<usize>) -> Decay<'a> {
        Decay { a: &self.a[heads.clone()], d: &self.d[heads.clone()], bias: &self.bias[heads], ..*self }
    }

    /// The time step of a head.
    fn step(&self, head: usize, raw: f32) -> f32 {
        softplus(raw + self.bias[head]).clamp(self.limits.0, self.limits.1)
    }

    /// The derivative of [`Decay::step`].
    fn slope(&self, head: usize, raw: f32) -> f32 {
        let step = softplus(raw + self.bias[head]);
        if step < self.limits.0 || step > self.limits.1 {
            0.0
        } else {
            crate::math::sigmoid(raw + self.bias[head])
        }
    }
}

/// `ln(1 + e^x)`.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// The inputs of a scan over one segment, for heads that share `b` and `c`.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a, E> {
    /// Tokens by heads x P.
    pub x: MatrixRef<'a, E>,
    /// Tokens by N.
    pub b: MatrixRef<'a, E>,
    /// Tokens by N.
    pub c: MatrixRef<'a, E>,
    /// Raw time steps: tokens by heads.
    pub raw: MatrixRef<'a, E>,
    /// What belongs to the heads.
    pub decay: Decay<'a>,
}

/// Extents of a scan.
#[derive(Clone, Copy)]
struct Extent {
    tokens: usize,
    heads: usize,
    dimension: usize,
    /// heads x dimension
    width: usize,
    state: usize,
}

impl<E: Element> Scan<'_, E> {
    fn extent(&self) -> Extent {
        let (tokens, width) = (self.x.rows, self.x.columns);
        let (heads, state) = (self.decay.a.len(), self.b.columns);
        assert!(
            self.b.rows == tokens
                && self.c.rows == tokens
                && self.raw.rows == tokens
                && self.c.columns == state,
            "scan: rows"
        );
        assert!(heads > 0 && width.is_multiple_of(heads) && self.raw.columns == heads, "scan: heads");
        Extent { tokens, heads, dimension: width / heads, width, state }
    }

    fn chunk(&self, rows: std::ops::Range<usize>) -> Scan<'_, E> {
        Scan {
            x: self.x.row_range(rows.clone()),
            b: self.b.row_range(rows.clone()),
            c: self.c.row_range(rows.clone()),
            raw: self.raw.row_range(rows),
            decay: self.decay,
        }
    }
}

/// Time steps and the logarithm of the decay since before the chunk's first token, heads outer, of one chunk.
struct Steps {
    rows: usize,
    dt: Vec<f32>,
    sum: Vec<f32>,
}

impl Steps {
    fn of<E: Element>(chunk: &Scan<'_, E>) -> Steps {
        let (rows, heads) = (chunk.raw.rows, chunk.raw.columns);
        let (mut dt, mut sum) = (Vec::with_capacity(rows * heads), Vec::with_capacity(rows * heads));
        for head in 0..heads {
            let mut total = 0.0;
            for t in 0..rows {
                let step = chunk.decay.step(head, chunk.raw.at(t, head).to_f32());
                total += step * chunk.decay.a[head];
                dt.push(step);
                sum.push(total);
            }
        }
        Steps { rows, dt, sum }
    }

    fn dt(&self, head: usize) -> &[f32] {
        &self.dt[head * self.rows..][..self.rows]
    }

    fn sum(&self, head: usize) -> &[f32] {
        &self.sum[head * self.rows..][..self.rows]
    }

    /// Decay over the whole chunk.
    fn whole(&self, head: usize) -> f32 {
        exp(self.sum(head)[self.rows - 1])
    }

    /// Decay from the chunk's start to each token.
    fn since_start(&self, head: usize) -> Vec<f32> {
        self.sum(head).iter().map(|&s| exp(s)).collect()
    }

    /// What is left at the chunk's end of an input at each token: decay times time step.
    fn to_end(&self, head: usize) -> Vec<f32> {
        let last = self.sum(head)[self.rows - 1];
        self.sum(head).iter().zip(self.dt(head)).map(|(&s, dt)| exp(last - s) * dt).collect()
    }
}

/// `y` (tokens by heads x P) of a segment that begins with a state of zeros.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn ssm_scan_forward<E: Element>(isa: Isa, scan: Scan<'_, E>, y: &mut BlockMut<'_, E>) {
    let extent = scan.extent();
    let Extent { tokens, width, state, dimension, heads } = extent;
    assert!(y.rows() == tokens && y.columns() == width, "scan: output");
    let mut h = vec![0.0f32; state * width];
    let mut narrow = vec![E::default(); state * width];
    let mut scaled = vec![E::default(); CHUNK * width];
    let mut sums = vec![0.0f32; CHUNK * width];
    let mut scores = vec![0.0f32; CHUNK * CHUNK];
    let mut masked = [E::default(); CHUNK * CHUNK];
    for start in (0..tokens).step_by(CHUNK) {
        let rows = CHUNK.min(tokens - start);
        let chunk = scan.chunk(start..start + rows);
        let steps = Steps::of(&chunk);
        let (scores, masked) = (&mut scores[..rows * rows], &mut masked[..rows * rows]);
        matmul(isa, chunk.c, chunk.b.transposed(), MatrixMut::new(scores, rows, rows), Store::Overwrite);
        let sums = &mut sums[..rows * width];
        if start == 0 {
            sums.fill(0.0);
        } else {
            let h = MatrixRef::new(&narrow, state, width);
            matmul(isa, chunk.c, h, MatrixMut::new(sums, rows, width), Store::Overwrite);
        }
        for head in 0..heads {
            let from = head * dimension;
            scale_columns(isa, &steps.since_start(head), from, dimension, width, sums);
            decayed_scores(isa, scores, steps.sum(head), steps.dt(head), masked);
            let masked = MatrixRef::new(masked, rows, rows);
            let own = MatrixMut::with_stride(&mut sums[from..], rows, dimension, width);
            matmul(isa, masked, columns(&chunk.x, from, dimension), own, Store::Accumulate);
        }
        for t in 0..rows {
            let (x, sums) = (row(&chunk.x, t), &sums[t * width..][..width]);
            add_skip(isa, x, sums, scan.decay.d, dimension, y.row_mut(start + t));
        }
        if start + rows < tokens {
            advance(isa, &chunk, &steps, extent, &mut scaled, &mut h);
            crate::element::convert(isa, &h, &mut narrow);
        }
    }
}

/// The state behind a chunk: `h = decay · h + bᵀ · (decay to the end · dt · x)`.
fn advance<E: Element>(
    isa: Isa,
    chunk: &Scan<'_, E>,
    steps: &Steps,
    extent: Extent,
    scaled: &mut [E],
    h: &mut [f32],
) {
    let Extent { heads, dimension, width, state, .. } = extent;
    let rows = steps.rows;
    let scaled = &mut scaled[..rows * width];
    for head in 0..heads {
        scaled_copy(isa, &chunk.x, &steps.to_end(head), head * dimension, dimension, scaled);
        let whole = vec![steps.whole(head); state];
        scale_columns(isa, &whole, head * dimension, dimension, width, h);
    }
    let scaled = MatrixRef::new(scaled, rows, width);
    matmul(isa, chunk.b.transposed(), scaled, MatrixMut::new(h, state, width), Store::Accumulate);
}

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

/// Gradients of [`ssm_scan_forward`]. States are computed again, forwards; then the chunks are gone through backwards.
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

    let mut scaled = vec![E::default(); CHUNK * width];
    let states = states_before(isa, &scan, extent, &mut scaled);
    let mut scaled_y = vec![E::default(); CHUNK * width];
    let mut d_h = vec![0.0f32; state * width];
    let mut narrow = vec![E::default(); state * width];
    let (mut from_end, mut from_start, mut d_x) =
        (vec![0.0f32; CHUNK * width], vec![0.0f32; CHUNK * width], vec![0.0f32; CHUNK * width]);
    let (mut scores, mut products, mut d_scores) =
        (vec![0.0f32; CHUNK * CHUNK], vec![0.0f32; CHUNK * CHUNK], vec![0.0f32; CHUNK * CHUNK]);
    let (mut masked, mut narrow_scores) =
        (vec![E::default(); CHUNK * CHUNK], vec![E::default(); CHUNK * CHUNK]);
    let mut d_bc = vec![0.0f32; CHUNK * state];
    let (mut d_sum, mut d_dt) = (vec![0.0f32; CHUNK], vec![0.0f32; CHUNK]);
    for (index, start) in (0..tokens).step_by(CHUNK).enumerate().rev() {
        let rows = CHUNK.min(tokens - start);
        let chunk = scan.chunk(start..start + rows);
        let d_y = d_y.row_range(start..start + rows);
        let steps = Steps::of(&chunk);
        let h = &states[index * state * width..][..state * width];
        let h_view = MatrixRef::new(h, state, width);
        let square = rows * rows;
        let (scores, d_scores) = (&mut scores[..square], &mut d_scores[..square]);
        let (products, masked) = (&mut products[..square], &mut masked[..square]);
        matmul(isa, chunk.c, chunk.b.transposed(), MatrixMut::new(scores, rows, rows), Store::Overwrite);
        d_scores.fill(0.0);
        crate::element::convert(isa, &d_h, &mut narrow);
        let d_h_view = MatrixRef::new(&narrow, state, width);
        let (from_end, from_start) = (&mut from_end[..rows * width], &mut from_start[..rows * width]);
        // What the state behind the chunk asks of each token, and what the state before it gave to each.
        matmul(isa, chunk.b, d_h_view, MatrixMut::new(from_end, rows, width), Store::Overwrite);
        matmul(isa, chunk.c, h_view, MatrixMut::new(from_start, rows, width), Store::Overwrite);
        let d_x = &mut d_x[..rows * width];
        for head in 0..heads {
            let from = head * dimension;
            let (dt, sum) = (steps.dt(head), steps.sum(head));
            let (since_start, to_end) = (steps.since_start(head), steps.to_end(head));
            let (d_sum, d_dt) = (&mut d_sum[..rows], &mut d_dt[..rows]);
            d_sum.fill(0.0);
            d_dt.fill(0.0);
            let (x, own_d_y) = (columns(&chunk.x, from, dimension), columns(&d_y, from, dimension));
            matmul(isa, own_d_y, x.transposed(), MatrixMut::new(products, rows, rows), Store::Overwrite);
            pair_gradients(isa, scores, products, sum, dt, masked, d_scores, d_sum, d_dt);
            let transposed = MatrixRef::new(masked, rows, rows).transposed();
            let own = MatrixMut::with_stride(&mut d_x[from..], rows, dimension, width);
            matmul(isa, transposed, own_d_y, own, Store::Overwrite);
            scaled_copy(isa, &chunk.x, &to_end, from, dimension, &mut scaled[..rows * width]);
            scaled_copy(isa, &d_y, &since_start, from, dimension, &mut scaled_y[..rows * width]);

            let mut at_end = 0.0;
            for t in 0..rows {
                let own = t * width + from..t * width + from + dimension;
                let (x, d_y) = (&row(&x, t)[..dimension], &row(&own_d_y, t)[..dimension]);
                let dots = token_gradients(
                    isa,
                    x,
                    d_y,
                    &from_end[own.clone()],
                    &from_start[own.clone()],
                    (scan.decay.d[head], to_end[t]),
                    &mut d_x[own],
                );
                let [x_by_end, y_by_start, y_by_x] = dots;
                // to_end is the decay to the end times dt; the decay alone comes without a division.
                d_dt[t] += exp(sum[rows - 1] - sum[t]) * x_by_end;
                d_sum[t] += since_start[t] * y_by_start - to_end[t] * x_by_end;
                at_end += to_end[t] * x_by_end;
                to.d[head] += y_by_x;
            }
            at_end += steps.whole(head) * inner_product(isa, &d_h, h, from, dimension, width);
            d_sum[rows - 1] += at_end;
            let mut total = 0.0;
            for t in (0..rows).rev() {
                total += d_sum[t];
                to.a[head] += dt[t] * total;
                let raw = chunk.raw.at(t, head).to_f32();
                let d_raw = (d_dt[t] + scan.decay.a[head] * total) * scan.decay.slope(head, raw);
                to.bias[head] += d_raw;
                to.raw.row_mut(start + t)[head] = E::from_f32(d_raw);
            }
        }
        for t in 0..rows {
            crate::element::convert(isa, &d_x[t * width..][..width], to.x.row_mut(start + t));
        }
        let narrow_scores = &mut narrow_scores[..square];
        crate::element::convert(isa, d_scores, narrow_scores);
        let d_scores = MatrixRef::new(narrow_scores, rows, rows);
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
                let whole = vec![steps.whole(head); state];
                scale_columns(isa, &whole, head * dimension, dimension, width, &mut d_h);
            }
            matmul(
                isa,
                chunk.c.transposed(),
                scaled_y,
                MatrixMut::new(&mut d_h, state, width),
                Store::Accumulate,
            );
        }
    }
}

/// The state before every chunk, (N, heads x P) each.
fn states_before<E: Element>(isa: Isa, scan: &Scan<'_, E>, extent: Extent, scaled: &mut [E]) -> Vec<E> {
    let (tokens, size) = (extent.tokens, extent.state * extent.width);
    let mut states = vec![E::default(); tokens.div_ceil(CHUNK) * size];
    let mut h = vec![0.0f32; size];
    for (index, start) in (CHUNK..tokens).step_by(CHUNK).enumerate() {
        let chunk = scan.chunk(start - CHUNK..start);
        advance(isa, &chunk, &Steps::of(&chunk), extent, scaled, &mut h);
        crate::element::convert(isa, &h, &mut states[(index + 1) * size..][..size]);
    }
    states
}

fn row<'a, E: Element>(x: &MatrixRef<'a, E>, t: usize) -> &'a [E] {
    &x.data[t * x.row_stride..][..x.columns]
}

fn columns<'a, E: Element>(x: &MatrixRef<'a, E>, from: usize, count: usize) -> MatrixRef<'a, E> {
    MatrixRef::with_stride(&x.data[from..], x.rows, count, x.row_stride)
}

per_isa! {
    /// `data[r, from..from + count] *= factors[r]` for rows of `width`.
    fn scale_columns(factors: &[f32], from: usize, count: usize, width: usize, data: &mut [f32]) {
        for (row, factor) in data.chunks_exact_mut(width).zip(factors) {
            for value in &mut row[from..from + count] {
                *value *= factor;
            }
        }
    }
}

per_isa! {
    /// `to[r, from..from + count] = factors[r] · x[r, from..from + count]`.
    fn scaled_copy<E: Element>(x: &MatrixRef<'_, E>, factors: &[f32], from: usize, count: usize, to: &mut [E]) {
        let width = x.columns;
        for (r, (to, factor)) in to.chunks_exact_mut(width).zip(factors).enumerate() {
            let x = &x.data[r * x.row_stride + from..][..count];
            for (to, x) in to[from..from + count].iter_mut().zip(x) {
                *to = E::from_f32(factor * x.to_f32());
            }
        }
    }
}

per_isa! {
    /// `masked[t, j] = scores[t, j] · exp(sum[t] − sum[j]) · dt[j]` for `j ≤ t`, else 0.
    fn decayed_scores<E: Element>(scores: &[f32], sum: &[f32], dt: &[f32], masked: &mut [E]) {
        let rows = sum.len();
        for (t, (scores, masked)) in scores.chunks_exact(rows).zip(masked.chunks_exact_mut(rows)).enumerate() {
            let (seen, rest) = masked.split_at_mut(t + 1);
            for (((m, score), s), dt) in seen.iter_mut().zip(scores).zip(sum).zip(dt) {
                *m = E::from_f32(score * exp(sum[t] - s) * dt);
            }
            rest.fill(E::default());
        }
    }
}

per_isa! {
    /// From `products[t, j] = d_y[t] · x[j]`: the decayed scores again, and the gradients of scores, decays and time
    /// steps, which are added to.
    fn pair_gradients<E: Element>(
        scores: &[f32],
        products: &mut [f32],
        sum: &[f32],
        dt: &[f32],
        masked: &mut [E],
        d_scores: &mut [f32],
        d_sum: &mut [f32],
        d_dt: &mut [f32],
    ) {
        let rows = sum.len();
        for t in 0..rows {
            let (seen, own) = (t * rows..t * rows + t + 1, sum[t]);
            let (scores, products) = (&scores[seen.clone()], &mut products[seen.clone()]);
            let (d_scores, sum, dt) = (&mut d_scores[seen.clone()], &sum[..t + 1], &dt[..t + 1]);
            let masked = &mut masked[t * rows..][..rows];
            let (masked, rest) = masked.split_at_mut(t + 1);
            let (d_sum_seen, d_dt) = (&mut d_sum[..t + 1], &mut d_dt[..t + 1]);
            for j in 0..t + 1 {
                let decay = exp(own - sum[j]);
                let product = products[j] * decay;
                d_scores[j] += product * dt[j];
                masked[j] = E::from_f32(scores[j] * decay * dt[j]);
                let by_dt = product * scores[j];
                d_dt[j] += by_dt;
                products[j] = by_dt * dt[j];
                d_sum_seen[j] -= products[j];
            }
            rest.fill(E::default());
            d_sum[t] += sum_by(t + 1, |j| products[j]);
        }
    }
}

per_isa! {
    /// Adds to `d_x` what a token gets past the pairs; returns `x · from_end`, `d_y · from_start` and `d_y · x`.
    fn token_gradients<E: Element>(
        x: &[E],
        d_y: &[E],
        from_end: &[f32],
        from_start: &[f32],
        factors: (f32, f32),
        d_x: &mut [f32],
    ) -> [f32; 3] {
        let n = x.len();
        let (skip, to_end) = factors;
        for ((d_x, d_y), end) in d_x.iter_mut().zip(d_y).zip(from_end) {
            *d_x += skip * d_y.to_f32() + to_end * end;
        }
        [
            sum_by(n, |p| x[p].to_f32() * from_end[p]),
            sum_by(n, |p| d_y[p].to_f32() * from_start[p]),
            sum_by(n, |p| d_y[p].to_f32() * x[p].to_f32()),
        ]
    }
}

per_isa! {
    /// `Σ a[n, p] · b[n, p]` over the columns `from..from + count` of matrices of `width` columns.
    fn inner_product<E: Element>(a: &[f32], b: &[E], from: usize, count: usize, width: usize) -> f32 {
        let mut total = 0.0;
        for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
            let (a, b) = (&a[from..from + count], &b[from..from + count]);
            total += sum_by(count, |p| a[p] * b[p].to_f32());
        }
        total
    }
}

per_isa! {
    /// `y = sums + d · x`, with a `d` for every `dimension` elements.
    fn add_skip<E: Element>(x: &[E], sums: &[f32], d: &[f32], dimension: usize, y: &mut [E]) {
        for (head, &d) in d.iter().enumerate() {
            let own = head * dimension..(head + 1) * dimension;
            for ((y, x), sum) in y[own.clone()].iter_mut().zip(&x[own.clone()]).zip(&sums[own]) {
                *y = E::from_f32(sum + d * x.to_f32());
            }
        }
    }
}

/// The same over the tokens of one sequence, one after the other, from `state` (heads, P, N), which moves on: what
/// decoding computes. Its bits do not depend on where a sequence is cut.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn ssm_steps(isa: Isa, scan: Scan<'_, f32>, state: &mut [f32], y: &mut BlockMut<'_, f32>) {
    let Extent { tokens, heads, dimension, state: n, width } = scan.extent();
    assert!(state.len() == width * n && y.rows() == tokens && y.columns() == width, "scan: state");
    for (head, state) in state.chunks_exact_mut(dimension * n).enumerate().take(heads) {
        let own = head * dimension..(head + 1) * dimension;
        for t in 0..tokens {
            let dt = scan.decay.step(head, scan.raw.at(t, head));
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
            *y = sum_by(c.len(), |n| state[n] * c[n]) + d * x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, assert_all_close, numeric_gradient, to_f64};

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
        for isa in Isa::available() {
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
            for isa in Isa::available() {
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
        for isa in Isa::available() {
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
}
