//! Where text comes from: files, folders, stdin, http(s) addresses, and what is built in.
//!
//! [`Source`] is what a user names; [`list`] turns sources into single documents ([`Input`]); [`DocumentReader`] reads these in
//! order, on a thread of its own, as pieces of checked UTF-8. Read `list.rs`, `open.rs` (a document becomes bytes), `utf8.rs`
//! (bytes become text), `reader.rs`; `download.rs` and `limited.rs` stand apart.

mod download;
pub(crate) mod folder;
pub(crate) mod limited;
mod list;
pub(crate) mod open;
mod reader;
pub(crate) mod utf8;

pub use list::{Input, Listing, Source, list, shakespeare};
pub(crate) use reader::DocumentSender;
pub use reader::{DocumentReader, ReadOptions, TextChunk};

pub use crate::progress::Event;
