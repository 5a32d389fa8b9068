//! Limits of every vocabulary.

/// The token that ends a document.
pub const ENDOFTEXT: &str = "<|endoftext|>";

/// Largest vocabulary accepted, including gaps: well above any in use, and small enough to bound memory.
pub const MAX_VOCAB_SIZE: usize = 1 << 22;
