//! Soft target of a block of tokens, shared by the forward and the backward pass.

use super::super::soft_targets::{Distill, Teacher};
use ngen3_engine::Divergence;

use super::scratch::DistillTiling;

/// Distribution to which the student's softmax is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SoftTarget {
    /// None: α is 0.
    Alone,
    /// The teacher's logits.
    Head(Divergence),
    /// The teacher's k most likely tokens.
    TopK,
}

impl SoftTarget {
    /// Returns the soft target of a distillation loss.
    pub fn of(distill: &Distill<'_>) -> Self {
        match distill.teacher {
            _ if distill.alpha == 0.0 => Self::Alone,
            Teacher::Head { .. } => Self::Head(distill.divergence),
            Teacher::TopK { .. } => Self::TopK,
        }
    }
}

/// Sizes and soft target of the loss of one block of tokens.
#[derive(Clone, Copy)]
pub struct SoftLoss {
    pub tiling: DistillTiling,
    /// Number of panels with tokens.
    pub tiles: usize,
    pub temperature: f32,
    pub soft_target: SoftTarget,
}
