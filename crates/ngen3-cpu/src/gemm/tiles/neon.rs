//! Vectors of NEON, which every 64-bit Arm processor has, for `parts.rs`.

use std::arch::aarch64::*;

/// 16 columns of a row: four vectors of 4 f32.
pub type Columns = [float32x4_t; 4];

/// Returns zeros.
#[inline(always)]
pub fn zero() -> Columns {
    // SAFETY: the target has NEON.
    unsafe { [vdupq_n_f32(0.0); 4] }
}

/// # Safety
/// 16 elements are readable.
#[inline(always)]
pub unsafe fn load(from: *const f32) -> Columns {
    // SAFETY: the caller promises these elements.
    unsafe { [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))] }
}

/// # Safety
/// 16 elements are writable.
#[inline(always)]
pub unsafe fn put(columns: Columns, to: *mut f32) {
    for (i, vector) in columns.into_iter().enumerate() {
        // SAFETY: the caller promises these elements.
        unsafe { vst1q_f32(to.add(4 * i), vector) };
    }
}

/// Returns `sum + a·b`.
#[inline(always)]
pub fn multiply_add(a: &f32, b: Columns, mut sum: Columns) -> Columns {
    for (sum, b) in sum.iter_mut().zip(b) {
        // SAFETY: the target has NEON.
        *sum = unsafe { vfmaq_n_f32(*sum, b, *a) };
    }
    sum
}
