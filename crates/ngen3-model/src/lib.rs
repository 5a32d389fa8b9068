//! What a model is: its shape ([`Config`]), its parameters ([`ParamList`]) and its files. No arithmetic.
//!
//! Read `config.rs` first, then `params.rs`, then `checkpoint.rs`. `lora.rs` is what an adapter beside a model is;
//! `words.rs` is how messages count, `hash.rs` how a SHA-256 is written.

pub mod checkpoint;
mod config;
mod error;
pub mod files;
pub mod hash;
pub mod hf;
mod lora;
mod params;
pub mod words;

pub use checkpoint::{ChatFormat, Checkpoint, CheckpointMeta, TokenizerRef};
pub use config::{Activation, Config, GPT2, GPT2_VOCAB_SIZE, Gpt2, Recipe, VARIANTS, Variant};
pub use error::Error;
pub use lora::{AdapterRanges, Lora, LoraList, Target, Targets};
pub use params::{BlockRanges, Init, Param, ParamList};
