//! Sums of blocks of the embeddings and the hidden states, packed as the products read them.

use bytemuck::cast_slice_mut;
use rayon::prelude::*;

use super::tiling::{CHUNK, PART, StrassenTiling};
use crate::gemm::Mat;
use crate::gemm::tiles::kernel::{MR, NR};
use crate::gemm::tiles::pack::panels;
use crate::gemm::tiles::strassen::{CHANNELS, HIDDEN, WORDS};
use crate::gemm::tiles::with_workspace;
use ngen3_simd::simd;

/// Packs the sums of the embeddings: for each chunk the operands of all products by word ([`StrassenTiling::by_word`]), then for
/// each chunk those by channel.
pub fn pack_wte(tiling: StrassenTiling, wte: &[f32], packed: &mut [f32]) {
    let StrassenTiling { width, half, .. } = tiling;
    let (by_word, by_channel) = packed.split_at_mut(tiling.chunks * tiling.by_word());
    let chunks =
        by_word.par_chunks_exact_mut(tiling.by_word()).zip(by_channel.par_chunks_exact_mut(tiling.by_channel()));
    chunks.zip(wte.par_chunks(CHUNK * width)).for_each(|((by_word, by_channel), wte)| {
        let by_word = by_word.chunks_exact_mut(PART * half);
        let by_channel = by_channel.chunks_exact_mut(PART * tiling.channels());
        with_workspace(PART * half, |sums| {
            for (weights, (by_word, by_channel)) in WORDS.iter().zip(by_word.zip(by_channel)) {
                let [first, second] = [[weights[0], weights[1]], [weights[2], weights[3]]];
                add_up::<MR>(wte, width, [first, second], sums);
                let sums = Mat::new(sums, PART, half);
                panels::<1, MR>(sums, 0, cast_slice_mut(by_word));
                panels::<1, CHANNELS>(sums.t(), 0, cast_slice_mut(by_channel));
            }
        });
    });
}

/// Packs the sums of `pairs` pairs of tiles of hidden states, in the layouts of [`super::tiling::Scratch`].
pub fn pack_hidden(tiling: StrassenTiling, pairs: usize, hidden: &[f32], by_channel: &mut [f32], by_token: &mut [f32]) {
    let StrassenTiling { width, half, .. } = tiling;
    let rows = pairs * NR;
    let by_channel = by_channel.par_chunks_exact_mut(half * tiling.block() / 2);
    let by_token = by_token.par_chunks_exact_mut(tiling.columns() * NR * tiling.block() / 2);
    HIDDEN.par_iter().zip(by_channel.zip(by_token)).with_max_len(1).for_each(|(weights, (by_channel, by_token))| {
        with_workspace(rows * half, |sums| {
            let [first, second] = [[weights[0], weights[2]], [weights[1], weights[3]]];
            add_up::<NR>(hidden, width, [first, second], sums);
            let sums = Mat::new(sums, rows, half);
            panels::<1, NR>(sums, 0, cast_slice_mut(&mut by_channel[..rows * half]));
            for (n, panel) in by_token.chunks_exact_mut(tiling.block() / 2 * NR).enumerate() {
                let channels = sums.columns(n * NR..((n + 1) * NR).min(half));
                panels::<1, NR>(channels.t(), 0, cast_slice_mut(&mut panel[..rows * NR]));
            }
        });
    });
}

/// Fills `sums`, `[rows, half]`, with weighted sums of the four blocks of `source`, `[sources, width]`. The parts of the rows
/// alternate in groups of `R`; the parts of the channels are the halves. `weights` is indexed by the part of the rows, then of
/// the channels. Rows and channels past the end of `source` count as 0.
fn add_up<const R: usize>(source: &[f32], width: usize, weights: [[i8; 2]; 2], sums: &mut [f32]) {
    let half = width.div_ceil(2);
    simd(
        #[inline(always)]
        || {
            for (i, sums) in sums.chunks_exact_mut(half).enumerate() {
                sums.fill(0.0);
                for (part, weights) in weights.iter().enumerate() {
                    let row = (2 * (i / R) + part) * R + i % R;
                    if let Some(row) = source.chunks_exact(width).nth(row) {
                        let (first, second) = row.split_at(half);
                        add(weights[0], first, sums);
                        add(weights[1], second, sums);
                    }
                }
            }
        },
    );
}

/// Accumulates `to += weight·from` for a weight of −1, 0 or 1, over the length of `from`.
#[inline(always)]
pub fn add(weight: i8, from: &[f32], to: &mut [f32]) {
    match weight {
        0 => {}
        1 => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to -= from),
    }
}
