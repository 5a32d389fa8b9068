//! A dataset's files: local, or on the hub.

use std::path::{Path, PathBuf};

use super::format::{Format, READABLE};
use crate::Error;
use crate::hub::{Hub, ProgressFn, RepoFile, RepoKind, Snapshot};
use crate::source::folder::{entries, file_of};

/// A dataset's files.
#[derive(Debug)]
pub(super) enum Repository {
    /// A local folder, or one file in it.
    Local { root: PathBuf, title: String, files: Vec<RepoFile> },
    /// A repository of the hub.
    Hub { snapshot: Box<Snapshot>, name: String, revision: Option<String> },
}

impl Repository {
    /// Lists a folder, without hidden (`.…`) and private (`__…`) entries, or a single file.
    pub(super) fn local(path: &Path) -> Result<Self, Error> {
        let meta = path.metadata().map_err(|error| Error::open(path, &error))?;
        let title = path.display().to_string();
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

    /// Identifies the dataset in messages and meta.json.
    pub(super) fn title(&self) -> String {
        match self {
            Self::Local { title, .. } => title.clone(),
            Self::Hub { snapshot, name, .. } => format!("{name}@{}", snapshot.commit()),
        }
    }

    /// Returns the files in the order of their paths.
    pub(super) fn files(&self) -> Vec<RepoFile> {
        match self {
            Self::Local { files, .. } => files.clone(),
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
            Self::Hub { snapshot, .. } => snapshot.fetch(path, progress),
        }
    }

    /// Returns a file's name for messages and meta.json.
    pub(super) fn name_of(&self, path: &str) -> String {
        match self {
            Self::Local { root, .. } => root.join(path).display().to_string(),
            Self::Hub { name, .. } => format!("{path} of {name}"),
        }
    }
}

fn is_hidden(path: &str) -> bool {
    path.split('/').any(|part| part.starts_with('.'))
        || path.rsplit_once('/').is_some_and(|(folders, _)| folders.split('/').any(|part| part.starts_with("__")))
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
        let found = Repository::local(root).unwrap().files();
        let expected = ["a.txt", "b.txt"].map(|path| RepoFile { path: path.into(), size: Some(4) });
        assert_eq!(found, expected);
    }
}
