//! The parameters of a model (`list.rs`) and of adapters beside it (`lora.rs`).

mod list;
mod lora;
mod target;

pub use list::{BlockRanges, Init, Param, ParamList};
pub use lora::{AdapterRanges, Lora, LoraList};
pub use target::{Target, Targets};
