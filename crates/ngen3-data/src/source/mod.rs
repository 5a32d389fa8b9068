//! Where text comes from: files, folders, stdin, http(s) addresses, and what is built in.
//!
//! [`Source`] is what a user names; [`list`] turns sources into single documents ([`Input`]); [`Feed`] reads these in
//! order, on a thread of its own, as pieces of checked UTF-8. Read `list.rs`, `open.rs` (a document becomes bytes), `text.rs`
//! (bytes become text), `feed.rs`; `download.rs` and `limited.rs` stand apart.

mod download;
mod feed;
pub(crate) mod folder;
pub(crate) mod limited;
mod list;
pub(crate) mod open;
pub(crate) mod text;

pub(crate) use feed::Sink;
pub use feed::{Feed, Piece, Settings};
pub use list::{Input, Listing, Source, list, shakespeare};

pub use crate::progress::Event;
