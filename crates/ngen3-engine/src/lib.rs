//! What computes: forward, loss, backward, update, and decoding. Knows token ids, never text or files.
//!
//! [`Engine`] is what the training loop and the sampler see; `cpu/` implements it.

mod cpu;
mod engine;
mod gemm;

pub use cpu::{CpuEngine, Dtype, Options};
pub use engine::{AdamW, Batch, Decoder, Engine, Error, Slot};
