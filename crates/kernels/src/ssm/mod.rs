//! The state-space scan of Mamba-2 (Dao and Gu, 2024, "Transformers are SSMs"): per head, a state of shape (P, N)
//!
//! `h[t] = exp(dt[t] · a) · h[t − 1] + dt[t] · x[t] ⊗ b[t]` and `y[t] = h[t] · c[t] + d · x[t]`,
//!
//! with `dt = clamp(softplus(raw + bias))`. Over whole sequences it is computed chunk by chunk, so that all but the
//! decays are matrix products: inside a chunk `y = ((c · bᵀ) ⊙ decay · dt) · x`, between chunks `y += decay · c · h`.

mod backward;
mod forward;
mod step;
#[cfg(test)]
mod tests;
mod time;

pub use backward::{ScanGradients, ssm_scan_backward};
pub use forward::ssm_scan_forward;
pub use step::ssm_steps;

use crate::math::array;
use crate::{Element, MatrixRef};

/// Tokens of a chunk. The products inside a chunk grow with it, those between chunks shrink.
pub const CHUNK: usize = 64;

/// Elements that are computed side by side: a register of AVX-512. Divides [`CHUNK`].
const LANES: usize = 16;

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

#[inline(always)]
fn row<'a, E: Element>(x: &MatrixRef<'a, E>, t: usize) -> &'a [E] {
    &x.data[t * x.row_stride..][..x.columns]
}

fn columns<'a, E: Element>(x: &MatrixRef<'a, E>, from: usize, count: usize) -> MatrixRef<'a, E> {
    MatrixRef::with_stride(&x.data[from..], x.rows, count, x.row_stride)
}

/// `L` values from `from` on.
#[inline(always)]
fn lanes<const L: usize, E: Element>(values: &[E], from: usize) -> [f32; L] {
    let values = &values[from..from + L];
    array(|l| values[l].to_f32())
}

#[inline(always)]
fn store<const L: usize, E: Element>(values: [f32; L], to: &mut [E], from: usize) {
    let to = &mut to[from..from + L];
    for l in 0..L {
        to[l] = E::from_f32(values[l]);
    }
}
