//! The fused loss's two micro-kernels. Here a tile is [`MR`] words of the vocabulary by [`NR`] tokens of text.
//!
//! [`exp_tile`] multiplies embeddings with hidden states, and while the logits are in registers turns them into
//! e = exp(logit − shift), adds each token's e to its sum, and stores e as bf16 twice, in the orders in which the two products of
//! the backward pass read it: pairs along the vocabulary ([`super::kernel::tile`]'s B) and pairs along the tokens
//! ([`tokens_tile`]'s A, [`E_TILE`] u32s: for each of the words the pairs of tokens).

use super::super::{Into, MatMut};
use super::kernel::{MR, NR};
use super::pack::pair;

/// u32s of a tile of e with pairs along the tokens, `[MR, NR/2]`.
pub const E_TILE: usize = MR * NR / 2;

/// exp's argument is cut off here: a token whose likeliest word is e⁸⁰ times as likely as its target would overflow.
pub const MAX_EXPONENT: f32 = 80.0;

/// What a tile of exponentials reads and writes.
pub struct ExpTile<'a> {
    /// Embeddings, `[pairs, MR]`.
    pub a: &'a [u32],
    /// Hidden states, `[pairs, NR]`.
    pub b: &'a [u32],
    /// Words of this tile that exist; the rest count nothing.
    pub words: usize,
    /// Subtracted from each token's logits.
    pub shift: &'a [f32; NR],
    /// Each token's Σ e is added to this.
    pub sums: &'a mut [f32; NR],
}

/// Adds to the sums alone.
pub fn sum_tile(tile: ExpTile<'_>) {
    #[cfg(target_arch = "x86_64")]
    if super::available() {
        // SAFETY: the features were just detected; `run` checks the lengths.
        return unsafe { x86::run::<false>(tile, &mut [], &mut []) };
    }
    plain(tile, None);
}

/// Adds to the sums, and stores e with pairs along the vocabulary, `[MR/2, NR]`, and along the tokens, `[MR, NR/2]`.
pub fn exp_tile(tile: ExpTile<'_>, word_pairs: &mut [u32], token_pairs: &mut [u32]) {
    assert!(word_pairs.len() == MR / 2 * NR && token_pairs.len() == E_TILE, "a tile of e, twice");
    #[cfg(target_arch = "x86_64")]
    if super::available() {
        // SAFETY: the features were just detected; `run` checks the panels, and the line above the outputs.
        return unsafe { x86::run::<true>(tile, word_pairs, token_pairs) };
    }
    plain(tile, Some((word_pairs, token_pairs)));
}

fn plain(tile: ExpTile<'_>, out: Option<(&mut [u32], &mut [u32])>) {
    let mut e = [[0.0f32; NR]; MR];
    super::kernel::tile_plain(tile.a, tile.b, &mut MatMut::new(e.as_flattened_mut(), MR, NR), Into::Set);
    for (row, e) in e.iter_mut().enumerate() {
        for (token, e) in e.iter_mut().enumerate() {
            let x = *e - tile.shift[token];
            // NaN stays NaN, so that a diverged model is noticed.
            *e = if row < tile.words { if x > MAX_EXPONENT { MAX_EXPONENT } else { x }.exp() } else { 0.0 };
            tile.sums[token] += *e;
        }
    }
    let Some((word_pairs, token_pairs)) = out else { return };
    for (row, out) in word_pairs.chunks_exact_mut(NR).enumerate() {
        for (token, out) in out.iter_mut().enumerate() {
            *out = pair(e[2 * row][token], e[2 * row + 1][token]);
        }
    }
    for (row, out) in token_pairs.chunks_exact_mut(NR / 2).enumerate() {
        for (token, out) in out.iter_mut().enumerate() {
            *out = pair(e[row][2 * token], e[row][2 * token + 1]);
        }
    }
}

