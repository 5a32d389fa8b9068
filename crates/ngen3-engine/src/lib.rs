//! What computes: forward, loss, backward, update, and decoding. Knows token ids, never text or files.
//!
//! [`Engine`] is what the training loop and the sampler see; `cpu/` implements it.

mod engine;

pub use engine::{AdamW, Batch, Decoder, Engine, Error, Slot};
