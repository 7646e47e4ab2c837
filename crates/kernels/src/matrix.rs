//! Views of matrices in slices.

/// A matrix of `rows` × `cols` elements in a slice, without owning it. One of the two strides is 1, so a
/// view is row-major (`col_stride` 1) or the transpose of a row-major one (`row_stride` 1).
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> MatrixRef<'a, T> {
    /// Row-major with rows one after another: element (r, c) is `data[r * cols + c]`.
    ///
    /// # Panics
    /// `data` is shorter than the matrix.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major with `row_stride` elements from one row to the next: element (r, c) is
    /// `data[r * row_stride + c]`.
    ///
    /// # Panics
    /// Rows overlap (`row_stride < cols` with more than one row) or `data` is shorter than the matrix.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(row_stride >= cols || rows <= 1, "row stride {row_stride} is less than the {cols} columns");
        let needed = span(rows, cols, row_stride);
        assert!(
            needed.is_some_and(|needed| needed <= data.len()),
            "a {rows} x {cols} matrix with row stride {row_stride} does not fit {} elements",
            data.len()
        );
        MatrixRef { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged; nothing is moved.
    pub fn transposed(self) -> Self {
        MatrixRef {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Elements from one column to the next.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// Whether neighbouring columns are neighbours in memory.
    pub fn is_row_major(&self) -> bool {
        self.col_stride == 1
    }

    /// The slice that the view looks at.
    pub fn data(&self) -> &'a [T] {
        self.data
    }
}

impl<T: Copy> MatrixRef<'_, T> {
    /// Element (`row`, `col`).
    ///
    /// # Panics
    /// The element is outside the slice.
    #[inline]
    pub fn at(&self, row: usize, col: usize) -> T {
        self.data[row * self.row_stride + col * self.col_stride]
    }
}

/// Elements from the first to behind the last of a row-major matrix; `None` where that overflows.
pub(crate) fn span(rows: usize, cols: usize, row_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(row_stride)?.checked_add(cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_exchanges_indices() {
        let data: Vec<u32> = (0..14).collect();
        let view = MatrixRef::strided(&data, 2, 5, 8);
        let transposed = view.transposed();
        assert_eq!((transposed.rows(), transposed.cols()), (5, 2));
        assert_eq!(view.at(1, 3), 11);
        assert_eq!(transposed.at(3, 1), 11);
        assert!(view.is_row_major() && !transposed.is_row_major());
    }

    #[test]
    fn the_last_row_may_be_shorter_than_the_stride() {
        MatrixRef::strided(&[0u8; 13], 2, 5, 8);
        assert!(std::panic::catch_unwind(|| MatrixRef::strided(&[0u8; 12], 2, 5, 8)).is_err());
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert!(
            std::panic::catch_unwind(|| MatrixRef::strided(&[0u8; 1], usize::MAX, 2, usize::MAX)).is_err()
        );
    }
}
