//! Sources as bytes: `open.rs` opens a file and decompresses it, `download.rs` fetches a URL, `archive.rs` and `members.rs` read the
//! members of an archive, `kind.rs` tells what is not text, `limited.rs` bounds what is read at once.

pub(crate) mod archive;
pub(in crate::source) mod download;
pub(crate) mod kind;
pub(crate) mod limited;
pub(crate) mod members;
pub(crate) mod open;
pub(crate) mod read_error;
