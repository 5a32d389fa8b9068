//! Products of f32 on any processor, of any size: the kernels of the `gemm` crate.

use super::operation::{Accumulate, Threads};
use super::view::{Mat, MatMut};

/// `c = a·b` or `c += a·b`, with `a`: `[m, k]`, `b`: `[k, n]`, `c`: `[m, n]`.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul_f32(c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Mat<'_>, threads: Threads) {
    let (m, n, k) = (c.rows, c.cols, a.cols);
    assert_eq!((a.rows, b.rows, b.cols), (m, k, n), "shapes of a product: [m, k]·[k, n] = [m, n]");
    let parallelism = match threads {
        Threads::One => gemm_common::Parallelism::None,
        Threads::All => gemm_common::Parallelism::Rayon(rayon::current_num_threads()),
    };
    let gemm = gemm_f32::gemm::f32::get_gemm_fn();
    // The kernels store whole columns at a time: the transposed product, whose destination is column-major, is theirs.
    //
    // SAFETY: the constructors checked that every element (i, j) of the three views stands inside its slice, the shapes
    // agree, and the borrows keep `c` apart from `a` and `b`.
    unsafe {
        gemm(
            n,
            m,
            k,
            c.data,
            c.row_stride as isize,
            1,
            accumulate == Accumulate::Add,
            b.data.as_ptr(),
            b.row_stride as isize,
            b.col_stride as isize,
            a.data.as_ptr(),
            a.row_stride as isize,
            a.col_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;
    use crate::gemm::reference::matmul_reference;

    #[test]
    fn products_of_odd_shapes_match_three_loops() {
        for (m, n, k) in [(1, 1, 1), (5, 97, 12), (17, 3, 31), (64, 33, 129), (130, 257, 65), (1, 40, 9), (9, 1, 40)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let (at, bt) = (random(m * k, 3), random(k * n, 4));
            let views = [
                (Mat::new(&a, m, k), Mat::new(&b, k, n)),
                (Mat::new(&a, m, k), Mat::new(&bt, n, k).t()),
                (Mat::new(&at, k, m).t(), Mat::new(&b, k, n)),
                (Mat::new(&at, k, m).t(), Mat::new(&bt, n, k).t()),
            ];
            for (a, b) in views {
                for (accumulate, threads) in [(Accumulate::Set, Threads::One), (Accumulate::Add, Threads::All)] {
                    let start = random(m * (n + 3), 5);
                    let mut c = start.clone();
                    let end = (m - 1) * (n + 3) + n;
                    matmul_f32(MatMut::strided(&mut c[..end], m, n, n + 3), accumulate, a, b, threads);
                    let expected = matmul_reference(a, b);
                    for (at, (&found, &before)) in c.iter().zip(&start).enumerate() {
                        let (i, j) = (at / (n + 3), at % (n + 3));
                        if j >= n {
                            assert_eq!(found, before, "the gap between rows was written");
                            continue;
                        }
                        let kept = if accumulate == Accumulate::Add { f64::from(before) } else { 0.0 };
                        let expected = expected[i * n + j] + kept;
                        assert!((f64::from(found) - expected).abs() < 1e-4, "{m}x{n}x{k}: {found} {expected}");
                    }
                }
            }
        }
    }
}
