//! A product and a low-rank branch beside it, `C = start + A·B + (s·A·down)·up`: a linear layer with an adapter.
//!
//! `a`: [m, k]; `b`: [k, n]; `down`: [k, R]; `up`: [R, n]. A is packed once for both products. The branch's second product is
//! added to each block of C while it is in cache, so that the branch makes no other pass over A or C.

use std::ops::Range;

use super::kernel::NR;
use super::pack::{pack, packed_len};
use super::packed_a::PackedA;
use super::product::{Beside, multiply};
use super::right::Right;
use super::workspace::with_workspace;
use crate::base::memory::{Carver, padded};
use crate::gemm::operation::Accumulate;
use crate::gemm::view::{Mat, MatMut};

/// Low-rank branch.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    /// s, the factor of the first product.
    pub scale: f32,
    /// `[k, R]`
    pub down: Mat<'a>,
    /// `[R, n]`
    pub up: Mat<'a>,
    /// Returns the rows of `up` that are not zero in these columns.
    pub ranks: &'a (dyn Fn(Range<usize>) -> Range<usize> + Sync),
}

/// Fills `low`, `[m, R]`, with `s·a·down` and, if requested, computes `c = a·b + low·up` or adds it to `c`, with `P` elements
/// per cell and sums in f32. `start` is as in [`matmul_onto`](super::matmul_onto).
///
/// # Panics
/// If the shapes do not match.
pub fn matmul_low_rank<const P: usize>(
    c: Option<(MatMut<'_>, Accumulate, Right<'_>)>,
    a: Mat<'_>,
    branch: LowRank<'_>,
    low: &mut [f32],
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    let LowRank { scale, down, up, ranks } = branch;
    let (m, k, rank) = (a.rows, a.cols, down.cols);
    assert_eq!((down.rows, up.rows, low.len()), (k, rank, m * rank), "shape mismatch: expected [k, R]·[R, n]");
    if let Some((c, _, b)) = &c {
        assert_eq!((c.rows, (k, c.cols)), (m, b.shape()), "shape mismatch: expected [m, k]·[k, n] = [m, n]");
        assert_eq!(c.cols, up.cols, "columns of the branch");
    }
    let lengths = [
        PackedA::len::<P>(a),
        packed_len::<P, NR>(rank, k),
        PackedA::len::<P>(Mat::new(low, m, rank)),
        packed_len::<P, NR>(up.cols, rank),
        c.as_ref().map_or(0, |(_, _, b)| b.workspace::<P>()),
    ];
    with_workspace(lengths.map(padded).iter().sum(), |workspace| {
        let mut carver = Carver(workspace);
        let [packed_a, packed_down, packed_low, packed_up, packed_b] =
            lengths.map(|length| bytemuck::cast_slice_mut::<f32, u32>(carver.cut(length)));
        let a = PackedA::lay_out::<P>(a, packed_a);
        pack::<P, NR>(down.t(), packed_down);
        multiply::<P>(MatMut::new(low, m, rank), Accumulate::Set, a, packed_down, None, |_, _, _| {});
        low.iter_mut().for_each(|low| *low *= scale);
        let Some((c, accumulate, b)) = c else { return };
        let low = PackedA::lay_out::<P>(Mat::new(low, m, rank), packed_low);
        pack::<P, NR>(up.t(), packed_up);
        let b = b.lay_out::<P>(packed_b);
        let cells = |columns| {
            let ranks: Range<usize> = ranks(columns);
            ranks.start / P..ranks.end.div_ceil(P)
        };
        let beside = Beside { a: low, b: packed_up, cells: &cells };
        multiply::<P>(c, accumulate, a, b, Some(beside), start);
    });
}
