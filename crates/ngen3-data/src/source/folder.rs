//! Folder listings.

use std::fs::{DirEntry, Metadata};
use std::io::ErrorKind;
use std::path::Path;

use crate::Error;

/// Returns all entries of a folder, in no particular order.
pub(crate) fn entries(folder: &Path) -> Result<Vec<DirEntry>, Error> {
    let entries = folder.read_dir().and_then(Iterator::collect);
    entries.map_err(|error| Error::open(folder, &error))
}

/// Returns the metadata of the file that an entry is or links to. `None` for anything else: folders, links to folders (which
/// could form a cycle) and broken links.
pub(crate) fn file_of(entry: &DirEntry) -> Result<Option<Metadata>, Error> {
    let path = entry.path();
    let kind = entry.file_type().map_err(|error| Error::open(&path, &error))?;
    match path.metadata() {
        Err(error) if kind.is_symlink() && error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::open(&path, &error)),
        Ok(meta) => Ok(Some(meta).filter(Metadata::is_file)),
    }
}
