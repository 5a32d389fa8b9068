//! Uploads a folder to the hub as one commit, atomically.
//!
//! Four steps, as the hub's own clients take them: create the repository unless it exists; ask which files are small (part of
//! the commit itself) and which are stored by their SHA-256 elsewhere (git LFS); upload the latter, whole or in the parts that
//! the hub requests; commit. Files that a broken upload transferred are not sent again: the hub reports which it has.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use ureq::http::{HeaderMap, Method, StatusCode, header};

use super::client::{Payload, retry};
use super::hash::sha256;
use super::repo::{RepoKind, check_name, is_safe_path};
use super::snapshot::Hub;
use crate::Error;
use crate::http::RequestError;
use crate::progress::{Event, ProgressFn};

/// Bytes of a file that the hub inspects to classify it.
const SAMPLE_BYTES: usize = 512;
/// Maximum size of a response, in bytes.
const MAX_RESPONSE_BYTES: u64 = 1 << 24;
const GIT_LFS: &str = "application/vnd.git-lfs+json";
const JSON: &str = "application/json";

/// Result of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitInfo {
    /// URL of the repository.
    pub url: String,
    /// The new commit, if the hub returned it.
    pub commit: Option<String>,
}

/// A file to upload.
struct UploadFile {
    path: String,
    file: PathBuf,
    size: u64,
    sha256: String,
}

/// The hub's decision about a file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PreuploadFile {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
}

/// Upload instructions for a large file; without actions the hub has it.
#[derive(Deserialize)]
struct LfsObject {
    oid: String,
    actions: Option<LfsActions>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct LfsActions {
    upload: LfsAction,
    verify: Option<LfsAction>,
}

#[derive(Deserialize)]
struct LfsAction {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

impl Hub {
    /// Checks, without a request, that a model can be uploaded to this repository.
    ///
    /// # Errors
    /// [`Error::Input`] for an invalid name, a missing token, or offline use.
    pub fn check_push(&self, name: &str) -> Result<(), Error> {
        if !name.contains('/') {
            return Err(Error::Input(format!(
                "invalid repository name {name:?}: expected OWNER/NAME, with your user name or organization as OWNER"
            )));
        }
        check_name(RepoKind::Model, name)?;
        if self.offline {
            return Err(Error::Input("HF_HUB_OFFLINE is set; unset it to upload".into()));
        }
        if !self.client.has_token() {
            return Err(Error::Input("to upload, set HF_TOKEN to an access token with write permission".into()));
        }
        Ok(())
    }

    /// Uploads these files of a folder to the main branch of a model repository, as one commit. A missing repository is created,
    /// public or, if `private`, private.
    ///
    /// # Errors
    /// As [`Hub::check_push`]; [`Error::Upload`] with the hub's message; [`Error::Read`] for a file; [`Error::Interrupted`]. On
    /// an error nothing is committed.
    pub fn push(
        &self,
        name: &str,
        folder: &Path,
        files: &[String],
        private: bool,
        summary: &str,
        progress: &mut ProgressFn,
    ) -> Result<CommitInfo, Error> {
        self.check_push(name)?;
        let (owner, short) = name.split_once('/').unwrap_or_default();
        let uploads = files.iter().map(|path| UploadFile::of(folder, path)).collect::<Result<Vec<_>, _>>()?;
        let session = Session { hub: self, title: format!("model {name}"), name };
        let pushed =
            session.create(owner, short, private, progress).and_then(|()| session.run(&uploads, summary, progress));
        pushed.map_err(|error| match error {
            Error::Hub { name, reason } => Error::Upload { name, reason },
            error => error,
        })
    }
}

impl UploadFile {
    fn of(folder: &Path, path: &str) -> Result<Self, Error> {
        if !is_safe_path(path) {
            return Err(Error::Input(format!("invalid path in a repository: {path:?}")));
        }
        let file = folder.join(path);
        let failed = |error: io::Error| Error::read(file.display(), error);
        let (size, sha256) = File::open(&file).and_then(|mut file| sha256(&mut file)).map_err(failed)?;
        Ok(Self { path: path.into(), file, size, sha256 })
    }

    fn open(&self) -> Result<File, Error> {
        File::open(&self.file).map_err(|error| Error::read(self.file.display(), error))
    }

    /// Reads the first `most` bytes.
    fn read(&self, most: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.open()?.take(most).read_to_end(&mut bytes).map_err(|error| Error::read(self.file.display(), error))?;
        Ok(bytes)
    }
}

/// One upload.
struct Session<'a> {
    hub: &'a Hub,
    /// Subject of messages.
    title: String,
    name: &'a str,
}

impl Session<'_> {
    /// Uploads the large files, then commits all.
    fn run(&self, uploads: &[UploadFile], summary: &str, progress: &mut ProgressFn) -> Result<CommitInfo, Error> {
        let preupload = self.preupload(uploads, progress)?;
        let mode = |upload: &UploadFile| preupload.iter().find(|mode| mode.path == upload.path);
        let wanted = || uploads.iter().filter(|&upload| mode(upload).is_none_or(|mode| !mode.should_ignore));
        let is_large =
            |upload: &UploadFile| upload.size > 0 && mode(upload).is_some_and(|mode| mode.upload_mode == "lfs");
        self.send_large(&wanted().filter(|&upload| is_large(upload)).collect::<Vec<_>>(), progress)?;
        let files = wanted().map(|upload| (upload, is_large(upload)));
        self.commit(summary, files, progress)
    }

