//! Repositories of the hub: their kinds, names and files.

use std::path::Path;

use hf_hub::{Repo, RepoType};
use serde::Deserialize;

use crate::Error;

/// Maximum size of a listing, in bytes of JSON; the largest repositories have about ten megabytes.
pub(super) const LISTING_LIMIT: usize = 1 << 26;

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
}

impl RepoKind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }

    pub(super) fn repo(self, name: &str, revision: &str) -> Repo {
        let kind = match self {
            Self::Model => RepoType::Model,
            Self::Dataset => RepoType::Dataset,
        };
        Repo::with_revision(name.into(), kind, revision.into())
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoFile {
    /// Path in the repository, with `/` between folders.
    pub path: String,
    /// Size in bytes, if the hub returns it.
    pub size: Option<u64>,
}

/// The hub's response about a repository.
#[derive(Deserialize)]
pub(super) struct RepoInfo {
    pub(super) sha: String,
    #[serde(default)]
    pub(super) siblings: Vec<Sibling>,
}

/// A file in a [`RepoInfo`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sibling {
    pub(super) rfilename: String,
    pub(super) size: Option<u64>,
    pub(super) blob_id: Option<String>,
    pub(super) lfs: Option<Lfs>,
}

/// Large-file storage (LFS) of a file.
#[derive(Deserialize)]
pub(super) struct Lfs {
    pub(super) sha256: String,
    pub(super) size: u64,
}

/// True if a path stays below the folder it is joined to, on every system.
pub(super) fn is_safe_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.contains(|c: char| c == '\\' || c == ':' || c.is_control())
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Checks a repository name: `NAME` or `OWNER/NAME`.
pub(super) fn check_name(kind: RepoKind, name: &str) -> Result<(), Error> {
    let part_is_fine = |part: &str| {
        part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.is_empty()
            && !part.starts_with(['-', '.'])
            && !part.contains("..")
    };
    let parts: Vec<_> = name.split('/').collect();
    if parts.len() > 2 || name.len() > 96 || !parts.into_iter().all(part_is_fine) {
        let kind = kind.word();
        return Err(Error::Input(format!(
            "expected a local path or the name of a {kind} on the hub (OWNER/NAME), got {name:?}"
        )));
    }
    Ok(())
}

/// True if this is a local path, which takes precedence over the hub.
pub fn is_local(name: &str) -> bool {
    Path::new(name).exists()
}
