//! Inputs of a student's loss besides the targets.

use ngen3_engine::{Divergence, Quant};

/// A teacher's output for the tokens of a loss.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// All of it, by its final projection.
    Head {
        /// `[tokens, width]` of the teacher's own width: the output of its `ln_f`.
        hidden: &'a [f32],
        /// `[vocab_size, width]`
        wte: &'a [f32],
        /// Precision that both are rounded to for their product.
        quant: Quant,
    },
    /// Its most likely tokens at the student's temperature; all others are one lump.
    TopK {
        /// Tokens of each position.
        k: usize,
        /// `[tokens, k]`
        ids: &'a [u32],
        /// `[tokens, k]`: logarithms of their tempered probabilities among the whole vocabulary.
        log_probs: &'a [f32],
    },
}

/// The teacher's part in what a student learns: the loss is α·T²·D + (1 − α)·cross entropy.
#[derive(Clone, Copy, Debug)]
pub struct Distill<'a> {
    /// Whose probabilities it learns.
    pub teacher: Teacher<'a>,
    /// T, by which both models' logits are divided.
    pub temperature: f32,
    /// α
    pub alpha: f32,
    /// D
    pub divergence: Divergence,
}
