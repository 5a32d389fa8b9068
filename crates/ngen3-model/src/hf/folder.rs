//! A folder that appears whole or not at all.
//!
//! Its files are written in a temporary folder beside it, which is renamed when all of them are on the disk.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Error;

/// A folder being made. Dropped before [`NewFolder::commit`], it leaves nothing behind and the old folder as it was.
pub(super) struct NewFolder {
    path: PathBuf,
    temp: TempDir,
}

impl NewFolder {
    /// Opens a temporary folder beside `path`, which may be there if it is empty. If `overwrite`, it may hold files, but only
    /// ones that `ours` says to be of an export: nothing else is deleted.
    ///
    /// # Errors
    /// [`Error::Write`] naming `path`.
    pub fn create(path: &Path, overwrite: bool, ours: impl Fn(&str) -> bool) -> Result<Self, Error> {
        Self::open(path, overwrite, ours).map_err(|source| Error::Write { path: path.into(), source })
    }

    fn open(path: &Path, overwrite: bool, ours: impl Fn(&str) -> bool) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it does not end in a folder's name"))?;
        if path.exists() {
            if !path.is_dir() {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is there already, and no folder"));
            }
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let found = entry.file_name();
                let known = entry.file_type()?.is_file() && found.to_str().is_some_and(&ours);
                if !overwrite {
                    let reason = "the folder is not empty; choose another, or replace it with --overwrite";
                    return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, reason));
                } else if !known {
                    let found = found.display();
                    let reason = format!("the folder holds {found}, which is no part of an export; choose another");
                    return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, reason));
                }
            }
        }
        let parent = parent(path);
        if !parent.is_dir() {
            let reason = format!("there is no folder {}", parent.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        Ok(Self { path: path.into(), temp: temporary(parent, name)? })
    }

    /// Where its files are to be written.
    pub fn files(&self) -> &Path {
        self.temp.path()
    }

    /// An error about a file in here, as one about the file that it was to become.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Write { path, source } => {
                let path = path.strip_prefix(self.temp.path()).map(|name| self.path.join(name)).unwrap_or(path);
                Error::Write { path, source }
            }
            other => other,
        }
    }

    /// Gives the folder its name, in place of what was there.
    ///
    /// # Errors
    /// [`Error::Write`] naming the folder; the old one is then as it was.
    pub fn commit(self) -> Result<(), Error> {
        let Self { path, temp } = self;
        let finish = || {
            sync(temp.path())?;
            if path.exists() {
                // Two renames: in a crash between them both folders are whole, and the old one is beside its place.
                let old = temporary(parent(&path), path.file_name().unwrap_or_default())?;
                fs::rename(&path, old.path())?;
                if let Err(error) = fs::rename(temp.path(), &path) {
                    fs::rename(old.path(), &path)?;
                    return Err(error);
                }
                old.close()?;
            } else {
                fs::rename(temp.path(), &path)?;
            }
            // It has another name now, so there is nothing left to remove.
            let _ = temp.keep();
            sync(parent(&path))
        };
        finish().map_err(|source| Error::Write { path: path.clone(), source })
    }
}

fn temporary(parent: &Path, name: &std::ffi::OsStr) -> io::Result<TempDir> {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // Temporary folders are private by default; this one becomes the user's own, so the umask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent)
}

/// The folder a path stands in; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
