//! A repository at one commit, and its files.

use std::path::PathBuf;

use hf_hub::{Cache, Repo};

use super::client::Client;
use super::env::Env;
use super::repo::{LISTING_LIMIT, RepoFile, RepoInfo, RepoKind, check_name, is_safe_path};
use super::{cache, client, download};
use crate::Error;
use crate::progress::ProgressFn;

/// Default branch.
const MAIN: &str = "main";
/// A hub and its cache folder.
#[derive(Clone, Debug)]
pub struct Hub {
    pub(super) client: Client,
    cache: Cache,
    pub(super) offline: bool,
}

/// A repository at one commit.
#[derive(Clone, Debug)]
pub struct Snapshot {
    hub: Hub,
    /// `dataset OWNER/NAME`, for messages.
    pub(super) title: String,
    /// The repository, at the commit.
    repo: Repo,
    commit: String,
    files: Vec<RepoFile>,
    complete: bool,
}

impl Hub {
    /// Makes the hub that the process's `HF_*` variables configure.
    ///
    /// # Errors
    /// [`Error::Input`] for an invalid variable.
    pub fn from_env() -> Result<Self, Error> {
        Ok(Self::new(Env::read(|name| std::env::var_os(name))?))
    }

    /// Makes a hub from settings.
    pub fn new(env: Env) -> Self {
        let client = Client::new(env.endpoint, env.token, env.timeout);
        Self { client, cache: Cache::new(env.cache), offline: env.offline }
    }

    /// Resolves a repository to a commit and its files. `revision` is a branch, tag or commit, by default the main branch.
    ///
    /// # Errors
    /// [`Error::Input`] for an invalid name, [`Error::Hub`] with the hub's message or the network error (or, offline, for what is
    /// not in the cache), [`Error::Interrupted`].
    pub fn open(
        &self,
        kind: RepoKind,
        name: &str,
        revision: Option<&str>,
        progress: &mut ProgressFn,
    ) -> Result<Snapshot, Error> {
        check_name(kind, name)?;
        let revision = revision.unwrap_or(MAIN);
        if !is_safe_path(revision) {
            return Err(Error::Input(format!("invalid revision {revision:?}: expected a branch, tag or commit")));
        }
        let title = format!("{} {name}", kind.word());
        let (commit, files, complete) = if self.offline {
            self.find_cached(&title, &kind.repo(name, revision))?
        } else {
            self.ask(&title, &kind.repo(name, revision), progress)?
        };
        Ok(Snapshot { hub: self.clone(), title, repo: kind.repo(name, &commit), commit, files, complete })
    }

    /// Queries the hub for the commit and its files. The flag is true: the list is complete.
    fn ask(&self, title: &str, repo: &Repo, progress: &mut ProgressFn) -> Result<(String, Vec<RepoFile>, bool), Error> {
        let url = format!("{}/api/{}?blobs=true", self.client.endpoint(), repo.api_url());
        let body = self.client.get_text(title, &url, LISTING_LIMIT as u64, progress)?;
        let failed = |reason: String| Error::Hub { name: title.into(), reason };
        let info: RepoInfo = serde_json::from_str(&body)
            .map_err(|error| failed(format!("unexpected response from {} ({error})", self.client.endpoint())))?;
        if !cache::is_commit(&info.sha) {
            return Err(failed(format!("expected a commit hash from the hub, got {:?}", info.sha)));
        }
        if let Some(file) = info.siblings.iter().find(|file| !is_safe_path(&file.rfilename)) {
            let reason = format!("refused the file name {:?}: it points outside the cache", file.rfilename);
            return Err(failed(reason));
        }
        let folder = self.cache.path().join(repo.folder_name());
        cache::write_listing(&folder, &info)?;
        if repo.revision() != info.sha {
            cache::write_ref(&folder, repo.revision(), &info.sha)?;
        }
        let files = info.siblings.into_iter().map(|file| RepoFile { path: file.rfilename, size: file.size }).collect();
        Ok((info.sha, files, true))
    }

    /// Finds the commit and its files in the cache. The flag is true if the list is complete.
    fn find_cached(&self, title: &str, repo: &Repo) -> Result<(String, Vec<RepoFile>, bool), Error> {
        let folder = self.cache.path().join(repo.folder_name());
        let commit = if cache::is_commit(repo.revision()) {
            Some(repo.revision().to_owned())
        } else {
            cache::read_ref(&folder, repo.revision())?
        };
        let Some(commit) = commit else {
            let reason = format!(
                "HF_HUB_OFFLINE is set, and {} is not in the cache ({}); unset it to download",
                repo.revision(),
                self.cache.path().display()
            );
            return Err(Error::Hub { name: title.into(), reason });
        };
        let listing = cache::read_listing(&folder, &commit)?;
        let complete = listing.is_some();
        let files = match listing {
            Some(files) => files,
            None => cache::files_below(&cache::snapshot_folder(&folder, &commit))?,
        };
        Ok((commit, files, complete))
    }
}

impl Snapshot {
    /// The hub that it came from.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The commit, 40 hexadecimal digits.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The files that the hub lists.
    pub fn files(&self) -> &[RepoFile] {
        &self.files
    }

    /// True if there is a file at this path.
    pub fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| file.path == path)
    }

    /// True if [`Snapshot::files`] is complete. Offline it may have only the files that Python once fetched.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Folder of this commit's files, as far as they were fetched.
    pub fn folder(&self) -> PathBuf {
        cache::snapshot_folder(&self.repo_folder(), &self.commit)
    }

    /// Returns the path of a file in the cache, downloading it if needed.
    ///
    /// # Errors
    /// [`Error::Hub`] with the reason, [`Error::Write`] for the cache's disk, [`Error::Interrupted`]. The partial download of a
    /// large file is kept as `blobs/ETAG.incomplete` and resumed by the next attempt; no other name in the cache ever holds part
    /// of a file.
    pub fn fetch(&self, path: &str, progress: &mut ProgressFn) -> Result<PathBuf, Error> {
        let name = format!("{path} of {}", self.title);
        if !is_safe_path(path) || !self.has(path) {
            return Err(Error::Hub { name, reason: "no such file".into() });
        }
        let kept = self.folder().join(path);
        if kept.exists() {
            return Ok(kept);
        }
        if self.hub.offline {
            let reason = "HF_HUB_OFFLINE is set, and the file is not in the cache; unset it to download".into();
            return Err(Error::Hub { name, reason });
        }
        let url = format!(
            "{}/{}/resolve/{}/{}",
            self.hub.client.endpoint(),
            self.repo.url(),
            self.repo.url_revision(),
            client::encode_path(path)
        );
        let wanted =
            download::FileDownload { name: &name, url: &url, commit: &self.commit, folder: &self.repo_folder() };
        let blob = wanted.download(&self.hub.client, progress)?;
        cache::link(&blob, &kept)?;
        Ok(kept)
    }

    fn repo_folder(&self) -> PathBuf {
        self.hub.cache.path().join(self.repo.folder_name())
    }
}
