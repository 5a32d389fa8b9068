//! Profile by layer: each layer adds its wall time to a global counter.
//!
//! Layers run one after the other, each on all threads, so their times add up to the time of a step. Reading the clock twice per
//! layer has no measurable cost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Kind of work that a counter measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Token and position embedding.
    Embedding,
    /// LayerNorms.
    LayerNorm,
    /// Linear layers of the transformer blocks.
    Linear,
    /// Attention without its projections.
    Attention,
    /// Activation function of the MLPs.
    Gelu,
    /// Final projection and cross-entropy.
    Loss,
    /// Gradient norm and optimizer.
    Update,
}

impl Part {
    /// All parts, in the order of a step.
    pub const ALL: [Part; 7] =
        [Part::Embedding, Part::LayerNorm, Part::Linear, Part::Attention, Part::Gelu, Part::Loss, Part::Update];

    /// Name that `ngen3 bench` prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::LayerNorm => "layernorm",
            Self::Linear => "linear",
            Self::Attention => "attention",
            Self::Gelu => "gelu",
            Self::Loss => "loss",
            Self::Update => "update",
        }
    }
}

static NANOS: [AtomicU64; Part::ALL.len()] = [const { AtomicU64::new(0) }; Part::ALL.len()];

/// Timer that adds its lifetime to a part's counter when dropped.
pub(crate) struct Timed(Part, Instant);

pub(crate) fn timed(part: Part) -> Timed {
    Timed(part, Instant::now())
}

impl Drop for Timed {
    fn drop(&mut self) {
        NANOS[self.0 as usize].fetch_add(self.1.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// Returns the time of each part since the last call, and resets the counters.
pub fn take() -> [(Part, Duration); Part::ALL.len()] {
    Part::ALL.map(|part| (part, Duration::from_nanos(NANOS[part as usize].swap(0, Ordering::Relaxed))))
}
