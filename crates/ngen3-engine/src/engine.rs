//! The contract between the loops and whatever computes.
//!
//! A training step is `forward_backward` once for each micro-batch (gradients add up inside the engine), then
//! `update`. Sampling borrows a [`Decoder`] from the engine. Everything that learns (parameters, gradients, AdamW's
//! moments) is a flat `[total]` array in the order of `ngen3_model::ParamList`, or of `ngen3_model::LoraList` where only
//! adapters learn, read and written by [`Slot`].

use std::borrow::Cow;

use ngen3_model::Config;
use serde::{Deserialize, Serialize};

use crate::Quant;

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

/// Marks a position whose next token is not to be predicted.
pub const IGNORE: u32 = u32::MAX;

/// One row of a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Tokens.
    pub len: usize,
    /// Whether it continues the last row before it that continues none: it sees that row's tokens, and its positions go on
    /// after them. Several rows may continue the same one and do not see each other. Losses only, no gradients.
    pub continues: bool,
}

/// Rows of tokens back to back and, for each token, the one that follows it.
///
/// Rows may be of different lengths: nothing is padded. A row sees nothing of the others, and its positions start at 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[tokens]`
    pub inputs: Vec<u32>,
    /// `[tokens]`: what is to be predicted at each position, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// Their lengths add up to `tokens`.
    pub rows: Vec<Row>,
}

impl Batch {
    /// Rows of `seq_len` tokens each.
    pub fn even(seq_len: usize, inputs: Vec<u32>, targets: Vec<u32>) -> Self {
        let rows = inputs.len().div_ceil(seq_len.max(1));
        Self { inputs, targets, rows: vec![Row { len: seq_len, continues: false }; rows] }
    }

    /// Adds a row.
    pub fn push(&mut self, inputs: &[u32], targets: &[u32]) {
        self.add(inputs, targets, false);
    }

    /// Adds a row that continues the last one added by [`Batch::push`].
    pub fn push_after(&mut self, inputs: &[u32], targets: &[u32]) {
        self.add(inputs, targets, true);
    }

    fn add(&mut self, inputs: &[u32], targets: &[u32], continues: bool) {
        self.inputs.extend_from_slice(inputs);
        self.targets.extend_from_slice(targets);
        self.rows.push(Row { len: inputs.len(), continues });
    }

    /// Takes all rows out; what was allocated is kept.
    pub fn clear(&mut self) {
        self.inputs.clear();
        self.targets.clear();
        self.rows.clear();
    }

    /// Targets that count.
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE).count()
    }

    /// How many targets count.
    ///
    /// # Errors
    /// [`Error::Input`] when none does: there is no mean.
    pub fn check_counted(&self) -> Result<usize, Error> {
        match self.counted() {
            0 => Err(Error::Input("no target of the batch counts".into())),
            counted => Ok(counted),
        }
    }

    /// Checks that a model of this shape can take the batch.
    ///
    /// # Errors
    /// [`Error::Input`] for rows that are empty, that reach past the block or do not add up, for a first row that continues
    /// nothing, or a token outside the vocabulary.
    pub fn check(&self, config: &Config) -> Result<(), Error> {
        let Self { inputs, targets, rows } = self;
        let block = config.block_size;
        let mut total = 0usize;
        let mut before = None;
        for row in rows {
            let prefix = match (row.continues, before) {
                (false, _) => 0,
                (true, Some(len)) => len,
                (true, None) => return Err(Error::Input("the first row of a batch continues nothing".into())),
            };
            if row.len == 0 {
                return Err(Error::Input("a row without tokens".into()));
            }
            if row.len.saturating_add(prefix) > block {
                let len = row.len.saturating_add(prefix);
                return Err(Error::Input(format!("a row of {len} tokens in a model with a block of {block}")));
            }
            if !row.continues {
                before = Some(row.len);
            }
            total += row.len;
        }
        if total == 0 || inputs.len() != total || targets.len() != total {
            let (inputs, targets) = (inputs.len(), targets.len());
            return Err(Error::Input(format!(
                "{inputs} inputs and {targets} targets do not make rows of {total} tokens"
            )));
        }
        check_tokens(inputs, config)?;
        match targets.iter().find(|&&target| target != IGNORE && target as usize >= config.vocab_size) {
            Some(target) => Err(outside(*target, config)),
            None => Ok(()),
        }
    }
}

/// Checks that every token is in the vocabulary.
///
/// # Errors
/// [`Error::Input`] naming the first that is not.
pub fn check_tokens(tokens: &[u32], config: &Config) -> Result<(), Error> {
    match tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
        Some(token) => Err(outside(*token, config)),
        None => Ok(()),
    }
}

fn outside(token: u32, config: &Config) -> Error {
    Error::Input(format!("token {token} is outside the vocabulary of {}", config.vocab_size))
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

/// What a teacher says of each token of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Teacher<'a> {
    /// All of it, by its final projection.
    Head {
        /// `[tokens, width]` of the teacher's own width: what [`TeacherModel::hidden`] gives.
        hidden: &'a [f32],
        /// `[vocab_size, width]`
        wte: &'a [f32],
        /// What both are rounded to for their product.
        quant: Quant,
    },
    /// Its likeliest tokens, as [`TeacherModel::top_k`] gives them at the same temperature; all others are one lump.
    TopK {
        /// How many of each place.
        k: usize,
        /// `[tokens, k]`
        ids: &'a [u32],
        /// `[tokens, k]`: logarithms of their tempered probabilities among the whole vocabulary.
        log_probs: &'a [f32],
    },
}

