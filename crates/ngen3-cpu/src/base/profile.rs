//! Where the time goes: each layer adds what it took to a counter of its own.
//!
//! The counters are the process's; layers run one after the other, each on all threads, so their times add up to a step's.
//! Reading a clock twice a layer costs nothing that could be measured.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Token and position embedding.
    Embedding,
    /// LayerNorms.
    LayerNorm,
    /// The linear layers of the blocks.
    Linear,
    /// Attention between its projections.
    Attention,
    /// The MLPs' non-linearity.
    Gelu,
    /// Final projection and cross entropy.
    Loss,
    /// Norm of the gradient and AdamW.
    Update,
}

impl Part {
    /// All of them, in the order of a step.
    pub const ALL: [Part; 7] =
        [Part::Embedding, Part::LayerNorm, Part::Linear, Part::Attention, Part::Gelu, Part::Loss, Part::Update];

    /// As `ngen3 bench` prints it.
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

/// Counts the time until it is dropped.
pub(crate) struct Timed(Part, Instant);

pub(crate) fn timed(part: Part) -> Timed {
    Timed(part, Instant::now())
}

impl Drop for Timed {
    fn drop(&mut self) {
        NANOS[self.0 as usize].fetch_add(self.1.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

/// The time that each part has taken since the last call.
pub fn take() -> [(Part, Duration); Part::ALL.len()] {
    Part::ALL.map(|part| (part, Duration::from_nanos(NANOS[part as usize].swap(0, Ordering::Relaxed))))
}
