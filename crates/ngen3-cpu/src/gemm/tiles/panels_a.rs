//! The operand A in panels of as many rows as a tile has, in the order of the kernel that reads them.
//!
//! For AVX-512 the rows of a panel are interleaved, [`Rows::Together`]. For AMX, which multiplies bf16 only, they are in blocks
//! along k, [`Rows::Blocks`], and the last block is filled up with zeros.

use rayon::prelude::*;

use super::amx;
#[cfg(any(target_arch = "x86_64", test))]
use super::kernel;
use super::kernel::{high, low};
use super::pack::{self, GROUP, cells};
use super::shape::{BLOCK, BLOCK_CELLS, MR, ROWS, Rows};
use crate::gemm::view::Mat;

/// Returns the order of a panel's rows.
pub fn rows<const P: usize>() -> Rows {
    if P == 2 && amx::available() { Rows::Blocks } else { Rows::Together }
}

/// Number of rows of a panel.
pub fn height<const P: usize>() -> usize {
    rows::<P>().count()
}

/// Number of cells of a row of `k` elements in a panel.
pub fn depth<const P: usize>(k: usize) -> usize {
    match rows::<P>() {
        Rows::Blocks => cells::<P>(k).next_multiple_of(BLOCK),
        _ => cells::<P>(k),
    }
}

/// Number of cells of `[rows, k]` packed in panels.
pub fn packed_len<const P: usize>(rows: usize, k: usize) -> usize {
    rows.next_multiple_of(height::<P>()) * depth::<P>(k)
}

/// Packs `source`, `[rows, k]`, into panels, on all threads.
pub fn pack<const P: usize>(source: Mat<'_>, packed: &mut [u32]) {
    assert_eq!(packed.len(), packed_len::<P>(source.rows, source.cols), "cells of the packed panels");
    let group = GROUP * height::<P>();
    packed.par_chunks_mut(group * depth::<P>(source.cols).max(1)).enumerate().for_each(|(i, to)| {
        panels::<P>(source, i * group, to);
    });
}

/// Copies one of the rows packed in bf16 panels to `to`, `[k]`.
pub fn copy_row(panels: &[u32], row: usize, to: &mut [f32]) {
    let (rows, panel) = (rows::<2>(), height::<2>() * depth::<2>(to.len()));
    let (panel, row) = (&panels[row / rows.count() * panel..][..panel], row % rows.count());
    for (k, pair) in to.chunks_mut(2).enumerate() {
        let cell = panel[rows.at(row, k)];
        pair.iter_mut().zip([low(cell), high(cell)]).for_each(|(to, x)| *to = x);
    }
}

/// Packs rows `first_row..` of `source`, `[rows, k]`, into `panels`.
///
/// # Panics
/// As [`pack::panels`].
pub fn panels<const P: usize>(source: Mat<'_>, first_row: usize, panels: &mut [u32]) {
    match rows::<P>() {
        Rows::Blocks => blocks(source, first_row, panels),
        _ => pack::panels::<P, MR>(source, first_row, panels),
    }
}

/// Packs rows `first_row..` of `source`, `[rows, k]`, into `panels` of bf16 in blocks.
fn blocks(source: Mat<'_>, first_row: usize, panels: &mut [u32]) {
    let panel = cells::<2>(source.cols).next_multiple_of(BLOCK) * ROWS;
    if panel == 0 {
        return;
    }
    let source = pack::rows_of_panels(source, first_row, panels.len(), panel, ROWS);
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features were checked above; the panels have room for the source's rows.
        return unsafe { x86::blocks(source, panels) };
    }
    blocks_plain(source, panels);
}