    fn url(&self, rest: &str) -> String {
        format!("{}/{rest}", self.hub.client.endpoint())
    }

    /// Sends a POST request and parses the JSON of the response.
    fn post<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        kind: &str,
        body: &str,
        progress: &mut ProgressFn,
    ) -> Result<T, Error> {
        let answer = retry(&self.title, progress, |_| {
            let payload = Payload { content_type: kind, reader: &mut body.as_bytes(), length: body.len() as u64 };
            let mut response = self.hub.client.send(&Method::POST, url, payload)?;
            let text = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_string();
            text.map_err(|error| RequestError::of_connection(error, true))
        })?;
        serde_json::from_str(&answer).map_err(|error| Error::Hub {
            name: self.title.clone(),
            reason: format!("unexpected response from {url} ({error})"),
        })
    }

    /// Creates the repository unless it exists.
    fn create(&self, owner: &str, name: &str, private: bool, progress: &mut ProgressFn) -> Result<(), Error> {
        let body = json!({ "name": name, "organization": owner, "type": "model", "private": private }).to_string();
        retry(&self.title, progress, |_| {
            let payload = Payload { content_type: JSON, reader: &mut body.as_bytes(), length: body.len() as u64 };
            match self.hub.client.send(&Method::POST, &self.url("api/repos/create"), payload) {
                Err(RequestError::Refused { status: StatusCode::CONFLICT, .. }) | Ok(_) => Ok(()),
                // A token limited to this repository may not create any, which is fine if it exists.
                Err(refused @ RequestError::Refused { status: StatusCode::FORBIDDEN, .. }) => {
                    let url = self.url(&format!("api/models/{}", self.name));
                    match self.hub.client.request(&Method::GET, &url, &HeaderMap::new()) {
                        Err(RequestError::Refused { .. }) => Err(refused),
                        found => found.map(drop),
                    }
                }
                Err(error) => Err(error),
            }
        })
    }

    fn preupload(&self, uploads: &[UploadFile], progress: &mut ProgressFn) -> Result<Vec<PreuploadFile>, Error> {
        #[derive(Deserialize)]
        struct Modes {
            files: Vec<PreuploadFile>,
        }
        let files = uploads
            .iter()
            .map(|upload| {
                let sample = STANDARD.encode(upload.read(SAMPLE_BYTES as u64)?);
                Ok(json!({ "path": upload.path, "sample": sample, "size": upload.size }))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let url = self.url(&format!("api/models/{}/preupload/main", self.name));
        Ok(self.post::<Modes>(&url, JSON, &json!({ "files": files }).to_string(), progress)?.files)
    }

    /// Uploads the contents of large files.
    fn send_large(&self, uploads: &[&UploadFile], progress: &mut ProgressFn) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Batch {
            objects: Vec<LfsObject>,
        }
        if uploads.is_empty() {
            return Ok(());
        }
        let objects: Vec<Value> =
            uploads.iter().map(|upload| json!({ "oid": upload.sha256, "size": upload.size })).collect();
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects,
            "hash_algo": "sha256",
            "ref": { "name": "main" },
        });
        let url = self.url(&format!("{}.git/info/lfs/objects/batch", self.name));
        let batch: Batch = self.post(&url, GIT_LFS, &body.to_string(), progress)?;
        let total = uploads.iter().map(|upload| upload.size).sum();
        let mut done = 0;
        for upload in uploads {
            let object = batch.objects.iter().find(|object| object.oid == upload.sha256);
            let refused = |reason: String| Error::Hub { name: format!("{} for {}", upload.path, self.title), reason };
            let object = object.ok_or_else(|| refused("the hub returned no upload URL".into()))?;
            if let Some(error) = &object.error {
                let words = error.get("message").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(refused(format!("the hub rejected it: {words}")));
            }
            if let Some(actions) = &object.actions {
                self.send_object(upload, actions, done..total, progress)?;
            }
            done += upload.size;
            if !progress(Event::Downloading { done, total: Some(total) }) {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }

    /// Uploads one file, whole or in parts, and has it verified. `span` starts at the bytes of the files before it and ends at
    /// the total.
    fn send_object(
        &self,
        upload: &UploadFile,
        actions: &LfsActions,
        span: Range<u64>,
        progress: &mut ProgressFn,
    ) -> Result<(), Error> {
        let title = format!("{} for {}", upload.path, self.title);
        let wrong = |reason: String| Error::Hub { name: title.clone(), reason };
        let header = &actions.upload.header;
        let Some(chunk) = header.get("chunk_size") else {
            self.put(&title, upload, &actions.upload.href, 0..upload.size, &span, progress)?;
            return self.verify(upload, actions, progress);
        };
        let size = chunk.as_u64().or_else(|| chunk.as_str()?.parse().ok()).filter(|&size| size > 0);
        let size = size.ok_or_else(|| wrong(format!("invalid part size from the hub: {chunk}")))?;
        let mut parts: Vec<(u64, &str)> =
            header.iter().filter_map(|(key, url)| Some((key.parse().ok()?, url.as_str()?))).collect();
        parts.sort_unstable();
        if parts.len() as u64 != upload.size.div_ceil(size) {
            let (named, bytes) = (parts.len(), upload.size);
            return Err(wrong(format!("the hub returned {named} upload URLs for {bytes} bytes in parts of {size}")));
        }
        let mut etags = Vec::new();
        for (i, (_, url)) in (0..).zip(&parts) {
            let range = i * size..((i + 1) * size).min(upload.size);
            let etag = self.put(&title, upload, url, range, &span, progress)?;
            let etag = etag.ok_or_else(|| wrong(format!("the hub returned no ETag for part {}", i + 1)))?;
            etags.push(json!({ "partNumber": i + 1, "etag": etag }));
        }
        let body = json!({ "oid": upload.sha256, "parts": etags }).to_string();
        retry(&title, progress, |_| {
            let payload = Payload { content_type: GIT_LFS, reader: &mut body.as_bytes(), length: body.len() as u64 };
            self.hub.client.send(&Method::POST, &actions.upload.href, payload).map(drop)
        })?;
        self.verify(upload, actions, progress)
    }

    /// Uploads a byte range of a file; returns the ETag of the response.
    fn put(
        &self,
        title: &str,
        upload: &UploadFile,
        url: &str,
        range: Range<u64>,
        span: &Range<u64>,
        progress: &mut ProgressFn,
    ) -> Result<Option<String>, Error> {
        retry(title, progress, |progress| {
            let mut file = upload.open()?;
            file.seek(SeekFrom::Start(range.start)).map_err(|error| Error::read(upload.file.display(), error))?;
            let length = range.end - range.start;
            let (done, total) = (span.start + range.start, Some(span.end));
            let mut reader = ProgressReader { file: file.take(length), done, total, progress, stopped: false };
            let payload = Payload { content_type: "application/octet-stream", reader: &mut reader, length };
            let answer = self.hub.client.send(&Method::PUT, url, payload);
            if reader.stopped {
                return Err(RequestError::Other(Error::Interrupted));
            }
            let response = answer?;
            let etag = response.headers().get(header::ETAG);
            Ok(etag.and_then(|etag| etag.to_str().ok()).map(str::to_owned))
        })
    }

    fn verify(&self, upload: &UploadFile, actions: &LfsActions, progress: &mut ProgressFn) -> Result<(), Error> {
        let Some(verify) = &actions.verify else { return Ok(()) };
        let body = json!({ "oid": upload.sha256, "size": upload.size }).to_string();
        retry(&format!("{} for {}", upload.path, self.title), progress, |_| {
            let payload = Payload { content_type: JSON, reader: &mut body.as_bytes(), length: body.len() as u64 };
            self.hub.client.send(&Method::POST, &verify.href, payload).map(drop)
        })
    }

    fn commit<'a>(
        &self,
        summary: &str,
        files: impl Iterator<Item = (&'a UploadFile, bool)>,
        progress: &mut ProgressFn,
    ) -> Result<CommitInfo, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Committed {
            commit_oid: Option<String>,
        }
        let mut body = json!({ "key": "header", "value": { "summary": summary, "description": "" } }).to_string();
        for (upload, is_large) in files {
            let UploadFile { path, size, sha256, .. } = upload;
            let line = if is_large {
                json!({ "key": "lfsFile", "value": { "path": path, "algo": "sha256", "oid": sha256, "size": size } })
            } else {
                let content = STANDARD.encode(upload.read(u64::MAX)?);
                json!({ "key": "file", "value": { "content": content, "path": path, "encoding": "base64" } })
            };
            body += &format!("\n{line}");
        }
        let url = self.url(&format!("api/models/{}/commit/main", self.name));
        let Committed { commit_oid } = self.post(&url, "application/x-ndjson", &body, progress)?;
        Ok(CommitInfo { url: self.url(self.name), commit: commit_oid })
    }
}

/// Reads part of a file, reports progress, and ends when told to.
struct ProgressReader<'a, 'b> {
    file: io::Take<File>,
    /// Bytes of all files: sent so far, and in total.
    done: u64,
    total: Option<u64>,
    progress: &'a mut ProgressFn<'b>,
    stopped: bool,
}

impl Read for ProgressReader<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !(self.progress)(Event::Downloading { done: self.done, total: self.total }) {
            self.stopped = true;
            return Err(io::Error::other("interrupted"));
        }
        let read = self.file.read(buffer)?;
        self.done += read as u64;
        Ok(read)
    }
}
