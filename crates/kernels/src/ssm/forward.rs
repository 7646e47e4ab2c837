//! The scan over whole segments.

use super::time::{HeadSteps, Steps};
use super::{CHUNK, Extent, LANES, Scan, columns, lanes, row, store};
use crate::math::{array, exp};
use crate::{BlockMut, Element, Isa, MatrixMut, MatrixRef, Store, matmul};

/// `y` (tokens by heads x P) of a segment that begins with a state of zeros.
///
/// # Panics
/// Where the shapes do not fit together.
pub fn ssm_scan_forward<E: Element>(isa: Isa, scan: Scan<'_, E>, y: &mut BlockMut<'_, E>) {
    let extent = scan.extent();
    let Extent { tokens, width, state, dimension, heads } = extent;
    assert!(y.rows() == tokens && y.columns() == width, "scan: output");
    let mut steps = Steps::new(heads);
    let mut h = vec![0.0f32; state * width];
    let mut narrow = vec![E::default(); state * width];
    let mut scaled = vec![E::default(); CHUNK * width];
    let mut from_start = vec![0.0f32; CHUNK * width];
    let mut inside = vec![0.0f32; CHUNK * dimension];
    let mut scores = [0.0f32; CHUNK * CHUNK];
    let mut masked = [E::default(); CHUNK * CHUNK];
    for start in (0..tokens).step_by(CHUNK) {
        let rows = CHUNK.min(tokens - start);
        let chunk = scan.chunk(start..start + rows);
        steps.fill(isa, &chunk);
        let to = MatrixMut::with_stride(&mut scores, rows, rows, CHUNK);
        matmul(isa, chunk.c, chunk.b.transposed(), to, Store::Overwrite);
        if start > 0 {
            let (h, to) = (MatrixRef::new(&narrow, state, width), &mut from_start[..rows * width]);
            matmul(isa, chunk.c, h, MatrixMut::new(to, rows, width), Store::Overwrite);
        }
        for head in 0..heads {
            let (from, steps) = (head * dimension, steps.head(head));
            decayed_scores(isa, &scores, rows, steps, &mut masked);
            let masked = MatrixRef::with_stride(&masked, rows, rows, CHUNK);
            let x = columns(&chunk.x, from, dimension);
            let to = MatrixMut::new(&mut inside[..rows * dimension], rows, dimension);
            matmul(isa, masked, x, to, Store::Overwrite);
            let from_start = (&from_start[from..], width);
            outputs(isa, &x, &inside, from_start, steps, scan.decay.d[head], (start, from), y);
        }
        if start + rows < tokens {
            advance(isa, &chunk, &steps, extent, &mut scaled, &mut h);
            crate::element::convert(isa, &h, &mut narrow);
        }
    }
}

/// The state behind a chunk: `h = decay · h + bᵀ · (decay to the end · dt · x)`.
pub(super) fn advance<E: Element>(
    isa: Isa,
    chunk: &Scan<'_, E>,
    steps: &Steps,
    extent: Extent,
    scaled: &mut [E],
    h: &mut [f32],
) {
    let Extent { heads, dimension, width, state, .. } = extent;
    let rows = chunk.x.rows;
    let scaled = &mut scaled[..rows * width];
    for head in 0..heads {
        let (from, steps) = (head * dimension, steps.head(head));
        scaled_copy(isa, &chunk.x, steps.to_end(), from, dimension, scaled);
        scale_columns(isa, steps.whole(), from, dimension, width, h);
    }
    let scaled = MatrixRef::new(scaled, rows, width);
    matmul(isa, chunk.b.transposed(), scaled, MatrixMut::new(h, state, width), Store::Accumulate);
}

per_isa! {
    /// `data[r, from..from + count] *= factor` for rows of `width`.
    pub(super) fn scale_columns(factor: f32, from: usize, count: usize, width: usize, data: &mut [f32]) {
        for row in data.chunks_exact_mut(width) {
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
    /// `masked[t, j] = scores[t, j] · exp(sum[t] − sum[j]) · dt[j]` for `j ≤ t`, else 0; rows of both are [`CHUNK`] apart.
    fn decayed_scores<E: Element>(scores: &[f32], rows: usize, steps: &HeadSteps, masked: &mut [E]) {
        let (dt, sum) = (steps.dt(), steps.sum());
        let pairs = scores.chunks_exact(CHUNK).zip(masked.chunks_exact_mut(CHUNK)).take(rows);
        for (t, (scores, masked)) in pairs.enumerate() {
            for j in (0..CHUNK).step_by(LANES) {
                if j > t {
                    masked[j..j + LANES].fill(E::default());
                    continue;
                }
                let (scores, sums) = (lanes::<LANES, f32>(scores, j), lanes::<LANES, f32>(sum, j));
                let dt = lanes::<LANES, f32>(dt, j);
                let values = array(|l| {
                    let value = scores[l] * exp(sum[t] - sums[l]) * dt[l];
                    if j + l <= t { value } else { 0.0 }
                });
                store::<LANES, E>(values, masked, j);
            }
        }
    }
}

per_isa! {
    /// `y = inside + since_start · from_start + d · x` of one head: `from_start` comes with the distance of its rows, and is
    /// nothing for the first chunk; `at` is where the head's first element is in `y`.
    fn outputs<E: Element>(
        x: &MatrixRef<'_, E>,
        inside: &[f32],
        from_start: (&[f32], usize),
        steps: &HeadSteps,
        d: f32,
        at: (usize, usize),
        y: &mut BlockMut<'_, E>,
    ) {
        let (n, (before, distance), (start, from)) = (x.columns, from_start, at);
        for (t, (inside, since_start)) in inside.chunks_exact(n).zip(steps.since_start()).enumerate() {
            let (x, y) = (row(x, t), &mut y.row_mut(start + t)[from..from + n]);
            let values = y.iter_mut().zip(inside).zip(x);
            if start == 0 {
                for ((y, inside), x) in values {
                    *y = E::from_f32(inside + d * x.to_f32());
                }
            } else {
                let before = &before[t * distance..][..n];
                for (((y, inside), x), before) in values.zip(before) {
                    *y = E::from_f32(inside + since_start * before + d * x.to_f32());
                }
            }
        }
    }
}
