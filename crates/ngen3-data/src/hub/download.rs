//! Downloads one file of the hub into the cache, atomically.
//!
//! The file's ETag and size are requested first. The bytes go to `blobs/ETAG.incomplete`; when the connection breaks, the next
//! attempt requests the rest (`Range`), which belongs to the same file since the ETag identifies its content. The file becomes
//! `blobs/ETAG` only if its size matches, and its SHA-256 if the ETag is one. If the program ends earlier, the partial file is
//! kept for the next run to resume, as with Python's client, provided that a SHA-256 will verify it; otherwise, or if
//! verification fails, it is deleted.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ureq::Body;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::cache::make_folder_of;
use super::client::{Client, retry};
use super::hash::sha256;
use crate::Error;
use crate::http::{POLL_INTERVAL, RequestError, receive};
use crate::progress::{Event, ProgressFn};

const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");

/// A file to download.
pub(super) struct FileDownload<'a> {
    /// Subject of messages.
    pub(super) name: &'a str,
    /// URL at the hub.
    pub(super) url: &'a str,
    /// Commit of the file.
    pub(super) commit: &'a str,
    /// The repository's folder in the cache.
    pub(super) folder: &'a Path,
}

/// The hub's metadata of a file.
struct FileMetadata {
    /// Identifies the content; safe as a file name.
    etag: String,
    size: Option<u64>,
    /// SHA-256 of the content, for files stored as large ones (LFS).
    sha256: Option<String>,
}

/// A partially downloaded file.
struct PartialFile {
    path: PathBuf,
    file: File,
    have: u64,
    /// True if a hash will verify the whole file, so that another run may resume the download.
    checked: bool,
}

