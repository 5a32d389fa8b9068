//! f32 kernels that need 7/8 of the multiplications (Strassen, "Gaussian elimination is not optimal", 1969).
//!
//! The fused loss multiplies embeddings W `[words, channels]`, hidden states H `[channels, tokens]` and exponentials
//! E `[words, tokens]` in three ways: the logits S = W·H, and in the backward pass Wᵀ·E and E·Hᵀ. (A *word* is a vocabulary
//! entry.) Words, channels and tokens are each cut into two parts, which makes every matrix 2 x 2 blocks. Seven products of
//! sums of blocks then replace eight products of blocks. All three follow from one identity, as derivatives of its left side:
//!
//! ```text
//! Σ over r, c, t of W[r,c]·H[c,t]·E[r,t]  =  Σ over m of (Σ WORDS[m]·W)·(Σ HIDDEN[m]·H)·(Σ EXPS[m]·E)
//! ```
//!
//! So each product multiplies sums of two of the matrices, and the third table says to which blocks its seven terms are added.
//! Both backward products read the same E: [`mix`] computes its sums once.
//!
//! A sum is only as precise as its largest block: small values are lost beside large ones. So exponentials are multiplied only
//! after division by their token's sum, and no token is lost beside another. A word can be, if it is far rarer than the word
//! that it is added to: the gradient of its embedding has an error of 1e-7 relative to the other's, not to its own.
//!
//! The two parts of the words alternate in panels of [`MR`], those of the tokens in tiles of [`NR`]. A *tile* is [`MR`] words by
//! [`NR`] tokens; a *quad* is one tile of each of the four blocks.

#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod tables;

use super::kernel::{self, MR, NR, TILE};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::parts;
use super::prefetch::prefetch;
use super::softmax::bounded_exp2;
use crate::gemm::operation::Accumulate;
use ngen3_simd::simd;
use tables::EXPS;

pub use tables::{Logits, PRODUCTS, Place};

/// Weight of each block of W in each sum, block (r, c) at index 2r + c. At most two are not 0.
pub const WORDS: [[i8; 4]; PRODUCTS] =
    [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]];

/// Weight of each block of H, block (c, t) at index 2c + t.
pub const HIDDEN: [[i8; 4]; PRODUCTS] =
    [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]];

/// Elements of a quad.
pub const QUAD: usize = 4 * TILE;

/// Rows of A if they are channels: unlike [`MR`], 8 divides half of every common width.
pub const CHANNELS: usize = 8;

/// Returns true if `place` holds `tiles` tiles, `stride` elements apart.
fn has_tiles(place: &[f32], tiles: usize, stride: usize) -> bool {
    place.len().checked_sub(tiles.saturating_sub(1).saturating_mul(stride)) >= Some(TILE)
}

/// Computes `c = aᵀ·b` or `c += aᵀ·b` in f32, with `a`: `[depth, R]`, `b`: `[depth, NR]`, `c`: `[R, NR]`.
///
/// # Panics
/// If the lengths do not match.
pub fn product<const R: usize>(a: &[f32], b: &[f32], c: &mut [f32], accumulate: Accumulate) {
    let depth = b.len() / NR;
    assert!(a.len() == depth * R && b.len() == depth * NR && c.len() == R * NR, "expected a tile of {R} rows");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features and lengths were checked above.
        return unsafe { avx512::product::<R>(a, b, c, accumulate) };
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if kernel::runs_parts() {
        // SAFETY: the features and lengths were checked above; 6, 4 and 1 divide the numbers of rows.
        return unsafe {
            match R {
                MR => parts::product::<MR, { MR / 2 }>(a, b, c, accumulate),
                CHANNELS => parts::product::<CHANNELS, { CHANNELS / 2 }>(a, b, c, accumulate),
                _ => parts::product::<R, 1>(a, b, c, accumulate),
            }
        };
    }
    product_plain::<R>(a, b, c, accumulate);
}

fn product_plain<const R: usize>(a: &[f32], b: &[f32], c: &mut [f32], accumulate: Accumulate) {
    let mut sums = [[0.0f32; NR]; R];
    for (a, b) in a.as_chunks::<R>().0.iter().zip(b.as_chunks::<NR>().0) {
        for (sums, a) in sums.iter_mut().zip(a) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
    }
    for (c, sum) in c.iter_mut().zip(sums.as_flattened()) {
        *c = if accumulate == Accumulate::Add { *c + sum } else { *sum };
    }
}

