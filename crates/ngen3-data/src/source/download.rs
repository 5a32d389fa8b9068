//! Downloads over http(s), whole or not at all.
//!
//! A download goes into a nameless temporary file, which vanishes with the process. When the connection breaks, the next
//! attempt asks for the rest (`Range`) on the condition that it is still the same file (`If-Range`, RFC 9110 §13.1.5, with
//! a strong ETag or a date); whenever that cannot be had, it starts over. Redirects are followed by `ureq`, which also
//! undoes `Content-Encoding: gzip`. The first attempt allows gzip, since text shrinks to a third; later ones do not, since
//! gzip made on the fly cannot be resumed.

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
pub(super) struct Client {
    agent: ureq::Agent,
    pause: Duration,
}

/// A download in progress.
struct Partial {
    file: File,
    /// Bytes in `file`.
    have: u64,
    /// The most bytes that `file` ever held.
    best: u64,
    /// Needed to ask for the rest: the whole length and the validator.
    resume: Option<(u64, String)>,
    attempts: u32,
    /// True if any attempt got an answer.
    answered: bool,
}

impl Client {
    pub(super) fn new() -> Self {
        Self { agent: agent(READ_TIMEOUT, true), pause: FIRST_PAUSE }
    }

    /// Downloads `url` into a temporary file in the folder `scratch`; returns it, at its start, with its size in bytes.
    ///
    /// # Errors
    /// [`Error::Download`] with the server's answer or the network's failure; [`Error::Interrupted`].
    pub(super) fn download(&self, url: &str, scratch: &Path, progress: &mut ProgressFn) -> Result<(File, u64), Error> {
        let name = without_password(url);
        let error = |reason| Error::Download { url: name.clone(), reason };
        let file = tempfile::tempfile_in(scratch).map_err(|cause| {
            error(format!("cannot make a temporary file in the folder {}: {cause}", scratch.display()))
        })?;
        let mut partial = Partial { file, have: 0, best: 0, resume: None, attempts: 0, answered: false };
        let retry = Retry {
            name: &name,
            pause: self.pause,
            // This is the reading thread: whoever waits for it looks by himself whether to go on.
            waiting: None,
            unreachable_hint: "is there a network?",
            error: &error,
        };
        retry.run(progress, |progress| {
            let best = partial.best;
            self.attempt(url, &name, &mut partial, progress).map_err(|error| match error {
                // A download that starts over gets nowhere until it has more than ever before.
                RequestError::Transient { reason, wait, .. } => {
                    RequestError::Transient { reason, wait, progress: partial.best > best }
                }
                error => error,
            })
        })?;
        partial.file.rewind().map_err(|cause| error(cause.to_string()))?;
        Ok((partial.file, partial.have))
    }

    /// One request, for the whole or for the rest.
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
            // A host that a user wrote is not tried again, nor one that does not speak HTTP.
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
            let reason = format!("the server sent it in an encoding that was not asked for, {encoding:?}");
            return Err(RequestError::Final(reason));
        }
        match status {
            StatusCode::OK => {
                partial.start_over().map_err(|error| RequestError::Final(error.to_string()))?;
                partial.resume = length.zip(validator(headers));
                if is_html(headers) && first {
                    let note = format!(
                        "{name} is a web page (text/html), which is read as it is: is this the address of the text itself?"
                    );
                    progress(Event::Note(note));
                }
            }
            StatusCode::PARTIAL_CONTENT if partial.is_continued_by(headers, length) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.resume = None;
                return Err(RequestError::transient("the server could not go on where the download broke off"));
            }
            status => {
                let reason = format!("the server answered {status}");
                return Err(match is_transient_status(status) {
                    true => RequestError::transient(reason),
                    false => RequestError::Final(reason),
                });
            }
        }
        let total = length.map(|length| partial.have + length);
        receive(response.body_mut().as_reader(), partial.have, total, progress, |bytes| {
            let written = partial.file.write_all(bytes);
            written.map_err(|error| RequestError::Final(format!("cannot keep what was downloaded: {error}")))?;
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

    /// True if a 206 answer is exactly the rest: `Content-Range: bytes HAVE-…/LENGTH`, and no more or less.
    fn is_continued_by(&self, headers: &HeaderMap, length: Option<u64>) -> bool {
        let Some((whole, _)) = self.resume else { return false };
        let expected = format!("bytes {}-{}/{whole}", self.have, whole.saturating_sub(1));
        let found = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        found == Some(&expected) && length == whole.checked_sub(self.have)
    }
}

/// Name of this very version of the file: a strong ETag, else the date of its last change.
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
