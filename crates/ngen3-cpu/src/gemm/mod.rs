//! Matrix products `C = A·B` or `C += A·B` over strided views, on one thread or on the whole pool.
//!
//! [`Mat`] and [`MatMut`] are bounds-checked views, which makes [`matmul`] safe. A transpose is a view ([`Mat::t`]), never a
//! copy. General f32 products use the `gemm` crate's kernels for AVX-512, AVX2, NEON or scalar code, chosen by the processor or
//! `NGEN3_SIMD`; `tiles/` holds our own kernels, `groups/` those for weights as GGUF files store them.

#[cfg(target_arch = "aarch64")]
mod dot;
pub mod groups;
mod operation;
mod portable;
#[cfg(test)]
mod reference;
pub mod tiles;
mod view;

pub use operation::{Accumulate, Precision, Threads};
pub use portable::matmul_f32;
use tiles::right::Right;
pub use view::{Canvas, Mat, MatMut};

/// Computes `c = a·b` or `c += a·b` with operands in the given precision and sums in f32, on all threads. Shapes as in
/// [`matmul_f32`].
///
/// # Panics
/// If the shapes do not match.
pub fn matmul(precision: Precision, c: MatMut<'_>, accumulate: Accumulate, a: Mat<'_>, b: Mat<'_>) {
    match precision {
        Precision::F32 => matmul_f32(c, accumulate, a, b, Threads::All),
        Precision::Bf16 => tiles::matmul::<2>(c, accumulate, a, Right::Plain(b)),
    }
}

/// Computes a product `c = a·b`, `[n, n]`, that is symmetric, as one of a matrix with its transpose, on all threads. In bf16 half of
/// it is computed and copied to the other.
///
/// # Panics
/// If the shapes do not match.
pub fn matmul_symmetric(precision: Precision, c: &mut [f32], a: Mat<'_>, b: Mat<'_>) {
    let n = a.rows;
    match precision {
        Precision::F32 => matmul_f32(MatMut::new(c, n, n), Accumulate::Set, a, b, Threads::All),
        Precision::Bf16 => {
            tiles::matmul_lower::<2>(MatMut::new(c, n, n), a, b);
            mirror(c, n);
        }
    }
}

/// Copies the elements below the diagonal of `c`, `[n, n]`, to those above.
fn mirror(c: &mut [f32], n: usize) {
    // Squares whose columns, that are read, stay in an L1 cache of 8 ways at any n.
    const SIDE: usize = 16;
    for first in (0..n).step_by(SIDE) {
        for column in (first..n).step_by(SIDE) {
            for i in first..(first + SIDE).min(n) {
                for j in column.max(i + 1)..(column + SIDE).min(n) {
                    c[i * n + j] = c[j * n + i];
                }
            }
        }
    }
}

/// Computes `c = start + a·b`. `start(part, row, col)` fills a part of `c` whose top-left element is `(row, col)`.
///
/// # Panics
/// If the shapes do not match.
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
        Precision::Bf16 => tiles::matmul_onto::<2>(c, a, Right::Plain(b), start),
    }
}

/// Computes `c = start + a·b` in f32, with the same bits in a row of `c` whatever the number of rows, of which there are two or
/// more.
///
/// # Panics
/// If the shapes do not match.
pub fn matmul_rows_onto(
    mut c: MatMut<'_>,
    a: Mat<'_>,
    b: Mat<'_>,
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    // The crate has kernels of its own for up to 256 elements of `c`, and for up to 64 rows and columns.
    let (rows, cols, inputs) = (a.rows, b.cols, a.cols);
    let fewest = if cols <= 64 { 65.max(256 / cols.max(1) + 1) } else { 4 };
    if rows >= fewest {
        return matmul_onto(Precision::F32, c, a, b, start);
    }
    start(&mut c, 0, 0);
    let (mut more, mut sums) = (vec![0.0; fewest * inputs], vec![0.0; fewest * cols]);
    for i in 0..rows {
        more[i * inputs..(i + 1) * inputs].copy_from_slice(a.row(i));
        sums[i * cols..(i + 1) * cols].copy_from_slice(c.row_mut(i));
    }
    let a = Mat::new(&more, fewest, inputs);
    matmul_f32(MatMut::new(&mut sums, fewest, cols), Accumulate::Add, a, b, Threads::All);
    sums.chunks_exact(cols).take(rows).enumerate().for_each(|(i, sums)| c.row_mut(i).copy_from_slice(sums));
}

#[cfg(test)]
mod tests {
    use crate::base::testing::rerun_on_other_paths;

    #[test]
    fn every_path_passes_the_tests_of_products() {
        rerun_on_other_paths(&["gemm::"]);
    }
}
