//! Turns raw text into tokens and training batches.
//!
//! Modules in the order of the data: `source/` reads text, `hub/` and `hf/` read datasets of the Hugging Face hub, `tokenizer/`
//! turns text into token ids, `dataset.rs` writes a folder of tokens, `token_file.rs` opens it, and `batch.rs` draws batches
//! from it. `chat/` does the same for conversations.

mod batch;
mod catch_panic;
pub mod chat;
mod dataset;
mod encode;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod hf;
mod http;
pub mod hub;
mod json_scan;
mod progress;
pub mod source;
mod token_file;
pub mod tokenizer;
mod tokenizer_file;
mod train_tokenizer;
mod vocabulary;

pub use batch::{BatchSampler, validation_split};
pub use dataset::{
    DatasetSpec, DatasetSummary, HfDatasetSpec, build_dataset, build_hf_dataset, build_texts, dataset_folder,
};
pub use error::Error;
pub use hf::{HfSource, Record, RecordOptions, read_records};
pub use token_file::{ChatMeta, DatasetMeta, Dtype, TokenFile};
pub use tokenizer::Tokenizer;
pub use tokenizer_file::TokenizerFile;
pub use train_tokenizer::{TextSurvey, TokenizerKind, is_trained, survey_text, train_tokenizer};