/// Computes e = 2^(logit − shift), adds it to each token's sum, and stores it in `out`, `[4, MR, NR]`.
///
/// # Panics
/// If a product has no tile, or `out` is not a [`QUAD`] long.
pub fn exponentials(logits: Logits<'_>, out: &mut [f32]) {
    assert!(has_tiles(logits.products, PRODUCTS, logits.stride), "expected a tile of each product");
    assert!(out.len() == QUAD, "expected a quad of e");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        let streamed = out.as_ptr().cast::<std::arch::x86_64::__m512>().is_aligned();
        // SAFETY: the features, the lengths and the alignment of `out` were checked above.
        return unsafe {
            if streamed {
                avx512::exponentials::<true>(logits, out)
            } else {
                avx512::exponentials::<false>(logits, out)
            }
        };
    }
    simd(
        #[inline(always)]
        || exponentials_plain(logits, out),
    );
}

#[inline(always)]
fn exponentials_plain(logits: Logits<'_>, out: &mut [f32]) {
    for first in (0..NR).step_by(VECTOR) {
        let shift = logits.shift.each_ref().map(|shift| lanes(shift, first));
        let mut sums = logits.sums.each_ref().map(|sums| lanes(sums, first));
        for row in 0..MR {
            let at = row * NR + first;
            let mut products = [[0.0f32; VECTOR]; PRODUCTS];
            for (m, products) in products.iter_mut().enumerate() {
                *products = lanes(logits.products, m * logits.stride + at);
            }
            for block in 0..4 {
                let (part, tile) = (block / 2, block % 2);
                let mut x = [0.0f32; VECTOR];
                for (weights, product) in EXPS.iter().zip(&products) {
                    add_weighted(&mut x, weights[block], product);
                }
                let e = lanes_mut(out, block * TILE + at);
                let exists = row < logits.words[part];
                for i in 0..VECTOR {
                    let value = bounded_exp2(x[i] - shift[tile][i]);
                    e[i] = if exists { value } else { 0.0 };
                    sums[tile][i] += e[i];
                }
            }
        }
        for (to, sums) in logits.sums.iter_mut().zip(sums) {
            *lanes_mut(to, first) = sums;
        }
    }
}

/// Values that plain code computes together, so that those of a step stay in the registers of AVX2.
const VECTOR: usize = 8;

/// Returns the lanes that start at `at`.
#[inline(always)]
fn lanes(values: &[f32], at: usize) -> [f32; VECTOR] {
    *values[at..].first_chunk().expect("whole lanes")
}

/// As [`lanes`], to write.
#[inline(always)]
fn lanes_mut(values: &mut [f32], at: usize) -> &mut [f32; VECTOR] {
    values[at..].first_chunk_mut().expect("whole lanes")
}

/// Adds `weight·x`, where the weight is 0, 1 or −1.
#[inline(always)]
fn add_weighted(sum: &mut [f32; VECTOR], weight: i8, x: &[f32; VECTOR]) {
    for i in 0..VECTOR {
        match weight {
            0 => {}
            1 => sum[i] += x[i],
            _ => sum[i] -= x[i],
        }
    }
}

/// Scales one quad of e by each token's `scale` and writes the seven sums of its blocks to `out`, one tile each, `stride`
/// elements apart.
///
/// # Panics
/// If `e` is not a quad, or `out` is too short.
pub fn mix(e: &[f32], scale: &[[f32; NR]; 2], out: &mut [f32], stride: usize) {
    assert!(e.len() == QUAD && stride >= TILE && has_tiles(out, PRODUCTS, stride), "expected a quad and 7 tiles");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features and lengths were checked above.
        return unsafe { avx512::mix(e, scale, out, stride) };
    }
    simd(
        #[inline(always)]
        || mix_plain(e, scale, out, stride),
    );
}

