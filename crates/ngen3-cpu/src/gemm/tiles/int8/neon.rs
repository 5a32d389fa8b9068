//! Integer sums of a tile of int8 products on 64-bit Arm, in parts of six rows by 16 columns: 24 of the 32 vector registers.

use std::arch::aarch64::*;

use crate::gemm::dot::{dot, has_sdot};
use crate::gemm::tiles::shape::{COLUMNS, MR, NR};

/// Rows of a part.
const ROWS: usize = MR / 2;

/// Vectors of a row of a part.
const VECTORS: usize = COLUMNS / 4;

/// Returns Σ q·q' of [`MR`] rows of `a`, `stride` cells apart, which hold q + 128, and the columns of `b`, `[depth, NR]`, which hold q'.
///
/// # Panics
/// If `a` has too few cells.
pub fn sums(a: &[u32], stride: usize, b: &[u32]) -> [[i32; NR]; MR] {
    assert!(a.len() >= (MR - 1) * stride + b.len() / NR, "{MR} rows as deep as the panel of B");
    // SAFETY: the feature and the lengths were checked.
    unsafe { if has_sdot() { by_sdot(a, stride, b) } else { of_tile::<false>(a, stride, b) } }
}

/// # Safety
/// The processor has `sdot`; `a` has [`MR`] rows as deep as `b`.
#[target_feature(enable = "dotprod")]
unsafe fn by_sdot(a: &[u32], stride: usize, b: &[u32]) -> [[i32; NR]; MR] {
    // SAFETY: the caller upholds the same requirements.
    unsafe { of_tile::<true>(a, stride, b) }
}

/// # Safety
/// `a` has [`MR`] rows as deep as `b`. With `SDOT`, call it only from a function compiled for `dotprod`.
#[inline(always)]
unsafe fn of_tile<const SDOT: bool>(a: &[u32], stride: usize, b: &[u32]) -> [[i32; NR]; MR] {
    let mut out = [[0; NR]; MR];
    for row in (0..MR).step_by(ROWS) {
        for col in (0..NR).step_by(COLUMNS) {
            // SAFETY: `at_a` and `at_b` point to cell k of the part's first row and to its columns in row k of B's panel.
            unsafe {
                let mut sums = [[vdupq_n_s32(0); VECTORS]; ROWS];
                let (mut at_a, mut at_b) = (a.as_ptr().wrapping_add(row * stride), b.as_ptr().wrapping_add(col));
                for _ in 0..b.len() / NR {
                    let b: [int8x16_t; VECTORS] = std::array::from_fn(|v| vld1q_s8(at_b.add(4 * v).cast()));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        // Flipping the highest bit of q + 128 leaves q.
                        let q = vdupq_n_u32(*at_a.add(i * stride) ^ 0x8080_8080);
                        for (sum, &b) in sums.iter_mut().zip(&b) {
                            *sum = dot::<SDOT, 0>(*sum, b, vreinterpretq_s8_u32(q));
                        }
                    }
                    at_a = at_a.wrapping_add(1);
                    at_b = at_b.wrapping_add(NR);
                }
                for (out, sums) in out[row..].iter_mut().zip(sums) {
                    for (v, sum) in sums.into_iter().enumerate() {
                        vst1q_s32(out.as_mut_ptr().add(col + 4 * v), sum);
                    }
                }
            }
        }
    }
    out
}
