//! Byte-level BPE with GPT-2's pre-tokeniser, on our own code.
//!
//! Read `pretoken.rs` (how a text is cut into words), `merge.rs` (how a word becomes ids) and `vocab.rs` (the two together).

pub(super) mod alphabet;
mod cache;
pub(super) mod classes;
pub(super) mod merge;
pub(super) mod pretoken;
mod vocab;

pub(super) use vocab::Bpe;
