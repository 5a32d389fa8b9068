//! Text sources: files, folders, stdin, http(s) URLs and built-in text.
//!
//! [`Source`] is a source as the user names it; [`list`] expands sources into single documents ([`Input`]); [`DocumentReader`]
//! reads these in order, on its own thread, as chunks of valid UTF-8. Read `list.rs`, `bytes/` (a source as bytes, decompressed),
//! `text/` (bytes as text), `reader.rs`, `channel.rs`.

pub(crate) mod bytes;
mod channel;
pub(crate) mod folder;
mod list;
mod reader;
pub(crate) mod text;

pub(crate) use channel::DocumentSender;
#[cfg(feature = "fuzz")]
pub(crate) use channel::read_here;
pub use channel::{DocumentReader, TextChunk};
pub use list::{Input, Listing, Source, list, shakespeare};
pub use reader::ReadOptions;
#[cfg(feature = "fuzz")]
pub(crate) use reader::send_documents;
pub use text::encoding::{TextEncoding, TextOptions};
pub use text::pieces::SplitBy;

pub use crate::progress::Event;
