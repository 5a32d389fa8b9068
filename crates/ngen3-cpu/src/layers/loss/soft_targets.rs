//! Inputs of the distillation loss besides the targets.

use ngen3_engine::{Divergence, Quant};

/// Teacher output for the tokens of a loss.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// Full distribution, given by the teacher's final projection.
    Head {
        /// `[tokens, width]`, with the teacher's width: the output of its `ln_f`.
        hidden: &'a [f32],
        /// `[vocab_size, width]`
        wte: &'a [f32],
        /// Rounding of both operands of their product.
        quant: Quant,
    },
    /// The k most likely tokens at the student's temperature; the probability of all others is lumped into one.
    TopK {
        /// Number of tokens per position.
        k: usize,
        /// `[tokens, k]`
        ids: &'a [u32],
        /// `[tokens, k]`: log-probabilities at the temperature, normalised over the whole vocabulary.
        log_probs: &'a [f32],
    },
}

/// Distillation loss α·T²·D + (1 − α)·cross-entropy, and the teacher's output.
#[derive(Clone, Copy, Debug)]
pub struct Distill<'a> {
    /// The teacher's output.
    pub teacher: Teacher<'a>,
    /// Temperature T: the logits of both models are divided by it.
    pub temperature: f32,
    /// Weight α of the divergence.
    pub alpha: f32,
    /// Divergence D.
    pub divergence: Divergence,
}
