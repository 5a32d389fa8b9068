//! Micro-kernel: an [`MR`] x [`NR`] tile of C from [`MR`] rows of A and one panel of B. On AMX a tile has more rows: `amx.rs`.
//!
//! The tile's sums, 24 vectors of 16 f32, stay in registers for the whole depth. Each step along k loads one cell of each of the
//! 32 columns of B and broadcasts one cell of each of the 12 rows of A. With AVX2 or NEON a tile of f32 is computed in parts (`parts.rs`).
//! [`tile_plain`] is the same in plain Rust: the tests compare with it, and it runs everywhere else.

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "aarch64")]
use super::bfdot;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::parts;
use crate::gemm::operation::Accumulate;
use crate::gemm::view::MatMut;
use ngen3_simd::{Path, simd};

pub use super::shape::{MR, NR, Rows, TILE};

/// Returns true if the AVX512-BF16 kernels run: the processor has the instructions, and `NGEN3_SIMD` forces no narrower path.
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        ngen3_simd::avx512()
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Returns true if bf16 is multiplied by instructions made for it: those of AVX512-BF16 and AMX, or `bfdot` of 64-bit Arm.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "aarch64")]
    return bfdot::available();
    #[cfg(not(target_arch = "aarch64"))]
    return available();
}

/// Returns true if kernels of f32 run: those of AVX-512, AVX2 or NEON.
pub fn available_f32() -> bool {
    available() || runs_parts()
}

/// Returns true if the kernels of f32 for AVX2 or NEON run.
pub(super) fn runs_parts() -> bool {
    !available() && matches!(ngen3_simd::path(), Path::Avx2 | Path::Avx512 | Path::Neon)
}

/// Computes `c = a·b` or `c += a·b` for `c` of at most [`Rows::count`] x [`NR`], with sums in f32. `a`: that many rows of `depth`
/// cells of `P` elements; `b`: `[depth, NR]` cells.
///
/// # Panics
/// If `a` has too few cells, or `c` is larger than a tile.
pub fn tile<const P: usize>(a: &[u32], rows: Rows, b: &[u32], c: &mut MatMut<'_>, accumulate: Accumulate) {
    #[cfg(target_arch = "x86_64")]
    if rows == Rows::Blocks {
        assert!(P == 2, "AMX multiplies bf16 only");
        return amx::tile(a, b, c, accumulate);
    }
    assert!(c.rows <= MR && c.cols <= NR, "a tile of {} x {}", c.rows, c.cols);
    let depth = b.len() / NR;
    assert!(depth == 0 || rows.at(MR - 1, depth - 1) < a.len(), "{depth} cells of {MR} rows");
    // Fewer rows, as in decoding, take less time. The sums of a row are the same.
    match c.rows {
        0..=1 => tile_of::<P, 1>(a, rows, b, c, accumulate),
        2 => tile_of::<P, 2>(a, rows, b, c, accumulate),
        3..=4 => tile_of::<P, 4>(a, rows, b, c, accumulate),
        5..=8 => tile_of::<P, 8>(a, rows, b, c, accumulate),
        _ => tile_of::<P, MR>(a, rows, b, c, accumulate),
    }
}

/// Computes [`tile`] for `c` of at most [`Rows::at_once`] tiles below one another. Each has its panel of `a`, `below` cells after
/// the one before.
pub fn tiles<const P: usize>(
    a: &[u32],
    below: usize,
    rows: Rows,
    b: &[u32],
    c: &mut MatMut<'_>,
    accumulate: Accumulate,
) {
    let count = rows.count();
    if c.rows <= count {
        return tile::<P>(a, rows, b, c, accumulate);
    }
    assert!(c.rows <= rows.at_once() * count, "tiles of {} rows", c.rows);
    #[cfg(target_arch = "x86_64")]
    if P == 2 && c.rows == 2 * count && c.cols == NR {
        return amx::two_tiles(a, below, b, c, accumulate);
    }
    tile::<P>(a, rows, b, &mut c.rows(0..count), accumulate);
    tile::<P>(&a[below..], rows, b, &mut c.rows(count..c.n_rows()), accumulate);
}

