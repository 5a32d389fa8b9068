//! The two implementations of a tokenizer.

use super::bpe::Bpe;
use crate::caught::caught;

/// What turns text into ids.
pub(super) enum Kind {
    ByteLevel(Box<Bpe>),
    HuggingFace(Box<tokenizers::Tokenizer>),
}

/// Runs code of the `tokenizers` crate, in which a malformed file or an unlucky text can panic; that is an error here.
pub(super) fn run_library<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    caught("tokenizers", run)?.map_err(|error| error.to_string())
}
