//! Datasets of the Hugging Face hub, or laid out like them: which files make a split, and their rows as documents.
//!
//! [`HfSource`] is what a user names; [`resolve`] settles it to files; [`ResolvedDataset::documents`] reads these in order, on
//! a thread of its own. Read `repository.rs` (a folder or the hub), `layout.rs` (which files make which split, with `card.rs`
//! and `glob.rs`), `split.rs` (`train[:10%]+test`), `column.rs` (a row becomes text), `formats/` (one file for each format),
//! `documents.rs`, `source.rs`.

mod card;
mod column;
mod documents;
mod format;
mod formats;
mod glob;
mod layout;
mod repository;
mod source;
mod split;

pub(crate) use column::TURN_FIELDS;
pub use formats::Record;
pub(crate) use source::resolve;
pub use source::{HfSource, read_records};
