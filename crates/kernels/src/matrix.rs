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
    let needed = if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + columns };
    assert!(
        length >= needed,
        "matrix: {rows}x{columns} at stride {row_stride} needs {needed} elements, has {length}"
    );
}
