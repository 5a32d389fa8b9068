//! Validation loss from the losses of held-out tokens, in nats per token and in bits per byte of text.
//!
//! Nats per token depend on the vocabulary: longer tokens are fewer, and harder to predict. Bits per byte do not: the mean loss of
//! the tokens that stand for text, times the number of these per byte in all of the held-out text, whatever part of it an
//! evaluation reads. Special tokens, which stand for no text, are left out, as in `ngen3 eval`.

use std::f64::consts::LN_2;

use ngen3_data::Tokenizer;
use ngen3_data::tokenizer::{ByteCounter, TextSize};
use ngen3_engine::{Batch, IGNORE, Trainer};

use crate::Error;
use crate::objective::ValLoss;

/// Text of the held-out tokens.
#[derive(Debug)]
pub(crate) struct HeldOutText {
    counter: ByteCounter,
    size: TextSize,
}

impl HeldOutText {
    /// Counts the held-out text of `tokenizer` with `count`.
    pub fn new(tokenizer: &Tokenizer, count: impl FnOnce(&ByteCounter) -> TextSize) -> Self {
        let counter = tokenizer.byte_counter();
        Self { size: count(&counter), counter }
    }
}

/// Losses of an evaluation, summed over its batches.
#[derive(Debug, Default)]
pub(crate) struct ValSums {
    /// Nats of the tokens that stand for text.
    nats: f64,
    /// Number of these.
    tokens: u64,
}

impl ValSums {
    /// Returns the mean loss of a batch in nats per token, after adding the losses of its text.
    ///
    /// # Errors
    /// As [`ngen3_engine::Model::loss`].
    pub fn add(&mut self, trainer: &mut dyn Trainer, batch: &Batch, text: Option<&HeldOutText>) -> Result<f32, Error> {
        let losses = trainer.losses(batch)?;
        if let Some(HeldOutText { counter, .. }) = text {
            let of_text = |&(_, &target): &(&f32, &u32)| target != IGNORE && counter.is_text(target);
            for (&loss, _) in losses.iter().zip(&batch.targets).filter(of_text) {
                self.nats += f64::from(loss);
                self.tokens += 1;
            }
        }
        Ok(batch.mean(&losses)?)
    }

    /// Returns the validation loss, given its mean in nats per token.
    pub fn val_loss(&self, nats: f32, text: Option<&HeldOutText>) -> ValLoss {
        let size = text.map(|text| text.size).filter(|size| size.bytes > 0 && self.tokens > 0);
        let bits = |size: TextSize| {
            let nats_per_byte = self.nats / self.tokens as f64 * (size.tokens as f64 / size.bytes as f64);
            (nats_per_byte / LN_2) as f32
        };
        ValLoss { nats, bits_per_byte: size.map(bits) }
    }
}
