//! The two implementations of a tokenizer.

use super::bpe::Bpe;
use crate::catch_panic::catch_panic;

/// Turns text into ids.
pub(super) enum Backend {
    ByteLevel(Box<Bpe>),
    HuggingFace(Box<tokenizers::Tokenizer>),
}

/// Runs code of the `tokenizers` crate, in which a malformed file or an unlucky text can panic; that is an error here.
pub(super) fn run_library<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    catch_panic("tokenizers", run)?.map_err(|error| error.to_string())
}
