//! Micro-kernels of the fused loss and of the distillation loss. A tile is one panel of words (vocabulary entries; how many is
//! [`panels_a::height`]) by [`NR`] tokens (positions).
//!
//! [`exp_tile`] multiplies embeddings by hidden states. While the logits are in registers (with AMX, in the L1 cache), it
//! computes e = 2^(logit − shift), adds e to each token's sum in f32, and stores e in the layouts that the two backward
//! products read: cells along the vocabulary (B of [`super::kernel::tile`], `[height/P, NR]`) and cells along the tokens (A of
//! [`tokens_tile`], `[height, NR/P]`).

use super::amx;
use super::kernel::{self, NR, Rows};
use super::pack::cell;
use super::panels_a;
use super::prefetch::prefetch;
use crate::gemm::operation::Accumulate;
use crate::gemm::view::MatMut;
use ngen3_simd::{exp2, simd};

/// Cells of a tile of e, in either layout.
pub fn e_tile<const P: usize>() -> usize {
    panels_a::height::<P>() * NR / P
}

/// Upper limit of the exponent, against overflow: reached if the most likely word is 2¹¹⁵ times as likely as the target.
pub(super) const MAX_EXPONENT: f32 = 115.0;

/// Returns 2ˣ for x between −126 and [`MAX_EXPONENT`], otherwise the value at the nearest bound. NaN stays NaN, so that divergence is
/// noticed.
#[inline(always)]
pub(super) fn bounded_exp2(x: f32) -> f32 {
    let x = if x > MAX_EXPONENT { MAX_EXPONENT } else { x };
    exp2(if x < -126.0 { -126.0 } else { x })
}

/// Operands and sums of one tile of exponentials.
pub struct ExpTile<'a> {
    /// Panel of embeddings, as [`panels_a`] packs it.
    pub a: &'a [u32],
    /// Panel of hidden states times log₂e, `[depth, NR]`, so that logits are exponents of 2.
    pub b: &'a [u32],
    /// Number of words in this tile; rows past it are padding and contribute 0.
    pub words: usize,
    /// Value subtracted from each token's logits.
    pub shift: &'a [f32; NR],
    /// Running Σ e of each token.
    pub sums: &'a mut [f32; NR],
}

/// Adds a tile to the sums, without storing e.
pub fn sum_tile<const P: usize>(tile: ExpTile<'_>) {
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features were checked above; `run` checks the lengths.
        return unsafe { x86::run::<P, false>(tile, &mut [], &mut []) };
    }
    plain::<P>(tile, None);
}

/// Adds a tile to the sums, and stores e with cells along the vocabulary, `[height/P, NR]`, and along the tokens,
/// `[height, NR/P]`.
pub fn exp_tile<const P: usize>(tile: ExpTile<'_>, by_word: &mut [u32], by_token: &mut [u32]) {
    assert!(by_word.len() == e_tile::<P>() && by_token.len() == e_tile::<P>(), "expected a tile of e in both layouts");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features and outputs were checked above; `run` checks the panels.
        return unsafe { x86::run::<P, true>(tile, by_word, by_token) };
    }
    plain::<P>(tile, Some((by_word, by_token)));
}

fn plain<const P: usize>(tile: ExpTile<'_>, out: Option<(&mut [u32], &mut [u32])>) {
    let height = panels_a::height::<P>();
    let mut e = [[0.0f32; NR]; amx::ROWS];
    let e = &mut e[..height];
    let c = &mut MatMut::new(e.as_flattened_mut(), height, NR);
    kernel::tile::<P>(tile.a, panels_a::rows::<P>(), tile.b, c, Accumulate::Set);
    simd(
        #[inline(always)]
        || {
            for e in e.iter_mut().take(tile.words) {
                for ((e, shift), sum) in e.iter_mut().zip(tile.shift).zip(tile.sums.iter_mut()) {
                    *e = bounded_exp2(*e - shift);
                    *sum += *e;
                }
            }
        },
    );
    e.iter_mut().skip(tile.words).for_each(|e| e.fill(0.0));
    if let Some((by_word, by_token)) = out {
        lay_out_plain::<P>(e, by_word, by_token);
    }
}

