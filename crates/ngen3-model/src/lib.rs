//! Models as data: shape ([`Config`]), parameters ([`ParamList`]) and files. No arithmetic.
//!
//! Start with `config.rs`, `variant.rs`, `params/list.rs`, `meta.rs` and `load.rs`, which opens every kind of file: those of `checkpoint/`
//! and the folders of `hf/`; `gguf/` reads GGUF files. These build on `files/` (atomic writes), `tensors/` (tensor file formats) and `state_dict.rs`
//! (from a file's tensors to the flat array). `words.rs` formats counts in messages, `hash.rs` a SHA-256.

pub mod checkpoint;
mod config;
mod error;
pub mod files;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod gguf;
pub mod hash;
pub mod hf;
mod load;
mod meta;
pub mod nanogpt;
mod params;
mod rope;
mod state_dict;
pub mod tensors;
mod variant;
pub mod words;

pub use config::{Activation, Config, Family, GPT2_VOCAB_SIZE, Norm, SizeField};
pub use error::Error;
pub use meta::{ChatFormat, Checkpoint, CheckpointMeta, StoredWeight, TokenizerRef};
pub use params::{
    AdapterPart, AdapterRanges, BlockRanges, Init, Lora, LoraList, LoraMatrix, Param, ParamList, Projection, Role,
    Target, Targets,
};
pub use rope::{Rope, RopeScaling};
pub use variant::{GPT2, Gpt2, Recipe, VARIANTS, Variant};
