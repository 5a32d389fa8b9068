//! Errors of a tokenizer.

/// An error that names the tokenizer and the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An invalid tokenizer.json.
    #[error("tokenizer {name}: {reason}")]
    Json {
        /// The file or the given name.
        name: String,
        /// The reason, with the place in the file.
        reason: String,
    },
    /// Text that a tokenizer from a file cannot encode (for instance because its regular expression gives up).
    #[error("tokenizer {name}: cannot encode the text that begins {excerpt:?}: {reason}")]
    Encode {
        /// The tokenizer's name.
        name: String,
        /// The first characters of the text.
        excerpt: String,
        /// The error of the `tokenizers` crate.
        reason: String,
    },
    /// A word that is too long to be merged.
    #[error(
        "expected words of at most {max} bytes, got {0}: a text needs spaces, line breaks or other places where words end",
        max = super::limits::MAX_WORD
    )]
    LongWord(usize),
    /// A vocabulary size that a byte-level tokenizer cannot have.
    #[error(
        "vocab_size {0} is out of range: expected 257 (the 256 bytes and <|endoftext|>) to {max}",
        max = super::limits::MAX_VOCAB_SIZE
    )]
    VocabSize(usize),
    /// An end-of-document token that a vocabulary of characters cannot have.
    #[error("eos_token {0:?}: expected several characters, since each single one is a token of its own")]
    Eos(String),
    /// A text of which no character is in the vocabulary.
    #[error("tokenizer {0}: none of the text's characters are in its vocabulary")]
    NoCharacter(String),
    /// No text to train on.
    #[error("no text to train a tokenizer on: every input is empty")]
    NoText,
}
