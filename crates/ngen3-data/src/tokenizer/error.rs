//! What can go wrong with a tokenizer.

/// An error that names the tokenizer and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tokenizer.json that cannot be used.
    #[error("tokenizer {name}: {reason}")]
    Json {
        /// The file or the name it was given.
        name: String,
        /// What is wrong with it, and where.
        reason: String,
    },
    /// Text that a tokenizer from a file cannot turn into ids (its own regular expression gave up, say).
    #[error("tokenizer {name} failed on the text that begins {excerpt:?}: {reason}")]
    Encode {
        /// The tokenizer's name.
        name: String,
        /// The text's first characters.
        excerpt: String,
        /// What the tokenizer said.
        reason: String,
    },
    /// A vocabulary size that a byte-level tokenizer cannot have.
    #[error(
        "vocab_size {0} is out of range: ask for 257 (the 256 single bytes and <|endoftext|>) to {max}",
        max = super::limits::MAX_VOCAB_SIZE
    )]
    VocabSize(usize),
    /// Training on nothing.
    #[error("there is no text to train a tokenizer on: every input is empty")]
    NoText,
}
