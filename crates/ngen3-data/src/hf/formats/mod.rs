//! Records of a file: `file.rs` opens it, one file for each format reads it, `read.rs` chooses between them.

mod arrow;
mod arrow_sizes;
mod csv;
mod file;
mod json;
mod parquet;
mod read;
mod text;

pub use file::RecordOptions;
pub(super) use file::{DataFileReader, RecordReport, Wanted};
