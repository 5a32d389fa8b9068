//! Sums of a tile of bf16 products on 64-bit Arm, with `bfdot`, in parts of up to six rows by 16 columns: 24 of the 32 vector registers.
//!
//! `bfdot` came with Armv8.6 (Neoverse V1, Apple M2) and is found at run time. It adds both products of a cell of A and one of B to a
//! 32-bit lane, so that the cells are those of AVX512-BF16. It rounds in other places than the plain twin, and counts subnormal
//! numbers as 0.

use std::arch::aarch64::*;
use std::arch::asm;

use super::shape::{COLUMNS, MR, NR, Rows};

/// Vectors of a row of a part.
const VECTORS: usize = COLUMNS / 4;

/// Returns true if the kernels for `bfdot` run: the processor has it, and `NGEN3_SIMD` forces no narrower path.
pub fn available() -> bool {
    ngen3_simd::path() == ngen3_simd::Path::Neon && std::arch::is_aarch64_feature_detected!("bf16")
}

/// Returns `a·b` of `R` rows of `a` and the columns of `b`, `[depth, NR]`.
///
/// # Panics
/// If `bfdot` is not available, or `a` has too few cells.
pub fn sums<const R: usize>(a: &[u32], rows: Rows, b: &[u32]) -> [[f32; NR]; R] {
    let depth = b.len() / NR;
    assert!(available(), "bfdot is not available");
    assert!(depth == 0 || rows.at(R - 1, depth - 1) < a.len(), "{depth} cells of {R} rows");
    // SAFETY: the feature and the lengths were checked; 6, 4 and 1 divide the numbers of rows.
    unsafe {
        match R {
            MR => of_tile::<R, { MR / 2 }>(a, rows, b),
            4 | 8 => of_tile::<R, 4>(a, rows, b),
            _ => of_tile::<R, 1>(a, rows, b),
        }
    }
}

/// # Safety
/// The processor has `bfdot`; `a` has R rows as deep as `b`; S divides R.
#[target_feature(enable = "bf16")]
unsafe fn of_tile<const R: usize, const S: usize>(a: &[u32], rows: Rows, b: &[u32]) -> [[f32; NR]; R] {
    let (down, along) = (rows.at(1, 0), rows.at(0, 1));
    let mut out = [[0.0; NR]; R];
    for row in (0..R).step_by(S) {
        for col in (0..NR).step_by(COLUMNS) {
            // SAFETY: `at_a` and `at_b` point to cell k of the part's first row and to its columns in row k of B's panel; `bfdot`,
            // whose intrinsic Rust does not have yet, reads and writes its registers only.
            unsafe {
                let mut sums = [[vdupq_n_f32(0.0); VECTORS]; S];
                let (mut at_a, mut at_b) = (a.as_ptr().wrapping_add(rows.at(row, 0)), b.as_ptr().wrapping_add(col));
                for _ in 0..b.len() / NR {
                    let b: [uint32x4_t; VECTORS] = std::array::from_fn(|v| vld1q_u32(at_b.add(4 * v)));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = vdupq_n_u32(*at_a.add(i * down));
                        for (sum, b) in sums.iter_mut().zip(b) {
                            asm!(
                                "bfdot {sum:v}.4s, {b:v}.8h, {a:v}.8h",
                                sum = inout(vreg) *sum,
                                a = in(vreg) a,
                                b = in(vreg) b,
                                options(pure, nomem, nostack, preserves_flags)
                            );
                        }
                    }
                    at_a = at_a.wrapping_add(along);
                    at_b = at_b.wrapping_add(NR);
                }
                for (out, sums) in out[row..].iter_mut().zip(sums) {
                    for (v, sum) in sums.into_iter().enumerate() {
                        vst1q_f32(out.as_mut_ptr().add(col + 4 * v), sum);
                    }
                }
            }
        }
    }
    out
}
