//! The fused loss on our own kernels, in bf16 (P = 2 elements in a cell) or f32 (P = 1): three products, no recomputation.
//! Gradients in f32 are `strassen/`'s.
//!
//! A block of R tokens at a time. The logits are computed with words down and tokens across, so that a tile's vectors run along
//! the tokens: a token's sum is a vector sum, and e = exp(logit − shift) leaves the registers in the order in which each of
//! the two products of the backward pass reads it. Words are cut into [`super::pieces::SEGMENTS`], one task each:
//!
//! ```text
//! for 192 words of the segment:   e = 2^(wte·(log₂e·hidden)ᵀ − shift),  sum += Σ e,  dhidden += wteᵀ·e     (e still in cache)
//! when every segment is done:     dhidden /= sum,  dwte += eᵀ·(hidden/sum)
//! ```
//!
//! The shift is the target's logit, so that a token's loss is ln(sum) and e = 1 at the target; what backward subtracts there
//! is added in f32. Shifting by the target needs no pass to find the largest logit, and cannot overflow before the loss
//! reaches 79 nats.

use std::f32::consts::LOG2_E;

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::super::embedding;
use super::super::memory::{Knife, padded};
use super::Gradients;
use super::pieces::{CHUNK, PARTIAL, Shape, add_chunk, gather, shifts, spread};
use crate::gemm::tiles::kernel::{MR, NR};
use crate::gemm::tiles::softmax::{ExpTile, e_tile, exp_tile, sum_tile};
use crate::gemm::tiles::{cells, pack, packed_len};
use crate::gemm::{Into, Mat};

/// Numbers of e in one block, 26 MB of bf16. A smaller block stays in cache until the last product; a larger one reads
/// `wte` and adds to its gradient fewer times. In bf16 both are near their best here.
const E_NUMBERS: usize = 13 << 20;

impl Shape {
    /// Tokens in one block, a multiple of [`NR`].
    fn block<const P: usize>(&self) -> usize {
        let most = (E_NUMBERS / self.vocab_size).min(PARTIAL / self.width);
        (most / NR * NR).clamp(NR, self.tokens.next_multiple_of(NR))
    }

    /// f32s that a loss needs besides.
    pub fn scratch<const P: usize>(&self) -> usize {
        self.lengths::<P>().map(padded).iter().sum()
    }

    fn lengths<const P: usize>(&self) -> [usize; 8] {
        let block = self.block::<P>();
        [
            packed_len::<P, NR>(block, self.width),
            packed_len::<P, NR>(self.width, block),
            block * self.width,
            block,
            self.segments() * block,
            self.panels() * block / NR * e_tile::<P>(),
            self.segments() * CHUNK * MR / P * block,
            self.segments() * self.width * block,
        ]
    }

    fn cut<'a, const P: usize>(&self, scratch: &'a mut [f32]) -> Scratch<'a> {
        let mut knife = Knife(scratch);
        let [hidden, scaled, scaled_f32, shift, sums, e, by_word_e, dhidden] =
            self.lengths::<P>().map(|length| knife.cut(length));
        Scratch {
            hidden: cast_slice_mut(hidden),
            scaled: cast_slice_mut(scaled),
            scaled_f32,
            shift,
            sums,
            e: cast_slice_mut(e),
            by_word_e: cast_slice_mut(by_word_e),
            dhidden,
        }
    }
}

/// One block's buffers. R tokens, width C.
struct Scratch<'a> {
    /// Hidden states times log₂e as B of the logits, panels of [C/P, NR].
    hidden: &'a mut [u32],
    /// Hidden states over their sums as B of dwte, panels of [R/P, NR].
    scaled: &'a mut [u32],
    /// `[R, C]`: what is packed, in f32.
    scaled_f32: &'a mut [f32],
    /// `[R]`
    shift: &'a mut [f32],
    /// `[segments, R]`
    sums: &'a mut [f32],
    /// `[panels, R/NR, MR, NR/P]`: e with cells along the tokens.
    e: &'a mut [u32],
    /// `[segments, R/NR, CHUNK·MR/P, NR]`: e of one chunk with cells along the words.
    by_word_e: &'a mut [u32],
    /// `[segments, R/NR, C, NR]`: each segment's part of dhiddenᵀ.
    dhidden: &'a mut [f32],
}