/// `c += eᵀ·b` for `c` of at most [`MR`] words x [`NR`] columns: `e` is a tile with pairs along the tokens for each [`NR`] tokens,
/// `b`: `[tokens/2, NR]`.
pub fn tokens_tile(e: &[u32], b: &[u32], c: &mut MatMut<'_>) {
    assert!(c.rows <= MR && c.cols <= NR, "a tile of {} x {}", c.rows, c.cols);
    assert!(e.len().is_multiple_of(E_TILE) && b.len() / NR == e.len() / MR, "panels of the same depth");
    #[cfg(target_arch = "x86_64")]
    if super::available() {
        // SAFETY: the features were just detected; the panels are whole and equally deep.
        return unsafe { x86::tokens_tile(e, b, c) };
    }
    let panel: Vec<u32> = (0..e.len())
        .map(|i| {
            let (p, row) = (i / MR, i % MR);
            e[p / (NR / 2) * E_TILE + row * (NR / 2) + p % (NR / 2)]
        })
        .collect();
    super::kernel::tile_plain(&panel, b, c, Into::Add);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::kernel::x86::{prefetch, store, sums_of_panels};
    use super::{E_TILE, ExpTile, Into, MAX_EXPONENT, MR, MatMut, NR};

    /// eˣ for x ≤ 80: relative error below 1e-5, and below 3e-7 for |x| < 1. Cephes' 2ᶠ (Moshier 1989) on f in [−½, ½].
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exp(x: __m512) -> __m512 {
        // The second operand is what `min` returns when one is NaN.
        let x = _mm512_min_ps(_mm512_set1_ps(MAX_EXPONENT), x);
        let t = _mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let n = _mm512_roundscale_ps::<0>(t);
        let f = _mm512_sub_ps(t, n);
        let mut p = _mm512_set1_ps(1.535_336_2e-4);
        for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
        }
        _mm512_scalef_ps(p, n)
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; with STORE the outputs are a tile long.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn run<const STORE: bool>(tile: ExpTile<'_>, word_pairs: &mut [u32], token_pairs: &mut [u32]) {
        assert_eq!(tile.a.len() / MR, tile.b.len() / NR, "panels of the same depth");
        // SAFETY: the panels are equally deep; `shift` and `sums` are NR long; the outputs are as the caller promises.
        unsafe {
            let mut e = sums_of_panels(tile.a, tile.b);
            let shift = [_mm512_loadu_ps(tile.shift.as_ptr()), _mm512_loadu_ps(tile.shift.as_ptr().add(16))];
            let mut sums = [_mm512_loadu_ps(tile.sums.as_ptr()), _mm512_loadu_ps(tile.sums.as_ptr().add(16))];
            for (row, e) in e.iter_mut().enumerate() {
                for half in 0..2 {
                    let exists = if row < tile.words { 0xFFFF } else { 0 };
                    e[half] = _mm512_maskz_mov_ps(exists, exp(_mm512_sub_ps(e[half], shift[half])));
                    sums[half] = _mm512_add_ps(sums[half], e[half]);
                }
            }
            _mm512_storeu_ps(tile.sums.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(tile.sums.as_mut_ptr().add(16), sums[1]);
            if !STORE {
                return;
            }
            // Words of two rows side by side: token 0 of each, token 1 of each, …
            let low = _mm512_set_epi16(
                47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2,
                33, 1, 32, 0,
            );
            let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
            let (mut words, mut tokens) = (word_pairs.as_mut_ptr(), token_pairs.as_mut_ptr());
            for rows in e.as_chunks::<2>().0 {
                let [first, second]: [__m512i; 2] = rows.map(|e| std::mem::transmute(_mm512_cvtne2ps_pbh(e[1], e[0])));
                _mm512_storeu_si512(tokens.cast(), first);
                _mm512_storeu_si512(tokens.add(NR / 2).cast(), second);
                _mm512_storeu_si512(words.cast(), _mm512_permutex2var_epi16(first, low, second));
                _mm512_storeu_si512(words.add(16).cast(), _mm512_permutex2var_epi16(first, high, second));
                words = words.add(NR);
                tokens = tokens.add(NR);
            }
        }
    }

    /// # Safety
    /// The processor has AVX-512F and AVX512-BF16; `e` is whole tiles, `b` as deep; `c` is at most MR x NR.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn tokens_tile(e: &[u32], b: &[u32], c: &mut MatMut<'_>) {
        prefetch(c);
        // SAFETY: each tile of e is MR rows of NR/2 pairs, for which b has NR/2 vectors pairs of NR.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; MR];
            let mut b = b.as_ptr();
            for tile in e.chunks_exact(E_TILE) {
                let mut a = tile.as_ptr();
                for _ in 0..NR / 2 {
                    let b0: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.cast()));
                    let b1: __m512bh = std::mem::transmute(_mm512_loadu_si512(b.add(16).cast()));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(*a.add(i * (NR / 2)) as i32));
                        sums[0] = _mm512_dpbf16_ps(sums[0], a, b0);
                        sums[1] = _mm512_dpbf16_ps(sums[1], a, b1);
                    }
                    a = a.add(1);
                    b = b.add(NR);
                }
            }
            store(&sums, c, Into::Add);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::random;

    fn packed(n: usize, seed: u64) -> Vec<u32> {
        random(2 * n, seed).as_chunks::<2>().0.iter().map(|&[a, b]| pair(a, b)).collect()
    }

    /// The two bf16 of each pair, in f32.
    fn unpacked(pairs: &[u32]) -> Vec<f32> {
        pairs.iter().flat_map(|&p| [f32::from_bits(p << 16), f32::from_bits(p & 0xFFFF_0000)]).collect()
    }

    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= tolerance * expected.abs() + 1e-30, "{i}: {found}, not {expected}");
        }
    }

    #[test]
    fn exponentials_equal_those_of_the_plain_twin_in_both_orders() {
        for (pairs, words, far) in [(1, 12, 0.0), (7, 5, 60.0), (64, 1, -70.0), (33, 12, -200.0)] {
            let (a, b) = (packed(pairs * MR, 1), packed(pairs * NR, 2));
            let shift: [f32; NR] = std::array::from_fn(|i| far * i as f32 / 31.0);
            let run = |plainly: bool| {
                let mut sums = [1.0; NR];
                let (mut by_word, mut by_token) = (vec![u32::MAX; MR / 2 * NR], vec![u32::MAX; E_TILE]);
                let tile = ExpTile { a: &a, b: &b, words, shift: &shift, sums: &mut sums };
                if plainly {
                    plain(tile, Some((&mut by_word, &mut by_token)));
                } else {
                    exp_tile(tile, &mut by_word, &mut by_token);
                }
                (sums, unpacked(&by_word), unpacked(&by_token))
            };
            let (found, expected) = (run(false), run(true));
            close(&found.0, &expected.0, 2e-5);
            // One bf16 apart at the most.
            close(&found.1, &expected.1, 0.01);
            close(&found.2, &expected.2, 0.01);
            for (row, token) in (0..MR * NR).map(|i| (i / NR, i % NR)) {
                let by_word = found.1[(row / 2 * NR + token) * 2 + row % 2];
                assert_eq!(by_word, found.2[row * NR + token], "word {row}, token {token}");
                assert!(row < words || by_word == 0.0, "word {row} does not exist");
            }
            let mut sums = [1.0; NR];
            sum_tile(ExpTile { a: &a, b: &b, words, shift: &shift, sums: &mut sums });
            assert_eq!(sums, found.0);
        }
    }

    #[test]
    fn a_diverged_model_gives_a_sum_that_is_not_finite() {
        let (a, mut b) = (packed(MR, 1), packed(NR, 2));
        b[3] = 0x7FC0;
        let mut sums = [0.0; NR];
        sum_tile(ExpTile { a: &a, b: &b, words: MR, shift: &[0.0; NR], sums: &mut sums });
        assert!(sums[3].is_nan() && sums[4].is_finite());
    }

    #[test]
    fn products_over_tokens_equal_those_of_the_plain_twin() {
        for (tiles, words, columns) in [(1, 12, 32), (3, 5, 17), (2, 1, 1)] {
            let (e, b) = (packed(tiles * E_TILE, 1), packed(tiles * NR / 2 * NR, 2));
            let mut found = random(words * columns, 3);
            let mut expected: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
            tokens_tile(&e, &b, &mut MatMut::new(&mut found, words, columns));
            let (e, b) = (unpacked(&e), unpacked(&b));
            for (i, expected) in expected.iter_mut().enumerate() {
                let (word, column) = (i / columns, i % columns);
                for token in 0..tiles * NR {
                    let e = e[(token / NR * MR + word) * NR + token % NR];
                    *expected += f64::from(e) * f64::from(b[(token / 2 * NR + column) * 2 + token % 2]);
                }
                assert!((f64::from(found[i]) - *expected).abs() < 1e-5, "{}, not {expected}", found[i]);
            }
        }
    }
}
