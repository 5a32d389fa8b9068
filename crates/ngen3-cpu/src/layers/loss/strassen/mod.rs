//! Fused loss with gradients in f32 on our own kernels: three products with 7/8 of their multiplications.
//!
//! Computes the same as `fused.rs`, but from sums of blocks: see [`crate::gemm::tiles::strassen`]. Losses without gradients use
//! `fused.rs`, where no token is mixed with another. Blocks of R tokens go through one at a time. Words are cut into segments,
//! one task each, and segments into chunks whose tiles stay in cache:
//!
//! ```text
//! each segment:   e = 2^(wte·(log₂e·hidden)ᵀ − shift),  sum += Σ e
//! then each:      p = e/sum;  dhiddenᵀ += wteᵀ·p,  dwte += p·hidden
//! ```
//!
//! Unlike in `fused.rs`, e is divided by its token's sum before the backward products, since tokens are added to each other: one
//! token's exponentials may be a million times another's, its probabilities are not. So both products wait for all words.
//!
//! `tiling.rs` has the sizes and buffers, `sums.rs` the sums of blocks of the embeddings and the hidden states.

mod sums;
mod tiling;

use std::f32::consts::{LN_2, LOG2_E};

use rayon::prelude::*;

use super::gradients::Gradients;
use super::tiling::{Sizes, add_up, gather, shifts};
use crate::gemm::Accumulate;
use crate::gemm::tiles::kernel::{MR, NR, TILE};
use crate::gemm::tiles::strassen::{
    Ahead, CHANNELS, HIDDEN, Logits, PRODUCTS, Place, QUAD, WORDS, exponentials, mix, product, product_onto,
};
use crate::gemm::tiles::with_workspace;
use crate::layers::embedding::{self, Table};
use ngen3_simd::simd;
use tiling::{CHUNK, PAIRS, PART, StrassenTiling, TOKENS, by_pair};

/// Length in f32 of the packed embeddings.
pub fn packed_wte(sizes: Sizes) -> usize {
    let tiling = StrassenTiling::new(sizes);
    tiling.chunks * (tiling.by_word() + tiling.by_channel())
}

/// Length in f32 of the scratch memory of [`run`].
pub fn scratch(sizes: Sizes) -> usize {
    StrassenTiling::new(sizes).scratch()
}

/// Packs the embeddings for the logits and for dhidden.
pub fn pack_wte(sizes: Sizes, wte: &[f32], packed: &mut [f32]) {
    sums::pack_wte(StrassenTiling::new(sizes), wte, packed);
}