/// What a student learns from besides the data: the loss is α·T²·D + (1 − α)·cross entropy.
#[derive(Clone, Copy, Debug)]
pub struct Distill<'a> {
    /// The teacher.
    pub teacher: Teacher<'a>,
    /// T, by which both models' logits are divided.
    pub temperature: f32,
    /// α
    pub alpha: f32,
    /// D; of a teacher's likeliest tokens only the forward one is defined.
    pub divergence: Divergence,
}

impl Distill<'_> {
    /// Checks that a batch of a model of this shape can be held against the teacher.
    ///
    /// # Errors
    /// [`Error::Input`] for numbers out of range, or a teacher that says something else than one thing for each token.
    pub fn check(&self, batch: &Batch, config: &Config) -> Result<(), Error> {
        let tokens = batch.inputs.len();
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::Input(format!("temperature is {}; it must be a number above 0", self.temperature)));
        }
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(Error::Input(format!("alpha is {}; it must be between 0 and 1", self.alpha)));
        }
        match self.teacher {
            Teacher::Head { hidden, wte, .. } => {
                let width = wte.len() / config.vocab_size;
                if width == 0 || wte.len() != width * config.vocab_size || hidden.len() != tokens * width {
                    let (vocab_size, wte, hidden) = (config.vocab_size, wte.len(), hidden.len());
                    return Err(Error::Input(format!(
                        "a teacher with {wte} embeddings and {hidden} hidden states for {tokens} tokens and a vocabulary of \
                         {vocab_size}"
                    )));
                }
            }
            Teacher::TopK { k, ids, log_probs } => {
                if self.divergence != Divergence::ForwardKl {
                    return Err(Error::Input("of a teacher's likeliest tokens only forward_kl is defined".into()));
                }
                let wanted = tokens.saturating_mul(k);
                if k == 0 || k >= config.vocab_size || ids.len() != wanted || log_probs.len() != wanted {
                    return Err(Error::Input(format!(
                        "{} of a teacher's likeliest tokens, {k} of each of {tokens}",
                        ids.len()
                    )));
                }
                check_tokens(ids, config)?;
            }
        }
        Ok(())
    }
}

/// The two parts of a distillation's loss, each the mean over the targets that count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DistillLoss {
    /// Plain cross entropy, in nats.
    pub cross_entropy: f32,
    /// T²·D
    pub divergence: f32,
}

/// What a gradient is taken with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backward {
    /// It is multiplied by this: a micro-batch's share in what counts of its step.
    pub weight: f32,
    /// Activations are zeroed with this probability.
    pub dropout: f32,
    /// Alone decides which.
    pub seed: u64,
}

impl Default for Backward {
    /// Of the loss itself, with nothing dropped.
    fn default() -> Self {
        Self { weight: 1.0, dropout: 0.0, seed: 0 }
    }
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

    /// Cross entropy at each place in nats, `[tokens]`, with no dropout; 0 where the target does not count.
    ///
    /// # Errors
    /// As [`Batch::check`]; [`Error::Memory`] when the activations do not fit.
    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error>;

    /// Mean cross entropy of the targets that count, in nats per token, with no gradient and no dropout.
    ///
    /// # Errors
    /// As [`Engine::losses`], and [`Error::Input`] when no target counts.
    fn loss(&mut self, batch: &Batch) -> Result<f32, Error> {
        let total = self.losses(batch)?.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        Ok((total / batch.check_counted()? as f64) as f32)
    }

    /// Mean cross entropy of the targets that count; adds its gradient to [`Slot::Grads`].
    ///
    /// # Errors
    /// As [`Engine::loss`], and [`Error::Input`] for a row that continues another.
    fn forward_backward(&mut self, batch: &Batch, backward: Backward) -> Result<f32, Error>;

    /// The loss of distillation, both parts apart; with `backward`, adds the gradient of their weighted sum to [`Slot::Grads`].
    ///
    /// # Errors
    /// As [`Engine::forward_backward`] and [`Distill::check`].
    fn distill(
        &mut self,
        batch: &Batch,
        distill: &Distill<'_>,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error>;

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

    /// Starts `rows` independent sequences that grow one token at a time.
    ///
    /// # Errors
    /// [`Error::Memory`] when their keys and values do not fit; [`Error::Input`] while the model has adapters.
    fn decoder(&self, rows: usize) -> Result<Box<dyn Decoder + '_>, Error>;
}

/// What distilling needs of a teacher, which only goes forward.
pub trait TeacherModel {
    /// All that it says of tokens of which [`TeacherModel::hidden`] gave `hidden`.
    fn says<'a>(&'a self, hidden: &'a [f32]) -> Teacher<'a>;

    /// What its final projection is given, `[tokens, width]`: the output of `ln_f`, with no dropout.
    ///
    /// # Errors
    /// As [`Engine::losses`].
    fn hidden(&mut self, batch: &Batch) -> Result<Vec<f32>, Error>;

    /// The `k` likeliest tokens after each place and the logarithms of their probabilities when the logits are divided by
    /// `temperature`, each `[tokens, k]`, likeliest first.
    ///
    /// # Errors
    /// As [`Engine::losses`], and [`Error::Input`] for a `k` that is 0 or above the vocabulary, or no temperature.
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<(Vec<u32>, Vec<f32>), Error>;
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

/// Turns any 64 bits into well-mixed ones (SplitMix64, Steele et al. 2014).
pub fn splitmix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
