//! Atomic writes.
//!
//! A file is written under a temporary name in its own folder, flushed to disk, then renamed. A crash leaves the old file or
//! the new one, never a partial one. [`write_atomic`] writes in one call; [`AtomicFile`] is a stream, for content that is
//! produced over time or may fail.
//!
//! A killed program leaves its temporary file, `.NAME.xxxxxx.tmp`, behind. The next write of the same file removes it: writers
//! lock their temporary files, and a lock ends with its process.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::Error;

const BUFFER: usize = 1 << 18;

/// File being written. Dropping it before [`AtomicFile::commit`] discards it and keeps the old file.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temp: TempPath,
    /// Holds the lock of the temporary file.
    writer: BufWriter<File>,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`, whose folder must exist.
    ///
    /// # Errors
    /// [`Error::Write`] naming `path`, if it is read-only or a folder, or its folder is not writable.
    pub fn create(path: &Path) -> Result<Self, Error> {
        Self::open(path).map_err(|source| Error::Write { path: path.into(), source })
    }

    fn open(path: &Path) -> io::Result<Self> {
        let path = follow_links(path)?;
        let old = match fs::metadata(&path) {
            Ok(old) if old.is_dir() => return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")),
            // A device or a pipe must not be replaced by a file.
            Ok(old) if !old.is_file() => return Err(io::Error::other("it is not a regular file")),
            // Renaming does not check this.
            Ok(old) if old.permissions().readonly() => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is read-only"));
            }
            Ok(old) => Some(old),
            Err(_) => None,
        };
        let (file, temp) = make_beside(&path, TEMPORARY, 0o666, |builder, folder| {
            let (file, temp) = builder.tempfile_in(folder)?.into_parts();
            Ok((Some(file), temp))
        })?;
        let file = file.expect("`make` returned a file");
        if let Some(old) = old {
            // Keep the new file as private as the old one.
            file.set_permissions(old.permissions())?;
        }
        Ok(Self { path, temp, writer: BufWriter::with_capacity(BUFFER, file) })
    }

    /// Flushes the content to disk and renames the file into place.
    ///
    /// # Errors
    /// [`Error::Write`] naming the file. The old file is then unchanged, unless the last step failed, syncing the folder: the
    /// new file is then in place, but a power failure may undo that.
    pub fn commit(self) -> Result<(), Error> {
        let Self { path, temp, writer } = self;
        let finish = || {
            let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            temp.persist(&path).map_err(|error| error.error)?;
            // Hold the lock until the rename.
            drop(file);
            sync_folder(folder_of(&path))
        };
        finish().map_err(|source| Error::Write { path: path.clone(), source })
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer.seek(to)
    }
}

/// Writes a file atomically: `write` gives its content, and on an error the old file is kept. Returns what `write` returns.
///
/// # Errors
/// [`Error::Write`] naming `path`.
pub fn write_atomic<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> Result<T, Error> {
    let mut file = AtomicFile::create(path)?;
    let made = write(&mut file.writer).map_err(|source| Error::Write { path: path.into(), source })?;
    file.commit()?;
    Ok(made)
}

/// Checks that [`AtomicFile::create`] would succeed, before the work that produces the content.
///
/// # Errors
/// [`Error::Write`] naming `path`.
pub fn check(path: &Path) -> Result<(), Error> {
    AtomicFile::create(path).map(drop)
}

/// Suffix of temporary files and folders.
pub(crate) const TEMPORARY: &str = ".tmp";

/// Removes the temporary files and folders with this suffix that killed writers of `path` left behind. Those of running writers
/// are locked and stay; on a file system without locks, all stay.
pub(crate) fn remove_unlocked(path: &Path, ending: &str) {
    let (Some(prefix), Ok(entries)) = (prefix(path), fs::read_dir(folder_of(path))) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let middle = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        let middle = middle.and_then(|rest| rest.strip_suffix(ending.as_bytes()));
        let Some(kind) = entry.file_type().ok().filter(|_| middle.is_some_and(is_random)) else { continue };
        if !kind.is_file() && !kind.is_dir() {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() {
            // A leftover that cannot be removed does no harm.
            let _ = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Returns true for the random part of a name that `tempfile` makes.
fn is_random(part: &[u8]) -> bool {
    part.len() == 6 && part.iter().all(u8::is_ascii_alphanumeric)
}

/// Returns the prefix of temporary names beside `path`: `.NAME.`.
fn prefix(path: &Path) -> Option<OsString> {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name()?);
    prefix.push(".");
    Some(prefix)
}

/// Creates a temporary file or folder beside `path` and locks the file that `make` returns. `make` gets a builder of names and
/// the parent folder; `mode` is the permissions before the umask.
pub(crate) fn make_beside<T: AsRef<Path>>(
    path: &Path,
    ending: &str,
    mode: u32,
    make: impl Fn(&tempfile::Builder, &Path) -> io::Result<(Option<File>, T)>,
) -> io::Result<(Option<File>, T)> {
    let prefix = prefix(path).ok_or_else(|| io::Error::other("it has no file name"))?;
    let folder = folder_of(path);
    if !folder.is_dir() {
        let reason = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, reason));
    }
    remove_unlocked(path, TEMPORARY);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(ending);
    // Temporary files are private by default; these get the usual permissions.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    loop {
        let (file, temp) = make(&builder, folder).map_err(without_temporary_path)?;
        let tidied = match file.as_ref().map(File::try_lock) {
            // Another writer took it for a leftover before it was locked, and is removing it.
            Some(Err(TryLockError::WouldBlock)) => true,
            // Without locks, nothing is removed.
            _ => !temp.as_ref().exists(),
        };
        if !tidied {
            return Ok((file, temp));
        }
    }
}

/// Removes the temporary path that `tempfile` adds to an error: users know only the final path.
fn without_temporary_path(error: io::Error) -> io::Error {
    match error.get_ref().map(ToString::to_string) {
        Some(text) => io::Error::new(error.kind(), text.split(" at path \"").next().unwrap_or_default()),
        None => error,
    }
}

/// Follows symbolic links to their target, which need not exist. Returns any other path unchanged.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    /// Linux's limit.
    const MOST: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MOST {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            // Not a link.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("its symbolic links form a loop"))
}

/// Returns the parent folder of a path; `.` for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Creates a folder and its missing parents, durably: otherwise a power failure could lose the folder with all files that were
/// synced in it. Removes what a killed [`check`] of its name left.
///
/// # Errors
/// If a folder cannot be created or its parent cannot be synced.
pub fn create_folders(folder: &Path) -> io::Result<()> {
    remove_unlocked(folder, TEMPORARY);
    let missing: Vec<_> = folder.ancestors().filter(|at| !at.as_os_str().is_empty() && !at.exists()).collect();
    fs::create_dir_all(folder)?;
    missing.into_iter().rev().try_for_each(|made| sync_folder(folder_of(made)))
}

/// Syncs a folder to disk, which makes renames and new entries in it durable.
///
/// # Errors
/// If it cannot be opened or synced.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_permissions_stay_and_what_is_no_file_is_not_replaced() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("other")).unwrap();
        fs::write(at("other/real.bin"), "old").unwrap();
        fs::set_permissions(at("other/real.bin"), fs::Permissions::from_mode(0o600)).unwrap();
        symlink("other/real.bin", at("link.bin")).unwrap();
        symlink("link.bin", at("again.bin")).unwrap();
        symlink("other/new.bin", at("dangling.bin")).unwrap();
        for name in ["again.bin", "dangling.bin"] {
            write_atomic(&at(name), |file| file.write_all(b"new")).unwrap();
            assert!(at(name).is_symlink() && fs::read(at(name)).unwrap() == b"new", "{name}");
        }
        assert_eq!(names(&at("other")), ["new.bin", "real.bin"]);
        assert_eq!(fs::metadata(at("other/real.bin")).unwrap().permissions().mode() & 0o777, 0o600);

        symlink("b.bin", at("a.bin")).unwrap();
        symlink("a.bin", at("b.bin")).unwrap();
        let error = write_atomic(&at("a.bin"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("a.bin") && error.contains("loop"), "{error}");
        let error = write_atomic(Path::new("/dev/null"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("/dev/null") && error.contains("it is not a regular file"), "{error}");
    }

    #[test]
    fn the_new_content_replaces_the_old_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        fs::write(&path, "old and longer").unwrap();
        let length = write_atomic(&path, |file| {
            file.write_all(b"new")?;
            Ok(3)
        });
        assert_eq!(length.unwrap(), 3);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn what_is_read_only_is_replaced_by_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        fs::write(&path, "old").unwrap();
        let writable = fs::metadata(&path).unwrap().permissions();
        let mut protected = writable.clone();
        protected.set_readonly(true);
        fs::set_permissions(&path, protected).unwrap();
        let error = write_atomic(&path, |file| file.write_all(b"new")).unwrap_err().to_string();
        assert_eq!(error, format!("cannot write {}: it is read-only", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
        fs::set_permissions(&path, writable).unwrap();
        write_atomic(&path, |file| file.write_all(b"new")).unwrap();
    }

    #[test]
    fn an_error_half_way_leaves_the_old_file_and_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        fs::write(&path, "old").unwrap();
        let error = write_atomic(&path, |file| {
            file.write_all(&vec![7; 3 * BUFFER])?;
            Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}: no storage space", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn an_abandoned_stream_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&folder.path().join("a.bin")).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let mut living = AtomicFile::create(&path).unwrap();
        living.write_all(b"first").unwrap();
        let others =
            [".a.bin.Ab3.tmp", ".a.bin.Ab3x!5.tmp", ".a.bin.c.Ab3x45.tmp", ".a.bin.Ab3x45", "a.bin.Ab3x45.tmp"];
        for name in others.into_iter().chain([".a.bin.Ab3x45.tmp"]) {
            fs::write(folder.path().join(name), "half").unwrap();
        }
        fs::create_dir_all(folder.path().join(".a.bin.000000.tmp/below")).unwrap();
        write_atomic(&path, |file| file.write_all(b"second")).unwrap();
        let left = names(folder.path());
        assert!(others.iter().all(|&name| left.iter().any(|found| found == name)), "{left:?}");
        assert_eq!(left.len(), others.len() + 2, "{left:?}");
        living.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()).len(), others.len() + 1);
    }

    #[test]
    fn many_writers_of_one_file_do_not_remove_each_others_work() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        write_atomic(&path, |file| file.write_all(b"whole")).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_folder_is_made_with_its_parents_and_without_the_rest_of_a_killed_check() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".a.Ab3x45.tmp"), "").unwrap();
        create_folders(&folder.path().join("a")).unwrap();
        assert_eq!(names(folder.path()), ["a"]);
        create_folders(&folder.path().join("a/b/c")).unwrap();
        create_folders(&folder.path().join("a/b/c")).unwrap();
        assert!(folder.path().join("a/b/c").is_dir());
        assert!(create_folders(&folder.path().join("a/b/c\0")).is_err());
    }

    #[test]
    fn a_missing_folder_and_a_folder_in_the_way_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere");
        let error = AtomicFile::create(&missing.join("a.bin")).unwrap_err().to_string();
        assert!(error.contains(&format!("there is no folder {}", missing.display())), "{error}");
        let error = AtomicFile::create(folder.path()).unwrap_err().to_string();
        assert!(error.contains("it is a folder"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_the_system_refuses_is_said_of_the_file_and_not_of_a_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        // The longest name allowed: with a temporary suffix it is too long.
        let path = folder.path().join("a".repeat(255));
        let error = AtomicFile::create(&path).unwrap_err().to_string();
        let start = format!("cannot write {}: ", path.display());
        let reason = error.strip_prefix(&start).unwrap_or_else(|| panic!("{error}"));
        assert!(reason.ends_with("(os error 36)") || !cfg!(target_os = "linux"), "{error}");
        assert!(!reason.contains("aaa") && !reason.contains("at path"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_new_file_is_readable_by_whom_the_umask_says() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (plain, atomic) = (folder.path().join("plain"), folder.path().join("atomic"));
        fs::write(&plain, "").unwrap();
        write_atomic(&atomic, |_| Ok(())).unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&atomic), mode(&plain));
    }
}
