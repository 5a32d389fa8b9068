//! Kernels for AVX512-VNNI and for AVX2.

use std::arch::x86_64::*;

use super::format::{Format, GROUP, LANES, Panel, Sums};
use super::inputs::Inputs;

/// Cells of four elements per group.
const CELLS: usize = GROUP / 4;

/// Distance in bytes at which elements are prefetched: with several rows to compute the processor looks too few loads ahead by
/// itself (8 rows: 18.5 ms without, 16 at 2,048 and 13.5 at 8,192 bytes for a model of 135 million Q4_1 weights; measured).
const AHEAD: usize = 8192;

/// Returns the sums of `R` rows; `None` if the processor has neither instruction set, or `NGEN3_SIMD` forces plain code. The
/// lengths must have been checked.
pub fn sums<const R: usize>(format: Format, panel: Panel<'_>, x: Inputs<'_>) -> Option<Sums<R>> {
    if crate::gemm::tiles::int8::available() {
        // SAFETY: the features are there, and `kernel::check` checked the lengths.
        return Some(unsafe {
            match format {
                Format::Q4_0 => vnni::<R, true, false>(panel, x),
                Format::Q4_1 => vnni::<R, true, true>(panel, x),
                Format::Q8_0 => vnni::<R, false, false>(panel, x),
            }
        });
    }
    if ngen3_simd::path() != ngen3_simd::Path::Scalar && is_x86_feature_detected!("f16c") {
        let mut sums = [[0.0; LANES]; R];
        for half in 0..2 {
            // SAFETY: as above; every path but the scalar one has AVX2 and FMA.
            unsafe {
                match format {
                    Format::Q4_0 => avx2::<R, true, false>(panel, x, half, &mut sums),
                    Format::Q4_1 => avx2::<R, true, true>(panel, x, half, &mut sums),
                    Format::Q8_0 => avx2::<R, false, false>(panel, x, half, &mut sums),
                }
            }
        }
        return Some(sums);
    }
    None
}

/// # Safety
/// The processor has AVX-512F, AVX-512BW and AVX512-VNNI; the panel has the groups of `x`, which has `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn vnni<const R: usize, const NIBBLES: bool, const MINIMUM: bool>(panel: Panel<'_>, x: Inputs<'_>) -> Sums<R> {
    let mask = _mm512_set1_epi8(15);
    let (mut elements, mut scales) = (panel.elements.as_ptr(), panel.scales.as_ptr());
    let mut minimums = panel.minimums.as_ptr();
    let (mut cells, stride) = (x.cells().as_ptr(), x.stride());
    let (s, starts, totals) = (x.scales().as_ptr(), x.starts().as_ptr(), x.sums().as_ptr());
    let mut sums = [_mm512_setzero_ps(); R];
    for group in 0..x.groups() {
        let mut w = [_mm512_setzero_si512(); CELLS];
        for c in 0..if NIBBLES { CELLS / 2 } else { CELLS } {
            _mm_prefetch::<_MM_HINT_T0>(elements.wrapping_add(AHEAD + 64 * c).cast());
        }
        // SAFETY: the pointers stay within the group's elements, numbers and factors, whose lengths the caller checked.
        unsafe {
            if NIBBLES {
                for c in 0..CELLS / 2 {
                    let both = _mm512_loadu_si512(elements.add(64 * c).cast());
                    w[c] = _mm512_and_si512(both, mask);
                    w[c + CELLS / 2] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
                }
                elements = elements.add(64 * CELLS / 2);
            } else {
                for (c, w) in w.iter_mut().enumerate() {
                    *w = _mm512_loadu_si512(elements.add(64 * c).cast());
                }
                elements = elements.add(64 * CELLS);
            }
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            scales = scales.add(LANES);
            let m = if MINIMUM { _mm512_cvtph_ps(_mm256_loadu_si256(minimums.cast())) } else { _mm512_setzero_ps() };
            if MINIMUM {
                minimums = minimums.add(LANES);
            }
            for (row, sum) in sums.iter_mut().enumerate() {
                let at = row * stride + group;
                let q = |c: usize| _mm512_set1_epi32(*cells.add(row * stride + c));
                let mut dots = if MINIMUM { _mm512_setzero_si512() } else { _mm512_set1_epi32(*starts.add(at)) };
                for (c, &w) in w.iter().enumerate() {
                    dots = _mm512_dpbusd_epi32(dots, w, q(c));
                }
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(*s.add(at)));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scale, *sum);
                if MINIMUM {
                    *sum = _mm512_fmadd_ps(m, _mm512_set1_ps(*totals.add(at)), *sum);
                }
            }
            cells = cells.add(CELLS);
        }
    }
    let mut out = [[0.0; LANES]; R];
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: a row of the sums has 16 elements.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
    }
    out
}

