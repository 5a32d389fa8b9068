//! Atomic writes of files (`atomic.rs`) and folders (`folder.rs`), and size-limited reads (`text.rs`).

mod atomic;
mod folder;
mod text;

pub use atomic::{AtomicFile, check, create_folders, folder_of, sync_folder, write_atomic};
pub use folder::NewFolder;
pub use text::read_text;
pub(crate) use text::{parse_json, pretty_json, read_error, read_object};
