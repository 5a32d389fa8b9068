//! Text generation from a model's logits: `sampling.rs` chooses a token, `generate.rs` runs the decoding loop for the samples of one
//! request, `batcher.rs` for jobs (`job.rs`, `task.rs`) that come and go. `logprobs.rs` has the probabilities of tokens.

mod batcher;
mod generate;
mod job;
mod logprobs;
mod sampling;
mod task;

pub use batcher::{Batcher, BatcherLimits};
pub use generate::{Generator, Limits, Request};
pub use job::{EndReason, Event, Job, JobId, SubmitError};
pub use logprobs::TokenLogprobs;
pub use sampling::{Sampler, Sampling};
