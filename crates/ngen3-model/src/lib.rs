//! A model as data: its shape ([`Config`]), its parameters ([`ParamList`]) and its files. No arithmetic.
//!
//! Read `config.rs` first, then `params/list.rs`, then `meta.rs` and `load.rs`, which opens every kind of file: those of
//! `checkpoint/` and the folders of `hf/`. Below these are `files/` (written whole or not at all), `tensors/` (the formats
//! that hold them) and `state_dict.rs` (from a file's tensors to the flat array). `words.rs` counts in
//! messages, `hash.rs` writes a SHA-256 as text.

pub mod checkpoint;
mod config;
mod error;
pub mod files;
pub mod hash;
pub mod hf;
mod load;
mod meta;
mod params;
mod state_dict;
pub mod tensors;
pub mod words;

pub use config::{Activation, Config, GPT2, GPT2_VOCAB_SIZE, Gpt2, Recipe, SizeField, VARIANTS, Variant};
pub use error::Error;
pub use meta::{ChatFormat, Checkpoint, CheckpointMeta, TokenizerRef};
pub use params::{
    AdapterRanges, BlockRanges, Init, Lora, LoraList, LoraMatrix, Param, ParamList, Role, Target, Targets,
};
