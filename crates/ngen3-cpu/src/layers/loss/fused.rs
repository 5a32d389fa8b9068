//! The fused loss on our own kernels: in bf16 (P = 2 elements in a cell) three products, no recomputation; in f32 (P = 1) the first of
//! them, for losses alone. Gradients in f32 are `strassen/`'s.
//!
//! A block of R tokens at a time. The logits are computed with words down and tokens across, so that a tile's vectors run along
//! the tokens: a token's sum is a vector sum, and e = exp(logit − shift) leaves the registers in the order in which each of
//! the two products of the backward pass reads it. Words are cut into [`super::tiling::SEGMENTS`], one task each:
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

use super::gradients::Gradients;
use super::tiling::{self, CHUNK, E_NUMBERS, PARTIAL, Sizes, add_chunk, add_up, gather, pack_words, shifts, spread};
use crate::base::memory::{Carver, padded};
use crate::gemm::tiles::kernel::{MR, NR};
use crate::gemm::tiles::softmax::{ExpTile, e_tile, exp_tile, sum_tile};
use crate::gemm::tiles::{cells, pack, packed_len};
use crate::gemm::{Accumulate, Mat};
use crate::layers::embedding;

/// Blocks and segments that a loss is cut into.
#[derive(Clone, Copy)]
pub struct FusedTiling<const P: usize> {
    sizes: Sizes,
    backward: bool,
}

impl<const P: usize> FusedTiling<P> {
    /// With gradients, or for losses alone.
    pub fn new(sizes: Sizes, backward: bool) -> Self {
        Self { sizes, backward }
    }

    /// f32s that [`Self::pack_wte`] fills.
    pub fn packed_wte(&self) -> usize {
        if self.backward { self.sizes.packed_wte::<P>() } else { self.sizes.by_word::<P>() }
    }

    /// Packs the embeddings for the products that there are.
    pub fn pack_wte(&self, wte: &[f32], packed: &mut [f32]) {
        if self.backward {
            tiling::pack_wte::<P>(self.sizes, wte, packed);
        } else {
            pack_words::<P>(self.sizes, wte, packed);
        }
    }

    /// Tokens in one block, a multiple of [`NR`].
    fn block(&self) -> usize {
        let most = (E_NUMBERS / self.sizes.vocab_size).min(PARTIAL / self.sizes.width);
        (most / NR * NR).clamp(NR, self.sizes.tokens.next_multiple_of(NR))
    }

    /// f32s that a loss needs besides.
    pub fn scratch(&self) -> usize {
        self.lengths().map(padded).iter().sum()
    }

    fn lengths(&self) -> [usize; 8] {
        let (block, Sizes { width, .. }) = (self.block(), self.sizes);
        let (panels, segments) = (self.sizes.panels(), self.sizes.segments());
        let backward = |length| if self.backward { length } else { 0 };
        [
            packed_len::<P, NR>(block, width),
            block * width,
            block,
            segments * block,
            backward(packed_len::<P, NR>(width, block)),
            backward(panels * block / NR * e_tile::<P>()),
            backward(segments * CHUNK * MR / P * block),
            backward(segments * width * block),
        ]
    }

    fn cut<'a>(&self, scratch: &'a mut [f32]) -> Scratch<'a> {
        let mut carver = Carver(scratch);
        let [hidden, scaled_f32, shift, sums, scaled, e, by_word_e, dhidden] =
            self.lengths().map(|length| carver.cut(length));
        Scratch {
            hidden: cast_slice_mut(hidden),
            scaled_f32,
            shift,
            sums,
            scaled: cast_slice_mut(scaled),
            e: cast_slice_mut(e),
            by_word_e: cast_slice_mut(by_word_e),
            dhidden,
        }
    }
}

/// One block's buffers; the last four are empty for losses alone. R tokens, width C.
struct Scratch<'a> {
    /// Hidden states times log₂e as B of the logits, panels of [C/P, NR].
    hidden: &'a mut [u32],
    /// `[R, C]`: what is packed, in f32.
    scaled_f32: &'a mut [f32],
    /// `[R]`
    shift: &'a mut [f32],
    /// `[segments, R]`
    sums: &'a mut [f32],
    /// Hidden states over their sums as B of dwte, panels of [R/P, NR].
    scaled: &'a mut [u32],
    /// `[panels, R/NR, MR, NR/P]`: e with cells along the tokens.
    e: &'a mut [u32],
    /// `[segments, R/NR, CHUNK·MR/P, NR]`: e of one chunk with cells along the words.
    by_word_e: &'a mut [u32],
    /// `[segments, R/NR, C, NR]`: each segment's part of dhiddenᵀ.
    dhidden: &'a mut [f32],
}

