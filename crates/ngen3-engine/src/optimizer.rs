//! Options of the backward pass and of the optimizer.

/// Hyperparameters of one AdamW update (Loshchilov & Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Number of this update, from 1, for bias correction.
    pub step: u64,
    /// Learning rate of this update.
    pub lr: f32,
    /// β₁, decay rate of the first moment.
    pub beta1: f32,
    /// β₂, decay rate of the second moment.
    pub beta2: f32,
    /// ε, added to the square root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, of matrices and embeddings only.
    pub weight_decay: f32,
    /// Maximum global norm of the gradients; larger ones are scaled down to it. 0 disables clipping.
    pub grad_clip: f32,
}

/// Options of a backward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backward {
    /// Factor of the gradient: a micro-batch's share of the step's target tokens.
    pub weight: f32,
    /// Dropout probability, at least 0 and below 1.
    pub dropout: f32,
    /// Seed of the dropout masks.
    pub seed: u64,
}

impl Default for Backward {
    /// The gradient of the loss itself, without dropout.
    fn default() -> Self {
        Self { weight: 1.0, dropout: 0.0, seed: 0 }
    }
}

/// Flat array of a trainer, `[total]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Trainable parameters.
    Params,
    /// Gradients accumulated since the last update.
    Grads,
    /// AdamW's first moment.
    ExpAvg,
    /// AdamW's second moment.
    ExpAvgSq,
}
