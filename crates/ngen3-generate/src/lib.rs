//! Text generation from a model's logits: `sampling.rs` chooses a token, `generate.rs` runs the decoding loop.

mod generate;
mod sampling;

pub use generate::{Generator, Limits, Request};
pub use sampling::{Sampler, Sampling};
