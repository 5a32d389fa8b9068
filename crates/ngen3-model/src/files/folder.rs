//! Atomic writes of a folder.
//!
//! Files are written to a temporary folder beside it, which is renamed once all are on disk, or, on Linux, changes places with the
//! old folder. As in `atomic.rs`, the next write removes what a killed program left.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::atomic::{TEMPORARY, folder_of, make_beside, remove_unlocked, sync_folder};
use crate::Error;

/// Suffix of a folder that is being replaced.
const REPLACED: &str = ".old";

/// Folder being written. Dropping it before [`NewFolder::commit`] discards it and keeps the old folder.
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
    temp: TempDir,
    /// Lock of the temporary folder.
    lock: Option<File>,
}

impl NewFolder {
    /// Creates a temporary folder beside `path`, which must be missing or empty. With `overwrite`, it may also hold writable
    /// files whose names `ours` recognises as parts of it; nothing else is deleted.
    ///
    /// # Errors
    /// [`Error::Write`] naming `path`.
    pub fn create(path: &Path, overwrite: bool, ours: impl Fn(&str) -> bool) -> Result<Self, Error> {
        Self::open(path, overwrite, ours).map_err(|source| Error::Write { path: path.into(), source })
    }

    fn open(path: &Path, overwrite: bool, ours: impl Fn(&str) -> bool) -> io::Result<Self> {
        if path.exists() {
            if !path.is_dir() {
                return Err(io::Error::new(io::ErrorKind::NotADirectory, "it exists and is not a folder"));
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
                    let reason = format!("the folder holds {found}, which is not part of an export; choose another");
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

    /// Returns the temporary folder, to write the files into.
    pub fn files(&self) -> &Path {
        self.temp.path()
    }

    /// Replaces a temporary path in an error by the final one.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Write { path, source } => {
                let path = path.strip_prefix(self.temp.path()).map(|name| self.path.join(name)).unwrap_or(path);
                Error::Write { path, source }
            }
            other => other,
        }
    }

    /// Renames the folder into place, replacing the old one.
    ///
    /// # Errors
    /// [`Error::Write`] naming the folder. The old folder is then unchanged, or at the path in the message if it could not be
    /// put back. If the last step failed, syncing the parent folder, the new one is in place, but a power failure may undo
    /// that.
    pub fn commit(self) -> Result<(), Error> {
        let Self { path, temp, lock } = self;
        let finish = || {
            sync_folder(temp.path())?;
            if path.exists() && exchange(temp.path(), &path) {
                drop(lock);
                // Before the old folder is removed: a power failure must not undo the exchange alone.
                if let Err(error) = sync_folder(folder_of(&path)) {
                    let _ = temp.keep();
                    return Err(error);
                }
                // Removes the old folder. If the program is killed before, the next export does.
                drop(temp);
                remove_unlocked(&path, REPLACED);
                return Ok(());
            }
            if path.exists() {
                // Two renames: after a crash between them both folders are complete, the old one under a temporary name.
                let (_, old) = temporary(&path, REPLACED)?;
                let _locked = File::open(&path).and_then(|folder| Ok(folder.try_lock().map(|()| folder)?));
                fs::rename(&path, old.path())?;
                if let Err(error) = fs::rename(temp.path(), &path) {
                    if fs::rename(old.path(), &path).is_ok() {
                        return Err(error);
                    }
                    // Dropping it would remove it.
                    let old = old.keep();
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{error}; the old folder is now {}", old.display()),
                    ));
                }
                sync_folder(folder_of(&path))?;
                // Dropping `old` removes it. If that fails, `remove_unlocked` below and the next export try again.
            } else {
                fs::rename(temp.path(), &path)?;
            }
            // It was renamed, so there is nothing to remove.
            let _ = temp.keep();
            drop(lock);
            // With the new folder in place, those that killed programs left are no longer needed.
            remove_unlocked(&path, REPLACED);
            sync_folder(folder_of(&path))
        };
        finish().map_err(|source| Error::Write { path: path.clone(), source })
    }
}

/// Lets two folders change places in one step. Returns false where the system or the file system cannot.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// Creates a temporary folder beside `path` and locks it, on systems where folders can be locked.
fn temporary(path: &Path, ending: &str) -> io::Result<(Option<File>, TempDir)> {
    make_beside(path, ending, 0o777, |builder, parent| {
        let folder = builder.tempdir_in(parent)?;
        Ok((File::open(folder.path()).ok(), folder))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::files::write_atomic;

    #[test]
    fn a_folder_takes_the_place_of_the_old_one_and_nothing_else_is_left() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x");
        // A program was killed after its folder had changed places with the old one.
        let left = parent.path().join(".x.Ab3x45.tmp");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("a"), "older").unwrap();
        for text in ["old", "new"] {
            let new = NewFolder::create(&path, true, |name| name == "a").unwrap();
            write_atomic(&new.files().join("a"), |file| file.write_all(text.as_bytes())).unwrap();
            new.commit().unwrap();
            assert_eq!(fs::read_to_string(path.join("a")).unwrap(), text);
            assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "{text}");
        }
        drop(NewFolder::create(&path, true, |name| name == "a").unwrap());
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "new");
        assert!(NewFolder::create(&path, true, |name| name == "b").is_err(), "files of others are not replaced");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn folders_change_places_in_one_step() {
        let parent = tempfile::tempdir().unwrap();
        let (a, b) = (parent.path().join("a"), parent.path().join("b"));
        fs::create_dir_all(a.join("of_a")).unwrap();
        fs::create_dir(&b).unwrap();
        if exchange(&a, &b) {
            assert!(b.join("of_a").is_dir() && !a.join("of_a").exists());
        } else {
            println!("SKIPPED: this file system cannot exchange two folders");
        }
        assert!(!exchange(&a, &parent.path().join("missing")));
    }
}
