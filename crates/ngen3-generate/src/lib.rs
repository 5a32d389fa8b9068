//! Text generation from a model's logits: `sampling.rs` chooses a token, `generate.rs` runs the decoding loop for the samples of one
//! request, `batcher.rs` for jobs that come and go.

mod batcher;
mod generate;
mod sampling;

pub use batcher::{Batcher, BatcherLimits, EndReason, Event, Job, JobId, SubmitError, TokenLogprobs};
pub use generate::{Generator, Limits, Request};
pub use sampling::{Sampler, Sampling};
