//! The fused loss on bf16 products: three products and no recomputation.
//!
//! A block of R tokens at a time. The logits are computed with words down and tokens across, so that a tile's vectors run along
//! the tokens: a token's sum is a vector sum, and e = exp(logit − shift) leaves the registers as bf16 in the order in which
//! each of the two products of the backward pass reads it. Words are cut into [`SEGMENTS`], one task each:
//!
//! ```text
//! for 192 words of the segment:   e = exp(wte·hiddenᵀ − shift),  sum += Σ e,  dhidden += wteᵀ·e     (e still in cache)
//! when every segment is done:     dhidden /= sum,  dwte += eᵀ·(hidden/sum)
//! ```
//!
//! The shift is the target's logit, so that a token's loss is ln(sum) and e = 1 at the target; what backward subtracts there
//! is added in f32. Shifting by the target needs no pass to find the largest logit, and cannot overflow before the loss
//! reaches 80 nats.

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::super::embedding;
use super::super::simd::{simd, sum_zip};
use super::Gradients;
use crate::gemm::bf16::kernel::{self, MR, NR};
use crate::gemm::bf16::pack::rounded;
use crate::gemm::bf16::softmax::{E_TILE, ExpTile, exp_tile, sum_tile, tokens_tile};
use crate::gemm::bf16::{pack, packed_len};
use crate::gemm::{Into, Mat, MatMut};

/// Tasks into which the vocabulary is cut; fixed, so that the bits do not depend on the number of threads.
const SEGMENTS: usize = 32;

/// Panels of words whose e is kept in the second-level cache for the product that follows.
const CHUNK: usize = 16;

/// Bytes of e in one block: it should stay in the last-level cache until the last product.
const E_BYTES: usize = 26 << 20;

/// Numbers in a segment's part of dhidden, which is added to again and again: half of a second-level cache.
const PARTIAL: usize = 128 << 10;

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
    /// Tokens in one block, a multiple of [`NR`].
    fn block(&self) -> usize {
        let most = (E_BYTES / 2 / self.vocab_size).min(PARTIAL / self.width);
        (most / NR * NR).clamp(NR, self.tokens.next_multiple_of(NR))
    }

    fn panels(&self) -> usize {
        self.vocab_size.div_ceil(MR)
    }

    fn segment_panels(&self) -> usize {
        self.panels().div_ceil(SEGMENTS)
    }

    fn segments(&self) -> usize {
        self.panels().div_ceil(self.segment_panels())
    }

    /// u32s of the packed embeddings, to be filled by [`pack_wte`].
    pub fn packed_wte(&self) -> usize {
        packed_len::<MR>(self.vocab_size, self.width) + packed_len::<MR>(self.width, self.vocab_size)
    }

    /// f32s that a loss needs besides.
    pub fn scratch(&self) -> usize {
        self.lengths().iter().sum()
    }

    fn lengths(&self) -> [usize; 8] {
        let block = self.block();
        [
            packed_len::<NR>(block, self.width),
            packed_len::<NR>(self.width, block),
            block * self.width,
            block,
            self.segments() * block,
            self.panels() * block / NR * E_TILE,
            self.segments() * CHUNK * MR / 2 * block,
            self.segments() * self.width * block,
        ]
    }

    fn cut<'a>(&self, scratch: &'a mut [f32]) -> Scratch<'a> {
        let mut rest = scratch;
        let [hidden, scaled, scaled_f32, shift, sums, e, word_pairs, dhidden] = self.lengths().map(|length| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            piece
        });
        Scratch {
            hidden: cast_slice_mut(hidden),
            scaled: cast_slice_mut(scaled),
            scaled_f32,
            shift,
            sums,
            e: cast_slice_mut(e),
            word_pairs: cast_slice_mut(word_pairs),
            dhidden,
        }
    }
}

/// One block's buffers. R tokens, width C.
struct Scratch<'a> {
    /// Hidden states as B of the logits, panels of [C/2, NR].
    hidden: &'a mut [u32],
    /// Hidden states over their sums as B of dwte, panels of [R/2, NR].
    scaled: &'a mut [u32],
    /// `[R, C]`: the same in f32.
    scaled_f32: &'a mut [f32],
    /// `[R]`
    shift: &'a mut [f32],
    /// `[segments, R]`
    sums: &'a mut [f32],
    /// `[panels, R/NR, E_TILE]`: e with pairs along the tokens.
    e: &'a mut [u32],
    /// `[segments, R/NR, CHUNK·MR/2, NR]`: e of one chunk with pairs along the words.
    word_pairs: &'a mut [u32],
    /// `[segments, C, R]`: each segment's part of dhiddenᵀ.
    dhidden: &'a mut [f32],
}

