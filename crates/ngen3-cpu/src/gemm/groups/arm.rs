//! Kernel for 64-bit Arm: four lanes of a panel to a vector.

use std::arch::aarch64::*;

use ngen3_simd::Path;

use super::format::{Format, GROUP, LANES, Panel, Sums};
use super::inputs::Inputs;
use crate::gemm::dot::{dot, has_sdot};

/// Cells of four elements per group.
const CELLS: usize = GROUP / 4;

/// Returns the sums of `R` rows; `None` if `NGEN3_SIMD` forces plain code. The lengths must have been checked.
pub fn sums<const R: usize>(format: Format, panel: Panel<'_>, x: Inputs<'_>) -> Option<Sums<R>> {
    if ngen3_simd::path() != Path::Neon {
        return None;
    }
    // SAFETY: the features are there, and `kernel::check` checked the lengths.
    Some(unsafe { if has_sdot() { by_sdot(format, panel, x) } else { of_format::<R, false>(format, panel, x) } })
}

/// # Safety
/// The processor has `sdot`; the panel has the groups of `x`, which has `R` rows.
#[target_feature(enable = "dotprod")]
unsafe fn by_sdot<const R: usize>(format: Format, panel: Panel<'_>, x: Inputs<'_>) -> Sums<R> {
    // SAFETY: the caller upholds the same requirements.
    unsafe { of_format::<R, true>(format, panel, x) }
}

/// # Safety
/// The panel has the groups of `x`, which has `R` rows. With `SDOT`, call it only from a function compiled for `dotprod`.
#[inline(always)]
unsafe fn of_format<const R: usize, const SDOT: bool>(format: Format, panel: Panel<'_>, x: Inputs<'_>) -> Sums<R> {
    let mut sums = [[0.0; LANES]; R];
    // SAFETY: the caller upholds the same requirements.
    unsafe {
        match format {
            Format::Q4_0 => of_panel::<R, SDOT, true, false>(panel, x, &mut sums),
            Format::Q4_1 => of_panel::<R, SDOT, true, true>(panel, x, &mut sums),
            Format::Q8_0 => of_panel::<R, SDOT, false, false>(panel, x, &mut sums),
        }
    }
    sums
}

/// Computes all lanes, in passes over the groups whose sums stay in registers: 16 vectors at most.
///
/// # Safety
/// As [`of_format`].
#[inline(always)]
unsafe fn of_panel<const R: usize, const SDOT: bool, const NIBBLES: bool, const MINIMUM: bool>(
    panel: Panel<'_>,
    x: Inputs<'_>,
    out: &mut Sums<R>,
) {
    // SAFETY: the caller upholds the same requirements.
    unsafe {
        if R <= 4 {
            pass::<R, 4, SDOT, NIBBLES, MINIMUM>(panel, x, 0, out);
        } else {
            pass::<R, 2, SDOT, NIBBLES, MINIMUM>(panel, x, 0, out);
            pass::<R, 2, SDOT, NIBBLES, MINIMUM>(panel, x, 2, out);
        }
    }
}

/// Computes the sums of `V` vectors of lanes, from vector `first`.
///
/// # Safety
/// As [`of_format`]; the vectors are among the panel's four.
#[inline(always)]
unsafe fn pass<const R: usize, const V: usize, const SDOT: bool, const NIBBLES: bool, const MINIMUM: bool>(
    panel: Panel<'_>,
    x: Inputs<'_>,
    first: usize,
    out: &mut Sums<R>,
) {
    let bytes = if NIBBLES { LANES * GROUP / 2 } else { LANES * GROUP };
    let (cells, stride) = (x.cells().as_ptr(), x.stride());
    let (s, starts, totals) = (x.scales().as_ptr(), x.starts().as_ptr(), x.sums().as_ptr());
    // SAFETY: the pointers stay within the group's elements, numbers and factors, whose lengths the caller checked; the caller is
    // compiled for `dot`.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); V]; R];
        for group in 0..x.groups() {
            for v in 0..V {
                let lane = 4 * (first + v);
                let elements = panel.elements.as_ptr().add(group * bytes + 4 * lane);
                let mut w = [vdupq_n_s8(0); CELLS];
                if NIBBLES {
                    for c in 0..CELLS / 2 {
                        let both = vld1q_u8(elements.add(4 * LANES * c));
                        w[c] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                        w[c + CELLS / 2] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(both));
                    }
                } else {
                    // u − 128, so that the sums start at 0.
                    for (c, w) in w.iter_mut().enumerate() {
                        *w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(elements.add(4 * LANES * c)), vdupq_n_u8(128)));
                    }
                }
                let numbers = group * LANES + lane;
                let d = widened(panel.scales.as_ptr().add(numbers));
                for (row, sums) in sums.iter_mut().enumerate() {
                    let (q, at) = (cells.add(row * stride + group * CELLS), row * stride + group);
                    let start = if NIBBLES && !MINIMUM { *starts.add(at) } else { 0 };
                    // Two sums, since each instruction waits for the one before.
                    let mut halves = [vdupq_n_s32(start), vdupq_n_s32(0)];
                    for (i, half) in halves.iter_mut().enumerate() {
                        let (w, q) = (&w[4 * i..][..4], vreinterpretq_s8_s32(vld1q_s32(q.add(4 * i))));
                        *half = dot::<SDOT, 0>(*half, w[0], q);
                        *half = dot::<SDOT, 1>(*half, w[1], q);
                        *half = dot::<SDOT, 2>(*half, w[2], q);
                        *half = dot::<SDOT, 3>(*half, w[3], q);
                    }
                    let dots = vcvtq_f32_s32(vaddq_s32(halves[0], halves[1]));
                    sums[v] = vfmaq_f32(sums[v], dots, vmulq_n_f32(d, *s.add(at)));
                    if MINIMUM {
                        let m = widened(panel.minimums.as_ptr().add(numbers));
                        sums[v] = vfmaq_n_f32(sums[v], m, *totals.add(at));
                    }
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (v, sum) in sums.into_iter().enumerate() {
                vst1q_f32(out.as_mut_ptr().add(4 * (first + v)), sum);
            }
        }
    }
}

/// Returns four float16 numbers in f32.
///
/// # Safety
/// Four numbers are readable.
#[inline(always)]
unsafe fn widened(from: *const u16) -> float32x4_t {
    // SAFETY: the caller promises the numbers, and the target has NEON.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))) }
}