/// Fills `losses` and, where asked, the gradients: see [`super::run`].
pub fn run<const P: usize>(
    shape: Shape,
    hidden: &[f32],
    (wte, packed_wte): (&[f32], &[f32]),
    targets: &[u32],
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    scratch: &mut [f32],
) {
    let Shape { width, .. } = shape;
    let block = shape.block::<P>();
    let packed_wte = bytemuck::cast_slice(packed_wte);
    let blocks = hidden.chunks(block * width).zip(targets.chunks(block)).zip(losses.chunks_mut(block));
    for (i, ((hidden, targets), losses)) in blocks.enumerate() {
        let mut s = shape.cut::<P>(scratch);
        let rows = targets.len();
        // In powers of two from the start: what 2^ costs less than exp is a multiplication for each logit.
        let in_bits = &mut s.scaled_f32[..rows * width];
        in_bits.iter_mut().zip(hidden).for_each(|(to, h)| *to = h * LOG2_E);
        pack::<P, NR>(Mat::new(in_bits, rows, width), &mut s.hidden[..packed_len::<P, NR>(rows, width)]);
        shifts::<P>(in_bits, wte, targets, s.shift);
        let wanted = match &gradients {
            None => Wanted::Losses,
            Some(Gradients { dwte: None, .. }) => Wanted::Dhidden,
            Some(_) => Wanted::All,
        };
        segments::<P>(shape, rows.div_ceil(NR), packed_wte, wanted, &mut s);
        let (sums, others) = s.sums.split_at_mut(block);
        for others in others.chunks_exact(block) {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        losses.iter_mut().zip(sums.iter()).for_each(|(loss, sum)| *loss = sum.ln());
        if let Some(gradients) = &mut gradients {
            let dhidden = &mut gradients.dhidden[i * block * width..][..rows * width];
            let Gradients { weight, dwte, .. } = gradients;
            let weight = *weight;
            gather::<P>(
                block,
                wte,
                targets,
                s.dhidden,
                dhidden,
                #[inline(always)]
                |t, total, word| weight * (total / sums[t] - word),
            );
            let Some(dwte) = dwte else { continue };
            let padded = rows.next_multiple_of(NR);
            let scaled = &mut s.scaled_f32[..padded * width];
            scaled[rows * width..].fill(0.0);
            for ((scaled, hidden), sum) in scaled.chunks_exact_mut(width).zip(hidden.chunks_exact(width)).zip(sums) {
                let scale = weight / *sum;
                scaled.iter_mut().zip(hidden).for_each(|(s, h)| *s = h * scale);
            }
            let packed = &mut s.scaled[..packed_len::<P, NR>(width, padded)];
            pack::<P, NR>(Mat::new(scaled, padded, width).t(), packed);
            spread::<P>(width, block / NR, padded, s.e, packed, dwte);
        }
    }
    if let Some(Gradients { weight, dwte: Some(dwte), .. }) = gradients {
        embedding::scatter(targets, hidden, -weight, dwte);
    }
}

/// What is to come out of the segments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The sums.
    Losses,
    /// Also the parts of `dhidden`.
    Dhidden,
    /// Also `e`, for the product that follows.
    All,
}

/// Runs every segment over `tiles` panels of tokens: fills of `sums`, `dhidden` and `e` what is wanted.
fn segments<const P: usize>(shape: Shape, tiles: usize, packed_wte: &[u32], wanted: Wanted, s: &mut Scratch<'_>) {
    let Shape { width, vocab_size, .. } = shape;
    let (block, depth) = (shape.block::<P>(), cells::<P>(width));
    let by_word = packed_len::<P, MR>(vocab_size, width);
    let (by_word, by_channel) = (&packed_wte[..by_word], &packed_wte[padded(by_word)..]);
    let (hidden, shift) = (&*s.hidden, s.shift.as_chunks::<NR>().0);
    let panel_e = block / NR * e_tile::<P>();
    let chunk_cells = CHUNK * MR / P;
    by_word
        .par_chunks(shape.segment_panels() * MR * depth)
        .zip(s.e.par_chunks_mut(shape.segment_panels() * panel_e))
        .zip(s.sums.par_chunks_mut(block).zip(s.dhidden.par_chunks_mut(width * block)))
        .zip(s.by_word_e.par_chunks_mut(chunk_cells * block))
        .enumerate()
        .with_max_len(1)
        .for_each(|(segment, (((words, e), (sums, dhidden)), by_word_e))| {
            sums.fill(0.0);
            let first_panel = segment * shape.segment_panels();
            for (chunk, words) in words.chunks(CHUNK * MR * depth).enumerate() {
                let chunk_panel = first_panel + chunk * CHUNK;
                // A panel of tokens stays in the first-level cache while the words pass by.
                for j in 0..tiles {
                    let b = &hidden[j * NR * depth..][..NR * depth];
                    for (i, a) in words.chunks_exact(MR * depth).enumerate() {
                        let panel = chunk_panel + i;
                        let tile = ExpTile {
                            a,
                            b,
                            words: MR.min(vocab_size - panel * MR),
                            shift: &shift[j],
                            sums: &mut sums.as_chunks_mut::<NR>().0[j],
                        };
                        if wanted == Wanted::Losses {
                            sum_tile::<P>(tile);
                            continue;
                        }
                        let words = &mut by_word_e[(j * chunk_cells + i * MR / P) * NR..][..e_tile::<P>()];
                        // Where nobody will read e, every tile goes to one place, which stays in cache.
                        let own = (panel - first_panel) * panel_e + j * e_tile::<P>();
                        let tokens = if wanted == Wanted::All { own } else { 0 };
                        exp_tile::<P>(tile, words, &mut e[tokens..][..e_tile::<P>()]);
                    }
                }
                if wanted == Wanted::Losses {
                    continue;
                }
                let into = if chunk == 0 { Into::Set } else { Into::Add };
                add_chunk::<P>(shape, tiles, chunk_panel, by_channel, by_word_e, dhidden, into);
            }
        });
}
