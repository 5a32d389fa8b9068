//! What can go wrong with a model's shape or its files.

/// An error that names what was wrong and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A shape that no model can have.
    #[error("{0}")]
    Config(String),
}
