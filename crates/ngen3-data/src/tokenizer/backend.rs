//! The tokenizer implementations.

use super::bpe::Bpe;
use super::chars::Chars;
use crate::catch_panic::catch_panic;

/// An implementation of a tokenizer.
pub(super) enum Backend {
    ByteLevel(Box<Bpe>),
    Chars(Box<Chars>),
    HuggingFace(Box<tokenizers::Tokenizer>),
}

/// Runs code of the `tokenizers` crate, which may panic on a malformed file or an unusual text; a panic is returned as an error.
pub(super) fn run_library<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    catch_panic("tokenizers", run)?.map_err(|error| error.to_string())
}
