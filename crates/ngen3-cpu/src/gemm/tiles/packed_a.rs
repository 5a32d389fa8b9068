//! Left operand of a large product, in cells: separate rows, or panels of rows, interleaved or in blocks.
//!
//! The AVX-512 kernel reads one cell of each of [`MR`] rows per step along k, at any stride. So contiguous rows only need rounding.
//! If the columns are contiguous instead (a transposed operand), [`MR`] rows are interleaved into panels, so that a step reads
//! adjacent cells. AMX reads panels in blocks, whichever are contiguous: see `panels_a.rs`.

use rayon::prelude::*;

use super::kernel::{MR, Rows};
use super::pack::{self, GROUP, cells};
use super::panels_a;
use crate::gemm::view::Mat;

/// Packed left operand, `[rows, depth]` cells, padded to whole tiles.
#[derive(Clone, Copy)]
pub struct PackedA<'a> {
    cells: &'a [u32],
    /// Cells per row with values.
    pub depth: usize,
    /// Cells per row in a panel, padding included.
    panel_depth: usize,
    /// Order of the rows within a tile. Tiles follow one another.
    pub rows: Rows,
}

/// Returns the stride in cells between separate rows of `k` elements: an odd number of cache lines, so that the rows of a tile
/// map to different cache sets.
pub const fn stride<const P: usize>(k: usize) -> usize {
    (cells::<P>(k).div_ceil(16) | 1) * 16
}

impl<'a> PackedA<'a> {
    /// Number of cells of the packed `a`.
    pub fn len<const P: usize>(a: Mat<'_>) -> usize {
        if Self::in_panels::<P>(a) {
            panels_a::packed_len::<P>(a.rows, a.cols)
        } else {
            a.rows.next_multiple_of(MR) * stride::<P>(a.cols)
        }
    }

    fn in_panels<const P: usize>(a: Mat<'_>) -> bool {
        a.col_stride != 1 || panels_a::rows::<P>() == Rows::Blocks
    }

    /// Rounds `a` and packs it into `to`, which has [`PackedA::len`] cells, on all threads.
    pub fn lay_out<const P: usize>(a: Mat<'_>, to: &'a mut [u32]) -> Self {
        const TASK: usize = GROUP * MR;
        assert_eq!(to.len(), Self::len::<P>(a), "cells of the packed left operand");
        let (depth, panel_depth) = (cells::<P>(a.cols), panels_a::depth::<P>(a.cols));
        if Self::in_panels::<P>(a) {
            panels_a::pack::<P>(a, to);
            return Self { cells: to, depth, panel_depth, rows: panels_a::rows::<P>() };
        }
        // Padding rows are left uninitialised: their products are never stored.
        let stride = stride::<P>(a.cols);
        to.par_chunks_mut(TASK * stride).enumerate().for_each(|(task, to)| {
            for (row, to) in (task * TASK..a.rows).zip(to.chunks_exact_mut(stride)) {
                pack::along::<P>(a.rows(row..row + 1), &mut to[..depth]);
            }
        });
        Self { cells: to, depth, panel_depth, rows: Rows::Apart(stride) }
    }

    /// Returns the operand from row `first`, the start of a tile.
    pub fn after(self, first: usize) -> Self {
        Self { cells: self.tile(first, 0), ..self }
    }

    /// Returns the distance in cells from a tile to the one below it.
    pub fn below(self) -> usize {
        match self.rows {
            Rows::Together | Rows::Blocks => self.rows.count() * self.panel_depth,
            Rows::Apart(stride) => MR * stride,
        }
    }

    /// Returns the cells of the tile that starts at row `first`, from cell `k` along k, at which a product may begin:
    /// [`Rows::start`].
    pub fn tile(self, first: usize, k: usize) -> &'a [u32] {
        match self.rows {
            Rows::Together | Rows::Blocks => &self.cells[first * self.panel_depth + k * self.rows.count()..],
            Rows::Apart(stride) => &self.cells[first * stride + k..],
        }
    }
}
