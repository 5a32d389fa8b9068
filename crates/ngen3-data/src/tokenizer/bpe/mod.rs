//! Byte-level BPE with GPT-2's pre-tokeniser, our own implementation.
//!
//! Read `pretoken.rs` (a text as words), `merge.rs` (a word as ids) and `vocab.rs` (both together).

pub(super) mod alphabet;
mod cache;
pub(super) mod classes;
pub(super) mod merge;
pub(super) mod pretoken;
mod vocab;

pub(super) use vocab::Bpe;
