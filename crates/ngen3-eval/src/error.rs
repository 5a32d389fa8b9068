//! What can go wrong in an evaluation.

/// An error that names what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something asked for that cannot be: a task, a number of examples, a stride.
    #[error("{0}")]
    Input(String),
    /// Data of a task that is missing, damaged or not in the task's form.
    #[error("{task}: {reason}")]
    TaskData {
        /// The task.
        task: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// Data that cannot be read.
    #[error(transparent)]
    Data(#[from] ngen3_data::Error),
    /// The engine's refusal.
    #[error(transparent)]
    Engine(#[from] ngen3_engine::Error),
    /// A file that could not be written.
    #[error(transparent)]
    Write(#[from] ngen3_model::Error),
    /// The work was asked to stop.
    #[error("interrupted")]
    Interrupted,
}
