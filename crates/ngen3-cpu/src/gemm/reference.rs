//! Reference product for the tests.

use super::view::Mat;

/// Returns `a·b` in f64, row-major, by three loops. Tests compare every kernel with it.
pub fn matmul_reference(a: Mat<'_>, b: Mat<'_>) -> Vec<f64> {
    let at = |x: &Mat<'_>, i: usize, j: usize| f64::from(x.data[i * x.row_stride + j * x.col_stride]);
    let mut c = Vec::with_capacity(a.rows * b.cols);
    for i in 0..a.rows {
        for j in 0..b.cols {
            c.push((0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j)).sum());
        }
    }
    c
}
