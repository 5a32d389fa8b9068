//! Bounds-checked, strided views of matrices.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Read-only matrix of f32 or of cells (`tiles/`): element `(i, j)` is `data[i·row_stride + j·col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T = f32> {
    pub(super) data: &'a [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a, T: Copy> Mat<'a, T> {
    /// Views `data` as a dense, row-major `[rows, cols]` matrix.
    ///
    /// # Panics
    /// If `data` does not have `rows·cols` elements.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "length of a {rows} x {cols} matrix");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Views a `[rows, cols]` matrix whose rows start `row_stride` elements apart, such as one head's queries in `qkv`.
    ///
    /// # Panics
    /// If the last element would lie outside `data`.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride), "{rows} x {cols}, stride {row_stride}, in {}", data.len());
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Row `i`. The column stride must be 1.
    #[inline(always)]
    pub fn row(&self, i: usize) -> &'a [T] {
        debug_assert_eq!(self.col_stride, 1);
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Submatrix of the rows in `range`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let start = (range.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[start..], rows: range.len(), ..self }
    }

    /// Submatrix of the columns in `range`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn columns(self, range: Range<usize>) -> Self {
        self.t().rows(range).t()
    }

    /// Transposed view, `[cols, rows]`.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
}

impl<'a> Mat<'a> {
    /// The same matrix as cells of one element.
    pub fn cells(self) -> Mat<'a, u32> {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Mat { data: bytemuck::cast_slice(data), rows, cols, row_stride, col_stride }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    // Unsafe code relies on it, so it must hold whatever the sizes: none may overflow.
    let end = || (rows - 1).checked_mul(row_stride)?.checked_add(cols);
    rows == 0 || cols == 0 || (cols <= row_stride && end().is_some_and(|end| end <= len))
}

/// Writable row-major matrix, possibly with gaps between rows.
#[derive(Debug)]
pub struct MatMut<'a> {
    pub(super) data: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// Views `data` as a dense `[rows, cols]` matrix.
    ///
    /// # Panics
    /// If `data` does not have `rows·cols` elements.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "length of a {rows} x {cols} matrix");
        Self::strided(data, rows, cols, cols)
    }

    /// Views a `[rows, cols]` matrix whose rows start `row_stride` elements apart.
    ///
    /// # Panics
    /// If the last element would lie outside `data`.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride), "{rows} x {cols}, stride {row_stride}, in {}", data.len());
        Self { data: data.as_mut_ptr(), rows, cols, row_stride, borrow: PhantomData }
    }

    /// Submatrix of the rows in `range`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn rows(&mut self, range: Range<usize>) -> MatMut<'_> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let data = self.data.wrapping_add(range.start * self.row_stride);
        MatMut { data, rows: range.len(), cols: self.cols, row_stride: self.row_stride, borrow: PhantomData }
    }

    /// Submatrix of the columns in `range`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn columns(&mut self, range: Range<usize>) -> MatMut<'_> {
        // SAFETY: `self` is borrowed as long as the part is in use.
        unsafe { self.part(0..self.rows, range) }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// Row `i`.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the constructors checked that every row lies within the borrowed slice.
        unsafe { std::slice::from_raw_parts_mut(self.data.wrapping_add(i * self.row_stride), self.cols) }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f32) {
        (0..self.rows).for_each(|i| self.row_mut(i).fill(value));
    }

    /// Calls `work(block, first_row)` for blocks of rows, on all threads.
    pub fn par_row_blocks(&mut self, work: impl Fn(&mut MatMut<'_>, usize) + Sync) {
        const ROWS: usize = 64;
        (0..self.rows).into_par_iter().step_by(ROWS).for_each(|first| {
            // SAFETY: no two tasks share a row.
            let mut block = unsafe { self.part(first..(first + ROWS).min(self.rows), 0..self.cols) };
            work(&mut block, first);
        });
    }

    /// Submatrix of these rows and columns.
    ///
    /// # Safety
    /// No other part that shares an element may be in use.
    ///
    /// # Panics
    /// If a range is out of bounds.
    pub unsafe fn part(&self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        let data = self.data.wrapping_add(rows.start * self.row_stride + cols.start);
        MatMut { data, rows: rows.len(), cols: cols.len(), row_stride: self.row_stride, borrow: PhantomData }
    }
}

// SAFETY: a view is handed to tasks only to be cut into parts that do not overlap (`part`); f32 has no thread affinity.
unsafe impl Sync for MatMut<'_> {}
// SAFETY: it represents a `&mut [f32]`.
unsafe impl Send for MatMut<'_> {}

/// Dense `[rows, width]` matrix in which parallel tasks write disjoint windows, such as one head's columns.
#[derive(Debug)]
pub struct Canvas<'a> {
    data: *mut f32,
    rows: usize,
    width: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: callers of `window` promise that the tasks' windows are disjoint; f32 has no thread affinity.
unsafe impl Sync for Canvas<'_> {}

impl<'a> Canvas<'a> {
    /// Views `data` as rows of `width`.
    ///
    /// # Panics
    /// If the length of `data` is not a multiple of `width`.
    pub fn new(data: &'a mut [f32], width: usize) -> Self {
        assert!(data.len().is_multiple_of(width), "{} elements as rows of {width}", data.len());
        Self { rows: data.len() / width, data: data.as_mut_ptr(), width, borrow: PhantomData }
    }

    /// Window of these rows and columns.
    ///
    /// # Safety
    /// No other window that shares an element may be alive.
    ///
    /// # Panics
    /// If a range is out of bounds.
    pub unsafe fn window(&self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.width, "columns {cols:?} of {}", self.width);
        let data = self.data.wrapping_add(rows.start * self.width + cols.start);
        MatMut { data, rows: rows.len(), cols: cols.len(), row_stride: self.width, borrow: PhantomData }
    }

    /// Columns `cols` of one row.
    ///
    /// # Safety
    /// As [`Canvas::window`].
    ///
    /// # Panics
    /// As [`Canvas::window`].
    #[expect(clippy::mut_from_ref, reason = "windows are disjoint, by the caller's promise")]
    pub unsafe fn row(&self, row: usize, cols: Range<usize>) -> &mut [f32] {
        let len = cols.len();
        // SAFETY: `window` checks the bounds; the caller promises that no window overlaps.
        unsafe { std::slice::from_raw_parts_mut(self.window(row..row + 1, cols).data, len) }
    }
}
