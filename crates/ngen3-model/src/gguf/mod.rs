//! Reads GGUF files: weights, their metadata and the tokenizer in one file, as llama.cpp's programs write them.
//!
//! The format is GGML's `docs/gguf.md`, versions 2 and 3, little-endian. Start with `file.rs`: [`Gguf`] opens a file and reads its
//! tensors one at a time. `header.rs` parses what precedes them, `value.rs` holds the metadata, `types.rs` the format's numbers,
//! `blocks.rs` turns quantized blocks into f32, `round.rs` the other way. `tokenizer.rs` makes a tokenizer.json of the metadata, with `pre_tokenizer.rs` and
//! `merges.rs`, and `model.rs` the whole model. Files are written by [`hf::export`](crate::hf::export).

mod blocks;
mod file;
mod header;
mod merges;
mod model;
mod pre_tokenizer;
mod round;
mod tokenizer;
mod types;
mod value;

pub use file::Gguf;
pub use header::Tensor;
pub(crate) use model::{FREQUENCY_FACTORS, interleave, is_gguf, is_interleaved, read};
pub(crate) use pre_tokenizer::name_of;
pub use round::round_to_q4_0;
pub use tokenizer::{Tokenizer, tokenizer};
pub use types::TensorType;
pub(crate) use types::{ALIGNMENT, MAGIC, VERSION};
pub use value::{Array, Numbers, Strings, Value};

/// Reads the header of a file in memory; returns the number of tensors.
#[cfg(feature = "fuzz")]
pub(crate) fn read_header(bytes: &[u8]) -> Result<usize, String> {
    header::read(bytes, bytes.len() as u64).map(|header| header.tensors.len())
}
