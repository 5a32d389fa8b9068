//! Datasets of the Hugging Face hub, or laid out like them: which files make a split, and their rows as documents.
//!
//! [`HfSource`] is what a user names; [`find`] settles it to files; [`Found::feed`] reads these in order, on a thread of its
//! own. Read `repository.rs` (a folder or the hub), `layout.rs` (which files make which split, with `card.rs` and `glob.rs`),
//! `split.rs` (`train[:10%]+test`), `column.rs` (a row becomes text), `rows/` (one file for each format), `reading.rs`,
//! `source.rs`.

mod card;
mod column;
mod format;
mod glob;
mod layout;
mod reading;
mod repository;
mod rows;
mod source;
mod split;

pub(crate) use column::TURN_FIELDS;
pub use rows::Record;
pub(crate) use source::find;
pub use source::{HfSource, read_records};
