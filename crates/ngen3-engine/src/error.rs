//! Errors of engines.

/// Error of an engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input of the wrong shape, a token outside the vocabulary, or a setting out of range.
    #[error("{0}")]
    Input(String),
    /// Memory that cannot be allocated.
    #[error("cannot allocate {bytes} bytes for {what}")]
    Memory {
        /// Purpose of the memory.
        what: &'static str,
        /// Its size, in bytes.
        bytes: usize,
    },
    /// Operation that the device does not support, such as `distillation`.
    #[error("this device does not support {0}")]
    Unsupported(&'static str),
    /// Failure of the device itself: a GPU that was lost, or whose driver reports an error.
    #[error("the device failed: {0}")]
    Device(String),
    /// Compute threads that cannot be started.
    #[error("cannot start the compute threads: {0}")]
    Threads(String),
}
