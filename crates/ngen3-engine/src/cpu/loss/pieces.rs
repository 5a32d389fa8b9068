//! What the ways of the fused loss have in common: how it is cut up, how embeddings are laid out, and the products backward.
//!
//! Tiles have words down and tokens across, so that a tile's vectors run along the tokens. `P` elements stand in a cell: two of bf16
//! or one f32.

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::super::memory::{Knife, padded};
use super::super::simd::{simd, sum_zip};
use crate::gemm::tiles::kernel::{self, MR, NR, Rows};
use crate::gemm::tiles::pack::{panels as pack_panels, rounded};
use crate::gemm::tiles::softmax::{ask_for, e_tile, tokens_tile};
use crate::gemm::tiles::{cells, pack, packed_len, with_workspace};
use crate::gemm::{Into, Mat, MatMut};

/// Tasks into which the vocabulary is cut at most; fixed, so that the bits do not depend on the number of threads. GPT-2's is 44
/// nearly equal ones, which two, four or eleven threads share without waiting for each other.
pub(super) const SEGMENTS: usize = 44;

/// Panels of words whose e is kept in the second-level cache for the product that follows.
pub(super) const CHUNK: usize = 16;

/// Numbers of dhidden in one block, so that a segment's part, which is added to again and again, stays in the second-level cache.
pub(super) const PARTIAL: usize = 128 << 10;

/// The sizes of one loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Tokens in a pass.
    pub tokens: usize,
    /// Width of a hidden state.
    pub width: usize,
    /// Words.
    pub vocab_size: usize,
}

impl Shape {
    pub(super) fn panels(&self) -> usize {
        self.vocab_size.div_ceil(MR)
    }

    /// Whole chunks, so that the channels' panels can be packed a chunk at a time.
    pub(super) fn segment_panels(&self) -> usize {
        self.panels().div_ceil(CHUNK).div_ceil(SEGMENTS) * CHUNK
    }

    /// Cells of one chunk of the embeddings packed by channel: panels of [`MR`] channels, each a chunk of words deep; fewer in the
    /// last.
    pub(super) fn chunk_cells<const P: usize>(&self) -> usize {
        packed_len::<P, MR>(self.width, CHUNK * MR)
    }

    pub(super) fn segments(&self) -> usize {
        self.panels().div_ceil(self.segment_panels())
    }

    /// u32s of the packed embeddings, to be filled by [`pack_wte`].
    pub fn packed_wte<const P: usize>(&self) -> usize {
        padded(packed_len::<P, MR>(self.vocab_size, self.width))
            + self.panels().div_ceil(CHUNK) * self.chunk_cells::<P>()
    }
}

/// Packs the embeddings for both products that they are part of: panels of words; then, for each chunk of words, panels of
/// channels. A chunk is read from memory once and turned while it is in cache.
pub fn pack_wte<const P: usize>(shape: Shape, wte: &[f32], packed: &mut [f32]) {
    let Shape { width, vocab_size, .. } = shape;
    let mut knife = Knife(packed);
    let by_word = cast_slice_mut(knife.cut(packed_len::<P, MR>(vocab_size, width)));
    let by_channel: &mut [u32] = cast_slice_mut(knife.0);
    let wte = Mat::new(wte, vocab_size, width);
    pack::<P, MR>(wte, by_word);
    by_channel.par_chunks_mut(shape.chunk_cells::<P>()).enumerate().for_each(|(chunk, panels)| {
        let first = chunk * CHUNK * MR;
        let words = wte.rows(first..(first + CHUNK * MR).min(vocab_size)).t();
        let packed = packed_len::<P, MR>(width, words.cols());
        pack_panels::<P, MR>(words, 0, &mut panels[..packed]);
    });
}

/// Each token's target's logit, of operands rounded as in the product; 0 for tokens past the end.
pub(super) fn shifts<const P: usize>(hidden: &[f32], wte: &[f32], targets: &[u32], shift: &mut [f32]) {
    let width = hidden.len() / targets.len();
    let tiles = shift.par_chunks_mut(NR).zip(hidden.par_chunks(NR * width)).zip(targets.par_chunks(NR));
    tiles.for_each(|((shift, hidden), targets)| {
        simd(
            #[inline(always)]
            || {
                for ((shift, hidden), &target) in shift.iter_mut().zip(hidden.chunks_exact(width)).zip(targets) {
                    let word = &wte[target as usize * width..][..width];
                    *shift = sum_zip(hidden, word, |h, w| rounded::<P>(h) * rounded::<P>(w));
                }
            },
        );
    });
    shift[targets.len()..].fill(0.0);
}

