//! Text to tokens to batches.
//!
//! Read in the order of the data: `source/` (where text comes from), `hub/` and `hf/` (or rows of text, from the Hugging Face
//! hub), `tokenizer/` (text to ids), `dataset.rs` (a folder of tokens is made), `token_file.rs` (and opened), `batch.rs` (and
//! drawn from). `chat/` is the same way for conversations.

mod batch;
mod caught;
pub mod chat;
mod dataset;
mod encode;
mod error;
mod hf;
mod http;
pub mod hub;
mod learn;
mod progress;
pub mod source;
mod token_file;
pub mod tokenizer;

pub use batch::{BatchSampler, validation_part};
pub use dataset::{HfSpec, Spec, Summary, build, build_hf, folder_name};
pub use error::Error;
pub use hf::{HfSource, Record, read_records};
pub use learn::train_tokenizer;
pub use token_file::{ChatMeta, Dtype, Meta, TokenFile};
pub use tokenizer::Tokenizer;
