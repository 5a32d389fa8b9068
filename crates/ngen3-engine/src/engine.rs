//! The contract between the loops and whatever computes.
//!
//! A training step is `forward_backward` once for each micro-batch (gradients add up inside the engine), then
//! `update`. Sampling borrows a [`Decoder`] from the engine. Everything an engine holds (parameters, gradients,
//! AdamW's moments) is a flat `[total]` array in the order of `ngen3_model::ParamList`, read and written by [`Slot`].

use std::borrow::Cow;

use ngen3_model::Config;

/// What can go wrong while computing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input of the wrong shape, or a token outside the vocabulary.
    #[error("{0}")]
    Input(String),
    /// The arena for this shape does not fit in memory.
    #[error("{what} needs {bytes} bytes of memory, which could not be reserved")]
    Memory {
        /// What the memory was for.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// The threads that compute could not be started.
    #[error("could not start the threads that compute: {0}")]
    Threads(String),
}

/// Rows of consecutive tokens and, for each token, the one that follows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Tokens in a row; at most `block_size`.
    pub seq_len: usize,
    /// `[rows, seq_len]`
    pub inputs: Vec<u32>,
    /// `[rows, seq_len]`: the token to be predicted at each position.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Checks that a model of this shape can take the batch.
    ///
    /// # Errors
    /// [`Error::Input`] for ragged or empty rows, rows longer than the block, or a token outside the vocabulary.
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        let Self { seq_len, inputs, targets } = self;
        if *seq_len == 0 || inputs.is_empty() || !inputs.len().is_multiple_of(*seq_len) || inputs.len() != targets.len()
        {
            let (inputs, targets) = (inputs.len(), targets.len());
            return Err(Error::Input(format!(
                "{inputs} inputs and {targets} targets do not make rows of {seq_len} tokens"
            )));
        }
        if *seq_len > config.block_size {
            return Err(Error::Input(format!(
                "rows of {seq_len} tokens in a model with a block of {}",
                config.block_size
            )));
        }
        check_tokens(inputs, config)?;
        check_tokens(targets, config)
    }
}

/// Checks that every token is in the vocabulary.
pub(crate) fn check_tokens(tokens: &[u32], config: &Config) -> Result<(), Error> {
    match tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
        Some(token) => Err(Error::Input(format!("token {token} is outside the vocabulary of {}", config.vocab_size))),
        None => Ok(()),
    }
}

/// One AdamW update (Loshchilov & Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Which update this is, counting from 1: it sets the bias correction.
    pub step: u64,
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay, on matrices and embeddings only.
    pub weight_decay: f32,
    /// Gradients are scaled down so that their global norm is at most this; 0 turns clipping off.
    pub grad_clip: f32,
}

/// One of the flat arrays that an engine holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The parameters.
    Params,
    /// Gradients gathered since the last update.
    Grads,
    /// AdamW's first moment.
    ExpAvg,
    /// AdamW's second moment.
    ExpAvgSq,
}

/// What a training loop or a sampler needs from whatever computes.
pub trait Engine {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// Mean cross entropy of the batch in nats per token, with no gradient and no dropout.
    ///
    /// # Errors
    /// [`Error::Input`] for a token outside the vocabulary, a row longer than the block, or ragged rows.
    fn loss(&mut self, batch: &Batch) -> Result<f32, Error>;

    /// Mean cross entropy of the batch; adds `weight` times its gradient to [`Slot::Grads`].
    ///
    /// `weight` is 1/`gradient_accumulation` for a mean over micro-batches. `dropout` zeroes activations with that
    /// probability, by masks that `seed` alone decides.
    ///
    /// # Errors
    /// As [`Engine::loss`].
    fn forward_backward(&mut self, batch: &Batch, weight: f32, dropout: f32, seed: u64) -> Result<f32, Error>;

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

    /// Starts `rows` independent sequences that grow one token at a time.
    ///
    /// # Errors
    /// [`Error::Memory`] when their keys and values do not fit.
    fn decoder(&self, rows: usize) -> Result<Box<dyn Decoder + '_>, Error>;
}

/// Sequences that grow one token at a time, with their keys and values kept.
pub trait Decoder {
    /// Tokens that every row holds now; at most `block_size`.
    fn len(&self) -> usize;

    /// Whether nothing has been fed yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Feeds every row its next tokens in one pass, `[rows, n]` with any n; returns the logits that follow the last of each,
    /// `[rows, vocab_size]`.
    ///
    /// # Errors
    /// [`Error::Input`] if the rows would grow past `block_size`, `tokens` is empty or ragged, or a token is outside the
    /// vocabulary.
    fn feed(&mut self, tokens: &[u32]) -> Result<&[f32], Error>;

    /// Forgets every token, so that the rows can be fed anew.
    fn clear(&mut self);
}
