//! Fused loss in f32 on any processor.
//!
//! Within a block, the logits are replaced by e = exp(logit − max). With s = Σ e, the gradient of a logit is e/s, minus 1 at
//! the target. The division by s is applied not to tokens × vocabulary elements but to the rows of the two products, which have
//! `width` elements.

use rayon::prelude::*;

use super::gradients::Gradients;
use crate::gemm::{Accumulate, Mat, MatMut, Threads, matmul_f32};
use ngen3_simd::{exp_and_sum, max, simd};

/// Bytes of logits per block, which should stay in the last-level cache together with a part of `wte`.
const BLOCK_BYTES: usize = 24 << 20;

/// Largest number of tokens per block.
const MAX_BLOCK: usize = 1024;

/// Number of tokens per block.
fn block_tokens(tokens: usize, vocab_size: usize) -> usize {
    (BLOCK_BYTES / 4 / vocab_size).clamp(16, MAX_BLOCK).min(tokens)
}

/// Length in f32 of the scratch memory of [`run`].
pub fn scratch(tokens: usize, width: usize, vocab_size: usize) -> usize {
    block_tokens(tokens, vocab_size) * (vocab_size + width)
}

/// Fills `losses` and, if requested, the gradients: see `run` in `mod.rs`.
pub fn run(
    hidden: &[f32],
    wte: &[f32],
    targets: &[u32],
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    scratch: &mut [f32],
) {
    let width = hidden.len() / targets.len();
    let vocab_size = wte.len() / width;
    let block = block_tokens(targets.len(), vocab_size);
    let (logits, scaled) = scratch.split_at_mut(block * vocab_size);
    let blocks = hidden.chunks(block * width).zip(targets.chunks(block)).zip(losses.chunks_mut(block));
    for (i, ((hidden, targets), losses)) in blocks.enumerate() {
        let rows = targets.len();
        let logits = &mut logits[..rows * vocab_size];
        project(hidden, wte, rows, logits);
        let sums = &mut [0.0; MAX_BLOCK][..rows];
        logits
            .par_chunks_exact_mut(vocab_size)
            .zip(targets)
            .zip(losses.par_iter_mut().zip(sums.par_iter_mut()))
            .for_each(|((logits, &target), (loss, sum))| (*loss, *sum) = softmax(logits, target));
        let Some(Gradients { weight, dhidden, dwte }) = &mut gradients else { continue };

        let exps = Mat::new(logits, rows, vocab_size);
        let dhidden = &mut dhidden[i * block * width..][..rows * width];
        let view = MatMut::new(dhidden, rows, width);
        matmul_f32(view, Accumulate::Set, exps, Mat::new(wte, vocab_size, width), Threads::All);
        for (dhidden, sum) in dhidden.chunks_exact_mut(width).zip(&*sums) {
            dhidden.iter_mut().for_each(|d| *d *= *weight / *sum);
        }
        let Some(dwte) = dwte else { continue };
        let scaled = &mut scaled[..rows * width];
        for ((scaled, hidden), sum) in scaled.chunks_exact_mut(width).zip(hidden.chunks_exact(width)).zip(&*sums) {
            scaled.iter_mut().zip(hidden).for_each(|(s, h)| *s = h * (*weight / *sum));
        }
        let scaled = Mat::new(scaled, rows, width);
        matmul_f32(MatMut::new(dwte, vocab_size, width), Accumulate::Add, exps.t(), scaled, Threads::All);
    }
}

/// Computes `logits = hidden·wteᵀ`, `[rows, vocab_size]`.
fn project(hidden: &[f32], wte: &[f32], rows: usize, logits: &mut [f32]) {
    let (width, vocab_size) = (hidden.len() / rows, logits.len() / rows);
    let (hidden, wte) = (Mat::new(hidden, rows, width), Mat::new(wte, vocab_size, width));
    matmul_f32(MatMut::new(logits, rows, vocab_size), Accumulate::Set, hidden, wte.t(), Threads::All);
}

/// Replaces one token's logits by exp(logit − max), minus their sum at the target. Returns the loss and the sum.
fn softmax(logits: &mut [f32], target: u32) -> (f32, f32) {
    let target = target as usize;
    simd(
        #[inline(always)]
        || {
            let largest = max(logits);
            let above = largest - logits[target];
            let sum = exp_and_sum(logits, 1.0, largest);
            logits[target] -= sum;
            (sum.ln() + above, sum)
        },
    )
}
