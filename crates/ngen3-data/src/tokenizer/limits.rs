//! Limits that every vocabulary keeps to.

/// The token that ends a document.
pub const ENDOFTEXT: &str = "<|endoftext|>";

/// Largest vocabulary taken, holes included: well above any in use, and small enough that no file can ask for much memory.
pub const MAX_VOCAB_SIZE: usize = 1 << 22;
