//! Products of any size, cut into cache-sized blocks of C with one task each.

use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{self, MR, NR, Rows};
use super::packed_a::PackedA;
use super::right::Right;
use super::shape::BLOCK;
use super::workspace::with_workspace;
use crate::base::memory::{Carver, padded};
use crate::gemm::operation::Accumulate;
use crate::gemm::view::{Mat, MatMut};

/// Cells along k per pass. A panel of B of this depth takes 32 KB, all of a small L1 cache, but fewer passes over C matter
/// more: 10 % faster than 128 at widths of 512 to 2,048 (measured); 512 and 1,024 are no better.
const KC_CELLS: usize = 256;

/// [`KC_CELLS`] for AMX at most: its passes over C weigh more, and two tiles at once read a panel of B half as often.
const KC_CELLS_AMX: usize = 384;

/// Returns the cells along k per pass.
fn pass(rows: Rows, depth: usize) -> usize {
    if rows != Rows::Blocks {
        return KC_CELLS;
    }
    // Passes of equal depth: a short last one would read and write all of C for little.
    let passes = depth.div_ceil(KC_CELLS_AMX).max(1);
    depth.div_ceil(passes).next_multiple_of(BLOCK).max(BLOCK)
}

/// Rows of A per task: they stay in the L2 cache while the panels of B stream through. Whole tiles of either kernel.
pub const MC: usize = 16 * MR;

/// Columns of B per task.
const NC: usize = 8 * NR;

/// Most rows of A for which the columns are cut finer if there would be too few tasks.
const FEW_ROWS: usize = 4 * MR;

/// Products of cells that are worth a task of their own.
const TASK: usize = 1 << 15;

/// Returns the number of columns of B per task.
fn task_columns(rows: usize, cols: usize, depth: usize) -> usize {
    if rows > FEW_ROWS {
        return NC;
    }
    let even = cols.div_ceil(4 * rayon::current_num_threads());
    even.max(TASK / (rows * depth).max(1)).next_multiple_of(NR).clamp(NR, NC)
}

/// Computes `c = a·b` or `c += a·b` with `P` elements per cell (2: bf16, 1: f32) and sums in f32, on all threads of the pool.
/// `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`.
///
/// # Panics
/// If the shapes do not match.
pub fn matmul<const P: usize>(c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Right<'_>) {
    matmul_with::<P>(c, accumulate, a, b, |_, _, _| {});
}

/// Computes `c = start + a·b`. `start(tile, row, col)` fills the tile of `c` at `(row, col)` just before the product is added
/// to it, while it is in cache.
pub fn matmul_onto<const P: usize>(
    c: MatMut<'_>,
    a: Mat<'_>,
    b: Right<'_>,
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    matmul_with::<P>(c, Accumulate::Add, a, b, start);
}

fn matmul_with<const P: usize>(
    c: MatMut<'_>,
    accumulate: Accumulate,
    a: Mat<'_>,
    b: Right<'_>,
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    assert_eq!((a.rows, b.shape()), (c.rows, (a.cols, c.cols)), "shape mismatch: expected [m, k]·[k, n] = [m, n]");
    let lengths = [PackedA::len::<P>(a), b.workspace::<P>()];
    with_workspace(lengths.map(padded).iter().sum(), |workspace| {
        let mut carver = Carver(workspace);
        let [packed_a, packed_b] = lengths.map(|length| bytemuck::cast_slice_mut(carver.cut(length)));
        let packed_a = PackedA::lay_out::<P>(a, packed_a);
        multiply::<P>(c, accumulate, packed_a, b.lay_out::<P>(packed_b), None, start);
    });
}

/// A narrow product that is added to each block of a larger one while the block is in cache.
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    pub a: PackedA<'a>,
    /// Panels of [`NR`] columns.
    pub b: &'a [u32],
    /// Returns the cells along k outside which these columns of `b` are zero.
    pub cells: &'a (dyn Fn(Range<usize>) -> Range<usize> + Sync),
}

/// Computes `c = a·b` or `c += a·b` of packed operands, plus the product `beside`: `b` is in panels of [`NR`] columns,
/// `[depth, NR]` cells each.
pub fn multiply<const P: usize>(
    c: MatMut<'_>,
    accumulate: Accumulate,
    a: PackedA<'_>,
    b: &[u32],
    beside: Option<Beside<'_>>,
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    let nc = task_columns(c.rows, c.cols, a.depth);
    for_each_block(c, (MC, nc), |c, rows, cols| {
        let b = &b[cols * a.depth..((cols + nc) * a.depth).min(b.len())];
        let start = |tile: &mut MatMut<'_>, row, col| start(tile, rows + row, cols + col);
        multiply_block::<P>(c, accumulate, a.after(rows), b, |_, _| true, start);
        if let Some(beside) = beside {
            add_beside::<P>(c, beside, rows, cols);
        }
    });
}

