//! Contents of a folder.

use std::fs::{DirEntry, Metadata};
use std::io::ErrorKind;
use std::path::Path;

use crate::Error;

/// Returns everything in a folder, in no order.
pub(crate) fn entries(folder: &Path) -> Result<Vec<DirEntry>, Error> {
    let entries = folder.read_dir().and_then(Iterator::collect);
    entries.map_err(|error| Error::open(folder, &error))
}

/// Returns the file that an entry is or links to. A link to a folder is none, since it could lead round in a circle, nor is a
/// link that leads nowhere.
pub(crate) fn file_of(entry: &DirEntry) -> Result<Option<Metadata>, Error> {
    let path = entry.path();
    let kind = entry.file_type().map_err(|error| Error::open(&path, &error))?;
    match path.metadata() {
        Err(error) if kind.is_symlink() && error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::open(&path, &error)),
        Ok(meta) => Ok(Some(meta).filter(Metadata::is_file)),
    }
}
