//! The parameters of a model (`list.rs`) and of adapters beside it (`lora.rs`), each by its role (`role.rs`).
//! `names.rs` has what files call them, `biases.rs` the zeros for formats that need biases.

mod biases;
mod list;
mod lora;
pub(crate) mod names;
mod role;
mod target;

pub(crate) use biases::WithBiases;
pub use list::{BlockRanges, Init, LoraMatrix, Param, ParamList};
pub use lora::{AdapterRanges, Lora, LoraList};
pub use role::Role;
pub use target::{Target, Targets};
