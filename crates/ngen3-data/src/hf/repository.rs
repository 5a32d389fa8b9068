//! A dataset's files: local, or on the hub.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::format::{Format, READABLE};
use crate::Error;
use crate::hub::{Hub, ProgressFn, RepoFile, RepoKind, Snapshot};
use crate::source::Event;
use crate::source::bytes::archive::{Archive, Content, Member, look_inside, member_name};
use crate::source::bytes::open::{open, open_file};
use crate::source::bytes::read_error::read_error;
use crate::source::folder::{entries, file_of};

/// Bytes unpacked at a time.
const BUFFER: usize = 1 << 18;

/// A dataset's files.
#[derive(Debug)]
pub(super) enum Repository {
    /// A local folder, or one file in it.
    Local { root: PathBuf, title: String, files: Vec<RepoFile> },
    /// The members of an archive, unpacked into a temporary folder.
    Archive { folder: Option<TempDir>, path: PathBuf, title: String, files: Vec<RepoFile> },
    /// A repository of the hub.
    Hub { snapshot: Box<Snapshot>, name: String, revision: Option<String> },
}

impl Repository {
    /// Lists a folder, without hidden (`.…`) and private (`__…`) entries, or a single file.
    pub(super) fn local(path: &Path, progress: &mut ProgressFn) -> Result<Self, Error> {
        let meta = path.metadata().map_err(|error| Error::open(path, &error))?;
        let title = path.display().to_string();
        if meta.is_file()
            && let Content::Archive(archive) = look_inside(&title, open_file(&title, path)?, &std::env::temp_dir())?
        {
            return Self::archive(archive, title, progress);
        }
        let mut files = Vec::new();
        if !meta.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::Input(format!("{title}: the file name is not UTF-8")))?.to_owned();
            if Format::of(&name).is_none() {
                return Err(Error::Input(format!("{title}: expected a file ending in {READABLE}")));
            }
            files.push(RepoFile { path: name, size: meta.is_file().then_some(meta.len()) });
            return Ok(Self::Local { root: path.parent().unwrap_or(Path::new("")).into(), title, files });
        }
        search(path, "", &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self::Local { root: path.into(), title, files })
    }

    /// Unpacks the members of an archive that are data files. They are read at several places, and more than once.
    fn archive(archive: Archive, title: String, progress: &mut ProgressFn) -> Result<Self, Error> {
        let folder = tempfile::tempdir().map_err(|error| Error::read(&title, error))?;
        let (mut files, mut members, mut example) = (Vec::new(), 0u64, None);
        archive.each(&mut |Member { path, bytes }| {
            members += 1;
            let Some(bytes) = bytes.filter(|_| !is_hidden(&path) && Format::of(&path).is_some()) else {
                example.get_or_insert(path);
                return Ok(());
            };
            // The number is its name on disk: the path may lead anywhere.
            let size = unpack(&folder.path().join(files.len().to_string()), &title, bytes, progress)?;
            files.push(RepoFile { path, size: Some(size) });
            Ok(())
        })?;
        if let Some(example) = example {
            let skipped = members - files.len() as u64;
            let note =
                format!("{title}: skipped {skipped} of its {members} members, such as {example}: not data files");
            progress(Event::Note(note));
        }
        let path = folder.path().to_owned();
        Ok(Self::Archive { folder: Some(folder), path, title, files })
    }

    /// Opens a dataset of the hub.
    pub(super) fn on_hub(
        hub: &Hub,
        name: &str,
        revision: Option<&str>,
        progress: &mut ProgressFn,
    ) -> Result<Self, Error> {
        let snapshot = hub.open(RepoKind::Dataset, name, revision, progress)?;
        Ok(Self::Hub { snapshot: Box::new(snapshot), name: name.into(), revision: revision.map(str::to_owned) })
    }

    /// Takes the temporary folder of an archive, which is removed when it is dropped.
    pub(super) fn take_folder(&mut self) -> Option<TempDir> {
        match self {
            Self::Archive { folder, .. } => folder.take(),
            Self::Local { .. } | Self::Hub { .. } => None,
        }
    }

    /// Identifies the dataset in messages and meta.json.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Local { title, .. } | Self::Archive { title, .. } => title.clone(),
            Self::Hub { snapshot, name, .. } => format!("{name}@{}", snapshot.commit()),
        }
    }

    /// Returns the files in the order of their paths.
    pub(super) fn files(&self) -> Vec<RepoFile> {
        match self {
            Self::Local { files, .. } => files.clone(),
            Self::Archive { files, .. } => {
                let mut files = files.clone();
                files.sort_by(|a, b| a.path.cmp(&b.path));
                files
            }
            Self::Hub { snapshot, .. } => {
                let mut files = snapshot.files().to_vec();
                files.retain(|file| !is_hidden(&file.path));
                files.sort_by(|a, b| a.path.cmp(&b.path));
                files
            }
        }
    }

    /// Returns the path of a file on disk, downloading it if needed.
    pub(super) fn fetch(&self, path: &str, progress: &mut ProgressFn) -> Result<PathBuf, Error> {
        match self {
            Self::Local { root, .. } => Ok(root.join(path)),
            Self::Archive { path: folder, title, files, .. } => {
                // Of members with the same path the last counts, as when they are unpacked.
                let index = files.iter().rposition(|file| file.path == path);
                let index = index.ok_or_else(|| Error::read(title, format!("no member {path}")))?;
                Ok(folder.join(index.to_string()))
            }
            Self::Hub { snapshot, .. } => snapshot.fetch(path, progress),
        }
    }

    /// Returns a file's name for messages and meta.json.
    pub(super) fn name_of(&self, path: &str) -> String {
        match self {
            Self::Local { root, .. } => root.join(path).display().to_string(),
            Self::Archive { title, .. } => member_name(title, path),
            Self::Hub { name, .. } => format!("{path} of {name}"),
        }
    }
}

fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.'))
        || path.rsplit_once('/').is_some_and(|(folders, _)| folders.split('/').any(|part| part.starts_with("__")))
}

/// Copies a member's bytes to a file; returns its size. They are compressed unless they are already, so that a small archive cannot
/// fill the disk.
fn unpack(path: &Path, archive: &str, bytes: &mut dyn Read, progress: &mut ProgressFn) -> Result<u64, Error> {
    let written = |error: io::Error| Error::write(path, error);
    let mut source = open(archive, bytes, false)?;
    let mut file = zstd::Encoder::new(File::create(path).map_err(written)?, 1).map_err(written)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match source.bytes.read(&mut buffer) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|error| read_error(archive, source.compressed, &error))?,
        };
        file.write_all(&buffer[..n]).map_err(written)?;
        let done = source.bytes_read.load(std::sync::atomic::Ordering::Relaxed);
        if !progress(Event::Reading { done, total: None }) {
            return Err(Error::Interrupted);
        }
    }
    file.finish().and_then(|file| file.metadata()).map(|meta| meta.len()).map_err(written)
}

fn search(folder: &Path, prefix: &str, files: &mut Vec<RepoFile>) -> Result<(), Error> {
    for entry in entries(folder)? {
        let kind = entry.file_type().map_err(|error| Error::open(&entry.path(), &error))?;
        // No pattern or split name matches a file name that is not UTF-8.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') || kind.is_dir() && name.starts_with("__") {
            continue;
        }
        let path = format!("{prefix}{name}");
        if kind.is_dir() {
            search(&entry.path(), &format!("{path}/"), files)?;
            continue;
        }
        if let Some(meta) = file_of(&entry)? {
            files.push(RepoFile { path, size: Some(meta.len()) });
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_counts_as_the_file_that_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("a.txt"), "text").unwrap();
        symlink("a.txt", root.join("b.txt")).unwrap();
        symlink("gone.txt", root.join("c.txt")).unwrap();
        symlink(root, root.join("round")).unwrap();
        let found = Repository::local(root, &mut |_| true).unwrap().files();
        let expected = ["a.txt", "b.txt"].map(|path| RepoFile { path: path.into(), size: Some(4) });
        assert_eq!(found, expected);
    }
}
