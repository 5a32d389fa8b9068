//! A folder that appears whole or not at all.
//!
//! Its files are written in a temporary folder beside it, which is renamed when all of them are on the disk. What a killed
//! program leaves is removed by the next one, as `atomic.rs` says.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::atomic::{TEMPORARY, folder_of, make_beside, remove_unlocked, sync_folder};
use crate::Error;

/// Ending of the name of a folder that is being replaced.
const REPLACED: &str = ".old";

/// A folder being made. Dropped before [`NewFolder::commit`], it leaves nothing behind and the old folder as it was.
pub(crate) struct NewFolder {
    path: PathBuf,
    temp: TempDir,
    /// The temporary folder's lock.
    lock: Option<File>,
}

impl NewFolder {
    /// Opens a temporary folder beside `path`, which may be there if it is empty. If `overwrite`, it may hold files, but only
    /// ones that `ours` says to be of an export, and none that is read-only: nothing else is deleted.
    ///
    /// # Errors
    /// [`Error::Write`] naming `path`.
    pub fn create(path: &Path, overwrite: bool, ours: impl Fn(&str) -> bool) -> Result<Self, Error> {
        Self::open(path, overwrite, ours).map_err(|source| Error::Write { path: path.into(), source })
    }

    fn open(path: &Path, overwrite: bool, ours: impl Fn(&str) -> bool) -> io::Result<Self> {
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
                } else if entry.metadata()?.permissions().readonly() {
                    let reason = format!("the folder holds {}, which is read-only", found.display());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
                }
            }
        }
        let (lock, temp) = temporary(path, TEMPORARY)?;
        Ok(Self { path: path.into(), temp, lock })
    }

    /// Returns the folder to write its files in.
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
    /// [`Error::Write`] naming the folder. The old one is then as it was, or where the error says, if it could not be put back;
    /// if it is the last step that fails, the new one is in place, but a power cut may undo that.
    pub fn commit(self) -> Result<(), Error> {
        let Self { path, temp, lock } = self;
        let finish = || {
            sync_folder(temp.path())?;
            if path.exists() {
                // Two renames: in a crash between them both folders are whole, and the old one is beside its place.
                let (_, old) = temporary(&path, REPLACED)?;
                let _locked = File::open(&path).and_then(|folder| Ok(folder.try_lock().map(|()| folder)?));
                fs::rename(&path, old.path())?;
                if let Err(error) = fs::rename(temp.path(), &path) {
                    if fs::rename(old.path(), &path).is_ok() {
                        return Err(error);
                    }
                    // Dropped, it would be removed.
                    let old = old.keep();
                    return Err(io::Error::new(error.kind(), format!("{error}; the old one is in {}", old.display())));
                }
                // The old one is removed when it is dropped. Should that fail, nothing is wrong with the new one: what is left
                // is tried again below and by the next export.
            } else {
                fs::rename(temp.path(), &path)?;
            }
            // It has another name now, so there is nothing left to remove.
            let _ = temp.keep();
            drop(lock);
            // Now that the new one is in place, older ones of programs that were killed here are of no more use.
            remove_unlocked(&path, REPLACED);
            sync_folder(folder_of(&path))
        };
        finish().map_err(|source| Error::Write { path: path.clone(), source })
    }
}

/// Makes a temporary folder beside `path`, and locks it where folders can be locked.
fn temporary(path: &Path, ending: &str) -> io::Result<(Option<File>, TempDir)> {
    make_beside(path, ending, 0o777, |builder, parent| {
        let folder = builder.tempdir_in(parent)?;
        Ok((File::open(folder.path()).ok(), folder))
    })
}
