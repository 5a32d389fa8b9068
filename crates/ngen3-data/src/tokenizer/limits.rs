//! Limits of every vocabulary.

/// The token that ends a document.
pub const ENDOFTEXT: &str = "<|endoftext|>";

/// Longest word that byte-level BPE merges, in bytes: each takes about 50 bytes of memory.
pub const MAX_WORD: usize = 8 << 20;

/// Largest vocabulary accepted, including gaps: well above any in use, and small enough to bound memory.
pub const MAX_VOCAB_SIZE: usize = 1 << 22;
