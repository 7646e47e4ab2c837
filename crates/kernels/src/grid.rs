//! A row-major matrix cut into disjoint writable blocks, so that threads can fill one output together.

use std::marker::PhantomData;
use std::ops::Range;

/// A writable rectangle of a larger row-major matrix. No two blocks of one [`split`] overlap.
#[derive(Debug)]
pub struct BlockMut<'a, T> {
    start: *mut T,
    rows: usize,
    columns: usize,
    row_stride: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: a block is the only access to its elements for 'a, like a `&mut [T]`.
unsafe impl<T: Send> Send for BlockMut<'_, T> {}

impl<'a, T> BlockMut<'a, T> {
    /// The whole of a matrix with `columns` columns.
    pub fn new(data: &'a mut [T], columns: usize) -> BlockMut<'a, T> {
        let rows = data.len().checked_div(columns).unwrap_or(0);
        BlockMut { start: data.as_mut_ptr(), rows, columns, row_stride: columns, owner: PhantomData }
    }

    /// The first element of a rectangle, and the stride of its rows.
    ///
    /// # Panics
    /// Where the rectangle is empty or leaves the block.
    #[inline(always)]
    pub(crate) fn place(&mut self, rows: Range<usize>, columns: Range<usize>) -> (*mut T, usize) {
        assert!(rows.start < rows.end && rows.end <= self.rows, "block: rows {rows:?} of {}", self.rows);
        assert!(
            columns.start < columns.end && columns.end <= self.columns,
            "block: columns {columns:?} of {}",
            self.columns
        );
        // SAFETY: the element lies inside the block, by the checks above.
        (unsafe { self.start.add(rows.start * self.row_stride + columns.start) }, self.row_stride)
    }

    /// One row of the block.
    ///
    /// # Panics
    /// Where `row` is outside the block.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "block: row {row} of {}", self.rows);
        // SAFETY: `split` checked that row and columns lie inside the matrix, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.columns) }
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

/// Cuts a row-major matrix of `columns` columns into one block per (row range, column range), row ranges outer.
///
/// # Panics
/// Where ranges overlap, are not ascending or leave the matrix.
pub fn split<'a, T>(
    data: &'a mut [T],
    columns: usize,
    row_ranges: &[Range<usize>],
    column_ranges: &[Range<usize>],
) -> Vec<BlockMut<'a, T>> {
    let rows = data.len().checked_div(columns).unwrap_or(0);
    check(row_ranges, rows);
    check(column_ranges, columns);
    let start = data.as_mut_ptr();
    let mut blocks = Vec::with_capacity(row_ranges.len() * column_ranges.len());
    for r in row_ranges {
        for c in column_ranges {
            blocks.push(BlockMut {
                // SAFETY: both starts are inside the matrix (one past its end at most, for empty ranges).
                start: unsafe { start.add((r.start * columns + c.start).min(data.len())) },
                rows: r.len(),
                columns: c.len(),
                row_stride: columns,
                owner: PhantomData,
            });
        }
    }
    blocks
}

fn check(ranges: &[Range<usize>], limit: usize) {
    let mut end = 0;
    for range in ranges {
        assert!(range.start >= end && range.end >= range.start, "split: ranges overlap: {ranges:?}");
        end = range.end;
    }
    assert!(end <= limit, "split: ranges {ranges:?} leave the matrix (limit {limit})");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_their_rectangles_and_nothing_else() {
        let mut data = vec![0; 5 * 7];
        let mut blocks = split(&mut data, 7, &[0..2, 3..5], &[0..3, 3..6]);
        for (i, block) in blocks.iter_mut().enumerate() {
            for r in 0..block.rows() {
                block.row_mut(r).fill(i + 1);
            }
        }
        let expected: Vec<usize> = (0..35)
            .map(|i| match (i / 7, i % 7) {
                (2, _) | (_, 6) => 0,
                (r, c) => 1 + 2 * usize::from(r > 2) + usize::from(c >= 3),
            })
            .collect();
        assert_eq!(data, expected);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_ranges_are_refused() {
        split(&mut [0; 12], 4, &[0..2, 1..3], std::slice::from_ref(&(0..4)));
    }
}
