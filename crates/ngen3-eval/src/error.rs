//! Errors of an evaluation.

/// An error that tells what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Invalid input: an unknown task, a stride out of range, a model without a tokenizer.
    #[error("{0}")]
    Input(String),
    /// Task data that is missing, damaged or not in the task's format.
    #[error("{task}: {reason}")]
    TaskData {
        /// Name of the task.
        task: String,
        /// Reason, with its file and row.
        reason: String,
    },
    /// Data that cannot be read or tokenized.
    #[error(transparent)]
    Data(#[from] ngen3_data::Error),
    /// Error of the engine.
    #[error(transparent)]
    Engine(#[from] ngen3_engine::Error),
    /// A file that could not be written.
    #[error(transparent)]
    Write(#[from] ngen3_model::Error),
    /// The evaluation was stopped by its progress callback.
    #[error("interrupted")]
    Interrupted,
}
