//! Parameters of a model (`list.rs`) and of its adapters (`lora.rs`), by role (`role.rs`). `names.rs` holds their names in
//! files; `biases.rs` adds zero biases for formats that require them.

mod biases;
mod list;
mod lora;
pub(crate) mod names;
mod role;
mod target;

pub(crate) use biases::WithBiases;
pub use list::{BlockRanges, Init, LoraMatrix, Param, ParamList};
pub use lora::{AdapterPart, AdapterRanges, Lora, LoraList};
pub use role::Role;
pub use target::{Projection, Target, Targets};
