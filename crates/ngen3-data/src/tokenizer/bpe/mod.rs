//! Byte-level BPE, our own implementation.
//!
//! Read `pretoken/` (a text as words), `merge.rs` (a word as ids), `normalize.rs` and `added.rs` (what some files ask for before)
//! and `vocab.rs` (all together).

pub(super) mod added;
pub(super) mod alphabet;
mod cache;
mod classes;
pub(super) mod merge;
pub(super) mod normalize;
pub(super) mod pretoken;
mod vocab;

pub(super) use vocab::{Bpe, Steps};