/// One chunk's part of dhiddenᵀ, `[R/NR, C, NR]`: wteᵀ·e over the words of the panels from `chunk_panel` on, with their e in
/// `by_word_e` and all of the embeddings packed by channel.
pub(super) fn add_chunk<const P: usize>(
    shape: Shape,
    tiles: usize,
    chunk_panel: usize,
    by_channel: &[u32],
    by_word_e: &[u32],
    dhidden: &mut [f32],
    into: Into,
) {
    let depth = cells::<P>((CHUNK * MR).min(shape.vocab_size - chunk_panel * MR));
    let by_channel = &by_channel[chunk_panel / CHUNK * shape.chunk_cells::<P>()..][..shape.chunk_cells::<P>()];
    for j in 0..tiles {
        let b = &by_word_e[j * CHUNK * MR / P * NR..][..depth * NR];
        for (c, a) in by_channel.chunks_exact(MR * depth).take(shape.width.div_ceil(MR)).enumerate() {
            let channels = MR.min(shape.width - c * MR);
            let part = &mut dhidden[(j * shape.width + c * MR) * NR..][..channels * NR];
            kernel::tile::<P>(a, Rows::Together, b, &mut MatMut::new(part, channels, NR), into);
        }
    }
}

/// `dhidden[t] = combine(t, Σ over segments of their parts, wte[target[t]])`, with the target's embedding rounded as in the products.
/// Were it not, each word's rounding error would be added up over all the places where the word is the target, rather than
/// cancel against its probability there.
pub(super) fn gather<const P: usize>(
    block: usize,
    wte: &[f32],
    targets: &[u32],
    parts: &[f32],
    dhidden: &mut [f32],
    combine: impl Fn(usize, f32, f32) -> f32 + Sync,
) {
    let width = dhidden.len() / targets.len();
    let tiles = dhidden.par_chunks_mut(NR * width).zip(targets.par_chunks(NR));
    tiles.enumerate().for_each(|(j, (dhidden, targets))| {
        with_workspace(width * NR, |total| {
            simd(
                #[inline(always)]
                || {
                    total.fill(0.0);
                    for part in parts.chunks_exact(width * block) {
                        let part = &part[j * width * NR..][..width * NR];
                        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
                    }
                    for (c, total) in total.as_chunks::<NR>().0.iter().enumerate() {
                        for (t, &target) in targets.iter().enumerate() {
                            let word = rounded::<P>(wte[target as usize * width + c]);
                            dhidden[t * width + c] = combine(j * NR + t, total[t], word);
                        }
                    }
                },
            );
        });
    });
}

/// `dwte += eᵀ·scaled` over `padded` tokens, where `e` has `tiles` tiles for each panel of words.
pub(super) fn spread<const P: usize>(
    width: usize,
    tiles: usize,
    padded: usize,
    e: &[u32],
    scaled: &[u32],
    dwte: &mut [f32],
) {
    let chunks = dwte.par_chunks_mut(CHUNK * MR * width).zip(e.par_chunks(CHUNK * tiles * e_tile::<P>()));
    chunks.with_max_len(1).for_each(|(dwte, e)| {
        let panels = dwte.len().div_ceil(MR * width);
        // A panel of `scaled` stays in the first-level cache while the words pass by.
        for (n, b) in scaled.chunks_exact(padded / P * NR).enumerate() {
            let columns = NR.min(width - n * NR);
            for (i, e) in e.chunks_exact(tiles * e_tile::<P>()).take(panels).enumerate() {
                let part = &mut dwte[i * MR * width..];
                let words = MR.min(part.len() / width);
                if part.len() > 2 * MR * width {
                    ask_for(&part[MR * width + n * NR..], width);
                }
                let c = &mut MatMut::strided(&mut part[n * NR..], words, columns, width);
                tokens_tile::<P>(&e[..padded / NR * e_tile::<P>()], b, c);
            }
        }
    });
}