impl FileDownload<'_> {
    /// Downloads the file unless the cache has its content; returns the blob's path.
    pub(super) fn download(&self, client: &Client, progress: &mut ProgressFn) -> Result<PathBuf, Error> {
        let metadata = retry(self.name, progress, |_| self.metadata_of(client))?;
        let blob = self.folder.join("blobs").join(&metadata.etag);
        if blob.exists() {
            return Ok(blob);
        }
        make_folder_of(&blob)?;
        let _lock = self.lock(&metadata.etag, progress)?;
        // The previous holder of the lock may have downloaded it.
        if blob.exists() {
            return Ok(blob);
        }
        let path = blob.with_file_name(format!("{}.incomplete", metadata.etag));
        let mut partial = PartialFile::open(path, metadata.sha256.is_some())?;
        // A download that starts over makes no progress until it exceeds its previous best.
        let mut best = partial.have;
        let result = retry(self.name, progress, |progress| {
            let before = best;
            let attempt = self.attempt(client, &metadata, &mut partial, progress);
            best = best.max(partial.have);
            attempt.map_err(|error| match error {
                RequestError::Transient { reason, wait, .. } => {
                    RequestError::Transient { reason, wait, progress: best > before }
                }
                error => error,
            })
        });
        result.map_err(|error| partial.explain(error))?;
        partial.keep(&blob)?;
        Ok(blob)
    }

    /// Requests the file's metadata.
    fn metadata_of(&self, client: &Client) -> Result<FileMetadata, RequestError> {
        let response = client.request(&Method::HEAD, self.url, &HeaderMap::new())?;
        let text = |name: &HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(commit) = text(&COMMIT).filter(|&commit| commit != self.commit) {
            return Err(RequestError::Final(format!("the hub returned another commit, {commit:?}")));
        }
        let linked = text(&LINKED_ETAG);
        let etag = linked.or(text(&header::ETAG)).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let Some(etag) = etag.filter(|etag| is_plain(etag)) else {
            return Err(RequestError::Final(format!("the hub returned an invalid ETag, {etag:?}")));
        };
        let own_size = text(&header::CONTENT_LENGTH).filter(|_| response.status() == StatusCode::OK);
        let size = text(&LINKED_SIZE).or(own_size).and_then(|size| size.parse().ok());
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let sha256 = linked.filter(|_| is_sha256).map(|_| etag.to_ascii_lowercase());
        Ok(FileMetadata { etag: etag.into(), size, sha256 })
    }

    /// Takes the lock that Python's `huggingface_hub` holds while it downloads this content.
    fn lock(&self, etag: &str, progress: &mut ProgressFn) -> Result<File, Error> {
        let cache = self.folder.parent().unwrap_or(Path::new("."));
        let path = cache.join(".locks").join(self.folder.file_name().unwrap_or_default()).join(format!("{etag}.lock"));
        make_folder_of(&path)?;
        let failed = |error| Error::write(&path, error);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        let mut waited = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                // Some network file systems have no locks; concurrent downloads are then an acceptable risk.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let note = Event::Note(format!("waiting for another process that is downloading {}", self.name));
            let event = if waited { Event::Downloading { done: 0, total: None } } else { note };
            if !progress(event) {
                return Err(Error::Interrupted);
            }
            waited = true;
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Makes one request, for the whole file or for the rest.
    fn attempt(
        &self,
        client: &Client,
        metadata: &FileMetadata,
        partial: &mut PartialFile,
        progress: &mut ProgressFn,
    ) -> Result<(), RequestError> {
        if metadata.size.is_some_and(|size| partial.have > size) {
            partial.start_over()?;
        }
        let resumed = partial.have;
        if metadata.size != Some(resumed) || resumed == 0 {
            let mut headers = HeaderMap::new();
            if resumed > 0 {
                let range = HeaderValue::from_str(&format!("bytes={resumed}-"));
                headers.insert(header::RANGE, range.map_err(|error| RequestError::Final(error.to_string()))?);
            }
            let response = match client.request(&Method::GET, self.url, &headers) {
                // Nothing follows the bytes at hand: they are the whole file, or no part of it.
                Err(RequestError::Refused { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) if resumed > 0 => {
                    if metadata.sha256.is_some() && metadata.sha256 == Some(partial.sha256()?) {
                        return Ok(());
                    }
                    partial.start_over()?;
                    client.request(&Method::GET, self.url, &HeaderMap::new())?
                }
                // The hub has just responded and bytes had come, so the network should be back soon.
                Err(RequestError::Unreachable(reason)) if resumed > 0 => return Err(RequestError::transient(reason)),
                result => result?,
            };
            self.receive_body(metadata, partial, response, progress)?;
        }
        if let Some(size) = metadata.size.filter(|&size| size != partial.have) {
            let reason = format!("received {} of {size} bytes", partial.have);
            return Err(RequestError::Transient { reason, wait: None, progress: partial.have > resumed });
        }
        if let Some(promised) = &metadata.sha256
            && partial.sha256()? != *promised
        {
            partial.start_over()?;
            let reason = "the SHA-256 of the download does not match the hub's";
            // The bytes of an earlier attempt may be damaged.
            return Err(if resumed > 0 { RequestError::transient(reason) } else { RequestError::Final(reason.into()) });
        }
        Ok(())
    }

    /// Appends a response's body to the partial file, if it is the requested part.
    fn receive_body(
        &self,
        metadata: &FileMetadata,
        partial: &mut PartialFile,
        mut response: Response<Body>,
        progress: &mut ProgressFn,
    ) -> Result<(), RequestError> {
        let length = response.body().content_length();
        if response.status() != StatusCode::PARTIAL_CONTENT {
            partial.start_over()?;
        } else if !starts_at(response.headers(), partial.have) {
            partial.start_over()?;
            return Err(RequestError::transient("the server could not resume the download"));
        }
        let total = metadata.size.or(length.map(|length| partial.have.saturating_add(length)));
        if let (Some(size), Some(length)) = (metadata.size, length)
            && partial.have.saturating_add(length) != size
        {
            partial.start_over()?;
            return Err(RequestError::Final(format!("expected {size} bytes, but the server has {length}")));
        }
        receive(response.body_mut().as_reader(), partial.have, total, progress, |bytes| {
            if metadata.size.is_some_and(|size| partial.have + bytes.len() as u64 > size) {
                partial.start_over()?;
                let reason = format!("received more than the expected {} bytes", total.unwrap_or(0));
                return Err(RequestError::Final(reason));
            }
            Ok(partial.write(bytes)?)
        })
    }
}

impl PartialFile {
    /// Opens the file; if the whole will be `checked`, keeps what an earlier run left in it.
    fn open(path: PathBuf, checked: bool) -> Result<Self, Error> {
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(!checked).open(&path)?;
            let have = file.seek(SeekFrom::End(0))?;
            Ok((file, have))
        };
        match open() {
            Ok((file, have)) => Ok(Self { path, file, have, checked }),
            Err(error) => Err(Error::write(path, error)),
        }
    }

    /// Adds to the error that ended a download how much of it is kept.
    fn explain(&self, error: Error) -> Error {
        match error {
            Error::Hub { name, reason } if self.checked && self.have > 0 => {
                let reason = format!("{reason}; the {} bytes received are kept for the next attempt", self.have);
                Error::Hub { name, reason }
            }
            error => error,
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::write(&self.path, error)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|error| self.failed(error))?;
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn start_over(&mut self) -> Result<(), Error> {
        self.have = 0;
        self.file.rewind().and_then(|()| self.file.set_len(0)).map_err(|error| self.failed(error))
    }

    fn sha256(&mut self) -> Result<String, Error> {
        let hashed = self.file.rewind().and_then(|()| sha256(&mut self.file));
        hashed.map(|(_, hash)| hash).map_err(|error| self.failed(error))
    }

    /// Renames the whole file into place.
    fn keep(self, blob: &Path) -> Result<(), Error> {
        let renamed = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        renamed.map_err(|error| Error::write(blob, error))
    }
}

impl Drop for PartialFile {
    /// Deletes a file that is empty, or that a later run could not verify.
    fn drop(&mut self) {
        if (self.have == 0 || !self.checked) && self.path.exists() {
            // A file that cannot be deleted is never read.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// True if a text is safe as a file name.
fn is_plain(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// True if a 206 response begins where the partial file ends: `Content-Range: bytes HAVE-…`.
fn starts_at(headers: &HeaderMap, have: u64) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {have}-")))
}
