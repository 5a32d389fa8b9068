//! Datasets of the Hugging Face hub, or local ones with the same layout: their splits, and their records as documents.
//!
//! [`HfSource`] is a dataset as the user names it; [`resolve`] finds its files; [`ResolvedDataset::documents`] reads these in
//! order, on its own thread. Read `repository.rs` (a folder or the hub), `layout.rs` (files and splits, with `card.rs` and
//! `glob.rs`), `split.rs` (`train[:10%]+test`), `column.rs` (a record as text), `formats/` (one file for each format),
//! `documents.rs`, `source.rs`.

mod card;
mod column;
mod documents;
mod format;
mod formats;
mod glob;
mod layout;
mod record;
mod repository;
mod source;
mod split;

pub(crate) use column::TURN_FIELDS;
pub use formats::RecordOptions;
pub use record::Record;
pub(crate) use source::resolve;
pub use source::{HfSource, read_records};
