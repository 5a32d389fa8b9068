//! Import and export of Hugging Face model folders, and export of GGUF files.
//!
//! A folder holds `config.json` (the shape), the weights (`model.safetensors` or `pytorch_model.bin`, or shards of either with
//! an index) and the tokenizer. GPT-2's parameters and their names are nanoGPT's, with two exceptions: weights of linear layers
//! are transposed, `[in, out]` (`Conv1D`), and some files omit the prefix `transformer.`. The Llama family's are as in our
//! checkpoints.
//!
//! Start with `config/` (the options that are supported), then `read.rs`. `export/` writes models, `adapter.rs` adapters for
//! `peft`.

mod adapter;
mod chat;
pub(crate) mod config;
mod export;
mod lookup;
mod read;
mod roles;
mod settings;
mod tokenizer;

pub use adapter::{ADAPTER_FILES, write_adapter};
pub use config::rope_scaling;
pub use export::{CurvePoint, Export, ExportDtype, ExportFormat, Exported, check_export, export};
pub(crate) use read::read;
pub use roles::Roles;
pub(crate) use roles::without_roles;
pub(crate) use tokenizer::{is_gpt2, with_roles};
