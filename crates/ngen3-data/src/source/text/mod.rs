//! Bytes as text: `encoding.rs` converts to UTF-8, `utf8.rs` checks it, `pieces.rs` splits a text into documents.

pub(crate) mod encoding;
pub(in crate::source) mod pieces;
pub(in crate::source) mod utf8;
