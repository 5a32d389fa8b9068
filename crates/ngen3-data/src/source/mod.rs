//! Text sources: files, folders, stdin, http(s) URLs and built-in text.
//!
//! [`Source`] is a source as the user names it; [`list`] expands sources into single documents ([`Input`]); [`DocumentReader`]
//! reads these in order, on its own thread, as chunks of valid UTF-8. Read `list.rs`, `open.rs` (a document as bytes),
//! `utf8.rs` (bytes as text), `reader.rs`; `download.rs` and `limited.rs` stand apart.

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