/// [`tile`] for `c` of at most `R` rows. The lengths must have been checked.
fn tile_of<const P: usize, const R: usize>(
    a: &[u32],
    rows: Rows,
    b: &[u32],
    c: &mut MatMut<'_>,
    accumulate: Accumulate,
) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the features are there, and the caller checked the lengths.
        unsafe { x86::tile::<P, R>(a, rows, b, c, accumulate) };
        return;
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if P == 1 && runs_parts() {
        // SAFETY: the features are there, and the caller checked the lengths; 6, 4, 2 and 1 divide the numbers of rows.
        unsafe {
            match R {
                MR => parts::tile::<MR, { MR / 2 }>(a, rows, b, c, accumulate),
                8 => parts::tile::<8, 4>(a, rows, b, c, accumulate),
                4 => parts::tile::<4, 4>(a, rows, b, c, accumulate),
                2 => parts::tile::<2, 2>(a, rows, b, c, accumulate),
                _ => parts::tile::<R, 1>(a, rows, b, c, accumulate),
            }
        }
        return;
    }
    #[cfg(target_arch = "aarch64")]
    if P == 2 && bfdot::available() {
        return store(&bfdot::sums::<R>(a, rows, b), c, accumulate);
    }
    simd(
        #[inline(always)]
        || tile_plain::<P, R>(a, rows, b, c, accumulate),
    );
}

/// [`tile`] in plain Rust, for `c` of at most `R` rows.
#[inline(always)]
pub fn tile_plain<const P: usize, const R: usize>(
    a: &[u32],
    rows: Rows,
    b: &[u32],
    c: &mut MatMut<'_>,
    accumulate: Accumulate,
) {
    let mut sums = [[0.0f32; NR]; R];
    for (k, b) in b.as_chunks::<NR>().0.iter().enumerate() {
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = a[rows.at(i, k)];
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = multiply_add::<P>(a, b, *sum);
            }
        }
    }
    store(&sums, c, accumulate);
}

/// Stores the sums of a tile in `c`, or adds them to it.
#[inline(always)]
fn store(sums: &[[f32; NR]], c: &mut MatMut<'_>, accumulate: Accumulate) {
    for (i, sums) in sums.iter().enumerate().take(c.rows) {
        let row = c.row_mut(i);
        for (c, &sum) in row.iter_mut().zip(sums) {
            *c = if accumulate == Accumulate::Add { *c + sum } else { sum };
        }
    }
}

/// Returns `sum + a·b`, summed over the elements of a cell.
#[inline(always)]
pub fn multiply_add<const P: usize>(a: u32, b: u32, sum: f32) -> f32 {
    if P == 2 {
        // The order of `vdpbf16ps`: the second product first, each sum rounded.
        (sum + high(a) * high(b)) + low(a) * low(b)
    } else {
        sum + f32::from_bits(a) * f32::from_bits(b)
    }
}

/// Prefetches a tile of C that will be read or written soon.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "a hint for x86-64"))]
pub fn ask_for(c: &MatMut<'_>) {
    #[cfg(target_arch = "x86_64")]
    if available() {
        // SAFETY: the features were checked above.
        unsafe { x86::prefetch(c) };
    }
}

