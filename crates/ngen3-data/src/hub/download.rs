//! One file of the hub comes into the cache, whole or not at all.
//!
//! The hub is asked for the file's ETag and size first. The bytes go to `blobs/ETAG.incomplete`; when the connection breaks,
//! the next attempt asks for the rest (`Range`), which must be of the same file since the ETag names its content. Only what
//! has the size, and the SHA-256 where the ETag is one, that the hub promised becomes `blobs/ETAG`. When the program ends
//! before, for whatever reason, the part stays for the next one to go on with, as Python's does, if the SHA-256 will tell
//! whether it was sound; otherwise, and when it is found to be wrong, it is deleted.

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

/// A file to be had.
pub(super) struct FileDownload<'a> {
    /// For messages.
    pub(super) name: &'a str,
    /// Its address at the hub.
    pub(super) url: &'a str,
    /// The commit that it is of.
    pub(super) commit: &'a str,
    /// The repository's folder in the cache.
    pub(super) folder: &'a Path,
}

/// What the hub says of a file.
struct FileMetadata {
    /// Names the content; safe as a file's name.
    etag: String,
    size: Option<u64>,
    /// The content's SHA-256, for files that are kept as large ones.
    sha256: Option<String>,
}

/// A file that is being filled.
struct PartialFile {
    path: PathBuf,
    file: File,
    have: u64,
    /// True if the whole will be checked against a hash, so that another program may go on with the part.
    checked: bool,
}

impl FileDownload<'_> {
    /// Downloads the file unless the cache has its content; gives the blob's path.
    pub(super) fn download(&self, client: &Client, progress: &mut ProgressFn) -> Result<PathBuf, Error> {
        let metadata = retry(self.name, progress, |_| self.metadata_of(client))?;
        let blob = self.folder.join("blobs").join(&metadata.etag);
        if blob.exists() {
            return Ok(blob);
        }
        make_folder_of(&blob)?;
        let _lock = self.lock(&metadata.etag, progress)?;
        // Whoever had the lock may have brought it.
        if blob.exists() {
            return Ok(blob);
        }
        let path = blob.with_file_name(format!("{}.incomplete", metadata.etag));
        let mut partial = PartialFile::open(path, metadata.sha256.is_some())?;
        let result = retry(self.name, progress, |progress| self.attempt(client, &metadata, &mut partial, progress));
        result.map_err(|error| partial.explain(error))?;
        partial.keep(&blob)?;
        Ok(blob)
    }

    /// Asks what the file is.
    fn metadata_of(&self, client: &Client) -> Result<FileMetadata, RequestError> {
        let response = client.request(&Method::HEAD, self.url, &HeaderMap::new())?;
        let text = |name: &HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
        if let Some(commit) = text(&COMMIT).filter(|&commit| commit != self.commit) {
            return Err(RequestError::Final(format!("the hub answered for another commit, {commit:?}")));
        }
        let linked = text(&LINKED_ETAG);
        let etag = linked.or(text(&header::ETAG)).map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let Some(etag) = etag.filter(|etag| is_plain(etag)) else {
            return Err(RequestError::Final(format!(
                "the hub names its content by {etag:?}, which is no ETag of a hub"
            )));
        };
        let own_size = text(&header::CONTENT_LENGTH).filter(|_| response.status() == StatusCode::OK);
        let size = text(&LINKED_SIZE).or(own_size).and_then(|size| size.parse().ok());
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let sha256 = linked.filter(|_| is_sha256).map(|_| etag.to_ascii_lowercase());
        Ok(FileMetadata { etag: etag.into(), size, sha256 })
    }

    /// Holds what Python's `huggingface_hub` holds while it downloads this content.
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
                // Some network file systems have no locks; two downloads at once are then a risk worth taking.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let note = Event::Note(format!("waiting for another program that downloads {}", self.name));
            let event = if waited { Event::Downloading { done: 0, total: None } } else { note };
            if !progress(event) {
                return Err(Error::Interrupted);
            }
            waited = true;
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// One request, for the whole or for the rest.
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
                // The server has nothing after what is there: it is all, or no part of this file.
                Err(RequestError::Refused { status: StatusCode::RANGE_NOT_SATISFIABLE, .. }) if resumed > 0 => {
                    if metadata.sha256.is_some() && metadata.sha256 == Some(partial.sha256()?) {
                        return Ok(());
                    }
                    partial.start_over()?;
                    client.request(&Method::GET, self.url, &HeaderMap::new())?
                }
                // The hub answered just now, and the bytes did come: the network will be back.
                Err(RequestError::Unreachable(reason)) if resumed > 0 => return Err(RequestError::transient(reason)),
                result => result?,
            };
            self.receive_body(metadata, partial, response, progress)?;
        }
        if let Some(size) = metadata.size.filter(|&size| size != partial.have) {
            let reason = format!("{} of {size} bytes came", partial.have);
            return Err(RequestError::Transient { reason, wait: None, progress: partial.have > resumed });
        }
        if let Some(promised) = &metadata.sha256
            && partial.sha256()? != *promised
        {
            partial.start_over()?;
            let reason = "what came is not what the hub promised (its SHA-256 differs)";
            // The part that was there before may be to blame.
            return Err(if resumed > 0 { RequestError::transient(reason) } else { RequestError::Final(reason.into()) });
        }
        Ok(())
    }

    /// Writes an answer's body after what there is, if it is what was asked for.
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
            return Err(RequestError::transient("the server could not go on where the download broke off"));
        }
        let total = metadata.size.or(length.map(|length| partial.have.saturating_add(length)));
        if let (Some(size), Some(length)) = (metadata.size, length)
            && partial.have.saturating_add(length) != size
        {
            partial.start_over()?;
            return Err(RequestError::Final(format!("the hub promised {size} bytes, but the server has {length}")));
        }
        receive(response.body_mut().as_reader(), partial.have, total, progress, |bytes| {
            if metadata.size.is_some_and(|size| partial.have + bytes.len() as u64 > size) {
                partial.start_over()?;
                let reason = format!("more than the {} bytes that the hub promised came", total.unwrap_or(0));
                return Err(RequestError::Final(reason));
            }
            Ok(partial.write(bytes)?)
        })
    }
}

impl PartialFile {
    /// Opens the file; if its whole will be `checked`, with what an earlier program left in it.
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

    /// The error that ended a download, with what is left of it.
    fn explain(&self, error: Error) -> Error {
        match error {
            Error::Hub { name, reason } if self.checked && self.have > 0 => {
                let reason = format!("{reason}; the {} bytes that came are kept for the next try", self.have);
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

    /// Gives the whole file its name.
    fn keep(self, blob: &Path) -> Result<(), Error> {
        let renamed = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        renamed.map_err(|error| Error::write(blob, error))
    }
}

impl Drop for PartialFile {
    /// What holds nothing, or cannot be checked, is of no use to the next program.
    fn drop(&mut self) {
        if (self.have == 0 || !self.checked) && self.path.exists() {
            // If it stays it is a file that nobody reads.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// True if a text can be a file's name as it stands.
fn is_plain(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// True if a 206 answer begins where we left off: `Content-Range: bytes HAVE-…`.
fn starts_at(headers: &HeaderMap, have: u64) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {have}-")))
}
