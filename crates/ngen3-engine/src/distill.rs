//! Distillation (Hinton et al. 2015): a student is trained on the data and on a teacher's probabilities.

use ngen3_model::Config;
use serde::{Deserialize, Serialize};

use crate::batch::check_tokens;
use crate::{Batch, Error};

/// Divergence D between the teacher's distribution p and the student's q, both softmax(logits/T).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Divergence {
    /// KL(p ‖ q), mode-covering: the student covers every token that the teacher finds likely (Hinton et al. 2015).
    #[default]
    ForwardKl,
    /// KL(q ‖ p), mode-seeking: the student avoids tokens that the teacher finds unlikely (Gu et al. 2024, MiniLLM).
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
            _ => Err("expected forward_kl, reverse_kl or jensen_shannon".into()),
        }
    }
}

/// Settings of distillation. The loss is α·T²·D + (1 − α)·cross entropy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillConfig {
    /// T, which divides the logits of both models.
    pub temperature: f32,
    /// α, the weight of the divergence, between 0 and 1.
    pub alpha: f32,
    /// D. A teacher's [`TopK`] supports only [`Divergence::ForwardKl`].
    pub divergence: Divergence,
}

/// The teacher's k most likely tokens at each position and their log probabilities over the whole vocabulary, ln
/// softmax(logits/T). All other tokens count as one, which adds nothing to the loss where the teacher gives it at most 1e-6.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopK {
    /// Number of tokens per position.
    pub k: usize,
    /// `[tokens, k]`: token ids, most likely first.
    pub ids: Vec<u32>,
    /// `[tokens, k]`: natural logarithms, each at most 0.
    pub log_probs: Vec<f32>,
}

impl DistillConfig {
    /// Checks that temperature and alpha are in range.
    ///
    /// # Errors
    /// [`Error::Input`] naming the one that is not.
    pub fn validate(&self) -> Result<(), Error> {
        check_temperature(self.temperature)?;
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(Error::Input(format!("alpha is {}; it must be between 0 and 1", self.alpha)));
        }
        Ok(())
    }
}

/// Checks that a temperature is finite and above 0.
///
/// # Errors
/// [`Error::Input`] when it is not.
pub fn check_temperature(temperature: f32) -> Result<(), Error> {
    if temperature > 0.0 && temperature.is_finite() {
        return Ok(());
    }
    Err(Error::Input(format!("temperature is {temperature}; it must be a number above 0")))
}

impl TopK {
    /// Checks these tokens against a student's batch and shape, and the divergence.
    ///
    /// # Errors
    /// [`Error::Input`] unless 0 < k < `vocab_size`, there are k tokens for each position of the batch, all in the vocabulary,
    /// and the divergence is [`Divergence::ForwardKl`].
    pub fn check(&self, divergence: Divergence, batch: &Batch, config: &Config) -> Result<(), Error> {
        let Self { k, ids, log_probs } = self;
        let tokens = batch.inputs.len();
        if divergence != Divergence::ForwardKl {
            return Err(Error::Input("a teacher's top-k tokens support only forward_kl".into()));
        }
        let expected = tokens.saturating_mul(*k);
        if *k == 0 || *k >= config.vocab_size || ids.len() != expected || log_probs.len() != expected {
            let (found, vocab_size) = (ids.len(), config.vocab_size);
            return Err(Error::Input(format!(
                "expected {tokens} × k teacher tokens, k from 1 to {vocab_size} − 1, got {found} with k = {k}"
            )));
        }
        check_tokens(ids, config)
    }
}

/// The two terms of the distillation loss, unweighted, each averaged over the targets that are not ignored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillLoss {
    /// Cross entropy, in nats per token.
    pub cross_entropy: f32,
    /// T²·D, in nats per token; 0 if α is 0, when it is not computed.
    pub divergence: f32,
}
