//! Fused linear cross entropy: the final projection and the mean of −log softmax(hidden·wteᵀ)[target].
//!
//! `hidden`: [tokens, width], after `ln_f`; `wte`: [vocab_size, width]; `targets`: [tokens]; `losses`: [tokens].
//!
//! The logits of all tokens are never formed (at 8,192 tokens they would take 1.6 GB, their gradient as much again): a block
//! of tokens at a time goes through its logits, its softmax and both of its products backward. In the block, logits turn in
//! place into e = exp(logit − max); with s = Σ e the gradient of a logit is e/s, less 1 at the target. The division by s is
//! not done there, on tokens × vocabulary elements, but on the rows of the two products, which are `width` wide.

use rayon::prelude::*;

use super::simd::{exp_and_sum, max, simd};
use crate::gemm::{Into, Mat, MatMut, Threads, matmul};

/// Bytes of logits in one block; they should stay in the last-level cache together with a part of `wte`.
const BLOCK_BYTES: usize = 24 << 20;

/// Tokens in one block at most.
const MAX_BLOCK: usize = 1024;

/// Tokens that go through the loss together.
pub fn block_tokens(tokens: usize, vocab_size: usize) -> usize {
    (BLOCK_BYTES / 4 / vocab_size).clamp(16, MAX_BLOCK).min(tokens)
}

/// Room that [`forward`] and [`forward_backward`] need.
pub fn scratch(tokens: usize, vocab_size: usize) -> usize {
    block_tokens(tokens, vocab_size) * vocab_size
}

/// Fills `losses`.
pub fn forward(hidden: &[f32], wte: &[f32], targets: &[u32], losses: &mut [f32], scratch: &mut [f32]) {
    let width = hidden.len() / targets.len();
    let vocab_size = wte.len() / width;
    let block = block_tokens(targets.len(), vocab_size);
    let blocks = hidden.chunks(block * width).zip(targets.chunks(block)).zip(losses.chunks_mut(block));
    for ((hidden, targets), losses) in blocks {
        let logits = &mut scratch[..targets.len() * vocab_size];
        project(hidden, wte, targets.len(), logits);
        let rows = logits.par_chunks_exact_mut(vocab_size).zip(targets).zip(losses);
        rows.for_each(|((logits, &target), loss)| *loss = softmax(logits, target).0);
    }
}

/// `logits = hidden·wteᵀ`, `[rows, vocab_size]`
fn project(hidden: &[f32], wte: &[f32], rows: usize, logits: &mut [f32]) {
    let (width, vocab_size) = (hidden.len() / rows, logits.len() / rows);
    let (hidden, wte) = (Mat::new(hidden, rows, width), Mat::new(wte, vocab_size, width));
    matmul(MatMut::new(logits, rows, vocab_size), Into::Set, hidden, wte.t(), Threads::All);
}

/// Turns one token's logits in place into exp(logit − max), less their sum at the target; returns the loss and that sum.
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

/// Fills `losses` and `dhidden`: [tokens, width], and adds to `dwte`: [vocab_size, width], the gradients of `weight`·Σ losses.
/// `hidden` is left scaled row by row: its content is spent.
#[expect(clippy::too_many_arguments, reason = "the operands and the results, each of which the caller has at hand")]
pub fn forward_backward(
    hidden: &mut [f32],
    wte: &[f32],
    targets: &[u32],
    weight: f32,
    losses: &mut [f32],
    dhidden: &mut [f32],
    dwte: &mut [f32],
    scratch: &mut [f32],
) {
    let width = hidden.len() / targets.len();
    let vocab_size = wte.len() / width;
    let block = block_tokens(targets.len(), vocab_size);
    let blocks = hidden
        .chunks_mut(block * width)
        .zip(dhidden.chunks_mut(block * width))
        .zip(targets.chunks(block).zip(losses.chunks_mut(block)));
    for ((hidden, dhidden), (targets, losses)) in blocks {
        let rows = targets.len();
        let logits = &mut scratch[..rows * vocab_size];
        project(hidden, wte, rows, logits);
        let sums = &mut [0.0; MAX_BLOCK][..rows];
        logits
            .par_chunks_exact_mut(vocab_size)
            .zip(targets)
            .zip(losses.par_iter_mut().zip(sums.par_iter_mut()))
            .for_each(|((logits, &target), (loss, sum))| (*loss, *sum) = softmax(logits, target));

        let exps = Mat::new(logits, rows, vocab_size);
        matmul(MatMut::new(dhidden, rows, width), Into::Set, exps, Mat::new(wte, vocab_size, width), Threads::All);
        for ((hidden, dhidden), sum) in hidden.chunks_exact_mut(width).zip(dhidden.chunks_exact_mut(width)).zip(sums) {
            for (h, d) in hidden.iter_mut().zip(dhidden) {
                *h *= weight / *sum;
                *d *= weight / *sum;
            }
        }
        let hidden = Mat::new(hidden, rows, width);
        matmul(MatMut::new(dwte, vocab_size, width), Into::Add, exps.t(), hidden, Threads::All);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{check_gradient, random};

    /// The definition, in f64: the mean-free sum of the losses.
    fn reference(hidden: &[f32], wte: &[f32], targets: &[u32]) -> Vec<f64> {
        let width = hidden.len() / targets.len();
        hidden
            .chunks_exact(width)
            .zip(targets)
            .map(|(h, &target)| {
                let logit = |w: &[f32]| h.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
                let logits: Vec<f64> = wte.chunks_exact(width).map(logit).collect();
                logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[target as usize]
            })
            .collect()
    }

    #[test]
    fn losses_and_gradients_match_the_definition() {
        for (tokens, width, vocab_size) in [(5, 12, 97), (1, 3, 2), (1030, 4, 301)] {
            let (hidden, wte) = (random(tokens * width, 1), random(vocab_size * width, 2));
            let targets: Vec<u32> = (0..tokens as u32).map(|t| t * 31 % vocab_size as u32).collect();
            let mut scratch = vec![f32::NAN; scratch(tokens, vocab_size)];
            let mut losses = vec![f32::NAN; tokens];
            forward(&hidden, &wte, &targets, &mut losses, &mut scratch);
            let expected = reference(&hidden, &wte, &targets);
            for (found, expected) in losses.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4, "{found}, not {expected}");
            }

            let weight = 0.5;
            let (mut dhidden, mut dwte) = (vec![f32::NAN; hidden.len()], vec![0.0; wte.len()]);
            let mut again = vec![f32::NAN; tokens];
            forward_backward(
                &mut hidden.clone(),
                &wte,
                &targets,
                weight,
                &mut again,
                &mut dhidden,
                &mut dwte,
                &mut scratch,
            );
            assert_eq!(losses, again);
            if tokens < 100 {
                let loss = |hidden: &[f32], wte: &[f32]| {
                    f64::from(weight) * reference(hidden, wte, &targets).iter().sum::<f64>()
                };
                check_gradient(&hidden, &dhidden, |hidden| loss(hidden, &wte));
                check_gradient(&wte, &dwte, |wte| loss(&hidden, wte));
            }
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let (hidden, wte) = ([300.0, -300.0], [300.0, 0.0, 0.0, 300.0, 1.0, 1.0]);
        let mut losses = [f32::NAN];
        forward(&hidden, &wte, &[1], &mut losses, &mut [0.0; 48]);
        assert!((losses[0] - 180_000.0).abs() < 1.0, "{losses:?}");
    }
}
