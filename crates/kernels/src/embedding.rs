//! Rows of a table by token number.

use crate::{BlockMut, Element};

/// `y[i] = table[tokens[i]]` for a table of rows of `width` elements.
///
/// # Panics
/// Where a token is outside the table; callers check what comes from outside.
pub fn embedding_forward<E: Element>(table: &[E], width: usize, tokens: &[u32], y: &mut [E]) {
    assert_eq!(y.len(), tokens.len() * width, "embedding: shapes");
    for (y, &token) in y.chunks_exact_mut(width).zip(tokens) {
        y.copy_from_slice(&table[token as usize * width..][..width]);
    }
}

/// Adds the gradient of some columns of the output to the same columns of the table's gradient:
/// `d_table[tokens[i], c] += d_y[i, first + c]`. Splitting by columns keeps the order of additions per element,
/// so the sum does not depend on how many threads share the work.
pub fn embedding_backward<E: Element>(
    d_y: &[E],
    width: usize,
    first: usize,
    tokens: &[u32],
    d_table: &mut BlockMut<'_, f32>,
) {
    for (d_y, &token) in d_y.chunks_exact(width).zip(tokens) {
        let row = d_table.row_mut(token as usize);
        for (to, from) in row.iter_mut().zip(&d_y[first..]) {
            *to += from.to_f32();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedding_gathers_rows_and_its_gradient_scatters_them_back() {
        let table: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let tokens = [2, 0, 2];
        let mut y = vec![0.0; 9];
        embedding_forward(&table, 3, &tokens, &mut y);
        assert_eq!(y, [6.0, 7.0, 8.0, 0.0, 1.0, 2.0, 6.0, 7.0, 8.0]);
        let mut d_table = vec![0.0; 12];
        let rows = 0..4;
        for (block, first) in crate::grid::split(&mut d_table, 3, std::slice::from_ref(&rows), &[0..1, 1..3])
            .iter_mut()
            .zip([0, 1])
        {
            embedding_backward(&y, 3, first, &tokens, block);
        }
        assert_eq!(d_table, [0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 12.0, 14.0, 16.0, 0.0, 0.0, 0.0]);
    }
}