/// Packs the embeddings for both products that they are part of: panels of words, then panels of channels.
pub fn pack_wte(shape: Shape, wte: &[f32], packed: &mut [f32]) {
    let (by_word, by_channel) = cast_slice_mut(packed).split_at_mut(packed_len::<MR>(shape.vocab_size, shape.width));
    let wte = Mat::new(wte, shape.vocab_size, shape.width);
    pack::<MR>(wte, by_word);
    pack::<MR>(wte.t(), by_channel);
}

/// Fills `losses` and, where asked, the gradients: see [`super::forward_backward`].
pub fn run(
    shape: Shape,
    hidden: &[f32],
    (wte, packed_wte): (&[f32], &[f32]),
    targets: &[u32],
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    scratch: &mut [f32],
) {
    let Shape { width, .. } = shape;
    let block = shape.block();
    let packed_wte = bytemuck::cast_slice(packed_wte);
    let blocks = hidden.chunks(block * width).zip(targets.chunks(block)).zip(losses.chunks_mut(block));
    for (i, ((hidden, targets), losses)) in blocks.enumerate() {
        let mut s = shape.cut(scratch);
        let rows = targets.len();
        pack::<NR>(Mat::new(hidden, rows, width), &mut s.hidden[..packed_len::<NR>(rows, width)]);
        shifts(hidden, wte, targets, s.shift);
        segments(shape, rows.div_ceil(NR), packed_wte, gradients.is_some(), &mut s);
        let (sums, others) = s.sums.split_at_mut(block);
        for others in others.chunks_exact(block) {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        losses.iter_mut().zip(sums.iter()).for_each(|(loss, sum)| *loss = sum.ln());
        if let Some(gradients) = &mut gradients {
            let dhidden = &mut gradients.dhidden[i * block * width..][..rows * width];
            let Gradients { weight, dwte, .. } = gradients;
            gather(shape, wte, targets, *weight, sums, s.dhidden, dhidden);
            let padded = rows.next_multiple_of(NR);
            let scaled = &mut s.scaled_f32[..padded * width];
            scaled[rows * width..].fill(0.0);
            for ((scaled, hidden), sum) in scaled.chunks_exact_mut(width).zip(hidden.chunks_exact(width)).zip(sums) {
                let scale = *weight / *sum;
                scaled.iter_mut().zip(hidden).for_each(|(s, h)| *s = h * scale);
            }
            let packed = &mut s.scaled[..packed_len::<NR>(width, padded)];
            pack::<NR>(Mat::new(scaled, padded, width).t(), packed);
            spread(width, block / NR, padded, s.e, packed, dwte);
        }
    }
    if let Some(Gradients { weight, dwte, .. }) = gradients {
        embedding::scatter(targets, hidden, -weight, dwte);
    }
}

/// Each token's target's logit, of operands rounded as in the product; 0 for tokens past the end.
fn shifts(hidden: &[f32], wte: &[f32], targets: &[u32], shift: &mut [f32]) {
    let width = hidden.len() / targets.len();
    simd(
        #[inline(always)]
        || {
            for ((shift, hidden), &target) in shift.iter_mut().zip(hidden.chunks_exact(width)).zip(targets) {
                let word = &wte[target as usize * width..][..width];
                *shift = sum_zip(hidden, word, |h, w| rounded(h) * rounded(w));
            }
        },
    );
    shift[targets.len()..].fill(0.0);
}

/// Runs every segment over `tiles` panels of tokens: fills `sums` and, with gradients, `e` and the parts of `dhidden`.
fn segments(shape: Shape, tiles: usize, packed_wte: &[u32], with_gradients: bool, s: &mut Scratch<'_>) {
    let Shape { width, vocab_size, .. } = shape;
    let (block, pairs) = (shape.block(), width.div_ceil(2));
    let (by_word, by_channel) = packed_wte.split_at(packed_len::<MR>(vocab_size, width));
    let (hidden, shift) = (&*s.hidden, s.shift.as_chunks::<NR>().0);
    let panel_e = block / NR * E_TILE;
    let chunk_pairs = CHUNK * MR / 2;
    by_word
        .par_chunks(shape.segment_panels() * MR * pairs)
        .zip(s.e.par_chunks_mut(shape.segment_panels() * panel_e))
        .zip(s.sums.par_chunks_mut(block).zip(s.dhidden.par_chunks_mut(width * block)))
        .zip(s.word_pairs.par_chunks_mut(chunk_pairs * block))
        .enumerate()
        .for_each(|(segment, (((words, e), (sums, dhidden)), word_pairs))| {
            sums.fill(0.0);
            let first_panel = segment * shape.segment_panels();
            for (chunk, words) in words.chunks(CHUNK * MR * pairs).enumerate() {
                let chunk_panel = first_panel + chunk * CHUNK;
                for (i, a) in words.chunks_exact(MR * pairs).enumerate() {
                    let panel = chunk_panel + i;
                    let e = &mut e[(panel - first_panel) * panel_e..][..panel_e];
                    for j in 0..tiles {
                        let tile = ExpTile {
                            a,
                            b: &hidden[j * NR * pairs..][..NR * pairs],
                            words: MR.min(vocab_size - panel * MR),
                            shift: &shift[j],
                            sums: &mut sums.as_chunks_mut::<NR>().0[j],
                        };
                        if with_gradients {
                            let words = &mut word_pairs[(j * chunk_pairs + i * MR / 2) * NR..][..MR / 2 * NR];
                            exp_tile(tile, words, &mut e[j * E_TILE..][..E_TILE]);
                        } else {
                            sum_tile(tile);
                        }
                    }
                }
                if !with_gradients {
                    continue;
                }
                let first_pair = chunk_panel * MR / 2;
                let depth = (words.len() / pairs / 2).min(vocab_size.div_ceil(2) - first_pair);
                let into = if chunk == 0 { Into::Set } else { Into::Add };
                for (c, a) in by_channel.chunks_exact(MR * vocab_size.div_ceil(2)).enumerate() {
                    let a = &a[first_pair * MR..][..depth * MR];
                    let channels = MR.min(width - c * MR);
                    for j in 0..tiles {
                        let b = &word_pairs[j * chunk_pairs * NR..][..depth * NR];
                        let part = &mut dhidden[c * MR * block + j * NR..];
                        kernel::tile(a, b, &mut MatMut::strided(part, channels, NR, block), into);
                    }
                }
            }
        });
}

/// `dhidden[t] = weight·(Σ over segments of their part/sum[t] − wte[target[t]])`
fn gather(shape: Shape, wte: &[f32], targets: &[u32], weight: f32, sums: &[f32], parts: &[f32], dhidden: &mut [f32]) {
    let (width, block) = (shape.width, shape.block());
    let tiles = dhidden.par_chunks_mut(NR * width).zip(targets.par_chunks(NR)).zip(sums.par_chunks(NR));
    tiles.enumerate().for_each(|(j, ((dhidden, targets), sums))| {
        simd(
            #[inline(always)]
            || {
                for c in 0..width {
                    let mut total = [0.0f32; NR];
                    for part in parts.chunks_exact(width * block) {
                        let part = &part[c * block + j * NR..][..NR];
                        total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
                    }
                    for (t, &target) in targets.iter().enumerate() {
                        let word = wte[target as usize * width + c];
                        dhidden[t * width + c] = weight * (total[t] / sums[t] - word);
                    }
                }
            },
        );
    });
}

/// `dwte += eᵀ·scaled` over `padded` tokens, where `e` has `tiles` tiles for each panel of words.
fn spread(width: usize, tiles: usize, padded: usize, e: &[u32], scaled: &[u32], dwte: &mut [f32]) {
    dwte.par_chunks_mut(CHUNK * MR * width).zip(e.par_chunks(CHUNK * tiles * E_TILE)).for_each(|(dwte, e)| {
        for (dwte, e) in dwte.chunks_mut(MR * width).zip(e.chunks_exact(tiles * E_TILE)) {
            let words = dwte.len() / width;
            for (n, b) in scaled.chunks_exact(padded / 2 * NR).enumerate() {
                let columns = NR.min(width - n * NR);
                let part = &mut dwte[n * NR..];
                tokens_tile(&e[..padded / NR * E_TILE], b, &mut MatMut::strided(part, words, columns, width));
            }
        }
    });
}
