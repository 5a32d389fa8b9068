//! Small single-threaded products of operands in rows of cells, without packing or allocation.
//!
//! Made for attention, whose operands fit in cache and are reused only a few times, so that packing would not pay. A [`ROWS`] x
//! [`NR`] tile of C stays in registers for the whole depth. Each step along k loads two vectors of a row of B and broadcasts
//! one cell of each row of A.

use super::kernel::{NR, available, multiply_add};
use crate::gemm::operation::{Accumulate, Threads};
use crate::gemm::portable;
use crate::gemm::view::{Mat, MatMut};
use ngen3_simd::simd;

/// Rows of a tile: with two vectors of columns, 16 independent sums hide the latency of an addition.
pub const ROWS: usize = 8;

/// Computes `c = a·b` or `c += a·b` with sums in f32. `a`: `[m, k/P]` and `b`: `[k/P, n]`, both in cells of `P` elements along k;
/// `c`: `[m, n]`. Rows of `b` must be contiguous.
///
/// # Panics
/// If the shapes do not match, or `b` is transposed.
pub fn matmul<const P: usize>(mut c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_, u32>, b: Mat<'_, u32>) {
    assert_eq!((a.rows, b.rows, b.cols), (c.rows, a.cols, c.cols), "shape mismatch: expected [m, k]·[k, n] = [m, n]");
    assert!(b.col_stride == 1, "expected contiguous rows of b");
    #[cfg(target_arch = "x86_64")]
    if available() {
        for first in (0..c.cols).step_by(NR) {
            let cols = NR.min(c.cols - first);
            let mut row = 0;
            // SAFETY: the features and shapes were checked above, and these rows and columns are in bounds.
            unsafe {
                while c.rows - row >= ROWS {
                    x86::tile::<P, ROWS>(&c, accumulate, a, b, row, first, cols);
                    row += ROWS;
                }
                if c.rows - row >= ROWS / 2 {
                    x86::tile::<P, { ROWS / 2 }>(&c, accumulate, a, b, row, first, cols);
                    row += ROWS / 2;
                }
                while row < c.rows {
                    x86::tile::<P, 1>(&c, accumulate, a, b, row, first, cols);
                    row += 1;
                }
            }
        }
        return;
    }
    simd(
        #[inline(always)]
        || plain::<P>(&mut c, accumulate, a, b),
    );
}

/// Computes [`matmul`] on f32 operands. Processors without AVX512-BF16 use the `gemm` crate.
///
/// # Panics
/// As [`matmul`].
pub fn matmul_f32(c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Mat<'_>) {
    if available() {
        matmul::<1>(c, accumulate, a.cells(), b.cells());
    } else {
        portable::matmul_f32(c, accumulate, a, b, Threads::One);
    }
}

