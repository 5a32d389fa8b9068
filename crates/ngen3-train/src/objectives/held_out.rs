//! Validation loss from the losses of held-out tokens, in nats per token and in bits per byte of text.
//!
//! Nats per token depend on the vocabulary: longer tokens are fewer, and harder to predict. Bits per byte do not: the mean loss of
//! the tokens that stand for text, times the number of these per byte in all of the held-out text, whatever part of it an
//! evaluation reads. Special tokens, which stand for no text, are left out, as in `ngen3 eval`.

use std::f64::consts::LN_2;

use ngen3_cluster::{World, sums};
use ngen3_data::Tokenizer;
use ngen3_data::tokenizer::{ByteCounter, TextSize};
use ngen3_engine::{Batch, IGNORE, Trainer};

use crate::Error;
use crate::objective::{Evaluation, ValLoss};

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

/// Losses of an evaluation, summed over this rank's batches.
#[derive(Debug, Default)]
pub(crate) struct ValSums {
    /// Mean losses of the batches, times their weights.
    loss: f64,
    /// Weights of the batches.
    weight: f64,
    /// Nats of the tokens that stand for text.
    nats: f64,
    /// Number of these.
    tokens: f64,
    /// Ranks that were stopped.
    stopped: f64,
}

impl ValSums {
    /// Adds the losses of a batch, whose mean counts with this weight.
    ///
    /// # Errors
    /// As [`ngen3_engine::Model::loss`].
    pub fn add(
        &mut self,
        trainer: &mut dyn Trainer,
        batch: &Batch,
        weight: f64,
        text: Option<&HeldOutText>,
    ) -> Result<(), Error> {
        let losses = trainer.losses(batch)?;
        if let Some(HeldOutText { counter, .. }) = text {
            let of_text = |&(_, &target): &(&f32, &u32)| target != IGNORE && counter.is_text(target);
            for (&loss, _) in losses.iter().zip(&batch.targets).filter(of_text) {
                self.nats += f64::from(loss);
                self.tokens += 1.0;
            }
        }
        self.loss += f64::from(batch.mean(&losses)?) * weight;
        self.weight += weight;
        Ok(())
    }

    /// Notes that this rank was stopped before the end of its batches.
    pub fn stop(&mut self) {
        self.stopped = 1.0;
    }

    /// Returns the validation loss over the batches of all ranks.
    pub fn evaluation(&self, world: &dyn World, text: Option<&HeldOutText>) -> Evaluation {
        let mut all = [self.loss, self.weight, self.nats, self.tokens, self.stopped];
        sums::sum(world, &mut all);
        let [loss, weight, nats, tokens, stopped] = all;
        if stopped > 0.0 {
            return Evaluation::Stopped;
        }
        if weight == 0.0 {
            return Evaluation::NothingHeldOut;
        }
        let size = text.map(|text| text.size).filter(|size| size.bytes > 0 && tokens > 0.0);
        let bits = |size: TextSize| {
            let nats_per_byte = nats / tokens * (size.tokens as f64 / size.bytes as f64);
            (nats_per_byte / LN_2) as f32
        };
        Evaluation::Loss(ValLoss { nats: (loss / weight) as f32, bits_per_byte: size.map(bits) })
    }
}