/// Fills `losses` and the gradients: see `run` in `mod.rs`.
pub fn run(
    sizes: Sizes,
    hidden: &[f32],
    (wte, packed_wte): (Table<'_>, &[f32]),
    targets: &[u32],
    losses: &mut [f32],
    mut gradients: Gradients<'_>,
    scratch: &mut [f32],
) {
    let tiling = StrassenTiling::new(sizes);
    let (width, block) = (tiling.width, tiling.block());
    let (by_word, by_channel) = packed_wte.split_at(tiling.chunks * tiling.by_word());
    let blocks = hidden.chunks(block * width).zip(targets.chunks(block)).zip(losses.chunks_mut(block));
    for (i, ((hidden, targets), losses)) in blocks.enumerate() {
        let s = tiling.cut(scratch);
        let rows = targets.len();
        let pairs = rows.div_ceil(TOKENS);
        let in_bits = &mut s.hidden[..rows * width];
        in_bits.iter_mut().zip(hidden).for_each(|(to, h)| *to = h * LOG2_E);
        shifts::<1>(in_bits, wte, targets, s.shift);
        sums::pack_hidden(tiling, pairs, in_bits, s.by_channel, s.by_token);

        let (hidden, shift) = (&*s.by_channel, &by_pair(s.shift)[..pairs]);
        let segments = by_word.par_chunks(tiling.segment_chunks * tiling.by_word());
        let segments = segments.zip(s.e.par_chunks_mut(tiling.segment_chunks * tiling.e()));
        let segments = segments.zip(s.sums.par_chunks_mut(block)).enumerate().with_max_len(1);
        segments.for_each(|(i, ((words, e), sums))| {
            forward(tiling, i * tiling.segment_chunks * CHUNK, words, hidden, shift, sums, e);
        });
        let sums = add_up(s.sums, block, losses);

        let Gradients { weight, dhidden, dwte } = &mut gradients;
        let weight = *weight;
        // Factors that turn exponentials into gradients; 0 past the last token.
        let scale = sums;
        scale[..rows].iter_mut().for_each(|sum| *sum = weight / *sum);
        scale[rows..].fill(0.0);
        let (hidden, scale) = (&*s.by_token, &by_pair(scale)[..pairs]);
        let segments = by_channel.par_chunks(tiling.segment_chunks * tiling.by_channel());
        let segments = segments.zip(s.e.par_chunks(tiling.segment_chunks * tiling.e()));
        let segments = segments.zip(s.dhidden.par_chunks_mut(width * block));
        match dwte {
            None => segments.with_max_len(1).for_each(|((channels, e), dhidden)| {
                backward(tiling, channels, hidden, scale, e, dhidden, None);
            }),
            Some(dwte) => {
                let segments = segments.zip(dwte.par_chunks_mut(tiling.segment_chunks * CHUNK * width));
                segments.with_max_len(1).for_each(|(((channels, e), dhidden), dwte)| {
                    backward(tiling, channels, hidden, scale, e, dhidden, Some(dwte));
                });
            }
        }
        let dhidden = &mut dhidden[i * block * width..][..rows * width];
        gather::<1>(block, wte, targets, s.dhidden, None, weight, dhidden);
    }
    if let Gradients { weight, dwte: Some(dwte), .. } = gradients {
        embedding::scatter(targets, hidden, -weight, dwte);
    }
}

/// Computes one segment's e and its share of each token's sum. Its words start at `first_word`.
fn forward(
    tiling: StrassenTiling,
    first_word: usize,
    words: &[f32],
    hidden: &[f32],
    shift: &[[[f32; NR]; 2]],
    sums: &mut [f32],
    e: &mut [f32],
) {
    let StrassenTiling { half, vocab_size, .. } = tiling;
    sums.fill(0.0);
    let sums = sums.as_chunks_mut::<NR>().0.as_chunks_mut::<2>().0;
    with_workspace(PRODUCTS * StrassenTiling::logits(), |logits| {
        for (chunk, words) in words.chunks_exact(tiling.by_word()).enumerate() {
            let first_word = first_word + chunk * CHUNK;
            for (j, (shift, sums)) in shift.iter().zip(sums.iter_mut()).enumerate() {
                // A product's tile of hidden states stays in the L1 cache while its words stream through.
                let products = words.chunks_exact(PART * half).zip(logits.chunks_exact_mut(StrassenTiling::logits()));
                for (m, (words, logits)) in products.enumerate() {
                    let b = &hidden[(m * tiling.pairs + j) * half * NR..][..half * NR];
                    for (a, c) in words.chunks_exact(half * MR).zip(logits.chunks_exact_mut(TILE)) {
                        product::<MR>(a, b, c, Accumulate::Set);
                    }
                }
                for pair in 0..PAIRS {
                    let words = |part| vocab_size.saturating_sub(first_word + (2 * pair + part) * MR).min(MR);
                    let out = &mut e[chunk * tiling.e() + (j * PAIRS + pair) * QUAD..][..QUAD];
                    let logits = Logits {
                        products: &logits[pair * TILE..],
                        stride: StrassenTiling::logits(),
                        words: [words(0), words(1)],
                        shift,
                        sums,
                    };
                    exponentials(logits, out);
                }
            }
        }
    });
}

/// Overwrites one segment's share of dhiddenᵀ, `[R/NR, C, NR]`, and accumulates its words of dwte.
fn backward(
    tiling: StrassenTiling,
    channels: &[f32],
    hidden: &[f32],
    scale: &[[[f32; NR]; 2]],
    e: &[f32],
    dhidden: &mut [f32],
    mut dwte: Option<&mut [f32]>,
) {
    with_workspace(PRODUCTS * (tiling.mixed_e() + tiling.dhidden()), |workspace| {
        let (p, products) = workspace.split_at_mut(PRODUCTS * tiling.mixed_e());
        for (chunk, channels) in channels.chunks_exact(tiling.by_channel()).enumerate() {
            let (e, soon) = e[chunk * tiling.e()..].split_at(tiling.e());
            let soon = &soon[..soon.len().min(tiling.e())];
            let mut soon = Ahead::new(soon, PRODUCTS * scale.len() * tiling.channels() / CHANNELS);
            for (quad, e) in e.chunks_exact(QUAD).enumerate().take(scale.len() * PAIRS) {
                mix(e, &scale[quad / PAIRS], &mut p[quad * TILE..], tiling.mixed_e());
            }
            let accumulate = if chunk == 0 { Accumulate::Set } else { Accumulate::Add };
            let channels = channels.chunks_exact(PART * tiling.channels());
            let products = products.chunks_exact_mut(tiling.dhidden()).zip(p.chunks_exact(tiling.mixed_e()));
            for (m, (channels, (dhidden, p))) in channels.zip(products).enumerate() {
                let pairs = p.chunks_exact(PART * NR).zip(dhidden.chunks_exact_mut(tiling.channels() * NR));
                for (b, dhidden) in pairs.take(scale.len()) {
                    for (a, c) in channels.chunks_exact(PART * CHANNELS).zip(dhidden.chunks_exact_mut(CHANNELS * NR)) {
                        soon.ask();
                        product::<CHANNELS>(a, b, c, accumulate);
                    }
                }
                if let Some(dwte) = &mut dwte {
                    add_to_dwte(tiling, chunk * CHUNK, m, p, hidden, scale.len() * NR, dwte);
                }
            }
        }
        settle(tiling, scale.len(), products, dhidden);
    });
}

/// Adds product `m` of one chunk to dwte. The chunk's words start at `first_word` of `dwte`.
fn add_to_dwte(
    tiling: StrassenTiling,
    first_word: usize,
    m: usize,
    p: &[f32],
    hidden: &[f32],
    depth: usize,
    dwte: &mut [f32],
) {
    let StrassenTiling { width, half, .. } = tiling;
    let words = dwte.len() / width;
    for n in 0..tiling.columns() {
        // Stays in the L1 cache while the words stream through.
        let b = &hidden[(m * tiling.columns() + n) * NR * tiling.block() / 2..][..depth * NR];
        for pair in 0..PAIRS {
            let mut places = [Place::default(); 2];
            let blocks = WORDS[m].iter().enumerate().filter(|(_, weight)| **weight != 0);
            for (place, (block, &weight)) in places.iter_mut().zip(blocks) {
                let (part, second) = (block / 2, block % 2 == 1);
                let (row, col) = (first_word + (2 * pair + part) * MR, n * NR + if second { half } else { 0 });
                let end = if second { width } else { half };
                if row < words && col < end {
                    // Undoes the factor log₂e of the hidden states.
                    let weight = f32::from(weight) * LN_2;
                    *place =
                        Place { at: row * width + col, rows: MR.min(words - row), cols: NR.min(end - col), weight };
                }
            }
            product_onto(&p[pair * TILE..], PART * NR, b, dwte, width, &places);
        }
    }
}

/// Combines the seven products into dhiddenᵀ.
fn settle(tiling: StrassenTiling, pairs: usize, products: &[f32], dhidden: &mut [f32]) {
    simd(
        #[inline(always)]
        || {
            for (tile, dhidden) in dhidden.chunks_exact_mut(tiling.width * NR).enumerate().take(2 * pairs) {
                for (c, dhidden) in dhidden.chunks_exact_mut(NR).enumerate() {
                    let (part, channel) = (c / tiling.half, c % tiling.half);
                    dhidden.fill(0.0);
                    for (weights, product) in HIDDEN.iter().zip(products.chunks_exact(tiling.dhidden())) {
                        let from = &product[(tile / 2 * tiling.channels() + channel) * NR..][..NR];
                        sums::add(weights[2 * part + tile % 2], from, dhidden);
                    }
                }
            }
        },
    );
}
