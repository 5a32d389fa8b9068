//! Models: a [`Model`] computes losses and decodes, a [`Trainer`] is trained, a [`Distiller`] is trained with a [`Teacher`].
//!
//! A training step calls [`Trainer::forward_backward`] for each micro-batch, which accumulates gradients, then
//! [`Trainer::update`]. Parameters, gradients and AdamW's moments are flat `[total]` arrays of f32, read and written by
//! [`Slot`]. Their order is that of `ngen3_model::ParamList`, or of `ngen3_model::LoraList` while only adapters are trained.
//!
//! An engine implements the operations that it has; the others return [`Error::Unsupported`] by default.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;

use ngen3_model::{Config, Lora};

use crate::{AdamW, Backward, Batch, DistillConfig, DistillLoss, Dtype, Error, Muon, Slot, TopK};

/// Model for evaluation and generation.
pub trait Model {
    /// Returns the model's shape.
    fn config(&self) -> &Config;

    /// Returns the number of threads, the precision and the instructions in use.
    fn info(&self) -> ComputeInfo {
        ComputeInfo::default()
    }

    /// Returns the cross entropy at each position in nats, `[tokens]`, without dropout; 0 where the target is ignored.
    ///
    /// # Errors
    /// As [`Batch::check`]; [`Error::Memory`] when the activations do not fit in memory.
    fn losses(&mut self, _batch: &Batch) -> Result<Vec<f32>, Error> {
        Err(Error::Unsupported("evaluation"))
    }

    /// Returns the mean cross entropy over the targets that are not ignored, in nats per token, without dropout.
    ///
    /// # Errors
    /// As [`Model::losses`]; [`Error::Input`] when every target is ignored.
    fn loss(&mut self, batch: &Batch) -> Result<f32, Error> {
        batch.mean(&self.losses(batch)?)
    }

    /// Creates a decoder with room for this many sequences of `block_size` tokens.
    ///
    /// # Errors
    /// As [`Model::decoder_within`].
    fn decoder(&self, sequences: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        self.decoder_within(sequences, sequences.saturating_mul(self.config().block_size.div_ceil(PAGE)))
    }

    /// Creates a decoder for this many sequences, whose keys and values share this many pages of [`PAGE`] tokens.
    ///
    /// # Errors
    /// [`Error::Memory`] when the keys and values do not fit in memory; [`Error::Input`] for 0 sequences, or while the model
    /// has adapters.
    fn decoder_within(&self, _sequences: usize, _pages: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        Err(Error::Unsupported("decoding"))
    }
}

/// Threads, precision and instructions of a model, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComputeInfo {
    /// Number of compute threads; 0 where other hardware computes.
    pub threads: usize,
    /// Precision of the operands of matrix products.
    pub dtype: Dtype,
    /// Name of the kernels' instruction set: with another the last bits differ.
    pub kernels: &'static str,
}

/// Tokens per page of a decoder's key-value cache.
pub const PAGE: usize = 32;

/// Tokens to append to one of a decoder's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed<'a> {
    /// Index of the sequence, from 0.
    pub sequence: usize,
    /// The sequence's next tokens, at least one.
    pub tokens: &'a [u32],
    /// Number of tokens, at the end of these, after which logits are returned: at least one.
    pub logits: usize,
}

impl<'a> Feed<'a> {
    /// Appends tokens, with logits after the last one.
    pub fn new(sequence: usize, tokens: &'a [u32]) -> Self {
        Self { sequence, tokens, logits: 1 }
    }
}

/// Sequences being decoded, with a key-value cache. Each has its own length and can be fed or skipped at any step. When it
/// ends, [`Decoder::clear`] frees its slot for another.
///
/// The cache consists of pages of [`PAGE`] tokens, which a sequence takes as it grows, and which sequences that begin alike
/// can [`share`](Decoder::share).
///
/// The bits of a sequence's logits depend on nothing but its own tokens, and on which of them were fed one at a time: they are
/// the same whatever else is fed, and wherever a prompt is cut into feeds of two or more tokens.
pub trait Decoder {
    /// Returns the number of sequences that there is room for.
    fn sequences(&self) -> usize;

    /// Returns the number of tokens in a sequence, at most `block_size`.
    ///
    /// # Panics
    /// If `sequence` is out of range.
    fn len(&self, sequence: usize) -> usize;

    /// Returns the number of pages that no sequence uses.
    fn free_pages(&self) -> usize;

