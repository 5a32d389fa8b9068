//! Text sources: files, folders, stdin, http(s) URLs and built-in text.
//!
//! [`Source`] is a source as the user names it; [`list`] expands sources into single documents ([`Input`]); [`DocumentReader`]
//! reads these in order, on its own thread, as chunks of valid UTF-8. Read `list.rs`, `open.rs` (a source as bytes, decompressed),
//! `archive.rs` and `members.rs` (the members of an archive), `kind.rs` (what is not text), `encoding.rs` and `utf8.rs` (bytes as
//! text), `pieces.rs` (a text as documents), `reader.rs`, `channel.rs`; `download.rs` and `limited.rs` stand apart.

pub(crate) mod archive;
mod channel;
mod download;
pub(crate) mod encoding;
pub(crate) mod folder;
pub(crate) mod kind;
pub(crate) mod limited;
mod list;
pub(crate) mod members;
pub(crate) mod open;
mod pieces;
pub(crate) mod read_error;
mod reader;
mod utf8;

pub(crate) use channel::DocumentSender;
pub use channel::{DocumentReader, TextChunk};
pub use encoding::{TextEncoding, TextOptions};
pub use list::{Input, Listing, Source, list, shakespeare};
pub use pieces::SplitBy;
pub use reader::ReadOptions;

pub use crate::progress::Event;
