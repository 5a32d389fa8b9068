//! Strassen kernels for AVX-512.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::tables::{EXPS, Logits, PRODUCTS, Place};
use crate::gemm::operation::Accumulate;
use crate::gemm::tiles::shape::{MR, NR, TILE};
use crate::gemm::tiles::softmax::x86::exp2;

/// # Safety
/// The processor has AVX-512F; `a` and `b` are equally deep, `c` is R x NR.
#[target_feature(enable = "avx512f")]
pub unsafe fn product<const R: usize>(a: &[f32], b: &[f32], c: &mut [f32], accumulate: Accumulate) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let (mut at_a, mut at_b) = (a.as_ptr(), b.as_ptr());
    for _ in 0..b.len() / NR {
        // SAFETY: they point to row k of `a` and `b`, of R and NR elements.
        unsafe { multiply_add(&mut sums, at_a, 1, at_b) };
        at_a = at_a.wrapping_add(R);
        at_b = at_b.wrapping_add(NR);
    }
    for (c, [mut s0, mut s1]) in c.as_chunks_mut::<NR>().0.iter_mut().zip(sums) {
        let to = c.as_mut_ptr();
        // SAFETY: `to` is a row of NR elements.
        unsafe {
            if accumulate == Accumulate::Add {
                s0 = _mm512_add_ps(_mm512_loadu_ps(to), s0);
                s1 = _mm512_add_ps(_mm512_loadu_ps(to.add(16)), s1);
            }
            _mm512_storeu_ps(to, s0);
            _mm512_storeu_ps(to.add(16), s1);
        }
    }
}

/// One step along k: adds the outer product of R elements, `stride` apart, and a row of NR.
///
/// # Safety
/// Call it only from a function compiled for AVX-512F; R elements at stride `stride` are readable at `a`, and NR at `b`.
#[inline(always)]
unsafe fn multiply_add<const R: usize>(sums: &mut [[__m512; 2]; R], a: *const f32, stride: usize, b: *const f32) {
    // SAFETY: the caller promises these elements.
    unsafe {
        let (b0, b1) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = _mm512_set1_ps(*a.add(i * stride));
            sums[0] = _mm512_fmadd_ps(a, b0, sums[0]);
            sums[1] = _mm512_fmadd_ps(a, b1, sums[1]);
        }
    }
}

/// STREAM bypasses the caches: a block of e is larger than they are, and an ordinary store would first read the line.
///
/// # Safety
/// The processor has AVX-512F; every product has a tile; `out` is a quad and, with STREAM, starts on a cache line.
#[target_feature(enable = "avx512f")]
pub unsafe fn exponentials<const STREAM: bool>(logits: Logits<'_>, out: &mut [f32]) {
    for half in [0, 16] {
        // SAFETY: `half` is the index of 16 elements in NR, `at` in a tile, and the caller promises the tiles.
        unsafe {
            let shift: [__m512; 2] = from_fn(|token| _mm512_loadu_ps(logits.shift[token].as_ptr().add(half)));
            let mut sums: [__m512; 2] = from_fn(|token| _mm512_loadu_ps(logits.sums[token].as_ptr().add(half)));
            for row in 0..MR {
                let at = row * NR + half;
                let products: [__m512; PRODUCTS] =
                    from_fn(|m| _mm512_loadu_ps(logits.products.as_ptr().add(m * logits.stride + at)));
                for block in 0..4 {
                    let (part, token) = (block / 2, block % 2);
                    let mut x = _mm512_sub_ps(_mm512_setzero_ps(), shift[token]);
                    for (weights, product) in EXPS.iter().zip(products) {
                        match weights[block] {
                            0 => {}
                            1 => x = _mm512_add_ps(x, product),
                            _ => x = _mm512_sub_ps(x, product),
                        }
                    }
                    let exists = if row < logits.words[part] { 0xFFFF } else { 0 };
                    let e = _mm512_maskz_mov_ps(exists, exp2(x));
                    sums[token] = _mm512_add_ps(sums[token], e);
                    let to = out.as_mut_ptr().add(block * TILE + at);
                    if STREAM { _mm512_stream_ps(to, e) } else { _mm512_storeu_ps(to, e) }
                }
            }
            for (to, sums) in logits.sums.iter_mut().zip(sums) {
                _mm512_storeu_ps(to.as_mut_ptr().add(half), sums);
            }
        }
    }
    if STREAM {
        // Makes the streamed stores visible to later reads on any thread.
        _mm_sfence();
    }
}