fn blocks_plain(source: Mat<'_>, panels: &mut [u32]) {
    let at = |row: usize, k: usize| {
        let exists = row < source.rows && k < source.cols;
        if exists { source.data[row * source.row_stride + k * source.col_stride] } else { 0.0 }
    };
    let panel = cells::<2>(source.cols).next_multiple_of(BLOCK) * ROWS;
    for (i, panel) in panels.chunks_exact_mut(panel).enumerate() {
        for (block, cells) in panel.chunks_exact_mut(BLOCK_CELLS).enumerate() {
            for (at_cell, cell) in cells.iter_mut().enumerate() {
                let (row, k) = (i * ROWS + at_cell / BLOCK, 2 * (block * BLOCK + at_cell % BLOCK));
                *cell = pack::pair(at(row, k), at(row, k + 1));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{BLOCK, BLOCK_CELLS, Mat, ROWS};
    use crate::gemm::tiles::pack::x86::{cells_across, cells_along, first, turned};

    /// Packs panels of [`ROWS`] rows in blocks of [`BLOCK`] cells, in bf16. From contiguous columns all panels advance along k
    /// together, so that a cache line of the source is read once.
    ///
    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; each panel has ROWS rows of whole blocks for the source's columns; the source
    /// has at most ROWS rows per panel, and contiguous rows or columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn blocks(source: Mat<'_>, panels: &mut [u32]) {
        let depth = source.cols.div_ceil(2).next_multiple_of(BLOCK);
        let place = |i: usize, block: usize| i * ROWS * depth + block * BLOCK_CELLS;
        if source.col_stride == 1 {
            for i in 0..source.rows.div_ceil(ROWS) {
                for block in 0..depth / BLOCK {
                    let k = 2 * BLOCK * block;
                    for row in 0..ROWS {
                        let left = if i * ROWS + row < source.rows { source.cols - k } else { 0 };
                        let from = source.data.as_ptr().wrapping_add((i * ROWS + row) * source.row_stride + k);
                        let to = panels.as_mut_ptr().wrapping_add(place(i, block) + row * BLOCK);
                        // SAFETY: the row has `left` elements left, 0 if the source has no such row; a block has ROWS rows.
                        unsafe { _mm512_storeu_si512(to.cast(), cells_along::<2>(from, left)) };
                    }
                }
            }
            return;
        }
        for block in 0..depth / BLOCK {
            for i in 0..source.rows.div_ceil(ROWS) {
                let rows = first((source.rows - i * ROWS).min(ROWS));
                let mut cells = [_mm512_setzero_si512(); BLOCK];
                for (w, cells) in cells.iter_mut().enumerate() {
                    let k = 2 * (block * BLOCK + w);
                    let [lanes, second] = [k, k + 1].map(|k| if k < source.cols { rows } else { 0 });
                    let from = source.data.as_ptr().wrapping_add(k * source.col_stride + i * ROWS);
                    // SAFETY: the masks exclude rows past the last and columns that do not exist.
                    *cells = unsafe { cells_across::<2>(from, lanes, source.col_stride, second) };
                }
                let to = panels.as_mut_ptr().wrapping_add(place(i, block));
                for (row, cells) in turned(cells).into_iter().enumerate() {
                    // SAFETY: a block has ROWS rows of BLOCK cells.
                    unsafe { _mm512_storeu_si512(to.wrapping_add(row * BLOCK).cast(), cells) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};

    #[test]
    fn a_row_of_panels_is_read_as_it_was_rounded() {
        for (n, k) in [(1, 1), (5, 7), (33, 32), (70, 33), (25, 130)] {
            let x = random(n * k, 1);
            let mut panels = vec![u32::MAX; packed_len::<2>(n, k)];
            pack::<2>(Mat::new(&x, n, k), &mut panels);
            for row in 0..n {
                let mut found = vec![f32::NAN; k];
                copy_row(&panels, row, &mut found);
                assert!(
                    found.iter().zip(&x[row * k..]).all(|(&found, &x)| found == pack::rounded::<2>(x)),
                    "row {row}"
                );
            }
        }
    }

    #[test]
    fn blocks_have_the_cells_of_the_rows_and_zeros_past_the_end_from_either_orientation() {
        if !kernel::available() {
            skip("vector packing in blocks against the plain version");
        }
        for (rows, k) in [(5, 7), (12, 32), (13, 1), (24, 10), (32, 64), (33, 31), (70, 33), (12, 16), (1, 100)] {
            let x = random(rows * k, 1);
            let mut transposed = vec![0.0; rows * k];
            for i in 0..rows * k {
                transposed[i % k * rows + i / k] = x[i];
            }
            let whole = Mat::new(&x, rows, k);
            let depth = cells::<2>(k).next_multiple_of(BLOCK);
            for first in (0..rows).step_by(ROWS) {
                let length = (rows - first).next_multiple_of(ROWS) * depth;
                let [mut a, mut b, mut expected] = [1, 2, 3].map(|fill| vec![fill; length]);
                blocks(whole, first, &mut a);
                blocks(Mat::new(&transposed, k, rows).t(), first, &mut b);
                blocks_plain(whole.rows(first..rows), &mut expected);
                assert_eq!(a, expected, "{rows} x {k} from {first}");
                assert_eq!(b, expected, "{rows} x {k} from {first}, transposed");
                for row in first..rows {
                    let panel = &a[(row - first) / ROWS * ROWS * depth..];
                    for cell in 0..depth {
                        let at = |k: usize| if k < whole.cols() { x[row * whole.cols() + k] } else { 0.0 };
                        let found = panel[Rows::Blocks.at((row - first) % ROWS, cell)];
                        assert_eq!(found, pack::pair(at(2 * cell), at(2 * cell + 1)), "row {row}, cell {cell}");
                    }
                }
            }
        }
    }
}
