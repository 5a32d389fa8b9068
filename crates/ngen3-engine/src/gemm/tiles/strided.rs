//! Small f32 products of operands where they lie: nothing is packed, nothing is allocated, one thread.
//!
//! For attention, whose operands are small enough to stay in cache and each used a few times only. A tile of C,
//! [`ROWS`] x [`NR`], stays in registers for the whole depth; each step loads two vectors of a row of B and broadcasts one
//! element of each row of A. Processors without AVX-512 take the `gemm` crate's way.

use super::super::{Into, Mat, MatMut, Threads, matmul_f32};
use super::kernel::{NR, available};

/// Rows of a tile: with two vectors of columns, 16 sums hide the latency of an addition.
const ROWS: usize = 8;

/// Rows of C that one call should bring, at least, to be quick.
pub fn rows() -> usize {
    if available() { ROWS } else { 8 * ROWS }
}

/// `c = a·b` or `c += a·b`, with `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`. Rows of `b` must be contiguous.
///
/// # Panics
/// If the shapes do not agree, or `b` is transposed.
pub fn matmul(c: MatMut<'_>, into: Into, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!((a.rows, b.rows, b.cols), (c.rows, a.cols, c.cols), "shapes of a product: [m, k]·[k, n] = [m, n]");
    assert!(b.col_stride == 1, "rows of b are contiguous");
    #[cfg(target_arch = "x86_64")]
    if available() {
        for first in (0..c.cols).step_by(NR) {
            let cols = NR.min(c.cols - first);
            let mut row = 0;
            // SAFETY: the features were just detected, the shapes agree, and these rows and columns are the matrices'.
            unsafe {
                while c.rows - row >= ROWS {
                    x86::tile::<ROWS>(&c, into, a, b, row, first, cols);
                    row += ROWS;
                }
                if c.rows - row >= ROWS / 2 {
                    x86::tile::<{ ROWS / 2 }>(&c, into, a, b, row, first, cols);
                    row += ROWS / 2;
                }
                while row < c.rows {
                    x86::tile::<1>(&c, into, a, b, row, first, cols);
                    row += 1;
                }
            }
        }
        return;
    }
    matmul_f32(c, into, a, b, Threads::One);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::super::{Into, Mat, MatMut};
    use super::NR;

    /// Rows `row..row + R` and columns `first..first + cols` of the product.
    ///
    /// # Safety
    /// The processor has AVX-512F; the shapes agree; `row + R ≤ c.rows`, `first + cols ≤ c.cols`, `1 ≤ cols ≤ NR`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn tile<const R: usize>(
        c: &MatMut<'_>,
        into: Into,
        a: Mat<'_>,
        b: Mat<'_>,
        row: usize,
        first: usize,
        cols: usize,
    ) {
        let columns = u32::MAX >> (NR - cols);
        let [low, high] = [columns as __mmask16, (columns >> 16) as __mmask16];
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        let mut at_a = a.data.as_ptr().wrapping_add(row * a.row_stride);
        let mut at_b = b.data.as_ptr().wrapping_add(first);
        for _ in 0..a.cols {
            // SAFETY: `at_a` and `at_b` stand at element k of the first of these rows and at these columns of row k, which the
            // views hold; the masks leave out what is past the last column.
            unsafe {
                let b0 = _mm512_maskz_loadu_ps(low, at_b);
                let b1 = _mm512_maskz_loadu_ps(high, at_b.wrapping_add(16));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*at_a.add(i * a.row_stride));
                    sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
                    sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
                }
            }
            at_a = at_a.wrapping_add(a.col_stride);
            at_b = at_b.wrapping_add(b.row_stride);
        }
        for (i, [mut s0, mut s1]) in sums.into_iter().enumerate() {
            // SAFETY: these rows and columns are C's; the masks leave out what is past the last column.
            unsafe {
                let to = c.data.add((row + i) * c.row_stride + first);
                let next = to.wrapping_add(16);
                if into == Into::Add {
                    s0 = _mm512_add_ps(_mm512_maskz_loadu_ps(low, to), s0);
                    s1 = _mm512_add_ps(_mm512_maskz_loadu_ps(high, next), s1);
                }
                _mm512_mask_storeu_ps(to, low, s0);
                _mm512_mask_storeu_ps(next, high, s1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::random;
    use crate::gemm::matmul_reference;

    #[test]
    fn products_of_odd_shapes_match_three_loops_from_any_strides() {
        for (m, n, k) in [(1, 1, 1), (8, 32, 16), (13, 33, 7), (64, 96, 31), (7, 15, 64), (20, 17, 0), (4, 64, 5)] {
            let (a, b) = (random(m * (k + 3), 1), random(k * (n + 5), 2));
            let at = random(k * (m + 2), 3);
            let (plain, turned) = (Mat::strided(&a, m, k, k + 3), Mat::strided(&at, k, m, m + 2).t());
            let b = Mat::strided(&b, k, n, n + 5);
            for a in [plain, turned] {
                let expected = matmul_reference(a, b);
                for into in [Into::Set, Into::Add] {
                    let start = random(m * (n + 1), 4);
                    let mut c = start.clone();
                    matmul(MatMut::strided(&mut c, m, n, n + 1), into, a, b);
                    for (i, (&found, &before)) in c.iter().zip(&start).enumerate() {
                        let (row, col) = (i / (n + 1), i % (n + 1));
                        if col == n {
                            assert_eq!(found, before, "the gap between rows was written");
                            continue;
                        }
                        let kept = if into == Into::Add { f64::from(before) } else { 0.0 };
                        let expected = expected[row * n + col] + kept;
                        assert!((f64::from(found) - expected).abs() < 1e-4, "{m}x{n}x{k}: {found}, not {expected}");
                    }
                }
            }
        }
    }
}