/// Fills `losses` and, where asked, the gradients: see `run` in `mod.rs`.
pub fn run<const P: usize>(
    tiling: FusedTiling<P>,
    hidden: &[f32],
    (wte, packed_wte): (&[f32], &[f32]),
    targets: &[u32],
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    scratch: &mut [f32],
) {
    let (width, block) = (tiling.sizes.width, tiling.block());
    let packed_wte = bytemuck::cast_slice(packed_wte);
    let blocks = hidden.chunks(block * width).zip(targets.chunks(block)).zip(losses.chunks_mut(block));
    for (i, ((hidden, targets), losses)) in blocks.enumerate() {
        let mut s = tiling.cut(scratch);
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
        segments(tiling, rows.div_ceil(NR), packed_wte, wanted, &mut s);
        let sums = add_up(s.sums, block, losses);
        let Some(Gradients { weight, dhidden, dwte }) = &mut gradients else { continue };

        let scale = sums;
        scale[..rows].iter_mut().for_each(|sum| *sum = *weight / *sum);
        let dhidden = &mut dhidden[i * block * width..][..rows * width];
        gather::<P>(block, wte, targets, s.dhidden, Some(scale), *weight, dhidden);
        let Some(dwte) = dwte else { continue };
        let padded = rows.next_multiple_of(NR);
        let scaled = &mut s.scaled_f32[..padded * width];
        scaled[rows * width..].fill(0.0);
        for ((scaled, hidden), scale) in scaled.chunks_exact_mut(width).zip(hidden.chunks_exact(width)).zip(scale) {
            scaled.iter_mut().zip(hidden).for_each(|(s, h)| *s = h * *scale);
        }
        let packed = &mut s.scaled[..packed_len::<P, NR>(width, padded)];
        pack::<P, NR>(Mat::new(scaled, padded, width).t(), packed);
        spread::<P>(width, block / NR, padded, s.e, packed, dwte);
    }
    if let Some(Gradients { weight, dwte: Some(dwte), .. }) = gradients {
        embedding::scatter(targets, hidden, -weight, dwte);
    }
}

/// Results that are to come out of the segments.
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
fn segments<const P: usize>(
    tiling: FusedTiling<P>,
    tiles: usize,
    packed_wte: &[u32],
    wanted: Wanted,
    s: &mut Scratch<'_>,
) {
    let FusedTiling { sizes, .. } = tiling;
    let (block, depth, panels) = (tiling.block(), cells::<P>(sizes.width), sizes.segment_panels());
    let (by_word, by_channel) = packed_wte.split_at(sizes.by_word::<P>());
    let by_word = &by_word[..packed_len::<P, MR>(sizes.vocab_size, sizes.width)];
    let tokens = Tokens { sizes, tiles, hidden: s.hidden, shift: s.shift.as_chunks::<NR>().0 };
    let segments = by_word.par_chunks(panels * MR * depth).zip(s.sums.par_chunks_mut(block)).enumerate();
    if wanted == Wanted::Losses {
        segments.with_max_len(1).for_each(|(segment, (words, sums))| {
            sums.fill(0.0);
            for (chunk, words) in words.chunks(CHUNK * MR * depth).enumerate() {
                tokens.pass_by::<P>(segment * panels + chunk * CHUNK, words, sums, |_, _, tile| sum_tile::<P>(tile));
            }
        });
        return;
    }
    let (panel_e, chunk_cells) = (block / NR * e_tile::<P>(), CHUNK * MR / P);
    let outputs = s.e.par_chunks_mut(panels * panel_e).zip(s.by_word_e.par_chunks_mut(chunk_cells * block));
    let outputs = outputs.zip(s.dhidden.par_chunks_mut(sizes.width * block));
    segments.zip(outputs).with_max_len(1).for_each(|((segment, (words, sums)), ((e, by_word_e), dhidden))| {
        sums.fill(0.0);
        for (chunk, words) in words.chunks(CHUNK * MR * depth).enumerate() {
            let chunk_panel = segment * panels + chunk * CHUNK;
            tokens.pass_by::<P>(chunk_panel, words, sums, |i, j, tile| {
                let words = &mut by_word_e[(j * chunk_cells + i * MR / P) * NR..][..e_tile::<P>()];
                // Where nobody will read e, every tile goes to one place, which stays in cache.
                let own = (chunk * CHUNK + i) * panel_e + j * e_tile::<P>();
                let tokens = if wanted == Wanted::All { own } else { 0 };
                exp_tile::<P>(tile, words, &mut e[tokens..][..e_tile::<P>()]);
            });
            let accumulate = if chunk == 0 { Accumulate::Set } else { Accumulate::Add };
            add_chunk::<P>(sizes, tiles, chunk_panel, by_channel, by_word_e, dhidden, accumulate);
        }
    });
}

/// A block's tokens, as the words see them.
struct Tokens<'a> {
    sizes: Sizes,
    /// Panels of tokens that hold any.
    tiles: usize,
    hidden: &'a [u32],
    shift: &'a [[f32; NR]],
}

impl Tokens<'_> {
    /// Gives `work` each tile of a chunk of words, which begins with panel `chunk_panel`, with the panel's number in the chunk and
    /// the tokens'.
    #[inline(always)]
    fn pass_by<const P: usize>(
        &self,
        chunk_panel: usize,
        words: &[u32],
        sums: &mut [f32],
        mut work: impl FnMut(usize, usize, ExpTile<'_>),
    ) {
        let depth = cells::<P>(self.sizes.width);
        let tokens = self.hidden.chunks_exact(NR * depth).zip(self.shift).zip(sums.as_chunks_mut::<NR>().0);
        // A panel of tokens stays in the first-level cache while the words pass by.
        for (j, ((b, shift), sums)) in tokens.take(self.tiles).enumerate() {
            for (i, a) in words.chunks_exact(MR * depth).enumerate() {
                let words = MR.min(self.sizes.vocab_size - (chunk_panel + i) * MR);
                work(i, j, ExpTile { a, b, words, shift, sums });
            }
        }
    }
}
