//! Products of bf16 operands with f32 sums, for processors with AVX512-BF16.
//!
//! Three steps, each in a file of its own: [`mod@pack`] rounds both operands to bf16 and lays them out in the order in which the
//! kernel reads them; [`kernel`] multiplies one panel of A with one of B into a tile of C that lives in registers; this
//! file cuts the product into blocks that stay in cache and hands them to the threads.
//!
//! The elementary step multiplies *pairs*: two neighbours along k of a row of A with the same two of a column of B, added to
//! one f32 (`_mm512_dpbf16_ps`). So everything packed is in u32s, each a pair along k, the first in the low half.
//!
//! [`softmax`] holds the kernels of the fused loss, which do more with a tile than store it.
//!
//! Each element of C is summed in the same order whatever the number of threads: the same bits.

pub mod kernel;
pub mod pack;
pub mod softmax;

use std::cell::RefCell;

use rayon::prelude::*;

use super::{Into, Mat, MatMut};
use kernel::{MR, NR};

/// Pairs along k that one pass takes: a panel of B of this depth and one of A fit the first-level cache together.
const KC_PAIRS: usize = 128;

/// Rows of A in one task: its panels stay in the second-level cache while B's pass by.
const MC: usize = 16 * MR;

/// Columns of B in one task.
const NC: usize = 8 * NR;

thread_local! {
    /// Packed operands. Grows to the largest product seen, then stays: a step allocates nothing.
    static WORKSPACE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Whether this processor runs these products at full speed. The kernel has a plain twin, far slower than f32 products.
pub fn available() -> bool {
    kernel::available()
}

/// `c = a·b` or `c += a·b` with operands rounded to bf16, on all threads of the pool.
///
/// # Panics
/// If the shapes do not agree.
pub fn matmul(c: MatMut<'_>, into: Into, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!((a.rows, b.rows, b.cols), (c.rows, a.cols, c.cols), "shapes of a product: [m, k]·[k, n] = [m, n]");
    let pairs = a.cols.div_ceil(2);
    let (a_len, b_len) = (packed_len::<MR>(a.rows, a.cols), packed_len::<NR>(b.cols, b.rows));
    // Taken, not borrowed: while this thread waits for others it may be given work that multiplies too.
    let mut workspace = WORKSPACE.take();
    if workspace.len() < a_len + b_len {
        workspace.resize(a_len + b_len, 0);
    }
    let (packed_a, rest) = workspace.split_at_mut(a_len);
    let packed_b = &mut rest[..b_len];
    pack::<MR>(a, packed_a);
    pack::<NR>(b.t(), packed_b);
    multiply(c, into, packed_a, packed_b, pairs);
    WORKSPACE.set(workspace);
}

/// u32s that `rows` rows of length `k` take, packed in panels of `R` rows.
pub fn packed_len<const R: usize>(rows: usize, k: usize) -> usize {
    rows.div_ceil(R) * R * k.div_ceil(2)
}

/// Rounds and lays out `[rows, k]` as panels of `R` rows, on all threads.
pub fn pack<const R: usize>(source: Mat<'_>, packed: &mut [u32]) {
    assert_eq!(packed.len(), packed_len::<R>(source.rows, source.cols), "packed panels");
    let panel = R * source.cols.div_ceil(2).max(1);
    packed.par_chunks_mut(panel).enumerate().for_each(|(i, panel)| pack::panel::<R>(source, i * R, panel));
}

/// `c = a·b` or `c += a·b` for operands packed in panels of [`MR`] rows and [`NR`] columns, `pairs` deep.
fn multiply(c: MatMut<'_>, into: Into, a: &[u32], b: &[u32], pairs: usize) {
    let (m, n) = (c.rows, c.cols);
    let (row_blocks, col_blocks) = (m.div_ceil(MC), n.div_ceil(NC));
    (0..row_blocks * col_blocks).into_par_iter().with_max_len(1).for_each(|task| {
        let (rows, cols) = ((task % row_blocks) * MC, (task / row_blocks) * NC);
        // SAFETY: every task has a different block of C, and blocks share no element.
        let mut c = unsafe { c.part(rows..(rows + MC).min(m), cols..(cols + NC).min(n)) };
        let a = &a[rows * pairs..((rows + MC) * pairs).min(a.len())];
        let b = &b[cols * pairs..((cols + NC) * pairs).min(b.len())];
        multiply_block(&mut c, into, a, b, pairs);
    });
}

/// One block of C: passes of [`KC_PAIRS`] along k; in each, a panel of B stays in the first-level cache while A's pass by.
fn multiply_block(c: &mut MatMut<'_>, into: Into, a: &[u32], b: &[u32], pairs: usize) {
    let (m, n) = (c.rows, c.cols);
    if pairs == 0 && into == Into::Set {
        (0..m).for_each(|i| c.row_mut(i).fill(0.0));
    }
    for first in (0..pairs).step_by(KC_PAIRS) {
        let depth = KC_PAIRS.min(pairs - first);
        let into = if first == 0 { into } else { Into::Add };
        for (j, b) in b.chunks_exact(NR * pairs).enumerate() {
            let b = &b[first * NR..][..depth * NR];
            for (i, a) in a.chunks_exact(MR * pairs).enumerate() {
                let a = &a[first * MR..][..depth * MR];
                // SAFETY: the tile lies within this block, which is this task's alone.
                let mut tile = unsafe { c.part(i * MR..((i + 1) * MR).min(m), j * NR..((j + 1) * NR).min(n)) };
                kernel::tile(a, b, &mut tile, into);
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
    fn products_of_odd_shapes_match_three_loops_over_rounded_operands() {
        for (m, n, k) in [(1, 1, 1), (5, 97, 12), (17, 3, 31), (200, 33, 129), (13, 270, 301), (3, 2, 0)] {
            let rounded = |n, seed| -> Vec<f32> { random(n, seed).into_iter().map(pack::rounded).collect() };
            let (a, bt) = (rounded(m * k, 1), rounded(k * n, 2));
            let (a, b) = (Mat::new(&a, m, k), Mat::new(&bt, n, k).t());
            let expected = matmul_reference(a, b);
            for into in [Into::Set, Into::Add] {
                let mut c = vec![1.0; m * n];
                matmul(MatMut::new(&mut c, m, n), into, a, b);
                let kept = if into == Into::Add { 1.0 } else { 0.0 };
                for (&found, expected) in c.iter().zip(&expected) {
                    let expected = expected + kept;
                    assert!((f64::from(found) - expected).abs() < 1e-4, "{m}x{n}x{k}: {found}, not {expected}");
                }
            }
        }
    }
}
