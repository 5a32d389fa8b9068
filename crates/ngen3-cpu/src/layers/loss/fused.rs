//! Fused loss on our own kernels. In bf16 (P = 2 elements per cell): all three products, without recomputation. In f32 (P = 1):
//! losses only; `strassen/` has f32 gradients.
//!
//! Blocks of R tokens go through one at a time. The logits are computed as [words, tokens] (a word is a vocabulary entry), so
//! that vectors run along the tokens: the sums of 16 tokens are one vector, and e = exp(logit − shift) leaves the registers in
//! the layouts that the two backward products read. Words are cut into [`super::tiling::SEGMENTS`], one task each:
//!
//! ```text
//! for a chunk of the segment:   e = 2^(wte·(log₂e·hidden)ᵀ − shift),  sum += Σ e,  dhiddenᵀ += wteᵀ·e     (e still in cache)
//! after all segments:             dhidden /= sum,  dwte += e·(hidden/sum)
//! ```
//!
//! The shift is the target's logit, so that a token's loss is ln(sum) and e = 1 at the target. The target's term of the
//! gradient is added separately, in f32. This shift needs no pass to find the largest logit, and cannot overflow until the loss
//! reaches 79 nats.

use std::f32::consts::LOG2_E;

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::gradients::{Gradients, Wanted};
use super::tiling::{
    self, CHUNK, E_NUMBERS, PARTIAL, Sizes, add_chunk, add_up, chunk_words, gather, pack_words, shifts, spread,
};
use crate::base::memory::{Carver, padded};
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::softmax::{ExpTile, e_tile, exp_tile, sum_tile};
use crate::gemm::tiles::{cells, pack, packed_len, panels_a};
use crate::gemm::{Accumulate, Mat};
use crate::layers::embedding::{self, Table};

/// Partition of a loss into blocks of tokens and segments of words.
#[derive(Clone, Copy)]
pub struct FusedTiling<const P: usize> {
    sizes: Sizes,
    wanted: Wanted,
}

impl<const P: usize> FusedTiling<P> {
    /// Creates the partition for these results.
    pub fn new(sizes: Sizes, wanted: Wanted) -> Self {
        Self { sizes, wanted }
    }

    fn backward(&self) -> bool {
        self.wanted != Wanted::Losses
    }

    /// Cells of one segment's e.
    fn segment_e(&self) -> usize {
        match self.wanted {
            Wanted::All => self.sizes.segment_panels::<P>() * self.block() / NR * e_tile::<P>(),
            // e is not read later: every tile is written to the same place, which stays in cache.
            Wanted::Losses | Wanted::Dhidden => e_tile::<P>(),
        }
    }

    /// Length in f32 of the packed embeddings: see [`Self::pack_wte`].
    pub fn packed_wte(&self) -> usize {
        if self.backward() { self.sizes.packed_wte::<P>() } else { self.sizes.by_word::<P>() }
    }

    /// Packs the embeddings for the logits and, with gradients, for dhidden.
    pub fn pack_wte(&self, wte: &[f32], packed: &mut [f32]) {
        if self.backward() {
            tiling::pack_wte::<P>(self.sizes, wte, packed);
        } else {
            pack_words::<P>(self.sizes, wte, packed);
        }
    }

    /// Tokens per block, a multiple of [`NR`].
    fn block(&self) -> usize {
        let most = (E_NUMBERS / self.sizes.vocab_size).min(PARTIAL / self.sizes.width);
        (most / NR * NR).clamp(NR, self.sizes.tokens.next_multiple_of(NR))
    }

    /// Length in f32 of the scratch memory of [`run`].
    pub fn scratch(&self) -> usize {
        self.lengths().map(padded).iter().sum()
    }

