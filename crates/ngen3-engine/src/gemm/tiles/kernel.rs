//! The micro-kernel: a tile of C, [`MR`] x [`NR`], from a panel of A and a panel of B.
//!
//! The tile's 24 sums of 16 f32 stay in registers for the whole depth; each step along k loads one cell of 32 columns of B and
//! broadcasts one cell of each of 12 rows of A. [`tile_plain`] is the same in plain Rust: what it is tested against, and what
//! runs where AVX512-BF16 is missing.

use super::super::{Into, MatMut};
use crate::cpu::simd::simd;

/// Rows of a tile: with two vectors of columns, 24 of the 32 registers hold sums.
pub const MR: usize = 12;

/// Columns of a tile: two vectors of 16 f32.
pub const NR: usize = 32;

/// Whether this processor has AVX512-BF16.
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        crate::cpu::simd::avx512()
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// `c = a·b` or `c += a·b`, for `c` of at most [`MR`] x [`NR`]; `a`: `[depth, MR]`, `b`: `[depth, NR]`,
/// with `P` elements in a cell.
pub fn tile<const P: usize>(a: &[u32], b: &[u32], c: &mut MatMut<'_>, into: Into) {
    assert!(c.rows <= MR && c.cols <= NR && a.len() / MR == b.len() / NR, "a tile of {} x {}", c.rows, c.cols);
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the features were just detected; the panels are equally deep.
        unsafe { x86::tile::<P>(a, b, c, into) };
        return;
    }
    simd(
        #[inline(always)]
        || tile_plain::<P>(a, b, c, into),
    );
}

/// [`tile`] in plain Rust.
#[inline(always)]
pub fn tile_plain<const P: usize>(a: &[u32], b: &[u32], c: &mut MatMut<'_>, into: Into) {
    let mut sums = [[0.0f32; NR]; MR];
    for (a, b) in a.as_chunks::<MR>().0.iter().zip(b.as_chunks::<NR>().0) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = multiply_add::<P>(a, b, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate().take(c.rows) {
        let row = c.row_mut(i);
        for (c, &sum) in row.iter_mut().zip(sums) {
            *c = if into == Into::Add { *c + sum } else { sum };
        }
    }
}

/// `sum + a·b` over the elements of each cell.
#[inline(always)]
pub fn multiply_add<const P: usize>(a: u32, b: u32, sum: f32) -> f32 {
    if P == 2 {
        // As the instruction does it: the second product first, each sum rounded.
        (sum + high(a) * high(b)) + low(a) * low(b)
    } else {
        sum + f32::from_bits(a) * f32::from_bits(b)
    }
}

#[inline(always)]
fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

#[inline(always)]
fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xFFFF_0000)
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Into, MR, MatMut, NR};

    /// # Safety
    /// The processor has AVX-512F and AVX512-BF16; `a` and `b` are whole panels of the same depth; `c` is at most MR x NR.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn tile<const P: usize>(a: &[u32], b: &[u32], c: &mut MatMut<'_>, into: Into) {
        if into == Into::Add {
            prefetch(c);
        }
        // SAFETY: what this function asks of its caller is what these two ask.
        unsafe { store(sums_of_panels::<P>(a, b), c, into) }
    }

    /// `sum + a·b` over the elements of each cell.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn multiply_add<const P: usize>(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        if P == 2 {
            // SAFETY: the same 512 bits under another name.
            let (a, b) =
                unsafe { (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) };
            _mm512_dpbf16_ps(sum, a, b)
        } else {
            _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
        }
    }

    /// The tile in registers: MR rows of two vectors.
    ///
    /// # Safety
    /// As [`tile`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn sums_of_panels<const P: usize>(a: &[u32], b: &[u32]) -> [[__m512; 2]; MR] {
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        let (depth, mut a, mut b) = (a.len() / MR, a.as_ptr(), b.as_ptr());
        for _ in 0..depth {
            // SAFETY: `a` and `b` stand at one of the `depth` cells of their panels, which are MR and NR wide.
            unsafe {
                let (b0, b1) = (_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast()));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_epi32(*a.add(i) as i32);
                    sums[0] = multiply_add::<P>(a, b0, sums[0]);
                    sums[1] = multiply_add::<P>(a, b1, sums[1]);
                }
                a = a.add(MR);
                b = b.add(NR);
            }
        }
        sums
    }

    /// Asks for the tile of C before the sums that will be added to it are made, which takes longer than memory does.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn prefetch(c: &MatMut<'_>) {
        for i in 0..c.rows {
            let row = c.data.wrapping_add(i * c.row_stride).cast();
            _mm_prefetch::<_MM_HINT_T0>(row);
            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(64));
        }
    }

    /// Takes the sums by value and is always inlined: with an address they would not stay in registers in the loop before.
    ///
    /// # Safety
    /// The processor has AVX-512F; `c` is at most MR x NR. To be called from a function compiled for it.
    #[inline(always)]
    pub unsafe fn store(sums: [[__m512; 2]; MR], c: &mut MatMut<'_>, into: Into) {
        let columns = if c.cols == NR { u32::MAX } else { (1 << c.cols) - 1 };
        let (low, high) = (columns as __mmask16, (columns >> 16) as __mmask16);
        // A loop of fixed length, so that it is unrolled and no sum ever has to have an address.
        for (i, sums) in sums.into_iter().enumerate() {
            if i >= c.rows {
                continue;
            }
            // SAFETY: row `i` is one of C's, and the masks leave out what is past its columns.
            unsafe {
                let row = c.data.add(i * c.row_stride);
                let next = row.wrapping_add(16);
                let [mut s0, mut s1] = sums;
                if into == Into::Add {
                    s0 = _mm512_add_ps(_mm512_maskz_loadu_ps(low, row), s0);
                    s1 = _mm512_add_ps(_mm512_maskz_loadu_ps(high, next), s1);
                }
                _mm512_mask_storeu_ps(row, low, s0);
                _mm512_mask_storeu_ps(next, high, s1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::random;
    use crate::gemm::tiles::pack::cell;

    fn check<const P: usize>() {
        for (rows, cols, depth) in [(12, 32, 9), (1, 1, 1), (5, 17, 64), (12, 15, 3), (7, 16, 130), (11, 31, 2)] {
            let packed =
                |n: usize, seed| random(2 * n, seed).as_chunks::<2>().0.iter().map(|x| cell::<P>(x[0], x[1])).collect();
            let (a, b): (Vec<u32>, Vec<u32>) = (packed(depth * MR, 1), packed(depth * NR, 2));
            for into in [Into::Set, Into::Add] {
                let stride = cols + 3;
                let (mut found, mut expected) = (random(rows * stride, 3), random(rows * stride, 3));
                tile::<P>(&a, &b, &mut MatMut::strided(&mut found, rows, cols, stride), into);
                tile_plain::<P>(&a, &b, &mut MatMut::strided(&mut expected, rows, cols, stride), into);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-5, "{rows}x{cols}x{depth}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn the_vector_kernel_equals_its_plain_twin() {
        check::<1>();
        check::<2>();
    }
}
