//! Hugging Face's model folders, in and out, and GGUF files out.
//!
//! A folder holds `config.json` (the shape), the weights (`model.safetensors` or `pytorch_model.bin`, either in several
//! files listed by an index) and the tokenizer. Its GPT-2 has our parameters under our names, but for two things: the
//! matrices of linear layers stand transposed, `[in, out]` (its `Conv1D`), and some files leave `transformer.` away.
//!
//! Read `config.rs` first (what a config.json must say to be run exactly), then `read.rs`; for the way out `export/`,
//! and `adapter.rs`, which writes adapters for `peft`.

mod adapter;
mod chat;
mod config;
mod export;
mod read;
mod tokenizer;

pub use adapter::{ADAPTER_FILES, write_adapter};
pub use export::{CurvePoint, Export, ExportDtype, ExportFormat, Exported, check_export, export};
pub(crate) use read::read;
