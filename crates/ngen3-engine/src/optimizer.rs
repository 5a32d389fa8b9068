//! Options that a gradient is taken with, and the update that follows it.

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

/// Options that a gradient is taken with.
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
