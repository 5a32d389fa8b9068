//! Errors of failed reads.

use std::io;

use super::open::XZ_MEMORY_KIB;
use crate::Error;

/// Bytes that are not text in the encoding of their file, as an error of a reader.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidText(pub(crate) String);

/// Makes the error of a failed read; `compressed` is true if the stored bytes are compressed.
pub(crate) fn read_error(name: &str, compressed: bool, error: &io::Error) -> Error {
    Error::read(name, read_reason(compressed, error))
}

/// Describes a failed read, as [`read_error`] does.
pub(crate) fn read_reason(compressed: bool, error: &io::Error) -> String {
    match error.kind() {
        _ if error.get_ref().is_some_and(|inner| inner.is::<InvalidText>()) => error.to_string(),
        io::ErrorKind::UnexpectedEof if compressed => "compressed data ends early; the file may be truncated".into(),
        io::ErrorKind::OutOfMemory if compressed => {
            format!(
                "its dictionary is larger than the limit of {} MiB; compress it with a smaller one",
                XZ_MEMORY_KIB >> 10
            )
        }
        _ if compressed => format!("compressed data is damaged ({error})"),
        _ => error.to_string(),
    }
}
