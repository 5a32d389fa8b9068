//! Options of the backward pass and of the optimizers.

use std::fmt;

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

/// Hyperparameters of one Muon update (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon/>), of the matrices of the
/// blocks' linear layers. A matrix moves by the orthogonalised average of its gradients: all directions at the same rate,
/// however strong each is in the gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Learning rate of this update, on AdamW's scale: see [`Muon::step_size`].
    pub lr: f32,
    /// μ, decay rate of the average of gradients.
    pub momentum: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Muon {
    /// Coefficients a, b, c of a Newton–Schulz step, X ← aX + b(XXᵀ)X + c(XXᵀ)²X. They make small singular values grow as fast
    /// as possible; large ones end between about 0.7 and 1.2 (Jordan et al. 2024).
    pub const COEFFICIENTS: [f32; 3] = [3.4445, -4.7750, 2.0315];

    /// Newton–Schulz steps per update.
    pub const STEPS: usize = 5;

    /// Smallest norm by which a matrix is divided before the first step.
    pub const EPS: f32 = 1e-7;

    /// Factor of the orthogonalised matrix, `lr·0.2·√max(rows, columns)`: its elements then have the root mean square of AdamW's
    /// updates, so that both have use for the same learning rates (Liu et al. 2025, arXiv:2502.16982).
    pub fn step_size(&self, rows: usize, columns: usize) -> f32 {
        self.lr * 0.2 * (rows.max(columns) as f32).sqrt()
    }
}

/// Options of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// Factor of the gradient: a micro-batch's share of the step's target tokens.
    pub weight: f32,
    /// Dropout probability, at least 0 and below 1.
    pub dropout: f32,
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Receiver of the gradients, for the last backward pass of a step.
    pub ready: Option<Ready<'a>>,
}

impl Default for Backward<'_> {
    /// The gradient of the loss itself, without dropout.
    fn default() -> Self {
        Self { weight: 1.0, dropout: 0.0, seed: 0, ready: None }
    }
}

/// Receiver of gradients that nothing is added to any more, while the engine computes the others, so that ranks can exchange them
/// meanwhile. It is called on the thread that called the engine with the index of the first value and the values, which it may
/// change: a part of [`Slot::Grads`] that ends where the one before begins, from the end of the array on. What it is not called for is
/// final when the pass ends; an engine may never call it.
#[derive(Clone, Copy)]
pub struct Ready<'a>(pub &'a dyn Fn(usize, &mut [f32]));

impl fmt::Debug for Ready<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ready")
    }
}

/// Flat array of a trainer, `[total]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Trainable parameters.
    Params,
    /// Gradients accumulated since the last update.
    Grads,
    /// AdamW's first moment; for matrices that Muon updates, its average of gradients.
    ExpAvg,
    /// AdamW's second moment; unused for matrices that Muon updates.
    ExpAvgSq,
}
