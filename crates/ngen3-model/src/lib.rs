//! What a model is: its shape ([`Config`]), its parameters ([`ParamList`]) and its files. No arithmetic.
//!
//! Read `config.rs` first, then `params.rs`, then `checkpoint.rs`.

pub mod checkpoint;
mod config;
mod error;
pub mod files;
pub mod hf;
mod params;

pub use checkpoint::{ChatFormat, Checkpoint, CheckpointMeta, TokenizerRef};
pub use config::{Activation, Config, GPT2_VOCAB_SIZE, Recipe, VARIANTS, Variant};
pub use error::Error;
pub use params::{BlockRanges, Init, Param, ParamList};
