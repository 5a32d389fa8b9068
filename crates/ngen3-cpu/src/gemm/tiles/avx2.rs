//! Vectors of AVX2 with FMA, for `parts.rs`.
//!
//! Each function may be called only from one that is compiled for AVX2 and FMA.

use std::arch::x86_64::*;

/// 16 columns of a row: two vectors of 8 f32.
pub type Columns = [__m256; 2];

/// # Safety
/// The module's rule.
#[inline(always)]
pub unsafe fn zero() -> Columns {
    // SAFETY: the caller is compiled for AVX2.
    unsafe { [_mm256_setzero_ps(); 2] }
}

/// # Safety
/// The module's rule; 16 elements are readable.
#[inline(always)]
pub unsafe fn load(from: *const f32) -> Columns {
    // SAFETY: the caller promises these elements.
    unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
}

/// # Safety
/// The module's rule; 16 elements are writable.
#[inline(always)]
pub unsafe fn put(columns: Columns, to: *mut f32) {
    // SAFETY: the caller promises these elements.
    unsafe {
        _mm256_storeu_ps(to, columns[0]);
        _mm256_storeu_ps(to.add(8), columns[1]);
    }
}

/// Returns `sum + a·b`.
///
/// # Safety
/// The module's rule.
#[inline(always)]
pub unsafe fn multiply_add(a: &f32, b: Columns, sum: Columns) -> Columns {
    // SAFETY: the caller is compiled for AVX2 and FMA.
    unsafe {
        let a = _mm256_broadcast_ss(a);
        [_mm256_fmadd_ps(a, b[0], sum[0]), _mm256_fmadd_ps(a, b[1], sum[1])]
    }
}