    fn lengths(&self) -> [usize; 8] {
        let (block, Sizes { width, .. }) = (self.block(), self.sizes);
        let segments = self.sizes.segments::<P>();
        let backward = |length| if self.backward() { length } else { 0 };
        let e = match self.wanted {
            // The last segment may be shorter.
            Wanted::All => self.sizes.panels::<P>() * block / NR * e_tile::<P>(),
            Wanted::Losses | Wanted::Dhidden => segments * self.segment_e(),
        };
        [
            packed_len::<P, NR>(block, width),
            block * width,
            block,
            segments * block,
            backward(packed_len::<P, NR>(width, block)),
            backward(e),
            backward(segments * chunk_words::<P>() / P * block),
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

/// Buffers of one block; the last four are empty without gradients. R tokens, width C.
struct Scratch<'a> {
    /// Hidden states times log₂e, packed as B of the logits: panels of [C/P, NR].
    hidden: &'a mut [u32],
    /// `[R, C]`: values to pack, in f32.
    scaled_f32: &'a mut [f32],
    /// `[R]`
    shift: &'a mut [f32],
    /// `[segments, R]`
    sums: &'a mut [f32],
    /// Hidden states divided by their sums, packed as B of dwte: panels of [R/P, NR].
    scaled: &'a mut [u32],
    /// `[panels, R/NR, height, NR/P]`: e with cells along the tokens; one tile for each segment if the embeddings are frozen. A
    /// panel has `height` words.
    e: &'a mut [u32],
    /// `[segments, R/NR, CHUNK·height/P, NR]`: e of one chunk per segment, with cells along the words.
    by_word_e: &'a mut [u32],
    /// `[segments, R/NR, C, NR]`: each segment's partial sum of dhiddenᵀ.
    dhidden: &'a mut [f32],
}

/// Fills `losses` and, if requested, the gradients: see `run` in `mod.rs`.
pub fn run<const P: usize>(
    tiling: FusedTiling<P>,
    hidden: &[f32],
    (wte, packed_wte): (Table<'_>, &[f32]),
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
        // Scaled by log₂e once, so that 2^ replaces exp and saves a multiplication per logit.
        let in_bits = &mut s.scaled_f32[..rows * width];
        in_bits.iter_mut().zip(hidden).for_each(|(to, h)| *to = h * LOG2_E);
        pack::<P, NR>(Mat::new(in_bits, rows, width), &mut s.hidden[..packed_len::<P, NR>(rows, width)]);
        shifts::<P>(in_bits, wte, targets, s.shift);
        segments(tiling, rows.div_ceil(NR), packed_wte, &mut s);
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

/// Runs all segments over `tiles` panels of tokens, and fills those of `sums`, `dhidden` and `e` that are wanted.
fn segments<const P: usize>(tiling: FusedTiling<P>, tiles: usize, packed_wte: &[u32], s: &mut Scratch<'_>) {
    let FusedTiling { sizes, wanted } = tiling;
    let (block, depth, panels) = (tiling.block(), panels_a::depth::<P>(sizes.width), sizes.segment_panels::<P>());
    let (by_word, by_channel) = packed_wte.split_at(sizes.by_word::<P>());
    let mr = panels_a::height::<P>();
    let by_word = &by_word[..panels_a::packed_len::<P>(sizes.vocab_size, sizes.width)];
    let tokens = Tokens { sizes, tiles, hidden: s.hidden, shift: s.shift.as_chunks::<NR>().0 };
    let segments = by_word.par_chunks(panels * mr * depth).zip(s.sums.par_chunks_mut(block)).enumerate();
    if wanted == Wanted::Losses {
        segments.with_max_len(1).for_each(|(segment, (words, sums))| {
            sums.fill(0.0);
            for (chunk, words) in words.chunks(CHUNK * mr * depth).enumerate() {
                tokens.pass_by::<P>(segment * panels + chunk * CHUNK, words, sums, |_, _, tile| sum_tile::<P>(tile));
            }
        });
        return;
    }
    let (panel_e, chunk_cells) = (block / NR * e_tile::<P>(), CHUNK * mr / P);
    let outputs = s.e.par_chunks_mut(tiling.segment_e()).zip(s.by_word_e.par_chunks_mut(chunk_cells * block));
    let outputs = outputs.zip(s.dhidden.par_chunks_mut(sizes.width * block));
    segments.zip(outputs).with_max_len(1).for_each(|((segment, (words, sums)), ((e, by_word_e), dhidden))| {
        sums.fill(0.0);
        for (chunk, words) in words.chunks(CHUNK * mr * depth).enumerate() {
            let chunk_panel = segment * panels + chunk * CHUNK;
            tokens.pass_by::<P>(chunk_panel, words, sums, |i, j, tile| {
                let words = &mut by_word_e[(j * chunk_cells + i * mr / P) * NR..][..e_tile::<P>()];
                let own = (chunk * CHUNK + i) * panel_e + j * e_tile::<P>();
                let tokens = if wanted == Wanted::All { own } else { 0 };
                exp_tile::<P>(tile, words, &mut e[tokens..][..e_tile::<P>()]);
            });
            let accumulate = if chunk == 0 { Accumulate::Set } else { Accumulate::Add };
            add_chunk::<P>(sizes, tiles, chunk_panel, by_channel, by_word_e, dhidden, accumulate);
        }
    });
}

/// Tokens of a block, as operands of the logits.
struct Tokens<'a> {
    sizes: Sizes,
    /// Number of panels with tokens.
    tiles: usize,
    hidden: &'a [u32],
    shift: &'a [[f32; NR]],
}

impl Tokens<'_> {
    /// Calls `work(i, j, tile)` for each tile of a chunk of words that starts at panel `chunk_panel`: word panel `i` of the
    /// chunk, token panel `j`.
    #[inline(always)]
    fn pass_by<const P: usize>(
        &self,
        chunk_panel: usize,
        words: &[u32],
        sums: &mut [f32],
        mut work: impl FnMut(usize, usize, ExpTile<'_>),
    ) {
        let (mr, depth) = (panels_a::height::<P>(), cells::<P>(self.sizes.width));
        let panel = mr * panels_a::depth::<P>(self.sizes.width);
        let tokens = self.hidden.chunks_exact(NR * depth).zip(self.shift).zip(sums.as_chunks_mut::<NR>().0);
        // A panel of tokens stays in the L1 cache while the words stream through.
        for (j, ((b, shift), sums)) in tokens.take(self.tiles).enumerate() {
            for (i, a) in words.chunks_exact(panel).enumerate() {
                let words = mr.min(self.sizes.vocab_size - (chunk_panel + i) * mr);
                work(i, j, ExpTile { a, b, words, shift, sums });
            }
        }
    }
}
