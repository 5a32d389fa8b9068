//! Code shared by the algorithms of the fused loss: tasks and chunks, the layout of the embeddings, the backward products.
//!
//! Tiles are [words, tokens], so that vectors run along the tokens. A cell has `P` elements: two bf16 or one f32.

use bytemuck::cast_slice_mut;
use ngen3_model::Config;
use rayon::prelude::*;

use crate::base::memory::padded;
use crate::gemm::tiles::kernel::{self, NR};
use crate::gemm::tiles::pack::rounded;
use crate::gemm::tiles::softmax::{ask_for, e_tile, tokens_tile};
use crate::gemm::tiles::{cells, panels_a, with_workspace};
use crate::gemm::{Accumulate, Mat, MatMut};
use crate::layers::embedding::Table;
use ngen3_simd::{simd, sum_zip};

/// Largest number of segments of the vocabulary, one task each. Fixed, so that the bits do not depend on the number of threads.
/// GPT-2's vocabulary gives 44 nearly equal segments (40 with AMX, whose panels are taller), which 2, 4 or 11 threads share without
/// waiting for each other.
pub(super) const SEGMENTS: usize = 44;

/// Panels of words per chunk, whose e stays in the L2 cache for the product that follows.
pub(super) const CHUNK: usize = 16;

/// Largest number of elements of dhidden per block, so that a segment's partial sum, which every chunk updates, stays in the L2
/// cache.
pub(super) const PARTIAL: usize = 128 << 10;

/// Elements of e per block of tokens: 26 MB of bf16, 55 MB of f32. A smaller block stays in cache until the last product; a
/// larger one reads the embeddings and updates their gradient less often. Both algorithms that keep e are near their optimum
/// here.
pub(super) const E_NUMBERS: usize = 13 << 20;

/// Sizes of one loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Number of tokens in the pass.
    pub tokens: usize,
    /// Width of a hidden state.
    pub width: usize,
    /// Vocabulary size.
    pub vocab_size: usize,
}

/// Words per chunk.
pub(super) fn chunk_words<const P: usize>() -> usize {
    CHUNK * panels_a::height::<P>()
}

impl Sizes {
    /// Sizes for a pass of `tokens` tokens through a model.
    pub fn of(config: &Config, tokens: usize) -> Self {
        Self { tokens, width: config.n_embd, vocab_size: config.vocab_size }
    }

    pub(super) fn panels<const P: usize>(&self) -> usize {
        self.vocab_size.div_ceil(panels_a::height::<P>())
    }

    /// Panels per segment: whole chunks, so that the panels by channel can be packed a chunk at a time.
    pub(super) fn segment_panels<const P: usize>(&self) -> usize {
        self.panels::<P>().div_ceil(CHUNK).div_ceil(SEGMENTS) * CHUNK
    }

    /// Cells of one chunk of the embeddings packed by channel: panels of channels over the words of a chunk (fewer in the last
    /// chunk).
    pub(super) fn chunk_cells<const P: usize>(&self) -> usize {
        panels_a::packed_len::<P>(self.width, chunk_words::<P>())
    }

    pub(super) fn segments<const P: usize>(&self) -> usize {
        self.panels::<P>().div_ceil(self.segment_panels::<P>())
    }

    /// Length in cells of the embeddings packed by word.
    pub fn by_word<const P: usize>(&self) -> usize {
        padded(panels_a::packed_len::<P>(self.vocab_size, self.width))
    }

    /// Length in cells of the embeddings packed in both layouts: see [`pack_wte`].
    pub fn packed_wte<const P: usize>(&self) -> usize {
        self.by_word::<P>() + self.panels::<P>().div_ceil(CHUNK) * self.chunk_cells::<P>()
    }
}

/// Packs the embeddings for the logits: panels of words.
pub fn pack_words<const P: usize>(sizes: Sizes, wte: &[f32], by_word: &mut [f32]) {
    let Sizes { width, vocab_size, .. } = sizes;
    let by_word = cast_slice_mut(&mut by_word[..panels_a::packed_len::<P>(vocab_size, width)]);
    panels_a::pack::<P>(Mat::new(wte, vocab_size, width), by_word);
}

/// Packs the embeddings for the logits and for dhidden: panels of words; then, for each chunk of words, panels of channels. A
/// chunk is read from memory once and transposed while it is in cache.
pub fn pack_wte<const P: usize>(sizes: Sizes, wte: &[f32], packed: &mut [f32]) {
    let Sizes { width, vocab_size, .. } = sizes;
    let (by_word, by_channel) = packed.split_at_mut(sizes.by_word::<P>());
    pack_words::<P>(sizes, wte, by_word);
    let (by_channel, wte): (&mut [u32], _) = (cast_slice_mut(by_channel), Mat::new(wte, vocab_size, width));
    by_channel.par_chunks_mut(sizes.chunk_cells::<P>()).enumerate().for_each(|(chunk, panels)| {
        let first = chunk * chunk_words::<P>();
        let words = wte.rows(first..(first + chunk_words::<P>()).min(vocab_size)).t();
        let packed = panels_a::packed_len::<P>(width, words.cols());
        panels_a::panels::<P>(words, 0, &mut panels[..packed]);
    });
}