/// Sums of eight lanes: those of a half.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the panel has the groups of `x`, which has `R` rows; `half` is 0 or 1.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const R: usize, const NIBBLES: bool, const MINIMUM: bool>(
    panel: Panel<'_>,
    x: Inputs<'_>,
    half: usize,
    out: &mut Sums<R>,
) {
    let (mask, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let (cells, stride) = (x.cells().as_ptr(), x.stride());
    let (s, starts, totals) = (x.scales().as_ptr(), x.starts().as_ptr(), x.sums().as_ptr());
    let mut sums = [_mm256_setzero_ps(); R];
    for group in 0..x.groups() {
        // SAFETY: the pointers stay within the group's elements, numbers and factors, whose lengths the caller checked.
        unsafe {
            let bytes = if NIBBLES { 64 * CELLS / 2 } else { 64 * CELLS };
            let elements = panel.elements.as_ptr().add(group * bytes + 32 * half);
            let numbers = group * LANES + 8 * half;
            let d = _mm256_cvtph_ps(_mm_loadu_si128(panel.scales.as_ptr().add(numbers).cast()));
            let m = if MINIMUM {
                _mm256_cvtph_ps(_mm_loadu_si128(panel.minimums.as_ptr().add(numbers).cast()))
            } else {
                _mm256_setzero_ps()
            };
            for (row, sum) in sums.iter_mut().enumerate() {
                let at = row * stride + group;
                let q = |c: usize| _mm256_set1_epi32(*cells.add(row * stride + group * CELLS + c));
                let start = if MINIMUM { 0 } else { *starts.add(at) };
                let mut dots = _mm256_set1_epi32(start);
                if NIBBLES {
                    // At most 8 · 2 · 15 · 128 in each of 16 bits.
                    let mut pairs = _mm256_setzero_si256();
                    for c in 0..CELLS / 2 {
                        let both = _mm256_loadu_si256(elements.add(64 * c).cast());
                        let low = _mm256_and_si256(both, mask);
                        let high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
                        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(low, q(c)));
                        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(high, q(c + CELLS / 2)));
                    }
                    dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
                } else {
                    // u·q in 16 bits would overflow: instead |u − 128|·(±q), which is at most 128 · 127 · 2. The sum does not
                    // start at −128·Σ q then.
                    dots = _mm256_setzero_si256();
                    for c in 0..CELLS {
                        let u = _mm256_loadu_si256(elements.add(64 * c).cast());
                        let w = _mm256_xor_si256(u, _mm256_set1_epi8(-128));
                        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q(c), w));
                        dots = _mm256_add_epi32(dots, _mm256_madd_epi16(pairs, ones));
                    }
                }
                let scale = _mm256_mul_ps(d, _mm256_set1_ps(*s.add(at)));
                *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, *sum);
                if MINIMUM {
                    *sum = _mm256_fmadd_ps(m, _mm256_set1_ps(*totals.add(at)), *sum);
                }
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: a row of the sums has 16 elements.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), sum) };
    }
}
