//! Target of the loss of a block of tokens, for both passes over its logits.

use super::super::soft_targets::{Distill, Teacher};
use ngen3_engine::Divergence;

use super::scratch::DistillTiling;

/// Distribution that the softmax of the student is held against.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SoftTarget {
    /// Nothing: α is 0.
    Alone,
    /// The teacher's logits.
    Head(Divergence),
    /// Its likeliest tokens.
    TopK,
}

impl SoftTarget {
    /// Names what a step of distillation asks for.
    pub fn of(distill: &Distill<'_>) -> Self {
        match distill.teacher {
            _ if distill.alpha == 0.0 => Self::Alone,
            Teacher::Head { .. } => Self::Head(distill.divergence),
            Teacher::TopK { .. } => Self::TopK,
        }
    }
}

/// Loss of one block of tokens: its sizes, and what it is held against.
#[derive(Clone, Copy)]
pub struct SoftLoss {
    pub tiling: DistillTiling,
    /// Panels of tokens that hold any.
    pub tiles: usize,
    pub temperature: f32,
    pub soft_target: SoftTarget,
}