/// Stores a tile, `[height, NR]`, in both layouts of [`exp_tile`].
pub fn lay_out<const P: usize>(e: &[[f32; NR]], by_word: &mut [u32], by_token: &mut [u32]) {
    let cells = e.len() * NR / P;
    assert!(by_word.len() == cells && by_token.len() == cells, "expected a tile of e in both layouts");
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features and outputs were checked above.
        return unsafe { x86::lay_out::<P>(e, by_word, by_token) };
    }
    lay_out_plain::<P>(e, by_word, by_token);
}

fn lay_out_plain<const P: usize>(e: &[[f32; NR]], by_word: &mut [u32], by_token: &mut [u32]) {
    for (row, out) in by_word.chunks_exact_mut(NR).enumerate() {
        for (token, out) in out.iter_mut().enumerate() {
            *out = cell::<P>(e[P * row][token], e[P * row + P - 1][token]);
        }
    }
    for (row, out) in by_token.chunks_exact_mut(NR / P).enumerate() {
        for (token, out) in out.iter_mut().enumerate() {
            *out = cell::<P>(e[row][P * token], e[row][P * token + P - 1]);
        }
    }
}

/// Computes `c += e·b` for `c` of at most one panel of words x [`NR`] columns, with sums in f32. `e` has one tile with cells along
/// the tokens per [`NR`] tokens; `b`: `[tokens/P, NR]`.
pub fn tokens_tile<const P: usize>(e: &[u32], b: &[u32], c: &mut MatMut<'_>) {
    let height = panels_a::height::<P>();
    assert!(c.rows <= height && c.cols <= NR, "a tile of {} x {}", c.rows, c.cols);
    assert!(
        e.len().is_multiple_of(e_tile::<P>()) && b.len() / NR == e.len() / height,
        "expected panels of equal depth"
    );
    if panels_a::rows::<P>() == Rows::Blocks {
        // A tile of e is one block.
        return kernel::tile::<P>(e, Rows::Blocks, b, c, Accumulate::Add);
    }
    #[cfg(target_arch = "x86_64")]
    if kernel::available() {
        // SAFETY: the features were checked above; the panels are whole and of equal depth.
        return unsafe { x86::tokens_tile::<P>(e, b, c) };
    }
    let across = NR / P;
    for (e, b) in e.chunks_exact(e_tile::<P>()).zip(b.chunks_exact(across * NR)) {
        kernel::tile::<P>(e, Rows::Apart(across), b, c, Accumulate::Add);
    }
}

