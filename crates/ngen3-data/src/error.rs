//! What can go wrong between text and batches.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::tokenizer;

/// An error that names what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something asked for that cannot be: a source, a dataset's name, a setting.
    #[error("{0}")]
    Input(String),
    /// A source that is missing, unreadable or damaged.
    #[error("cannot read {name}: {reason}")]
    Read {
        /// The file, address or pipe.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A source that is not UTF-8.
    #[error("{name} is not UTF-8: byte {offset}{} is 0x{byte:02x}; convert the text (tokenize and tokenizer train replace such bytes with --lossy)",
        if *compressed { " of its unpacked text" } else { "" })]
    Utf8 {
        /// The file, address or pipe.
        name: String,
        /// Bytes before the first one that is wrong.
        offset: u64,
        /// That byte.
        byte: u8,
        /// True if `offset` counts in what a compressed source holds.
        compressed: bool,
    },
    /// A URL that could not be had.
    #[error("cannot download {url}: {reason}")]
    Download {
        /// The address, without a password.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// Something of the Hugging Face hub that could not be had.
    #[error("cannot get {name}: {reason}")]
    Hub {
        /// The repository, or a file of it.
        name: String,
        /// The hub's own reason, or the network's.
        reason: String,
    },
    /// Something that could not be put on the Hugging Face hub.
    #[error("cannot upload {name}: {reason}")]
    Upload {
        /// The repository, or a file of it.
        name: String,
        /// The hub's own reason, or the network's.
        reason: String,
    },
    /// A token file that is damaged, does not fit its meta.json, or does not fit the model.
    #[error("{0}")]
    Data(String),
    /// A tokenizer that cannot be read, or fails on a text.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// A file that could not be written.
    #[error(transparent)]
    Write(#[from] ngen3_model::Error),
    /// The work was asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Makes [`Error::Read`].
    pub(crate) fn read(name: impl Display, reason: impl Display) -> Self {
        Self::Read { name: name.to_string(), reason: reason.to_string() }
    }

    /// Makes [`Error::Read`] of a file or folder that a user named; one that is missing is said to be so in plain words.
    pub(crate) fn open(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::read(path.display(), "there is no such file or folder"),
            _ => Self::read(path.display(), error),
        }
    }

    /// Makes [`Error::Write`].
    pub(crate) fn write(path: impl Into<PathBuf>, source: io::Error) -> Self {
        ngen3_model::Error::Write { path: path.into(), source }.into()
    }
}