/// Computes the lower triangle of `c = a·b`, `[n, n]`, on all threads: about half of the work, for a product that is symmetric.
/// Of the elements above the diagonal some are computed, the others keep their values.
///
/// # Panics
/// If the shapes do not match.
pub fn matmul_lower<const P: usize>(c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!(
        (a.rows, a.cols, b.cols, b.cols),
        (c.rows, b.rows, c.cols, c.rows),
        "shape mismatch: expected [n, k]·[k, n]"
    );
    let (b, lengths) = (Right::Plain(b), [PackedA::len::<P>(a), Right::Plain(b).workspace::<P>()]);
    with_workspace(lengths.map(padded).iter().sum(), |workspace| {
        let mut carver = Carver(workspace);
        let [packed_a, packed_b] = lengths.map(|length| bytemuck::cast_slice_mut(carver.cut(length)));
        let (a, b) = (PackedA::lay_out::<P>(a, packed_a), b.lay_out::<P>(packed_b));
        for_each_block(c, (MC, NC), |c, rows, cols| {
            if rows + MC <= cols {
                return;
            }
            let b = &b[cols * a.depth..((cols + NC) * a.depth).min(b.len())];
            let below = |row, col| rows + row + a.rows.count() > cols + col;
            multiply_block::<P>(c, Accumulate::Set, a.after(rows), b, below, |_, _, _| {});
        });
    });
}

/// Adds the block at `(first_row, first_col)` of a narrow product to `c`.
fn add_beside<const P: usize>(c: &mut MatMut<'_>, beside: Beside<'_>, first_row: usize, first_col: usize) {
    let (m, n, a) = (c.rows, c.cols, beside.a.after(first_row));
    for col in (0..n).step_by(NR) {
        let columns = first_col + col..first_col + (col + NR).min(n);
        let cells = (beside.cells)(columns.clone());
        let cells = a.rows.start(cells.start)..cells.end;
        let panel = &beside.b[columns.start * a.depth..][..NR * a.depth];
        for row in (0..m).step_by(a.rows.count()) {
            // SAFETY: the tile lies within this block, which belongs to this task alone.
            let mut tile = unsafe { c.part(row..(row + a.rows.count()).min(m), col..(col + NR).min(n)) };
            let b = &panel[cells.start * NR..cells.end * NR];
            kernel::tile::<P>(a.tile(row, cells.start), a.rows, b, &mut tile, Accumulate::Add);
        }
    }
}

/// Calls `work(block, row, col)` for every block of `mc` x `nc` elements of `c`, on all threads.
pub fn for_each_block(c: MatMut<'_>, (mc, nc): (usize, usize), work: impl Fn(&mut MatMut<'_>, usize, usize) + Sync) {
    let (m, n) = (c.rows, c.cols);
    let (row_blocks, col_blocks) = (m.div_ceil(mc), n.div_ceil(nc));
    (0..row_blocks * col_blocks).into_par_iter().with_max_len(1).for_each(|task| {
        let (rows, cols) = ((task % row_blocks) * mc, (task / row_blocks) * nc);
        // SAFETY: every task has its own block of C, and blocks are disjoint.
        let mut c = unsafe { c.part(rows..(rows + mc).min(m), cols..(cols + nc).min(n)) };
        work(&mut c, rows, cols);
    });
}

