//! Errors of training runs.

use std::path::{Path, PathBuf};

/// An error that names what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An invalid request: a setting out of range, or flags that contradict each other or the files.
    #[error("{0}")]
    Usage(String),
    /// A file with unexpected content.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The problem: what was expected, what was found, what to do.
        what: String,
    },
    /// An I/O error.
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    Io {
        /// The operation, such as `read` or `write`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A save failed, such as on a full disk; the checkpoint before it is intact.
    #[error("{what}; the checkpoint of step {step} is intact: continue from it with --resume")]
    Save {
        /// The error of the save.
        what: Box<Error>,
        /// The step of the last save.
        step: u64,
    },
    /// A loss or a gradient is infinite or NaN.
    #[error(
        "the {what} became {value} at step {step} (learning rate {lr:e}); {kept}; try a lower --learning_rate, more \
         --warmup_iters or --grad_clip 1"
    )]
    Diverged {
        /// `loss`, `gradient norm` or `validation loss`.
        what: &'static str,
        /// Infinite or NaN.
        value: f32,
        /// Step at which it was detected.
        step: u64,
        /// Learning rate of the last update.
        lr: f32,
        /// The checkpoint that remains, for the message.
        kept: String,
    },
    /// Error of the model's shape or files.
    #[error(transparent)]
    Model(#[from] ngen3_model::Error),
    /// Error of the data.
    #[error(transparent)]
    Data(#[from] ngen3_data::Error),
    /// Error of the engine.
    #[error(transparent)]
    Engine(#[from] ngen3_engine::Error),
}

impl Error {
    /// Returns a closure for `map_err` that adds the operation and the path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    /// Creates an [`Error::File`].
    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }
}