    /// Appends tokens to some of the sequences in one pass. Returns the logits that each feed asks for, in the order of the
    /// feeds, `[Σ Feed::logits, vocab_size]`.
    ///
    /// # Errors
    /// [`Error::Input`] when there are no feeds, a feed has no tokens, asks for no logits or for more than it has tokens, its
    /// sequence is out of range, fed twice or would exceed `block_size`, a token is outside the vocabulary, or too few pages are
    /// free. All sequences are then unchanged.
    fn feed(&mut self, feeds: &[Feed<'_>]) -> Result<&[f32], Error>;

    /// Returns the number of bytes of weights that a step of one token reads; 0 if it is not known.
    fn weight_bytes(&self) -> usize {
        0
    }

    /// Starts the sequence `to`, which is empty, with the first `pages` pages of `from`, without computing or copying them.
    ///
    /// # Errors
    /// [`Error::Input`] when a sequence is out of range, `to` is not empty, or `from` does not fill that many pages.
    fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error>;

    /// Removes the tokens of a sequence, so that another can use its slot. Pages that others share stay theirs.
    ///
    /// # Panics
    /// If `sequence` is out of range.
    fn clear(&mut self, sequence: usize);
}

/// Model that can be trained.
pub trait Trainer: Model {
    /// Runs the forward and the backward pass. Returns the mean cross entropy over the targets that are not ignored, in nats
    /// per token, and adds its gradient, times [`Backward::weight`], to [`Slot::Grads`].
    ///
    /// # Errors
    /// As [`Model::loss`]; [`Error::Input`] for a sequence that continues another, or a dropout that is not in [0, 1).
    fn forward_backward(&mut self, batch: &Batch, backward: Backward) -> Result<f32, Error>;

    /// Clips the gradients, updates the parameters and zeroes the gradients: [`Trainer::update_share`] with the norm of all
    /// gradients. Returns that norm, before clipping. If it is not finite, the update is skipped and the gradients are zeroed.
    ///
    /// # Errors
    /// As [`Trainer::update_share`].
    fn update(&mut self, adamw: &AdamW, muon: Option<&Muon>) -> Result<f32, Error> {
        let norm = self.grad_square_sum().sqrt() as f32;
        self.update_share(adamw, muon, norm)?;
        Ok(norm)
    }

    /// Trains only this range of the flat arrays from the first update on, as one of several ranks that share the update (stage 1
    /// of ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054): [`Trainer::update_share`] changes no other parameters, and the
    /// moments, `[share]`, are kept of these alone. A share does not cut a matrix that Muon updates.
    ///
    /// # Errors
    /// [`Error::Input`] for a range that is not within the flat arrays, or once there are moments;
    /// [`Error::Unsupported`] if the engine trains only the whole.
    fn set_share(&mut self, _share: Range<usize>) -> Result<(), Error> {
        Err(Error::Unsupported("training a share of the parameters"))
    }

    /// Returns Σ g² of the share's gradients; without a share, of all.
    fn grad_square_sum(&self) -> f64;

    /// Clips the share's gradients, given the global norm of all gradients, updates its parameters and zeroes all gradients.
    /// Muon, if given, updates the matrices of the blocks' linear layers (`ngen3_model::Param::num_layer_matrices`), AdamW all
    /// other parameters. If the norm is not finite, the update is skipped and the gradients are zeroed.
    ///
    /// # Errors
    /// [`Error::Memory`] when the moments, which the first update allocates, do not fit in memory.
    fn update_share(&mut self, adamw: &AdamW, muon: Option<&Muon>, grad_norm: f32) -> Result<(), Error>;

    /// Returns the parameters or the gradients, `[total]`, to change them in place.
    ///
    /// # Errors
    /// [`Error::Memory`] when the gradients are not allocated yet and do not fit in memory; [`Error::Unsupported`] for moments, or if
    /// the arrays are in the memory of another processor.
    fn values_mut(&mut self, slot: Slot) -> Result<&mut [f32], Error>;

    /// Returns a flat array, `[total]`; a moment, `[share]`.
    fn read(&self, slot: Slot) -> Cow<'_, [f32]>;

    /// Replaces a flat array, `[total]`; a moment, `[share]`.
    ///
    /// # Errors
    /// [`Error::Memory`] when the array is not allocated yet and does not fit in memory.
    ///
    /// # Panics
    /// If `values` does not have as many elements.
    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error>;

    /// Returns the parameters of the whole model in the order of `ngen3_model::ParamList`, with any adapters merged into their
    /// weights: the content of a checkpoint.
    fn merged(&self) -> Cow<'_, [f32]> {
        self.read(Slot::Params)
    }

    /// Adds low-rank adapters, with `params` in the order of `ngen3_model::LoraList`, and freezes the model. Every [`Slot`] is
    /// then that of the adapters, `[LoraList::total]`.
    ///
    /// # Errors
    /// [`Error::Input`] when the adapters do not fit the model, `params` has the wrong length, or there are adapters already.
    fn adapt(&mut self, _lora: &Lora, _params: Vec<f32>) -> Result<(), Error> {
        Err(Error::Unsupported("low-rank adapters"))
    }

    /// Merges the adapters, if any, into their weights. All parameters are then trained again, every [`Slot`] is that of the
    /// model, and it can decode.
    fn merge(&mut self) {}

    /// Returns this model as a [`Distiller`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the engine cannot distil.
    fn distiller(&mut self) -> Result<&mut dyn Distiller, Error> {
        Err(Error::Unsupported("distillation"))
    }
}

/// Model that can be trained with a teacher.
pub trait Distiller: Trainer {
    /// Returns both terms of the distillation loss. With `backward`, applies its dropout and adds the gradient of the weighted
    /// sum ([`DistillConfig`]), times [`Backward::weight`], to [`Slot::Grads`].
    ///
    /// # Errors
    /// As [`Trainer::forward_backward`], [`DistillConfig::validate`] and [`TopK::check`]; [`Error::Input`] for a teacher that
    /// is on another device or has another vocabulary or too short a context.
    fn distill(
        &mut self,
        batch: &Batch,
        teacher: TeacherSource<'_>,
        distill: &DistillConfig,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error>;
}

/// Teacher, as an opaque handle: only the device that opened it can use it.
pub trait Teacher: Any {
    /// Returns the `k` most likely tokens at each position and their log probabilities, ln softmax(logits/temperature).
    ///
    /// # Errors
    /// As [`Model::losses`]; [`Error::Input`] for a `k` that is 0 or above `vocab_size`, or an invalid temperature.
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error>;
}

/// Source of the teacher's probabilities.
pub enum TeacherSource<'a> {
    /// Teacher on the same device; its logits stay there.
    Teacher(&'a mut dyn Teacher),
    /// The teacher's most likely tokens for this batch, from [`Teacher::top_k`] at the same temperature.
    TopK(&'a TopK),
}