/// Computes one block of C in passes along k. Within a pass, a panel of B stays in the L1 cache while the tiles
/// of A stream through. `wanted(row, col)` says which tiles of the block are computed; those above a wanted one may be too.
fn multiply_block<const P: usize>(
    c: &mut MatMut<'_>,
    accumulate: Accumulate,
    a: PackedA<'_>,
    b: &[u32],
    wanted: impl Fn(usize, usize) -> bool,
    start: impl Fn(&mut MatMut<'_>, usize, usize),
) {
    let (m, n, depth, mr) = (c.rows, c.cols, a.depth, a.rows.count());
    let (kc, step) = (pass(a.rows, depth), a.rows.at_once() * mr);
    if depth == 0 {
        if accumulate == Accumulate::Set {
            c.fill(0.0);
        }
        start(c, 0, 0);
    }
    for first in (0..depth).step_by(kc) {
        let cells = kc.min(depth - first);
        let accumulate = if first == 0 { accumulate } else { Accumulate::Add };
        for (j, b) in b.chunks_exact(NR * depth).enumerate() {
            let b = &b[first * NR..][..cells * NR];
            for row in (0..m).step_by(step).filter(|&row| wanted(row + step - mr, j * NR)) {
                // SAFETY: the tiles lie within this block, which belongs to this task alone.
                let mut tiles = unsafe { c.part(row..(row + step).min(m), j * NR..((j + 1) * NR).min(n)) };
                if first == 0 {
                    start(&mut tiles, row, j * NR);
                }
                if a.rows == Rows::Blocks && row + step < m {
                    // AMX computes a tile in less time than the next one takes to come from memory.
                    let next = row + step..(row + 2 * step).min(m);
                    // SAFETY: as above.
                    let next = unsafe { c.part(next, j * NR..((j + 1) * NR).min(n)) };
                    kernel::ask_for(&next);
                }
                kernel::tiles::<P>(a.tile(row, first), a.below(), a.rows, b, &mut tiles, accumulate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;
    use crate::gemm::reference::matmul_reference;
    use crate::gemm::tiles::pack::rounded;

    #[test]
    fn the_lower_triangle_is_that_of_the_whole_product() {
        for (n, k) in [(1, 1), (33, 7), (64, 130), (201, 33), (530, 300)] {
            let (a, bt) = (random(n * k, 1), random(k * n, 2));
            let (a, b) = (Mat::new(&a, n, k), Mat::new(&bt, n, k).t());
            let (mut lower, mut whole) = (vec![0.0; n * n], vec![0.0; n * n]);
            matmul_lower::<2>(MatMut::new(&mut lower, n, n), a, b);
            matmul::<2>(MatMut::new(&mut whole, n, n), Accumulate::Set, a, Right::Plain(b));
            for i in 0..n {
                assert_eq!(lower[i * n..][..=i], whole[i * n..][..=i], "row {i} of {n} x {n}, depth {k}");
            }
            assert!(n < 100 || lower[n - 1] == 0.0, "far above the diagonal nothing is computed");
        }
    }

    #[test]
    fn products_of_odd_shapes_match_three_loops_over_rounded_operands() {
        for (m, n, k) in [(1, 1, 1), (5, 97, 12), (17, 3, 31), (200, 33, 129), (13, 270, 301), (3, 2, 0)] {
            let rounded = |n, seed| -> Vec<f32> { random(n, seed).into_iter().map(rounded::<2>).collect() };
            let (a, bt) = (rounded(m * k, 1), rounded(k * n, 2));
            let (a, b) = (Mat::new(&a, m, k), Mat::new(&bt, n, k).t());
            let expected = matmul_reference(a, b);
            for accumulate in [Accumulate::Set, Accumulate::Add] {
                let (mut in_bf16, mut in_f32) = (vec![1.0; m * n], vec![1.0; m * n]);
                matmul::<2>(MatMut::new(&mut in_bf16, m, n), accumulate, a, Right::Plain(b));
                matmul::<1>(MatMut::new(&mut in_f32, m, n), accumulate, a, Right::Plain(b));
                let kept = if accumulate == Accumulate::Add { 1.0 } else { 0.0 };
                let mut onto = vec![f32::NAN; m * n];
                matmul_onto::<1>(MatMut::new(&mut onto, m, n), a, Right::Plain(b), |tile, row, col| {
                    for i in 0..tile.rows {
                        let values = (0..).map(|j| (row + i) as f32 - (col + j) as f32);
                        tile.row_mut(i).iter_mut().zip(values).for_each(|(c, value)| *c = value);
                    }
                });
                for (i, (found, expected)) in onto.iter().zip(&expected).enumerate() {
                    let expected = expected + (i / n) as f64 - (i % n) as f64;
                    assert!(
                        (f64::from(*found) - expected).abs() < 1e-3,
                        "{m}x{n}x{k}: expected {expected}, got {found}"
                    );
                }
                for ((in_bf16, in_f32), expected) in in_bf16.iter().zip(&in_f32).zip(&expected) {
                    let expected = expected + kept;
                    for found in [in_bf16, in_f32] {
                        assert!(
                            (f64::from(*found) - expected).abs() < 1e-4,
                            "{m}x{n}x{k}: expected {expected}, got {found}"
                        );
                    }
                }
            }
        }
    }
}
