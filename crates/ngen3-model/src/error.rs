//! Errors about a model's shape or its files.

use std::io;
use std::path::PathBuf;

/// An error that names what was wrong and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A shape that no model can have.
    #[error("{0}")]
    Config(String),
    /// A file that is missing, damaged, or not what it should be.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A file that could not be written; what stood there before is untouched.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A checkpoint of another shape than the one asked for.
    #[error("{} holds another model: {differences}", path.display())]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// Each field that differs, with both values.
        differences: String,
    },
}
