//! The cache folder, with the layout of Python's `huggingface_hub`:
//!
//! ```text
//! models--OWNER--NAME/
//!   refs/main                        commit that a branch or tag points to
//!   trees/COMMIT.json                list of a commit's files
//!   snapshots/COMMIT/a/file.json     links to ../../../blobs/ETAG
//!   blobs/ETAG                       contents of files
//! .locks/models--OWNER--NAME/ETAG.lock
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use ngen3_model::files::write_atomic;
use serde::{Deserialize, Serialize};

use super::repo::{LISTING_LIMIT, RepoFile, RepoInfo, is_safe_path};
use crate::Error;
use crate::source::bytes::limited::read_at_most;

const LISTING_VERSION: u32 = 1;

/// `trees/COMMIT.json`.
#[derive(Serialize, Deserialize)]
struct Listing {
    format_version: u32,
    files: BTreeMap<String, Listed>,
}

#[derive(Serialize, Deserialize)]
struct Listed {
    size: u64,
    blob_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
}

/// True for a full commit hash, which is safe as a file name.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Returns the folder of a commit's files.
pub(super) fn snapshot_folder(repo: &Path, commit: &str) -> PathBuf {
    repo.join("snapshots").join(commit)
}

/// Stores the commit that a branch or tag points to.
pub(super) fn write_ref(repo: &Path, revision: &str, commit: &str) -> Result<(), Error> {
    let path = repo.join("refs").join(revision);
    if fs::read_to_string(&path).is_ok_and(|kept| kept == commit) {
        return Ok(());
    }
    make_folder_of(&path)?;
    Ok(write_atomic(&path, |file| file.write_all(commit.as_bytes()))?)
}

/// Returns the commit that a branch or tag pointed to when the hub was last queried.
pub(super) fn read_ref(repo: &Path, revision: &str) -> Result<Option<String>, Error> {
    let path = repo.join("refs").join(revision);
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|error| Error::read(path.display(), error))?,
    };
    let commit = text.trim();
    if !is_commit(commit) {
        return Err(Error::read(path.display(), "expected a commit hash of 40 digits; delete this file"));
    }
    Ok(Some(commit.to_owned()))
}

/// Stores the list of a commit's files, if the hub returned every field that Python needs.
pub(super) fn write_listing(repo: &Path, info: &RepoInfo) -> Result<(), Error> {
    let path = repo.join("trees").join(format!("{}.json", info.sha));
    let files = info.siblings.iter().map(|file| {
        let (lfs_sha256, lfs_size) = file.lfs.as_ref().map(|lfs| (lfs.sha256.clone(), lfs.size)).unzip();
        Some((
            file.rfilename.clone(),
            Listed { size: file.size?, blob_id: file.blob_id.clone()?, lfs_sha256, lfs_size },
        ))
    });
    let Some(files) = files.collect::<Option<_>>() else { return Ok(()) };
    if path.exists() {
        return Ok(());
    }
    make_folder_of(&path)?;
    let listing = Listing { format_version: LISTING_VERSION, files };
    Ok(write_atomic(&path, |file| Ok(serde_json::to_writer_pretty(file, &listing)?))?)
}

/// Returns the stored list of a commit's files, if there is one.
pub(super) fn read_listing(repo: &Path, commit: &str) -> Result<Option<Vec<RepoFile>>, Error> {
    let path = repo.join("trees").join(format!("{commit}.json"));
    let bytes = match read_at_most(&path, LISTING_LIMIT) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|error| Error::read(path.display(), error))?,
    };
    let damaged = |reason: String| Error::read(path.display(), reason + "; delete this file");
    let listing: Listing = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if listing.format_version != LISTING_VERSION {
        return Ok(None);
    }
    if let Some(path) = listing.files.keys().find(|path| !is_safe_path(path)) {
        return Err(damaged(format!("the file name {path:?} points outside the cache")));
    }
    Ok(Some(listing.files.into_iter().map(|(path, listed)| RepoFile { path, size: Some(listed.size) }).collect()))
}

/// Lists the files below a snapshot's folder in the order of their paths; none if there is no folder.
pub(super) fn files_below(folder: &Path) -> Result<Vec<RepoFile>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let entries = match folder.read_dir().and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            result => result.map_err(|error| Error::read(folder.display(), error))?,
        };
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{prefix}{name}");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push((entry.path(), path + "/"));
            } else if let Ok(meta) = entry.path().metadata() {
                found.push(RepoFile { path, size: Some(meta.len()) });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// Links a name in a snapshot to a blob, or copies the blob where symbolic links are not supported.
pub(super) fn link(blob: &Path, name: &Path) -> Result<(), Error> {
    make_folder_of(name)?;
    let failed = |error: io::Error| Error::write(name, error);
    // `blobs` is beside `snapshots`; both paths start in the repository's folder.
    let repo = blob.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let depth = name.strip_prefix(repo).map_or(0, |below| below.components().count().saturating_sub(1));
    let target = "../".repeat(depth) + "blobs/" + &blob.file_name().unwrap_or_default().to_string_lossy();
    // A broken link would be in the way of the new one.
    if name.symlink_metadata().is_ok() {
        fs::remove_file(name).map_err(failed)?;
    }
    match symlink(Path::new(&target), name) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            write_atomic(name, |file| io::copy(&mut fs::File::open(blob)?, file))?;
            Ok(())
        }
        result => result.map_err(failed),
    }
}

#[cfg(unix)]
fn symlink(target: &Path, name: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, name)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Creates the parent folder of a file.
pub(super) fn make_folder_of(path: &Path) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| Error::write(folder, error))
}
