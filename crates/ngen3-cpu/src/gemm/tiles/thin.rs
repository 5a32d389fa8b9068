//! Products with few rows of A, such as the gradients of low-rank adapters. B is packed a stripe of columns at a time and
//! multiplied while it is in cache: it is read from memory once, and its packed form never written there.

use rayon::prelude::*;

use super::kernel::{self, NR, Rows};
use super::pack::{cells, packed_len, panels};
use super::packed_a::PackedA;
use super::workspace::with_workspace;
use crate::base::memory::{Carver, padded};
use crate::gemm::operation::Accumulate;
use crate::gemm::view::{Mat, MatMut};

/// Columns per task: pieces of rows that are long enough to stream from memory.
const STRIPE: usize = 2 * NR;

/// Elements along k per pass, so that a packed stripe takes an eighth of a megabyte. A whole number of blocks of any kernel.
const KC: usize = 1024;

/// Computes `c += a·b` with `P` elements per cell and sums in f32, on all threads. `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`.
///
/// # Panics
/// If the shapes do not match, or the rows of `b` are not contiguous.
pub fn add_thin<const P: usize>(c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!((c.rows, c.cols), (a.rows, b.cols), "shape mismatch: expected [m, k]·[k, n] = [m, n]");
    for_each_stripe::<P>(a, b, |first, stripe| {
        // SAFETY: every task has columns of its own.
        let mut c = unsafe { c.part(0..c.rows, first..(first + STRIPE).min(c.cols)) };
        for (row, sums) in stripe.chunks_exact(STRIPE).enumerate() {
            c.row_mut(row).iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
        }
    });
}

/// Computes `c += (a·b)ᵀ`, with `c`: `[n, m]`. All else is as in [`add_thin`].
///
/// # Panics
/// As [`add_thin`].
pub fn add_thin_turned<const P: usize>(c: MatMut<'_>, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!((c.cols, c.rows), (a.rows, b.cols), "shape mismatch: expected [m, k]·[k, n] = [n, m]ᵀ");
    for_each_stripe::<P>(a, b, |first, stripe| {
        // SAFETY: every task has rows of its own.
        let mut c = unsafe { c.part(first..(first + STRIPE).min(c.rows), 0..c.cols) };
        for row in 0..c.n_rows() {
            let sums = stripe[row..].iter().step_by(STRIPE);
            c.row_mut(row).iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
        }
    });
}

/// Calls `add(first, stripe)` for every stripe of columns of the product `a·b`, which starts at column `first`: `[m, STRIPE]`.
fn for_each_stripe<const P: usize>(a: Mat<'_>, b: Mat<'_>, add: impl Fn(usize, &[f32]) + Sync) {
    assert_eq!(a.cols, b.rows, "shape mismatch: expected [m, k]·[k, n]");
    assert!(b.col_stride == 1, "expected contiguous rows of b");
    let (m, k, n) = (a.rows, b.rows, b.cols);
    with_workspace(PackedA::len::<P>(a), |workspace| {
        let a = PackedA::lay_out::<P>(a, bytemuck::cast_slice_mut(workspace));
        let step = a.rows.at_once() * a.rows.count();
        // AMX computes whole tiles only; the other kernels save the work of rows that do not exist.
        let height = if a.rows == Rows::Blocks { m.next_multiple_of(a.rows.count()) } else { m };
        let lengths = [height * STRIPE, packed_len::<P, NR>(STRIPE, k.min(KC))];
        (0..n.div_ceil(STRIPE)).into_par_iter().with_max_len(1).for_each(|task| {
            let first = task * STRIPE;
            let columns = b.columns(first..(first + STRIPE).min(n));
            with_workspace(lengths.map(padded).iter().sum(), |workspace| {
                let mut carver = Carver(workspace);
                let [sums, packed] = lengths.map(|length| carver.cut(length));
                sums.fill(0.0);
                for start in (0..k).step_by(KC) {
                    let rows = start..(start + KC).min(k);
                    let depth = cells::<P>(rows.len());
                    let packed = &mut packed[..packed_len::<P, NR>(columns.cols, rows.len())];
                    panels::<P, NR>(columns.rows(rows).t(), 0, bytemuck::cast_slice_mut(packed));
                    for (j, b) in bytemuck::cast_slice(packed).chunks_exact(depth * NR).enumerate() {
                        let mut sums = MatMut::strided(&mut sums[j * NR..], height, NR, STRIPE);
                        for row in (0..m).step_by(step) {
                            let mut tiles = sums.rows(row..(row + step).min(height));
                            let a_tiles = a.tile(row, cells::<P>(start));
                            kernel::tiles::<P>(a_tiles, a.below(), a.rows, b, &mut tiles, Accumulate::Add);
                        }
                    }
                }
                add(first, &sums[..m * STRIPE]);
            });
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;
    use crate::gemm::reference::matmul_reference;
    use crate::gemm::tiles::pack::rounded;

    fn check<const P: usize>(m: usize, n: usize, k: usize) {
        let values = |n, seed| -> Vec<f32> { random(n, seed).into_iter().map(rounded::<P>).collect() };
        let (at, b) = (values(k * (m + 3), 1), values(k * (n + 5), 2));
        let a = Mat::strided(&at[3..], k, m, m + 3).t();
        let b = Mat::strided(&b, k, n, n + 5);
        let expected = matmul_reference(a, b);
        let (start, mut c, mut turned) = (random(m * n, 3), random(m * n, 3), random(m * n, 3));
        add_thin::<P>(MatMut::new(&mut c, m, n), a, b);
        add_thin_turned::<P>(MatMut::new(&mut turned, n, m), a, b);
        for (i, expected) in expected.iter().enumerate() {
            let at = [i, i % n * m + i / n];
            for (found, at) in [&c, &turned].into_iter().zip(at) {
                let difference = f64::from(found[at]) - (expected + f64::from(start[at]));
                assert!(difference.abs() < 1e-6 * (k as f64) + 1e-6, "{m} x {n} x {k}, P = {P}: {difference} at {i}");
            }
        }
    }

    #[test]
    fn thin_products_of_odd_shapes_are_added_as_they_are_and_turned() {
        for (m, n, k) in [(1, 1, 1), (16, 70, 33), (5, 200, 1), (48, 64, 2050), (33, 97, 1024), (3, 31, 1300)] {
            check::<1>(m, n, k);
            check::<2>(m, n, k);
        }
    }
}
