//! Distillation (Hinton et al. 2015): a student learns from the data and from a teacher's probabilities.

use ngen3_model::Config;
use serde::{Deserialize, Serialize};

use crate::batch::check_tokens;
use crate::{Batch, Error};

/// How far apart a teacher's p and a student's q are, both tempered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// KL(p ‖ q): the student covers what the teacher might say (Hinton et al. 2015).
    #[default]
    ForwardKl,
    /// KL(q ‖ p): the student says only what the teacher would (Gu et al. 2024, MiniLLM).
    ReverseKl,
    /// KL(p ‖ m)/2 + KL(q ‖ m)/2 with m = (p + q)/2 (Agarwal et al. 2024, GKD, β = 1/2).
    JensenShannon,
}

impl std::str::FromStr for Divergence {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "forward_kl" => Ok(Self::ForwardKl),
            "reverse_kl" => Ok(Self::ReverseKl),
            "jensen_shannon" => Ok(Self::JensenShannon),
            _ => Err("there are forward_kl, reverse_kl and jensen_shannon".into()),
        }
    }
}

/// How a student learns from its teacher: the loss is α·T²·D + (1 − α)·cross entropy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillConfig {
    /// T, by which both models' logits are divided.
    pub temperature: f32,
    /// α, the teacher's share of the loss.
    pub alpha: f32,
    /// D; of a teacher's k most likely tokens only the forward one is defined.
    pub divergence: Divergence,
}

/// The k most likely tokens after each position (all others are one lump, which counts for nothing where the teacher gives it less
/// than 1e-6), and the logarithms of their tempered probabilities among the whole vocabulary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopK {
    /// Tokens of each position.
    pub k: usize,
    /// `[tokens, k]`, the most likely first.
    pub ids: Vec<u32>,
    /// `[tokens, k]`, each at most 0.
    pub log_probs: Vec<f32>,
}

impl DistillConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Input`] naming the one that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        check_temperature(self.temperature)?;
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(Error::Input(format!("alpha is {}; it must be between 0 and 1", self.alpha)));
        }
        Ok(())
    }
}

/// Checks that logits can be divided by it.
///
/// # Errors
/// [`Error::Input`] when they cannot.
pub fn check_temperature(temperature: f32) -> Result<(), Error> {
    if temperature > 0.0 && temperature.is_finite() {
        return Ok(());
    }
    Err(Error::Input(format!("temperature is {temperature}; it must be a number above 0")))
}

impl TopK {
    /// Checks that a student of this shape can learn from these tokens with this divergence.
    ///
    /// # Errors
    /// [`Error::Input`] unless there are k of each position of the batch, all in the vocabulary, and the divergence is forward.
    pub fn check(&self, divergence: Divergence, batch: &Batch, config: &Config) -> Result<(), Error> {
        let Self { k, ids, log_probs } = self;
        let tokens = batch.inputs.len();
        if divergence != Divergence::ForwardKl {
            return Err(Error::Input("of a teacher's likeliest tokens only forward_kl is defined".into()));
        }
        let expected = tokens.saturating_mul(*k);
        if *k == 0 || *k >= config.vocab_size || ids.len() != expected || log_probs.len() != expected {
            let found = ids.len();
            return Err(Error::Input(format!("{found} of a teacher's likeliest tokens, {k} of each of {tokens}")));
        }
        check_tokens(ids, config)
    }
}

/// The two parts of a distillation's loss, each the mean over the targets that count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillLoss {
    /// Plain cross entropy, in nats.
    pub cross_entropy: f32,
    /// T²·D; 0 where α is 0, since nothing is learned from it.
    pub divergence: f32,
}