/// Returns the first element of a cell of bf16.
#[inline(always)]
pub fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// Returns the second element of a cell of bf16.
#[inline(always)]
pub fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xFFFF_0000)
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Accumulate, MatMut, NR, Rows};

    /// # Safety
    /// The processor has AVX-512F and AVX512-BF16; `a` has R rows as deep as `b`, together or apart; `c` is at most R x NR.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn tile<const P: usize, const R: usize>(
        a: &[u32],
        rows: Rows,
        b: &[u32],
        c: &mut MatMut<'_>,
        accumulate: Accumulate,
    ) {
        if accumulate == Accumulate::Add {
            prefetch(c);
        }
        // SAFETY: the caller upholds the same requirements.
        unsafe {
            // Two calls, so that the panel's strides are compile-time constants in one of them.
            match rows {
                Rows::Together => store(sums_of_tile::<P, R>(a, Rows::Together, b), c, accumulate),
                _ => store(sums_of_tile::<P, R>(a, rows, b), c, accumulate),
            }
        }
    }

    /// Returns `sum + a·b`, summed over the elements of each cell.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn multiply_add<const P: usize>(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
        if P == 2 {
            // SAFETY: both types are 512 bits, and every bit pattern is valid.
            let (a, b) =
                unsafe { (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) };
            _mm512_dpbf16_ps(sum, a, b)
        } else {
            _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
        }
    }

    /// Returns the tile's sums, R rows of two vectors. Always inlined, so that constant strides stay constants.
    ///
    /// # Safety
    /// As [`tile`]. Call it only from a function compiled for these features.
    #[inline(always)]
    pub unsafe fn sums_of_tile<const P: usize, const R: usize>(a: &[u32], rows: Rows, b: &[u32]) -> [[__m512; 2]; R] {
        // Strides in cells: from row to row, and along k.
        let (down, along) = (rows.at(1, 0), rows.at(0, 1));
        // SAFETY: `at_a` and `at_b` point to cell k of A's first row and to row k of B's panel.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            let (mut at_a, mut at_b) = (a.as_ptr(), b.as_ptr());
            for _ in 0..b.len() / NR {
                let (b0, b1) = (_mm512_loadu_si512(at_b.cast()), _mm512_loadu_si512(at_b.add(16).cast()));
                for (i, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_epi32(*at_a.add(i * down) as i32);
                    sums[0] = multiply_add::<P>(a, b0, sums[0]);
                    sums[1] = multiply_add::<P>(a, b1, sums[1]);
                }
                at_a = at_a.wrapping_add(along);
                at_b = at_b.wrapping_add(NR);
            }
            sums
        }
    }

    /// Prefetches the tile of C before its sums are computed, which hides the memory latency.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn prefetch(c: &MatMut<'_>) {
        for i in 0..c.rows {
            let row = c.data.wrapping_add(i * c.row_stride).cast();
            _mm_prefetch::<_MM_HINT_T0>(row);
            _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(64));
        }
    }

    /// Stores or adds the sums to `c`. Takes them by value and is always inlined: sums with an address would not stay in
    /// registers in the loop that computes them.
    ///
    /// # Safety
    /// The processor has AVX-512F; `c` is at most R x NR. Call it only from a function compiled for AVX-512F.
    #[inline(always)]
    pub unsafe fn store<const R: usize>(sums: [[__m512; 2]; R], c: &mut MatMut<'_>, accumulate: Accumulate) {
        let columns = if c.cols == NR { u32::MAX } else { (1 << c.cols) - 1 };
        let (low, high) = (columns as __mmask16, (columns >> 16) as __mmask16);
        // A loop of fixed length is unrolled, so that no sum needs an address.
        for (i, sums) in sums.into_iter().enumerate() {
            if i >= c.rows {
                continue;
            }
            // SAFETY: row `i` exists in C, and the masks exclude elements past its columns.
            unsafe {
                let row = c.data.add(i * c.row_stride);
                let next = row.wrapping_add(16);
                let [mut s0, mut s1] = sums;
                if accumulate == Accumulate::Add {
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
    use crate::base::testing::{random, skip};
    use crate::gemm::tiles::pack::cell;

    fn check<const P: usize>(rows: Rows) {
        for (m, n, depth) in [(12, 32, 9), (1, 1, 1), (5, 17, 64), (12, 15, 3), (7, 16, 130), (11, 31, 2), (3, 4, 0)] {
            let packed =
                |n: usize, seed| random(2 * n, seed).as_chunks::<2>().0.iter().map(|x| cell::<P>(x[0], x[1])).collect();
            let last = rows.at(MR - 1, depth.max(1));
            let (a, b): (Vec<u32>, Vec<u32>) = (packed(last, 1), packed(depth * NR, 2));
            for accumulate in [Accumulate::Set, Accumulate::Add] {
                let stride = n + 3;
                let (mut found, mut expected) = (random(m * stride, 3), random(m * stride, 3));
                tile::<P>(&a, rows, &b, &mut MatMut::strided(&mut found, m, n, stride), accumulate);
                tile_plain::<P, MR>(&a, rows, &b, &mut MatMut::strided(&mut expected, m, n, stride), accumulate);
                for (found, expected) in found.iter().zip(&expected) {
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{m}x{n}x{depth} {rows:?}: expected {expected}, got {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_vector_kernel_equals_its_plain_twin() {
        if !available_f32() {
            skip("vector product tiles against the plain version");
        }
        for rows in [Rows::Together, Rows::Apart(144)] {
            check::<1>(rows);
            check::<2>(rows);
        }
    }
}