#[inline(always)]
fn mix_plain(e: &[f32], scale: &[[f32; NR]; 2], out: &mut [f32], stride: usize) {
    for first in (0..NR).step_by(VECTOR) {
        let scale = scale.each_ref().map(|scale| lanes(scale, first));
        for row in 0..MR {
            let at = row * NR + first;
            let mut blocks = [[0.0f32; VECTOR]; 4];
            for (block, x) in blocks.iter_mut().enumerate() {
                let e = lanes(e, block * TILE + at);
                for i in 0..VECTOR {
                    x[i] = e[i] * scale[block % 2][i];
                }
            }
            for (m, weights) in EXPS.iter().enumerate() {
                let mut sum = [0.0f32; VECTOR];
                for (weight, block) in weights.iter().zip(&blocks) {
                    add_weighted(&mut sum, *weight, block);
                }
                *lanes_mut(out, m * stride + at) = sum;
            }
        }
    }
}

/// Software prefetcher: requests memory that will be read soon, a few cache lines at a time, while something else is computed.
pub struct Ahead<'a>(std::slice::Chunks<'a, f32>);

impl<'a> Ahead<'a> {
    /// Splits `soon` into `shares` nearly equal shares.
    pub fn new(soon: &'a [f32], shares: usize) -> Self {
        Self(soon.chunks(soon.len().div_ceil(shares.max(1)).next_multiple_of(16).max(16)))
    }

    /// Prefetches the next share, if any is left.
    #[inline(always)]
    pub fn ask(&mut self) {
        for line in self.0.next().unwrap_or_default().chunks(16) {
            prefetch(line.as_ptr());
        }
    }
}

/// Adds `weight·(e·b)` to `c` at both places, with `e`: tiles of `[MR, NR]`, `stride` elements apart; `b`: `[tiles·NR, NR]`;
/// rows of `c` are `width` elements apart.
///
/// # Panics
/// If the lengths do not match, or a place is outside `c`.
pub fn product_onto(e: &[f32], stride: usize, b: &[f32], c: &mut [f32], width: usize, places: &[Place; 2]) {
    let tiles = b.len() / (NR * NR);
    assert!(b.len() == tiles * NR * NR && has_tiles(e, tiles, stride), "expected {tiles} tiles of e");
    for &Place { at, rows, cols, .. } in places {
        assert!(rows <= MR && cols <= NR && cols <= width, "a place of {rows} x {cols}");
        let last = rows.saturating_sub(1).saturating_mul(width).saturating_add(at);
        assert!(rows == 0 || c.len().checked_sub(last) >= Some(cols), "a place in {} numbers", c.len());
    }
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features, lengths and places were checked above.
        return unsafe { avx512::product_onto(e, stride, b, c, width, places) };
    }
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if kernel::runs_parts() {
        // SAFETY: the features, lengths and places were checked above.
        return unsafe { parts::product_onto(e, stride, b, c, width, places) };
    }
    product_onto_plain(e, stride, b, c, width, places);
}

