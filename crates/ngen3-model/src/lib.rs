//! What a model is: its shape ([`Config`]), its parameters ([`ParamList`]) and its files. No arithmetic.
//!
//! Read `config.rs` first, then `params.rs`.

mod config;
mod error;
mod params;

pub use config::{Activation, Config, GPT2_VOCAB_SIZE, Recipe, VARIANTS, Variant};
pub use error::Error;
pub use params::{BlockRanges, Init, Param, ParamList};
