//! Operands of attention's products: rows in place, or packed into cells and panels.

use bytemuck::cast_slice_mut;

use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::{amx, cells, pack, packed_len, strided};
use crate::gemm::{Accumulate, Mat, MatMut, Precision};
use ngen3_simd::Path;

/// Returns the precision of attention's products in a pass of this precision. They are too small for AMX, and processors that have it
/// multiply vectors of f32 twice as fast as those of bf16. On Arm there are kernels for large products in bf16 only.
pub fn products(precision: Precision) -> Precision {
    if amx::available() || ngen3_simd::path() == Path::Neon { Precision::F32 } else { precision }
}

/// Puts rows of a prefix before `own`. Copies only if there are any.
pub fn joined_rows<'a, 'r>(
    prefix: impl ExactSizeIterator<Item = &'r [f32]>,
    own: Mat<'a>,
    to: &'a mut [f32],
) -> Mat<'a> {
    if prefix.len() == 0 {
        return own;
    }
    let (n, width) = (prefix.len() + own.n_rows(), own.cols());
    let (before, after) = to[..n * width].split_at_mut(prefix.len() * width);
    before.chunks_exact_mut(width).zip(prefix).for_each(|(to, row)| to.copy_from_slice(row));
    after.chunks_exact_mut(width).enumerate().for_each(|(i, to)| to.copy_from_slice(own.row(i)));
    Mat::new(&to[..n * width], n, width)
}

/// Packs rows along their width, for products that sum over the width: `[rows, width/P]`.
pub fn along<'a, const P: usize>(rows: Mat<'_>, to: &'a mut [f32]) -> Mat<'a, u32> {
    let depth = cells::<P>(rows.cols());
    let to = cast_slice_mut(&mut to[..rows.n_rows() * depth]);
    pack::along::<P>(rows, to);
    Mat::new(to, rows.n_rows(), depth)
}

/// As [`along`], for rows already in cache: with P = 1 it returns the rows themselves.
pub fn along_or_same<'a, const P: usize>(rows: Mat<'a>, to: &'a mut [f32]) -> Mat<'a, u32> {
    if P == 1 { rows.cells() } else { along::<P>(rows, to) }
}

/// Packs rows down the columns, for products that sum over the rows: `[rows/P, width]`.
pub fn down<'a, const P: usize>(rows: Mat<'_>, to: &'a mut [f32]) -> Mat<'a, u32> {
    let depth = cells::<P>(rows.n_rows());
    let to = cast_slice_mut(&mut to[..depth * rows.cols()]);
    pack::down::<P>(rows, to);
    Mat::new(to, depth, rows.cols())
}

/// As [`down`], for rows already in cache: with P = 1 it returns the rows themselves.
pub fn down_or_same<'a, const P: usize>(rows: Mat<'a>, to: &'a mut [f32]) -> Mat<'a, u32> {
    if P == 1 { rows.cells() } else { down::<P>(rows, to) }
}

/// Packs rows into panels of [`NR`] rows, `[width/P, NR]` each; rows past the end are zeros.
pub fn panels<'a, const P: usize>(rows: Mat<'_>, to: &'a mut [f32]) -> &'a [u32] {
    let to = cast_slice_mut(&mut to[..packed_len::<P, NR>(rows.n_rows(), rows.cols())]);
    pack::panels::<P, NR>(rows, 0, to);
    to
}

/// Computes `to = a·rowsᵀ` with the first `keys` rows that [`panels`] packed. Rows of `to` are `stride` apart.
pub fn products_with_panels<const P: usize>(
    a: Mat<'_, u32>,
    panels: &[u32],
    keys: usize,
    stride: usize,
    to: &mut [f32],
) {
    let depth = a.cols();
    for (j, panel) in panels.chunks_exact(NR * depth).take(keys / NR).enumerate() {
        let to = MatMut::strided(&mut to[j * NR..], a.n_rows(), NR, stride);
        strided::matmul::<P>(to, Accumulate::Set, a, Mat::new(panel, depth, NR));
    }
}
