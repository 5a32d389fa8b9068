//! Text generation from a model's logits: `sampling.rs` chooses a token, `generate.rs` chains them.

mod generate;
mod sampling;

pub use generate::{Generator, Request};
pub use sampling::{Sampler, Sampling};
