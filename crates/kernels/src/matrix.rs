//! Views of matrices in slices.

/// A read-only matrix: element `(row, column)` is `data[row * row_stride + column * column_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a, T> MatrixRef<'a, T> {
    /// A row-major matrix whose rows follow each other without a gap.
    ///
    /// # Panics
    /// Where `data` is shorter than `rows * columns`.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::with_stride(data, rows, columns, columns)
    }

    /// A row-major matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// Where the last element lies outside `data` or rows overlap.
    pub fn with_stride(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        check(data.len(), rows, columns, row_stride);
        MatrixRef { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn transposed(self) -> Self {
        MatrixRef {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The same shape over other data of the same length.
    pub(crate) fn with_data<U>(self, data: &'a [U]) -> MatrixRef<'a, U> {
        let MatrixRef { rows, columns, row_stride, column_stride, .. } = self;
        MatrixRef { data, rows, columns, row_stride, column_stride }
    }

    /// The rows of a range, without moving anything.
    ///
    /// # Panics
    /// Where the range leaves the matrix.
    pub fn row_range(self, range: std::ops::Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "matrix: rows {range:?} of {}",
            self.rows
        );
        let data = &self.data[(range.start * self.row_stride).min(self.data.len())..];
        MatrixRef { data, rows: range.len(), ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether neighbouring columns are neighbours in memory.
    pub(crate) fn is_row_major(&self) -> bool {
        self.column_stride == 1
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// A writable row-major matrix: element `(row, column)` is `data[row * row_stride + column]`.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    pub(crate) data: &'a mut [T],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A matrix whose rows follow each other without a gap.
    ///
    /// # Panics
    /// Where `data` is shorter than `rows * columns`.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self::with_stride(data, rows, columns, columns)
    }

    /// A matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// Where the last element lies outside `data` or rows overlap.
    pub fn with_stride(data: &'a mut [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        check(data.len(), rows, columns, row_stride);
        MatrixMut { data, rows, columns, row_stride }
    }
}

fn check(length: usize, rows: usize, columns: usize, row_stride: usize) {
    assert!(rows <= 1 || row_stride >= columns, "matrix: rows of {columns} overlap at stride {row_stride}");
    let needed = span(rows, columns, row_stride).unwrap_or(usize::MAX);
    assert!(
        length >= needed,
        "matrix: {rows}x{columns} at stride {row_stride} needs {needed} elements, has {length}"
    );
}

/// Elements from the first to behind the last of a row-major matrix; `None` where that overflows.
pub(crate) fn span(rows: usize, columns: usize, row_stride: usize) -> Option<usize> {
    if rows == 0 || columns == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(row_stride)?.checked_add(columns)
}

impl<T: Copy> MatrixRef<'_, T> {
    /// Element (`row`, `column`).
    ///
    /// # Panics
    /// Where the element is outside the slice.
    #[inline]
    pub fn at(&self, row: usize, column: usize) -> T {
        self.data[row * self.row_stride + column * self.column_stride]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_exchanges_indices() {
        let data: Vec<u32> = (0..14).collect();
        let view = MatrixRef::with_stride(&data, 2, 5, 8);
        let transposed = view.transposed();
        assert_eq!((transposed.rows(), transposed.columns()), (5, 2));
        assert_eq!((view.at(1, 3), transposed.at(3, 1)), (11, 11));
        assert!(view.is_row_major() && !transposed.is_row_major());
        assert_eq!(view.row_range(1..2).at(0, 3), 11);
    }

    #[test]
    fn the_last_row_may_be_shorter_than_the_stride_and_no_more() {
        MatrixRef::with_stride(&[0u8; 13], 2, 5, 8);
        assert!(std::panic::catch_unwind(|| MatrixRef::with_stride(&[0u8; 12], 2, 5, 8)).is_err());
        assert!(
            std::panic::catch_unwind(|| MatrixRef::with_stride(&[0u8], usize::MAX, 2, usize::MAX)).is_err()
        );
    }
}