/// [`matmul`] in plain Rust: tiles of two rows by [`NR`] columns, which fit the registers of any processor.
#[inline(always)]
fn plain<const P: usize>(c: &mut MatMut<'_>, accumulate: Accumulate, a: Mat<'_, u32>, b: Mat<'_, u32>) {
    for row in (0..c.rows).step_by(2) {
        for first in (0..c.cols).step_by(NR) {
            let (rows, cols) = (2.min(c.rows - row), NR.min(c.cols - first));
            let mut sums = [[0.0f32; NR]; 2];
            for k in 0..a.cols {
                let b = &b.row(k)[first..first + cols];
                for (i, sums) in sums.iter_mut().enumerate().take(rows) {
                    let a = a.data[(row + i) * a.row_stride + k * a.col_stride];
                    sums.iter_mut().zip(b).for_each(|(sum, &b)| *sum = multiply_add::<P>(a, b, *sum));
                }
            }
            for (i, sums) in sums.iter().enumerate().take(rows) {
                for (c, sum) in c.row_mut(row + i)[first..first + cols].iter_mut().zip(sums) {
                    *c = if accumulate == Accumulate::Add { *c + sum } else { *sum };
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use crate::gemm::operation::Accumulate;
    use crate::gemm::tiles::kernel::NR;
    use crate::gemm::tiles::kernel::x86::multiply_add;
    use crate::gemm::view::{Mat, MatMut};

    /// Computes rows `row..row + R` and columns `first..first + cols` of the product.
    ///
    /// # Safety
    /// The processor has AVX-512F and AVX512-BF16; the shapes match; `row + R ≤ c.rows`, `first + cols ≤ c.cols` and
    /// `1 ≤ cols ≤ NR`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn tile<const P: usize, const R: usize>(
        c: &MatMut<'_>,
        accumulate: Accumulate,
        a: Mat<'_, u32>,
        b: Mat<'_, u32>,
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
            // SAFETY: `at_a` and `at_b` point to cell k of the first row and to the first column of row k, inside the views;
            // the masks exclude elements past the last column.
            unsafe {
                let b0 = _mm512_maskz_loadu_epi32(low, at_b.cast());
                let b1 = _mm512_maskz_loadu_epi32(high, at_b.wrapping_add(16).cast());
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_epi32(*at_a.add(i * a.row_stride) as i32);
                    sums[0] = multiply_add::<P>(a, b0, sums[0]);
                    sums[1] = multiply_add::<P>(a, b1, sums[1]);
                }
            }
            at_a = at_a.wrapping_add(a.col_stride);
            at_b = at_b.wrapping_add(b.row_stride);
        }
        for (i, [mut s0, mut s1]) in sums.into_iter().enumerate() {
            // SAFETY: these rows and columns exist in C; the masks exclude elements past the last column.
            unsafe {
                let to = c.data.add((row + i) * c.row_stride + first);
                let next = to.wrapping_add(16);
                if accumulate == Accumulate::Add {
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
    use crate::base::testing::random;
    use crate::gemm::reference::matmul_reference;
    use crate::gemm::tiles::pack;

    fn check<const P: usize>(m: usize, n: usize, k: usize) {
        let depth = k.div_ceil(P);
        let rounded = |n, seed| -> Vec<f32> { random(n, seed).into_iter().map(pack::rounded::<P>).collect() };
        let (a, b) = (rounded(m * k, 1), rounded(k * n, 2));
        let (a, b) = (Mat::new(&a, m, k), Mat::new(&b, k, n));
        // A in either orientation, both operands with gaps between rows.
        let (mut plain, mut turned, mut down) =
            (vec![0; m * depth], vec![0; depth * (m + 2)], vec![0; depth * (n + 5)]);
        pack::along::<P>(a, &mut plain);
        let mut cells = vec![0; depth * n];
        pack::down::<P>(b, &mut cells);
        for (to, from) in down.chunks_exact_mut(n + 5).zip(cells.chunks_exact(n)) {
            to[..n].copy_from_slice(from);
        }
        for (i, row) in plain.chunks_exact(depth.max(1)).enumerate() {
            row.iter().enumerate().for_each(|(w, &cell)| turned[w * (m + 2) + i] = cell);
        }
        let expected = matmul_reference(a, b);
        let down = Mat::strided(&down, depth, n, n + 5);
        for a in [Mat::new(&plain, m, depth), Mat::strided(&turned, depth, m, m + 2).t()] {
            for (accumulate, plainly) in
                [(Accumulate::Set, false), (Accumulate::Add, false), (Accumulate::Set, true), (Accumulate::Add, true)]
            {
                let start = random(m * (n + 1), 4);
                let mut c = start.clone();
                let mut to = MatMut::strided(&mut c, m, n, n + 1);
                if plainly {
                    super::plain::<P>(&mut to, accumulate, a, down)
                } else {
                    matmul::<P>(to, accumulate, a, down)
                }
                for (i, (&found, &before)) in c.iter().zip(&start).enumerate() {
                    let (row, col) = (i / (n + 1), i % (n + 1));
                    if col == n {
                        assert_eq!(found, before, "the gap between rows was written");
                        continue;
                    }
                    let kept = if accumulate == Accumulate::Add { f64::from(before) } else { 0.0 };
                    let expected = expected[row * n + col] + kept;
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-4,
                        "{m}x{n}x{k}: expected {expected}, got {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_of_odd_shapes_match_three_loops_from_any_strides() {
        for (m, n, k) in [(1, 1, 1), (8, 32, 16), (13, 33, 7), (64, 96, 31), (7, 15, 64), (20, 17, 0), (4, 64, 5)] {
            check::<1>(m, n, k);
            check::<2>(m, n, k);
        }
    }
}
