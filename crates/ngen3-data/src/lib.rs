//! Text to tokens to batches.
//!
//! Read in the order of the data: `source/` (where text comes from), `hub/` and `hf/` (or rows of text, from the Hugging Face
//! hub), `tokenizer/` (text to ids), `dataset.rs` (a folder of tokens is made), `token_file.rs` (and opened), `batch.rs` (and
//! drawn from). `chat/` is the same way for conversations.

mod batch;
mod catch_panic;
pub mod chat;
mod dataset;
mod encode;
mod error;
mod hf;
mod http;
pub mod hub;
mod progress;
pub mod source;
mod token_file;
pub mod tokenizer;
mod train_tokenizer;

pub use batch::{BatchSampler, validation_split};
pub use dataset::{DatasetSpec, DatasetSummary, HfDatasetSpec, build_dataset, build_hf_dataset, dataset_folder};
pub use error::Error;
pub use hf::{HfSource, Record, read_records};
pub use token_file::{ChatMeta, DatasetMeta, Dtype, TokenFile};
pub use tokenizer::Tokenizer;
pub use train_tokenizer::train_tokenizer;
