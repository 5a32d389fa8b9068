//! Computation as the loops see it: a [`Model`] gives losses and decodes, a [`Trainer`] learns, a [`Distiller`] learns from a
//! [`Teacher`].
//!
//! A training step is [`Trainer::forward_backward`] once for each micro-batch (gradients add up inside), then
//! [`Trainer::update`]. Everything that learns (parameters, gradients, AdamW's moments) is a flat `[total]` array in the order
//! of `ngen3_model::ParamList`, or of `ngen3_model::LoraList` where only adapters learn, read and written by [`Slot`].
//!
//! Whoever implements one of these writes what it can do: the rest says that it is not supported.

use std::any::Any;
use std::borrow::Cow;

use ngen3_model::{Config, Lora};

use crate::{AdamW, Backward, Batch, DistillConfig, DistillLoss, Dtype, Error, Slot, TopK};

/// A model that can be evaluated and can generate.
pub trait Model {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// Threads and precision that it computes with.
    fn info(&self) -> ComputeInfo {
        ComputeInfo::default()
    }

    /// Cross entropy at each position in nats, `[tokens]`, with no dropout; 0 where the target is ignored.
    ///
    /// # Errors
    /// As [`Batch::check`]; [`Error::Memory`] when the activations do not fit.
    fn losses(&mut self, _batch: &Batch) -> Result<Vec<f32>, Error> {
        Err(Error::Unsupported("evaluation"))
    }

    /// Mean cross entropy of the targets that are not ignored, in nats per token, with no gradient and no dropout.
    ///
    /// # Errors
    /// As [`Model::losses`], and [`Error::Input`] when every target is ignored.
    fn loss(&mut self, batch: &Batch) -> Result<f32, Error> {
        let total = self.losses(batch)?.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        Ok((total / batch.check_targets()? as f64) as f32)
    }

    /// Room for this many sequences that grow a few tokens at a time.
    ///
    /// # Errors
    /// [`Error::Memory`] when their keys and values do not fit; [`Error::Input`] for no sequences, or while the model has adapters.
    fn decoder(&self, _sequences: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        Err(Error::Unsupported("decoding"))
    }
}

/// Threads and precision that a model computes with, for people to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComputeInfo {
    /// Threads that compute.
    pub threads: usize,
    /// Precision that the operands of products are rounded to.
    pub dtype: Dtype,
}

/// Tokens for one of a decoder's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed<'a> {
    /// Which sequence, from 0.
    pub sequence: usize,
    /// The tokens that follow in it: at least one token.
    pub tokens: &'a [u32],
}

/// Sequences with their keys and values kept. Each has its own length and is fed, or left alone, at any step; one that has ended
/// is cleared, and another begins in its place.
pub trait Decoder {
    /// Sequences that there is room for.
    fn sequences(&self) -> usize;

    /// Tokens that a sequence holds; at most `block_size`.
    ///
    /// # Panics
    /// If there is no such sequence.
    fn len(&self, sequence: usize) -> usize;

    /// Feeds some of the sequences, each its next tokens, in one pass; returns the logits that follow the last token of each feed,
    /// `[feeds, vocab_size]`.
    ///
    /// # Errors
    /// [`Error::Input`] for no feeds, a feed without tokens or of a sequence that is fed already or does not exist, one that
    /// would grow past `block_size`, or a token outside the vocabulary. All sequences are then as they were.
    fn feed(&mut self, feeds: &[Feed<'_>]) -> Result<&[f32], Error>;

    /// Forgets a sequence's tokens, so that another can begin there.
    ///
    /// # Panics
    /// If there is no such sequence.
    fn clear(&mut self, sequence: usize);
}

/// A model that learns.
pub trait Trainer: Model {
    /// Mean cross entropy of the targets that are not ignored; adds its gradient to [`Slot::Grads`].
    ///
    /// # Errors
    /// As [`Model::loss`], and [`Error::Input`] for a sequence that continues another.
    fn forward_backward(&mut self, batch: &Batch, backward: Backward) -> Result<f32, Error>;

    /// Clips the gradients, applies one AdamW update, clears the gradients; returns their global norm before clipping.
    /// When that norm is not finite nothing is changed but the gradients, which are cleared.
    ///
    /// # Errors
    /// [`Error::Memory`] when the moments do not fit, at the first update.
    fn update(&mut self, adamw: &AdamW) -> Result<f32, Error>;

    /// Reads a flat array, `[total]`.
    fn read(&self, slot: Slot) -> Cow<'_, [f32]>;

    /// Replaces a flat array.
    ///
    /// # Errors
    /// [`Error::Memory`] when the array was not held before and does not fit.
    ///
    /// # Panics
    /// If `values` is not `[total]`.
    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error>;

    /// The whole model's parameters in the order of `ngen3_model::ParamList`, with adapters, if there are any, merged into the
    /// weights that they stand beside: what a checkpoint holds.
    fn merged(&self) -> Cow<'_, [f32]> {
        self.read(Slot::Params)
    }

    /// Puts low-rank adapters beside the model's linear layers, `params` in the order of `ngen3_model::LoraList`. From now on
    /// they learn and nothing else does, and every [`Slot`] is theirs, `[LoraList::total]`.
    ///
    /// # Errors
    /// [`Error::Input`] when the model cannot have them, `params` has another length, or there are adapters already.
    fn adapt(&mut self, _lora: &Lora, _params: Vec<f32>) -> Result<(), Error> {
        Err(Error::Unsupported("low-rank adapters"))
    }

    /// Adds the adapters, if there are any, to the weights that they stand beside. The model is then a plain one, all of which
    /// learns, decodes, and fills the slots.
    fn merge(&mut self) {}

    /// The same model as one that learns from a teacher.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it cannot.
    fn distiller(&mut self) -> Result<&mut dyn Distiller, Error> {
        Err(Error::Unsupported("distillation"))
    }
}

/// A model that learns from a teacher.
pub trait Distiller: Trainer {
    /// The loss of distillation, both parts apart; with `backward`, adds the gradient of their weighted sum to [`Slot::Grads`].
    ///
    /// # Errors
    /// As [`Trainer::forward_backward`], [`DistillConfig::validate`] and [`TopK::check`]; [`Error::Input`] for a teacher of another
    /// vocabulary or on another device.
    fn distill(
        &mut self,
        batch: &Batch,
        teacher: TeacherSource<'_>,
        distill: &DistillConfig,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error>;
}

/// A model that a student learns from, as a handle: only the device that opened it looks inside.
pub trait Teacher: Any {
    /// The `k` most likely tokens after each position and their log probabilities when the logits are divided by `temperature`.
    ///
    /// # Errors
    /// As [`Model::losses`], and [`Error::Input`] for a `k` that is 0 or above the vocabulary, or no temperature.
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error>;
}

/// Whose probabilities a student learns from.
pub enum TeacherSource<'a> {
    /// A teacher on the same device, by its handle: what it computes stays there.
    Teacher(&'a mut dyn Teacher),
    /// Its most likely tokens for this batch at the same temperature, as [`Teacher::top_k`] gave them; all others are one lump.
    TopK(&'a TopK),
}
