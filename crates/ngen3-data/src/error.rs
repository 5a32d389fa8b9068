//! Errors from raw text to batches.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use crate::tokenizer;

/// An error that names the cause, the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An invalid argument: a source, a dataset name, a setting.
    #[error("{0}")]
    Input(String),
    /// A source that is missing, unreadable or malformed.
    #[error("{name}: {reason}")]
    Read {
        /// The file, URL or pipe.
        name: String,
        /// The reason, with the line or record if there is one.
        reason: String,
    },
    /// A source that is not valid UTF-8.
    #[error(
        "{name}: invalid UTF-8 at byte {offset}{} (0x{byte:02x}); convert the file, or pass --encoding (such as cp1252) \
         or --lossy (tokenize, tokenizer train)",
        if *compressed { " of the decompressed text" } else { "" }
    )]
    Utf8 {
        /// The file, URL or pipe.
        name: String,
        /// Byte offset of the first invalid byte.
        offset: u64,
        /// The invalid byte.
        byte: u8,
        /// True if `offset` counts bytes of the decompressed text.
        compressed: bool,
    },
    /// A URL that could not be downloaded.
    #[error("cannot download {url}: {reason}")]
    Download {
        /// The URL, without a password.
        url: String,
        /// The server's response or the network error.
        reason: String,
    },
    /// A repository or file of the Hugging Face hub that could not be fetched.
    #[error("cannot fetch {name}: {reason}")]
    Hub {
        /// The repository, or a file in it.
        name: String,
        /// The hub's message or the network error.
        reason: String,
    },
    /// A repository or file that could not be uploaded to the Hugging Face hub.
    #[error("cannot upload {name}: {reason}")]
    Upload {
        /// The repository, or a file in it.
        name: String,
        /// The hub's message or the network error.
        reason: String,
    },
    /// A token file that is damaged, or does not match its meta.json or the model.
    #[error("{0}")]
    Data(String),
    /// A tokenizer that cannot be loaded, or fails on a text.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// A file that could not be written.
    #[error(transparent)]
    Write(#[from] ngen3_model::Error),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// Makes an [`Error::Read`].
    pub(crate) fn read(name: impl Display, reason: impl Display) -> Self {
        Self::Read { name: name.to_string(), reason: reason.to_string() }
    }

    /// Makes an [`Error::Read`] for a file or folder that the user named.
    pub(crate) fn open(path: &Path, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::read(path.display(), "no such file or folder"),
            _ => Self::read(path.display(), error),
        }
    }

    /// Makes an [`Error::Write`].
    pub(crate) fn write(path: impl Into<PathBuf>, source: io::Error) -> Self {
        ngen3_model::Error::Write { path: path.into(), source }.into()
    }
}