/// # Safety
/// The processor has AVX-512F; `e` is a quad; `out` has room for a tile of each product.
#[target_feature(enable = "avx512f")]
pub unsafe fn mix(e: &[f32], scale: &[[f32; NR]; 2], out: &mut [f32], stride: usize) {
    for half in [0, 16] {
        // SAFETY: `half` is the index of 16 elements in NR, `at` in a tile, and the caller promises the tiles.
        unsafe {
            let scale: [__m512; 2] = from_fn(|token| _mm512_loadu_ps(scale[token].as_ptr().add(half)));
            for row in 0..MR {
                let at = row * NR + half;
                let blocks: [__m512; 4] = from_fn(|block| {
                    _mm512_mul_ps(_mm512_loadu_ps(e.as_ptr().add(block * TILE + at)), scale[block % 2])
                });
                for (m, weights) in EXPS.iter().enumerate() {
                    let mut sum = _mm512_setzero_ps();
                    for (&weight, block) in weights.iter().zip(blocks) {
                        match weight {
                            0 => {}
                            1 => sum = _mm512_add_ps(sum, block),
                            _ => sum = _mm512_sub_ps(sum, block),
                        }
                    }
                    _mm512_storeu_ps(out.as_mut_ptr().add(m * stride + at), sum);
                }
            }
        }
    }
}

/// # Safety
/// The processor has AVX-512F; `b` is whole squares of NR x NR; `e` has a tile for each; the places lie in `c`.
#[target_feature(enable = "avx512f")]
pub unsafe fn product_onto(e: &[f32], stride: usize, b: &[f32], c: &mut [f32], width: usize, places: &[Place; 2]) {
    // Prefetched before the sums are computed, which hides the memory latency.
    for place in places {
        for row in 0..place.rows {
            let at = c.as_ptr().wrapping_add(place.at + row * width);
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(16).cast());
        }
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; MR];
    let (mut tile, mut at_b) = (e.as_ptr(), b.as_ptr());
    for _ in 0..b.len() / (NR * NR) {
        for token in 0..NR {
            // SAFETY: they point to a column of a tile and a row of `b`.
            unsafe { multiply_add(&mut sums, tile.add(token), NR, at_b) };
            at_b = at_b.wrapping_add(NR);
        }
        tile = tile.wrapping_add(stride);
    }
    for place in places {
        let columns = if place.cols == NR { u32::MAX } else { (1 << place.cols) - 1 };
        let (low, high) = (columns as __mmask16, (columns >> 16) as __mmask16);
        let weight = _mm512_set1_ps(place.weight);
        // A loop of fixed length is unrolled, so that no sum needs an address.
        for (row, sums) in sums.iter().enumerate() {
            if row >= place.rows {
                continue;
            }
            // SAFETY: the row lies in `c`, and the masks exclude elements past the place's columns.
            unsafe {
                let to = c.as_mut_ptr().add(place.at + row * width);
                let next = to.wrapping_add(16);
                let s0 = _mm512_fmadd_ps(sums[0], weight, _mm512_maskz_loadu_ps(low, to));
                let s1 = _mm512_fmadd_ps(sums[1], weight, _mm512_maskz_loadu_ps(high, next));
                _mm512_mask_storeu_ps(to, low, s0);
                _mm512_mask_storeu_ps(next, high, s1);
            }
        }
    }
}
