//! What can go wrong in a training run.

use std::path::{Path, PathBuf};

/// An error that names what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something was asked for that cannot be: a setting out of range, flags that contradict each other or the files.
    #[error("{0}")]
    Usage(String),
    /// A file that is not what it should be.
    #[error("{path}: {what}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The operating system refused to read or write.
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    Io {
        /// Such as `read` or `write`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// A save failed, such as on a full disk; the one before it stands.
    #[error("{what}; what was saved at step {step} is whole, and --resume goes on from it")]
    Save {
        /// What went wrong.
        what: Box<Error>,
        /// The step of the last save.
        step: u64,
    },
    /// The loss left the numbers: there is nothing to go on from.
    #[error(
        "the {what} became {value} at step {step} (learning rate {lr:e}); {kept}. Try a lower --learning_rate, more \
         --warmup_iters, or --grad_clip 1"
    )]
    Diverged {
        /// `loss`, `gradient norm` or `validation loss`.
        what: &'static str,
        /// Infinite or not a number.
        value: f32,
        /// The step at which it was seen.
        step: u64,
        /// Of the last update.
        lr: f32,
        /// Which checkpoint is left.
        kept: String,
    },
    /// From the model's shape or its files.
    #[error(transparent)]
    Model(#[from] ngen3_model::Error),
    /// From the data.
    #[error(transparent)]
    Data(#[from] ngen3_data::Error),
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] ngen3_engine::Error),
}

impl Error {
    /// For `map_err`: what was being done to which file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    /// A file that is not what it should be.
    pub(crate) fn file(path: &Path, what: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.into() }
    }
}
