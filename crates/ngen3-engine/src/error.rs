//! Errors of computing.

/// Errors of computing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input of the wrong shape, or a token outside the vocabulary.
    #[error("{0}")]
    Input(String),
    /// The arena for this shape does not fit in memory.
    #[error("{what} needs {bytes} bytes of memory, which could not be reserved")]
    Memory {
        /// Purpose of the memory.
        what: &'static str,
        /// How much was asked for.
        bytes: usize,
    },
    /// Something that this device does not do, such as `distillation`.
    #[error("this device does not support {0}")]
    Unsupported(&'static str),
    /// The threads that compute could not be started.
    #[error("could not start the threads that compute: {0}")]
    Threads(String),
}
