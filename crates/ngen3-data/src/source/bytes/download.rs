//! Atomic downloads over http(s).
//!
//! A download goes into an unnamed temporary file, which disappears with the process. When the connection breaks, the next
//! attempt requests the rest (`Range`) on condition that the file is unchanged (`If-Range`, RFC 9110 §13.1.5, with a strong
//! ETag or a date); otherwise it starts over. `ureq` follows redirects and decodes `Content-Encoding: gzip`. The first attempt
//! allows gzip, since text shrinks to a third; later ones do not, since gzip made on the fly cannot be resumed.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode, header};

use crate::Error;
use crate::http::{
    FIRST_PAUSE, READ_TIMEOUT, RequestError, Retry, agent, explain, is_transient_status, receive, without_password,
};
use crate::progress::{Event, ProgressFn};

/// Downloads files.
pub(in crate::source) struct Client {
    agent: ureq::Agent,
    pause: Duration,
}

/// A partial download.
struct Partial {
    file: File,
    /// Bytes in `file`.
    have: u64,
    /// Most bytes that `file` ever held.
    best: u64,
    /// Total length and validator, needed to request the rest.
    resume: Option<(u64, String)>,
    attempts: u32,
    /// True once any attempt got a response.
    answered: bool,
}

impl Client {
    pub(in crate::source) fn new() -> Self {
        Self { agent: agent(READ_TIMEOUT, true), pause: FIRST_PAUSE }
    }

    /// Downloads `url` into a temporary file in the folder `scratch`; returns the file, rewound, and its size in bytes.
    ///
    /// # Errors
    /// [`Error::Download`] with the server's response or the network error; [`Error::Interrupted`].
    pub(in crate::source) fn download(
        &self,
        url: &str,
        scratch: &Path,
        progress: &mut ProgressFn,
    ) -> Result<(File, u64), Error> {
        let name = without_password(url);
        let error = |reason| Error::Download { url: name.clone(), reason };
        let file = tempfile::tempfile_in(scratch)
            .map_err(|cause| error(format!("cannot create a temporary file in {}: {cause}", scratch.display())))?;
        let mut partial = Partial { file, have: 0, best: 0, resume: None, attempts: 0, answered: false };
        let retry = Retry {
            name: &name,
            pause: self.pause,
            // This runs on the reading thread; the consumer that waits for it checks for interruption itself.
            waiting: None,
            unreachable_hint: "check the network connection",
            error: &error,
        };
        retry.run(progress, |progress| {
            let best = partial.best;
            self.attempt(url, &name, &mut partial, progress).map_err(|error| match error {
                // A download that starts over makes no progress until it exceeds its previous best.
                RequestError::Transient { reason, wait, .. } => {
                    RequestError::Transient { reason, wait, progress: partial.best > best }
                }
                error => error,
            })
        })?;
        partial.file.rewind().map_err(|cause| error(cause.to_string()))?;
        Ok((partial.file, partial.have))
    }

    /// Makes one request, for the whole file or for the rest.
    fn attempt(
        &self,
        url: &str,
        name: &str,
        partial: &mut Partial,
        progress: &mut ProgressFn,
    ) -> Result<(), RequestError> {
        partial.attempts += 1;
        let first = partial.attempts == 1;
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, if first { "gzip" } else { "identity" });
        if let Some((_, validator)) = &partial.resume {
            let range = format!("bytes={}-", partial.have);
            request = request.header(header::RANGE, range).header(header::IF_RANGE, validator);
        }
        let mut response = request.call().map_err(|error| match error {
            // An unknown host may be mistyped, and a server that does not speak HTTP stays so: neither is retried.
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) => {
                RequestError::Final(explain(&error))
            }
            error => RequestError::of_connection(error, partial.answered),
        })?;
        partial.answered = true;

        let status = response.status();
        let length = response.body().content_length();
        let headers = response.headers();
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|&encoding| encoding != "identity") {
            let reason = format!("the server sent an unexpected Content-Encoding, {encoding:?}");
            return Err(RequestError::Final(reason));
        }
        match status {
            StatusCode::OK => {
                partial.start_over().map_err(|error| RequestError::Final(error.to_string()))?;
                partial.resume = length.zip(validator(headers));
                if is_html(headers) && first {
                    let note = format!(
                        "{name} is a web page (text/html), read with its tags; is this the URL of the text itself?"
                    );
                    progress(Event::Note(note));
                }
            }
            StatusCode::PARTIAL_CONTENT if partial.is_continued_by(headers, length) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.resume = None;
                return Err(RequestError::transient("the server could not resume the download"));
            }
            status => {
                let reason = format!("the server returned {status}");
                return Err(match is_transient_status(status) {
                    true => RequestError::transient(reason),
                    false => RequestError::Final(reason),
                });
            }
        }
        let total = length.map(|length| partial.have + length);
        receive(response.body_mut().as_reader(), partial.have, total, progress, |bytes| {
            let written = partial.file.write_all(bytes);
            written.map_err(|error| RequestError::Final(format!("cannot write the download to disk: {error}")))?;
            partial.have += bytes.len() as u64;
            partial.best = partial.best.max(partial.have);
            Ok(())
        })
    }
}

impl Partial {
    fn start_over(&mut self) -> io::Result<()> {
        self.have = 0;
        self.resume = None;
        self.file.rewind()?;
        self.file.set_len(0)
    }

    /// True if a 206 response is exactly the rest: `Content-Range: bytes HAVE-…/LENGTH`, with that length.
    fn is_continued_by(&self, headers: &HeaderMap, length: Option<u64>) -> bool {
        let Some((whole, _)) = self.resume else { return false };
        let expected = format!("bytes {}-{}/{whole}", self.have, whole.saturating_sub(1));
        let found = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        found == Some(&expected) && length == whole.checked_sub(self.have)
    }
}

/// Returns the identifier of this version of the file: a strong ETag, or else its Last-Modified date.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = text(header::ETAG).filter(|etag| !etag.starts_with("W/"));
    etag.or_else(|| text(header::LAST_MODIFIED)).map(str::to_owned)
}

fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
