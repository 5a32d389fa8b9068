//! Writing files whole or not at all.
//!
//! A file is written under a temporary name in its own folder, flushed to the disk, then renamed. A crash at any moment
//! leaves the old file or the new one, never half of one. [`write_atomic`] is for what is at hand; [`AtomicFile`] is for
//! a stream whose making can fail for reasons of its own.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::Error;

const BUFFER: usize = 1 << 18;

/// A file being written. Dropped before [`AtomicFile::commit`], it leaves nothing behind and the old file as it was.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temp: TempPath,
    writer: BufWriter<File>,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`, whose folder must exist.
    ///
    /// # Errors
    /// [`Error::Write`] naming `path`, if it is a folder or its folder cannot be written to.
    pub fn create(path: &Path) -> Result<Self, Error> {
        Self::open(path).map_err(|source| Error::Write { path: path.into(), source })
    }

    fn open(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
        }
        let name = path.file_name().ok_or_else(|| io::Error::other("it does not end in a file's name"))?;
        let folder = folder_of(path);
        if !folder.is_dir() {
            let reason = format!("there is no folder {}", folder.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, reason));
        }
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(".tmp");
        // Temporary files are private by default; these become the user's own, so the umask decides.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let (file, temp) = builder.tempfile_in(folder)?.into_parts();
        Ok(Self { path: path.into(), temp, writer: BufWriter::with_capacity(BUFFER, file) })
    }

    /// Flushes everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Write`] naming the file; the old file is then as it was.
    pub fn commit(self) -> Result<(), Error> {
        let Self { path, temp, writer } = self;
        let finish = || {
            let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            drop(file);
            temp.persist(&path).map_err(|error| error.error)?;
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

/// Writes a whole file by `write`, or leaves the old one as it was. Returns what `write` returns.
///
/// # Errors
/// [`Error::Write`] naming `path`.
pub fn write_atomic<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> Result<T, Error> {
    let mut file = AtomicFile::create(path)?;
    let made = write(&mut file.writer).map_err(|source| Error::Write { path: path.into(), source })?;
    file.commit()?;
    Ok(made)
}

/// The folder a path stands in; `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A rename is on the disk only once its folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { fs::File::open(folder)?.sync_all() } else { Ok(()) }
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