fn product_onto_plain(e: &[f32], stride: usize, b: &[f32], c: &mut [f32], width: usize, places: &[Place; 2]) {
    let mut sums = [[0.0f32; NR]; MR];
    for (e, b) in e.chunks(stride).zip(b.as_chunks::<NR>().0.as_chunks::<NR>().0) {
        for (sums, e) in sums.iter_mut().zip(e.as_chunks::<NR>().0) {
            for (e, b) in e.iter().zip(b) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += e * b);
            }
        }
    }
    for place in places {
        for (row, sums) in sums.iter().enumerate().take(place.rows) {
            let c = &mut c[place.at + row * width..][..place.cols];
            c.iter_mut().zip(sums).for_each(|(c, sum)| *c += place.weight * sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};

    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= tolerance * (1.0 + expected.abs()), "{i}: {found} ≠ {expected}");
        }
    }

    #[test]
    fn seven_products_make_what_eight_would() {
        for (w, h, e) in (0..64).map(|i| (i / 16, i / 4 % 4, i % 4)) {
            let sum: i8 = (0..PRODUCTS).map(|m| WORDS[m][w] * HIDDEN[m][h] * EXPS[m][e]).sum();
            let meet = w / 2 == e / 2 && w % 2 == h / 2 && h % 2 == e % 2;
            assert_eq!(sum, i8::from(meet), "W[{w}]·H[{h}]·E[{e}]");
        }
        assert!(WORDS.iter().all(|weights| weights.iter().filter(|&&weight| weight != 0).count() <= 2));
    }

    fn check_product<const R: usize>(depth: usize) {
        let (a, b) = (random(depth * R, 1), random(depth * NR, 2));
        for accumulate in [Accumulate::Set, Accumulate::Add] {
            let (mut found, mut expected) = (random(R * NR, 3), random(R * NR, 3));
            product::<R>(&a, &b, &mut found, accumulate);
            product_plain::<R>(&a, &b, &mut expected, accumulate);
            close(&found, &expected, 1e-5);
        }
    }

    #[test]
    fn products_equal_those_of_the_plain_twin() {
        if !kernel::available_f32() {
            skip("Strassen kernels against the plain version");
        }
        for depth in [0, 1, 7, 64] {
            check_product::<MR>(depth);
            check_product::<CHANNELS>(depth);
        }
    }

    #[test]
    fn exponentials_equal_those_of_the_plain_twin() {
        for (stride, words, far) in [(TILE, [12, 12], 0.0), (TILE + 80, [12, 3], 60.0), (TILE, [5, 0], -200.0)] {
            let products = random(PRODUCTS * stride, 1);
            let shift: [[f32; NR]; 2] = std::array::from_fn(|t| std::array::from_fn(|i| far * (t * i) as f32 / 31.0));
            let run = |plainly: bool, skip: usize| {
                let (mut sums, mut e) = ([[1.0; NR]; 2], vec![f32::NAN; skip + QUAD]);
                let logits = Logits { products: &products, stride, words, shift: &shift, sums: &mut sums };
                let out = &mut e[skip..];
                if plainly {
                    exponentials_plain(logits, out)
                } else {
                    exponentials(logits, out)
                }
                (sums.as_flattened().to_vec(), e.split_off(skip))
            };
            let expected = run(true, 0);
            // The offset that starts on a cache line takes the streaming path; at most one does.
            for skip in 0..16 {
                let found = run(false, skip);
                close(&found.0, &expected.0, 2e-5);
                let relative: Vec<f32> =
                    found.1.iter().zip(&expected.1).map(|(f, e)| if f == e { 1.0 } else { f / e }).collect();
                close(&relative, &[1.0; QUAD], 2e-5);
            }
        }
    }

    #[test]
    fn a_diverged_model_gives_a_sum_that_is_not_finite() {
        let mut products = vec![0.0; PRODUCTS * TILE];
        products[3] = f32::NAN;
        let mut sums = [[0.0; NR]; 2];
        let logits =
            Logits { products: &products, stride: TILE, words: [MR; 2], shift: &[[0.0; NR]; 2], sums: &mut sums };
        exponentials(logits, &mut [0.0; QUAD]);
        assert!(sums[0][3].is_nan() && sums[1][3].is_nan() && sums[0][4].is_finite());
    }

    #[test]
    fn sums_of_exponentials_equal_those_of_the_plain_twin() {
        let scale = std::array::from_fn(|t| std::array::from_fn(|i| (t * 32 + i) as f32 / 10.0));
        for stride in [TILE, TILE + 16] {
            let (e, n) = (random(QUAD, 1), (PRODUCTS - 1) * stride + TILE);
            let (mut found, mut expected) = (vec![7.0; n], vec![7.0; n]);
            mix(&e, &scale, &mut found, stride);
            mix_plain(&e, &scale, &mut expected, stride);
            close(&found, &expected, 1e-6);
        }
    }

    #[test]
    fn products_over_tokens_equal_those_of_the_plain_twin_and_stay_in_their_places() {
        for (tiles, rows, cols) in [(1, 12, 32), (3, 5, 17), (2, 1, 1), (1, 12, 16)] {
            let (stride, width) = (TILE + 16, 70);
            let (e, b) = (random(tiles * stride, 1), random(tiles * NR * NR, 2));
            let place = Place { at: 2, rows, cols, weight: 0.7 };
            for places in [[place, Place::default()], [place, Place { at: 12 * width + 36, weight: -1.0, ..place }]] {
                let (mut found, mut expected) = (random(24 * width, 3), random(24 * width, 3));
                product_onto(&e, stride, &b, &mut found, width, &places);
                product_onto_plain(&e, stride, &b, &mut expected, width, &places);
                close(&found, &expected, 1e-5);
            }
        }
    }
}
