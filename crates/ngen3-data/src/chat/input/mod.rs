//! Conversations from files and records: `read.rs` reads a file, `parse.rs` a line or a JSON value, with `turns.rs` (lists of turns),
//! `forms.rs` (instruction data) and `mapping.rs` (names that the user gives).

mod forms;
mod mapping;
mod parse;
mod read;
mod turns;

pub use mapping::ChatMapping;
pub use parse::{ChatParser, ParsedChat};
pub(super) use read::{RecordPosition, read_file};
