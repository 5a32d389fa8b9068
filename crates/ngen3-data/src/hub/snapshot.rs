//! A repository at one commit, and its files.

use std::path::PathBuf;

use hf_hub::{Cache, Repo};

use super::client::Client;
use super::env::Env;
use super::repo::{LISTING_LIMIT, RepoFile, RepoInfo, RepoKind, check_name, is_safe_path};
use super::{cache, client, download};
use crate::Error;
use crate::progress::ProgressFn;

/// The branch that is meant when none is named.
const MAIN: &str = "main";
/// The hub's server, and the folder that keeps what came from it.
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
    /// The hub and the cache that the process's `HF_*` variables name.
    ///
    /// # Errors
    /// [`Error::Input`] for a variable that makes no sense.
    pub fn from_env() -> Result<Self, Error> {
        Ok(Self::new(Env::read(|name| std::env::var_os(name))?))
    }

    /// The hub and the cache of these settings.
    pub fn new(env: Env) -> Self {
        let client = Client::new(env.endpoint, env.token, env.timeout);
        Self { client, cache: Cache::new(env.cache), offline: env.offline }
    }

    /// Finds a repository's commit and files. `revision` is a branch, a tag or a commit; the main branch without it.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that cannot be one, [`Error::Hub`] with the hub's own reason or the network's failure (or
    /// for what is not in the cache, offline), [`Error::Interrupted`].
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
            return Err(Error::Input(format!("{revision:?} cannot be a branch, a tag or a commit")));
        }
        let title = format!("{} {name}", kind.word());
        let (commit, files, complete) = if self.offline {
            self.find_cached(&title, &kind.repo(name, revision))?
        } else {
            self.ask(&title, &kind.repo(name, revision), progress)?
        };
        Ok(Snapshot { hub: self.clone(), title, repo: kind.repo(name, &commit), commit, files, complete })
    }

    /// The commit, its files, and that these are all.
    fn ask(&self, title: &str, repo: &Repo, progress: &mut ProgressFn) -> Result<(String, Vec<RepoFile>, bool), Error> {
        let url = format!("{}/api/{}?blobs=true", self.client.endpoint(), repo.api_url());
        let body = self.client.get_text(title, &url, LISTING_LIMIT as u64, progress)?;
        let failed = |reason: String| Error::Hub { name: title.into(), reason };
        let info: RepoInfo = serde_json::from_str(&body).map_err(|error| {
            failed(format!("the answer of {} is not what a hub says ({error})", self.client.endpoint()))
        })?;
        if !cache::is_commit(&info.sha) {
            return Err(failed(format!("the hub named {:?} as a commit", info.sha)));
        }
        if let Some(file) = info.siblings.iter().find(|file| !is_safe_path(&file.rfilename)) {
            let reason = format!("it lists a file {:?}, which would lead out of the cache; refused", file.rfilename);
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

    /// The commit, its files as far as the cache knows them, and whether that is all.
    fn find_cached(&self, title: &str, repo: &Repo) -> Result<(String, Vec<RepoFile>, bool), Error> {
        let folder = self.cache.path().join(repo.folder_name());
        let commit = if cache::is_commit(repo.revision()) {
            Some(repo.revision().to_owned())
        } else {
            cache::read_ref(&folder, repo.revision())?
        };
        let Some(commit) = commit else {
            let reason = format!(
                "HF_HUB_OFFLINE is set, and {} is not in the cache ({}); fetch it once with a network",
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
    /// Its source.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The commit, 40 hexadecimal digits.
    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// The files, as the hub lists them.
    pub fn files(&self) -> &[RepoFile] {
        &self.files
    }

    /// True if there is a file of this path.
    pub fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| file.path == path)
    }

    /// True if [`Snapshot::files`] are all there are. Offline they may be only those that Python once fetched.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The folder where this commit's files are, those that were fetched.
    pub fn folder(&self) -> PathBuf {
        cache::snapshot_folder(&self.repo_folder(), &self.commit)
    }

    /// The path of a file in the cache, downloaded unless it is there.
    ///
    /// # Errors
    /// [`Error::Hub`] with the reason, [`Error::Write`] for the cache's disk, [`Error::Interrupted`]. What had come by then of a
    /// large file is kept as `blobs/ETAG.incomplete` and the next try goes on from there; no other name in the cache ever
    /// holds part of a file.
    pub fn fetch(&self, path: &str, progress: &mut ProgressFn) -> Result<PathBuf, Error> {
        let name = format!("{path} of {}", self.title);
        if !is_safe_path(path) || !self.has(path) {
            return Err(Error::Hub { name, reason: "there is no such file".into() });
        }
        let kept = self.folder().join(path);
        if kept.exists() {
            return Ok(kept);
        }
        if self.hub.offline {
            let reason = "HF_HUB_OFFLINE is set, and it is not in the cache; fetch it once with a network".into();
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