/// Prefetches a tile of `rows` rows, `stride` apart, that starts at `place`, before [`tokens_tile`] adds to it.
pub fn ask_for(place: &[f32], rows: usize, stride: usize) {
    for row in 0..rows {
        let row = place.as_ptr().wrapping_add(row * stride);
        prefetch(row);
        prefetch(row.wrapping_add(16));
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Accumulate, ExpTile, MAX_EXPONENT, MatMut, NR, e_tile, panels_a};
    use crate::gemm::tiles::amx;
    use crate::gemm::tiles::kernel::x86::{multiply_add, store, sums_of_tile};
    use crate::gemm::tiles::kernel::{MR, Rows};
    use ngen3_simd::EXP2;

    /// Returns 2ᵗ for t clamped to [`MAX_EXPONENT`], with a relative error below 3e-7. The polynomial is [`EXP2`].
    ///
    /// # Safety
    /// Call it only from a function compiled for AVX-512F.
    #[inline(always)]
    pub unsafe fn exp2(t: __m512) -> __m512 {
        // SAFETY: the caller is compiled for AVX-512F.
        unsafe {
            // `min` returns its second operand if either is NaN.
            let t = _mm512_min_ps(_mm512_set1_ps(MAX_EXPONENT), t);
            let n = _mm512_roundscale_ps::<0>(t);
            let f = _mm512_sub_ps(t, n);
            let mut p = _mm512_set1_ps(EXP2[0]);
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[1]));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[2]));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[3]));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[4]));
            p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[5]));
            _mm512_scalef_ps(p, n)
        }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; with STORE the outputs are a tile long.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn run<const P: usize, const STORE: bool>(tile: ExpTile<'_>, by_word: &mut [u32], by_token: &mut [u32]) {
        if panels_a::rows::<P>() == Rows::Blocks {
            // SAFETY: the caller upholds the same requirements.
            return unsafe { run_on_amx::<STORE>(tile, by_word, by_token) };
        }
        assert_eq!(tile.a.len() / MR, tile.b.len() / NR, "depth of the panels");
        // SAFETY: the panels have equal depth; `shift` and `sums` are NR long; the caller promises the outputs.
        unsafe {
            let logits = sums_of_tile::<P, MR>(tile.a, Rows::Together, tile.b);
            let shift = [0, 16].map(|at| _mm512_loadu_ps(tile.shift.as_ptr().add(at)));
            let mut sums = [0, 16].map(|at| _mm512_loadu_ps(tile.sums.as_ptr().add(at)));
            let (words, tokens) = (by_word.as_mut_ptr(), by_token.as_mut_ptr());
            // Unrolled by hand, two rows at a time, so that every logit stays in its register until its exponential is stored.
            macro_rules! two_rows {
                ($($row:literal)*) => {$(
                    let mut e = [logits[$row], logits[$row + 1]];
                    for (i, e) in e.iter_mut().enumerate() {
                        let exists = if $row + i < tile.words { 0xFFFF } else { 0 };
                        for half in 0..2 {
                            e[half] = _mm512_maskz_mov_ps(exists, exp2(_mm512_sub_ps(e[half], shift[half])));
                            sums[half] = _mm512_add_ps(sums[half], e[half]);
                        }
                    }
                    if STORE {
                        store_both::<P>(e, words.add($row * NR / P), tokens.add($row * NR / P));
                    }
                )*};
            }
            two_rows!(0 2 4 6 8 10);
            _mm512_storeu_ps(tile.sums.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(tile.sums.as_mut_ptr().add(16), sums[1]);
        }
    }

    /// [`run`] in bf16 with logits from AMX, which come from memory.
    ///
    /// # Safety
    /// As [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run_on_amx<const STORE: bool>(tile: ExpTile<'_>, by_word: &mut [u32], by_token: &mut [u32]) {
        let mut logits = amx::Sums([[0.0; NR]; amx::ROWS]);
        let c = &mut MatMut::new(logits.0.as_flattened_mut(), amx::ROWS, NR);
        amx::tile(tile.a, tile.b, c, Accumulate::Set);
        // SAFETY: rows, `shift` and `sums` are NR long; the caller promises the outputs.
        unsafe {
            let shift = [0, 16].map(|at| _mm512_loadu_ps(tile.shift.as_ptr().add(at)));
            let mut sums = [0, 16].map(|at| _mm512_loadu_ps(tile.sums.as_ptr().add(at)));
            for (pair, rows) in logits.0.as_chunks::<2>().0.iter().enumerate() {
                let mut e = rows.map(|row| [0, 16].map(|at| _mm512_loadu_ps(row.as_ptr().add(at))));
                for (i, e) in e.iter_mut().enumerate() {
                    let exists = if 2 * pair + i < tile.words { 0xFFFF } else { 0 };
                    for half in 0..2 {
                        e[half] = _mm512_maskz_mov_ps(exists, exp2(_mm512_sub_ps(e[half], shift[half])));
                        sums[half] = _mm512_add_ps(sums[half], e[half]);
                    }
                }
                if STORE {
                    store_both::<2>(e, by_word.as_mut_ptr().add(pair * NR), by_token.as_mut_ptr().add(pair * NR));
                }
            }
            _mm512_storeu_ps(tile.sums.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(tile.sums.as_mut_ptr().add(16), sums[1]);
        }
    }

    /// # Safety
    /// The processor has AVX-512F, BW and AVX512-BF16; the outputs are as long as `e`, in cells.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub unsafe fn lay_out<const P: usize>(e: &[[f32; NR]], by_word: &mut [u32], by_token: &mut [u32]) {
        for (i, rows) in e.as_chunks::<2>().0.iter().enumerate() {
            // SAFETY: rows are NR long; the caller promises the outputs.
            unsafe {
                let rows = rows.map(|row| [0, 16].map(|at| _mm512_loadu_ps(row.as_ptr().add(at))));
                store_both::<P>(
                    rows,
                    by_word.as_mut_ptr().add(i * NR / P * 2),
                    by_token.as_mut_ptr().add(i * NR / P * 2),
                );
            }
        }
    }

    /// Stores two rows of a tile in both layouts.
    ///
    /// # Safety
    /// Call it only from a function compiled for these features; both destinations have room for two rows.
    #[inline(always)]
    unsafe fn store_both<const P: usize>(e: [[__m512; 2]; 2], words: *mut u32, tokens: *mut u32) {
        // SAFETY: the caller promises the destinations.
        unsafe {
            if P == 1 {
                // With one element per cell the two layouts are the same.
                for (row, e) in e.iter().enumerate() {
                    for out in [words, tokens] {
                        _mm512_storeu_ps(out.add(row * NR).cast(), e[0]);
                        _mm512_storeu_ps(out.add(row * NR + 16).cast(), e[1]);
                    }
                }
                return;
            }
            // Interleave the two rows: token 0 of both, token 1 of both, …
            let low = _mm512_set_epi16(
                47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2,
                33, 1, 32, 0,
            );
            let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
            let [first, second]: [__m512i; 2] = e.map(|e| std::mem::transmute(_mm512_cvtne2ps_pbh(e[1], e[0])));
            _mm512_storeu_si512(tokens.cast(), first);
            _mm512_storeu_si512(tokens.add(NR / 2).cast(), second);
            _mm512_storeu_si512(words.cast(), _mm512_permutex2var_epi16(first, low, second));
            _mm512_storeu_si512(words.add(16).cast(), _mm512_permutex2var_epi16(first, high, second));
        }
    }

    /// # Safety
    /// The processor has AVX-512F and AVX512-BF16; `e` is whole tiles, and `b` of equal depth; `c` is at most MR x NR.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub unsafe fn tokens_tile<const P: usize>(e: &[u32], b: &[u32], c: &mut MatMut<'_>) {
        let across = NR / P;
        // SAFETY: each tile of e has MR rows of NR/P cells, and b has a row of NR for each cell of a row.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 2]; MR];
            let mut b = b.as_ptr();
            for tile in e.chunks_exact(e_tile::<P>()) {
                let mut a = tile.as_ptr();
                for _ in 0..across {
                    let (b0, b1) = (_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast()));
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = _mm512_set1_epi32(*a.add(i * across) as i32);
                        sums[0] = multiply_add::<P>(a, b0, sums[0]);
                        sums[1] = multiply_add::<P>(a, b1, sums[1]);
                    }
                    a = a.add(1);
                    b = b.add(NR);
                }
            }
            store(sums, c, Accumulate::Add);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{random, skip};

    fn packed<const P: usize>(n: usize, seed: u64) -> Vec<u32> {
        random(2 * n, seed).as_chunks::<2>().0.iter().map(|x| cell::<P>(x[0], x[1])).collect()
    }

    /// Returns the elements of the cells in f32.
    fn unpacked<const P: usize>(cells: &[u32]) -> Vec<f32> {
        let halves = |cell: u32| [f32::from_bits(cell << 16), f32::from_bits(cell & 0xFFFF_0000)];
        let elements = |&cell: &u32| if P == 2 { halves(cell).to_vec() } else { vec![f32::from_bits(cell)] };
        cells.iter().flat_map(elements).collect()
    }

    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected).abs() <= tolerance * expected.abs() + 1e-30, "{i}: {found} ≠ {expected}");
        }
    }

    fn check_exponentials<const P: usize>(depth: usize, words: usize, far: f32) {
        let height = panels_a::height::<P>();
        let (words, cells) = (words.min(height), panels_a::depth::<P>(depth * P) * height);
        let (a, b) = (packed::<P>(cells, 1), packed::<P>(depth * NR, 2));
        let shift: [f32; NR] = std::array::from_fn(|i| far * i as f32 / 31.0);
        let run = |plainly: bool| {
            let mut sums = [1.0; NR];
            let (mut by_word, mut by_token) = (vec![u32::MAX; e_tile::<P>()], vec![u32::MAX; e_tile::<P>()]);
            let tile = ExpTile { a: &a, b: &b, words, shift: &shift, sums: &mut sums };
            if plainly {
                plain::<P>(tile, Some((&mut by_word, &mut by_token)));
            } else {
                exp_tile::<P>(tile, &mut by_word, &mut by_token);
            }
            (sums, unpacked::<P>(&by_word), unpacked::<P>(&by_token))
        };
        let (found, expected) = (run(false), run(true));
        close(&found.0, &expected.0, 2e-5);
        // bf16 values may differ by one unit in the last place.
        let tolerance = if P == 2 { 0.01 } else { 2e-5 };
        close(&found.1, &expected.1, tolerance);
        close(&found.2, &expected.2, tolerance);
        for (row, token) in (0..height * NR).map(|i| (i / NR, i % NR)) {
            let by_word = found.1[(row / P * NR + token) * P + row % P];
            assert_eq!(by_word, found.2[row * NR + token], "word {row}, token {token}");
            assert!(row < words || by_word == 0.0, "word {row} does not exist");
        }
        let mut sums = [1.0; NR];
        sum_tile::<P>(ExpTile { a: &a, b: &b, words, shift: &shift, sums: &mut sums });
        assert_eq!(sums, found.0);
    }

    #[test]
    fn exponentials_equal_those_of_the_plain_twin_in_both_orders() {
        if !kernel::available() {
            skip("vector exponential tiles against the plain version");
        }
        for (depth, words, far) in [(1, 16, 0.0), (7, 5, 60.0), (64, 1, -70.0), (33, 16, -200.0)] {
            check_exponentials::<1>(depth, words, far);
            check_exponentials::<2>(depth, words, far);
        }
    }

    #[test]
    fn a_diverged_model_gives_a_sum_that_is_not_finite() {
        let (a, mut b) = (packed::<2>(panels_a::depth::<2>(2) * panels_a::height::<2>(), 1), packed::<2>(NR, 2));
        b[3] = 0x7FC0;
        let mut sums = [0.0; NR];
        sum_tile::<2>(ExpTile { a: &a, b: &b, words: 12, shift: &[0.0; NR], sums: &mut sums });
        assert!(sums[3].is_nan() && sums[4].is_finite());
    }

    fn check_products<const P: usize>(tiles: usize, words: usize, columns: usize) {
        let (e, b) = (packed::<P>(tiles * e_tile::<P>(), 1), packed::<P>(tiles * NR / P * NR, 2));
        let mut found = random(words * columns, 3);
        let mut expected: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
        tokens_tile::<P>(&e, &b, &mut MatMut::new(&mut found, words, columns));
        let (e, b) = (unpacked::<P>(&e), unpacked::<P>(&b));
        for (i, expected) in expected.iter_mut().enumerate() {
            let (word, column) = (i / columns, i % columns);
            for token in 0..tiles * NR {
                let e = e[(token / NR * panels_a::height::<P>() + word) * NR + token % NR];
                *expected += f64::from(e) * f64::from(b[(token / P * NR + column) * P + token % P]);
            }
            assert!((f64::from(found[i]) - *expected).abs() < 1e-5, "expected {expected}, got {}", found[i]);
        }
    }

    #[test]
    fn products_over_tokens_equal_the_definition() {
        for (tiles, words, columns) in [(1, 12, 32), (3, 5, 17), (2, 1, 1)] {
            check_products::<1>(tiles, words, columns);
            check_products::<2>(tiles, words, columns);
        }
    }
}
