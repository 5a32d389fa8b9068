//! Errors in a model's shape or files.

use std::io;
use std::path::PathBuf;

/// Error in a model's shape or files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Invalid shape or setting.
    #[error("{0}")]
    Config(String),
    /// File that is missing, damaged or of an unexpected kind.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// File that could not be written; the old file is untouched.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Checkpoint with another shape than expected.
    #[error("{} holds another model: {differences}", path.display())]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// Each field that differs: `n_layer is 2, not 4; …`.
        differences: String,
    },
}
