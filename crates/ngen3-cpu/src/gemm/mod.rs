//! Matrix products: `C = A·B` or `C += A·B` over strided views, on one thread or on all of the pool.
//!
//! [`Mat`] and [`MatMut`] are views that know their bounds, so that [`matmul`] is safe: a transpose is a view
//! ([`Mat::t`]), never a copy. The f32 kernels are the `gemm` crate's, which picks AVX-512, AVX2, NEON or plain code
//! when the program runs; `tiles.rs` holds our own.

pub mod tiles;
mod view;

pub use view::{Canvas, Mat, MatMut};

/// What the operands of a product are rounded to. Sums are f32 always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    F32,
    /// bfloat16: f32's range with 8 bits of precision.
    Bf16,
}

/// Treatment of what the destination of a product already holds: BLAS's beta, 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulate {
    /// It is replaced: `C = A·B`.
    Set,
    /// It is added to: `C += A·B`.
    Add,
}

/// Who works on one product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread, for products that are themselves run in parallel.
    One,
    /// Every thread of the current rayon pool.
    All,
}

/// `c = a·b` or `c += a·b` in the given precision, on all threads; shapes as in [`matmul_f32`].
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul(precision: Precision, c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Mat<'_>) {
    match precision {
        Precision::F32 => matmul_f32(c, accumulate, a, b, Threads::All),
        Precision::Bf16 => tiles::matmul::<2>(c, accumulate, a, b),
    }
}

/// `c = start + a·b`, where `start` fills the part of `c` that it is given, whose first row and column it is told.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul_onto(
    precision: Precision,
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: Mat<'_>,
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    match precision {
        Precision::F32 => {
            c.par_row_blocks(|block, row| start(block, row, 0));
            matmul_f32(c, Accumulate::Add, a, b, Threads::All);
        }
        Precision::Bf16 => tiles::matmul_onto::<2>(c, a, b, start),
    }
}

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

/// Tests compare every product with this: three loops, in f64.
#[cfg(test)]
pub(crate) fn matmul_reference(a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
    let at = |x: &Mat<'_>, i: usize, j: usize| f64::from(x.data[i * x.row_stride + j * x.col_stride]);
    let mut c = Vec::with_capacity(a.rows * b.cols);
    for i in 0..a.rows {
        for j in 0..b.cols {
            c.push((0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j)).sum());
        }
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;

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