/// Fills `shift` with the logit of each token's target, from operands rounded as in the product; 0 past the last token.
pub(super) fn shifts<const P: usize>(hidden: &[f32], wte: Table<'_>, targets: &[u32], shift: &mut [f32]) {
    let width = hidden.len() / targets.len();
    let tiles = shift.par_chunks_mut(NR).zip(hidden.par_chunks(NR * width)).zip(targets.par_chunks(NR));
    tiles.for_each(|((shift, hidden), targets)| {
        with_workspace(width, |word| {
            simd(
                #[inline(always)]
                || {
                    for ((shift, hidden), &target) in shift.iter_mut().zip(hidden.chunks_exact(width)).zip(targets) {
                        wte.copy_row(target, word);
                        *shift = sum_zip(hidden, word, |h, w| rounded::<P>(h) * rounded::<P>(w));
                    }
                },
            );
        });
    });
    shift[targets.len()..].fill(0.0);
}

/// Computes one chunk's share of dhiddenᵀ, `[R/NR, C, NR]`: wteᵀ·e over the words of the chunk that starts at panel
/// `chunk_panel`, with its e in `by_word_e` and all embeddings packed by channel. Sums are f32.
pub(super) fn add_chunk<const P: usize>(
    sizes: Sizes,
    tiles: usize,
    chunk_panel: usize,
    by_channel: &[u32],
    by_word_e: &[u32],
    dhidden: &mut [f32],
    accumulate: Accumulate,
) {
    let (rows, chunk_words) = (panels_a::rows::<P>(), chunk_words::<P>());
    let (mr, at_once) = (rows.count(), rows.at_once());
    let words = chunk_words.min(sizes.vocab_size - chunk_panel * mr);
    let (depth, panel) = (cells::<P>(words), mr * panels_a::depth::<P>(words));
    let by_channel = &by_channel[chunk_panel / CHUNK * sizes.chunk_cells::<P>()..][..sizes.chunk_cells::<P>()];
    for j in 0..tiles {
        let b = &by_word_e[j * chunk_words / P * NR..][..depth * NR];
        for c in (0..sizes.width).step_by(at_once * mr) {
            let channels = (at_once * mr).min(sizes.width - c);
            let part = &mut dhidden[(j * sizes.width + c) * NR..][..channels * NR];
            let a = &by_channel[c / mr * panel..];
            kernel::tiles::<P>(a, panel, rows, b, &mut MatMut::new(part, channels, NR), accumulate);
        }
    }
}

/// Adds up the segments' sums, `[segments, block]`, in order; fills the losses; returns each token's Σ e.
pub(super) fn add_up<'a>(sums: &'a mut [f32], block: usize, losses: &mut [f32]) -> &'a mut [f32] {
    let (sums, others) = sums.split_at_mut(block);
    for others in others.chunks_exact(block) {
        sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
    }
    losses.iter_mut().zip(&*sums).for_each(|(loss, sum)| *loss = sum.ln());
    sums
}

/// Computes `dhidden[t] = scale[t]·(Σ of the segments' parts) − at_target·wte[target[t]]`. `None` means that the parts are
/// scaled already.
///
/// The target's embedding is rounded as in the products. Otherwise a word's rounding error would add up over all positions with
/// that target, instead of cancelling against the word's probability there.
pub(super) fn gather<const P: usize>(
    block: usize,
    wte: Table<'_>,
    targets: &[u32],
    parts: &[f32],
    scale: Option<&[f32]>,
    at_target: f32,
    dhidden: &mut [f32],
) {
    let width = dhidden.len() / targets.len();
    let tiles = dhidden.par_chunks_mut(NR * width).zip(targets.par_chunks(NR));
    tiles.enumerate().for_each(|(j, (dhidden, targets))| {
        let mut scales = [1.0; NR];
        if let Some(scale) = scale {
            scales[..targets.len()].copy_from_slice(&scale[j * NR..][..targets.len()]);
        }
        with_workspace(2 * width * NR, |workspace| {
            let (total, words) = workspace.split_at_mut(width * NR);
            let words = &mut words[..targets.len() * width];
            words.chunks_exact_mut(width).zip(targets).for_each(|(word, &target)| wte.copy_row(target, word));
            simd(
                #[inline(always)]
                || {
                    total.fill(0.0);
                    for part in parts.chunks_exact(width * block) {
                        let part = &part[j * width * NR..][..width * NR];
                        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
                    }
                    for (c, total) in total.as_chunks::<NR>().0.iter().enumerate() {
                        for t in 0..targets.len() {
                            let word = rounded::<P>(words[t * width + c]);
                            dhidden[t * width + c] = scales[t] * total[t] - at_target * word;
                        }
                    }
                },
            );
        });
    });
}

/// Accumulates `dwte += e·scaled` over `padded` tokens, in f32. `e` has `tiles` tiles per panel of words.
pub(super) fn spread<const P: usize>(
    width: usize,
    tiles: usize,
    padded: usize,
    e: &[u32],
    scaled: &[u32],
    dwte: &mut [f32],
) {
    let mr = panels_a::height::<P>();
    let chunks = dwte.par_chunks_mut(chunk_words::<P>() * width).zip(e.par_chunks(CHUNK * tiles * e_tile::<P>()));
    chunks.with_max_len(1).for_each(|(dwte, e)| {
        let panels = dwte.len().div_ceil(mr * width);
        // A panel of `scaled` stays in the L1 cache while the words stream through.
        for (n, b) in scaled.chunks_exact(padded / P * NR).enumerate() {
            let columns = NR.min(width - n * NR);
            for (i, e) in e.chunks_exact(tiles * e_tile::<P>()).take(panels).enumerate() {
                let part = &mut dwte[i * mr * width..];
                let words = mr.min(part.len() / width);
                if part.len() > 2 * mr * width {
                    ask_for(&part[mr * width + n * NR..], mr, width);
                }
                let c = &mut MatMut::strided(&mut part[n * NR..], words, columns, width);
                tokens_tile::<P>(&e[..padded / NR * e_tile::<P>()], b, c);
            }
        }
    });
}
