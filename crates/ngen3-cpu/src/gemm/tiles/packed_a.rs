//! The left operand of a large product, in cells: rows as they lie, or columns in panels.
//!
//! The kernel takes one cell of each of [`MR`] rows at a time, from wherever they stand. Rows that are contiguous only need to be rounded;
//! columns are packed, [`MR`] side by side, so that a step of the kernel finds its cells in one place.

use rayon::prelude::*;

use super::kernel::{MR, Rows};
use super::pack::{self, GROUP, cells, packed_len};
use crate::gemm::view::Mat;

/// `[rows, depth]`, up to whole tiles of rows.
#[derive(Clone, Copy)]
pub struct PackedA<'a> {
    cells: &'a [u32],
    /// Cells in a row.
    pub depth: usize,
    /// Order of the rows of a tile. One tile follows the other.
    pub rows: Rows,
}

/// From one row to the next where they are apart: an odd number of cache lines, so that the rows of a tile do not compete for the
/// same places in cache.
pub const fn stride<const P: usize>(k: usize) -> usize {
    (cells::<P>(k).div_ceil(16) | 1) * 16
}

impl<'a> PackedA<'a> {
    /// Cells that `a` takes.
    pub fn len<const P: usize>(a: Mat<'_>) -> usize {
        if a.col_stride == 1 {
            a.rows.next_multiple_of(MR) * stride::<P>(a.cols)
        } else {
            packed_len::<P, MR>(a.rows, a.cols)
        }
    }

    /// Rounds `a` and lays it out in `to`, of [`PackedA::len`] cells, on all threads.
    pub fn lay_out<const P: usize>(a: Mat<'_>, to: &'a mut [u32]) -> Self {
        const TASK: usize = GROUP * MR;
        assert_eq!(to.len(), Self::len::<P>(a), "cells of a left operand");
        let depth = cells::<P>(a.cols);
        if a.col_stride != 1 {
            pack::pack::<P, MR>(a, to);
            return Self { cells: to, depth, rows: Rows::Together };
        }
        // Rows past the last stay as they are: what is multiplied with them is not stored.
        let stride = stride::<P>(a.cols);
        to.par_chunks_mut(TASK * stride).enumerate().for_each(|(task, to)| {
            for (row, to) in (task * TASK..a.rows).zip(to.chunks_exact_mut(stride)) {
                pack::along::<P>(a.rows(row..row + 1), &mut to[..depth]);
            }
        });
        Self { cells: to, depth, rows: Rows::Apart(stride) }
    }

    /// Returns the operand from row `first` on, which is the first of a tile.
    pub fn after(self, first: usize) -> Self {
        Self { cells: self.tile(first, 0), ..self }
    }

    /// Cells `k` and on of the tile whose first row is `first`.
    pub fn tile(self, first: usize, k: usize) -> &'a [u32] {
        match self.rows {
            Rows::Together => &self.cells[first * self.depth + k * MR..],
            Rows::Apart(stride) => &self.cells[first * stride + k..],
        }
    }
}
