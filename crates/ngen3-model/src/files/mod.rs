//! Files: written whole or not at all (`atomic.rs`, and `folder.rs` for a folder of them), read up to a limit (`text.rs`).

mod atomic;
mod folder;
mod text;

pub use atomic::{AtomicFile, check, folder_of, write_atomic};
pub(crate) use folder::NewFolder;
pub use text::read_text;
pub(crate) use text::{parse_json, pretty_json, read_error, read_object};
