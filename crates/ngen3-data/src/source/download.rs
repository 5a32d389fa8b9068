//! Downloads over http(s), whole or not at all.
//!
//! A download goes into a nameless temporary file, which vanishes with the process. When the connection breaks, the next
//! attempt asks for the rest (`Range`) on the condition that it is still the same file (`If-Range`, RFC 9110 §13.1.5, with
//! a strong ETag or a date); whenever that cannot be had, it starts over. Redirects are followed by `ureq`, which also
//! undoes `Content-Encoding: gzip`. The first attempt allows gzip, since text shrinks to a third; later ones do not, since
//! gzip made on the fly cannot be resumed.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use ngen3_model::words::count;
use ureq::http::{HeaderMap, StatusCode, header};

use super::event::Event;
use crate::Error;

/// Attempts that may fail one after the other without a byte of progress, after the first.
pub(crate) const RETRIES: u32 = 4;
/// Wait before the first retry; it doubles with each one.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);
/// How long to wait for a connection, and for any next byte.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 18;

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
    /// What is needed to ask for the rest: the whole length and the validator.
    resume: Option<(u64, String)>,
    /// Whether any attempt got an answer.
    answered: bool,
}

/// Why an attempt ended early.
enum Trouble {
    /// Trying again may help.
    Passing(String),
    Final(Error),
}

impl Client {
    pub(super) fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("ngen3/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.new_agent(), pause: PAUSE }
    }

    /// Downloads `url` into a temporary file in the folder `scratch`; returns it, at its start, with its size in bytes.
    /// `tell` hears how far it is and says whether to go on.
    ///
    /// # Errors
    /// [`Error::Download`] with the server's answer or the network's failure; [`Error::Interrupted`].
    pub(super) fn download(
        &self,
        url: &str,
        scratch: &Path,
        tell: &mut dyn FnMut(Event) -> bool,
    ) -> Result<(File, u64), Error> {
        let file = tempfile::tempfile_in(scratch).map_err(|error| {
            failed(url, format!("cannot make a temporary file in the folder {}: {error}", scratch.display()))
        })?;
        let mut partial = Partial { file, have: 0, best: 0, resume: None, answered: false };
        let (mut attempts, mut failures) = (0, 0);
        loop {
            let best = partial.best;
            attempts += 1;
            let reason = match self.attempt(url, attempts == 1, &mut partial, tell) {
                Ok(()) => {
                    partial.file.rewind().map_err(|error| failed(url, error.to_string()))?;
                    return Ok((partial.file, partial.have));
                }
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(reason)) => reason,
            };
            failures = if partial.best > best { 1 } else { failures + 1 };
            if failures > RETRIES {
                return Err(failed(url, format!("{reason} (gave up after {})", count(attempts, "attempt"))));
            }
            let pause = self.pause * 2u32.pow(failures - 1);
            if !tell(Event::Note(format!("{}: {reason}; trying again in {pause:?}", without_password(url)))) {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(pause);
        }
    }

    /// One request, for the whole or for the rest.
    fn attempt(
        &self,
        url: &str,
        first: bool,
        partial: &mut Partial,
        tell: &mut dyn FnMut(Event) -> bool,
    ) -> Result<(), Trouble> {
        let mut request = self.agent.get(url).header(header::ACCEPT_ENCODING, if first { "gzip" } else { "identity" });
        if let Some((_, validator)) = &partial.resume {
            let range = format!("bytes={}-", partial.have);
            request = request.header(header::RANGE, range).header(header::IF_RANGE, validator);
        }
        let mut response = request.call().map_err(|error| {
            let reason = explain(&error);
            match error {
                ureq::Error::Timeout(_) => Trouble::Passing(reason),
                ureq::Error::Io(error) if partial.answered || is_passing(error.kind()) => Trouble::Passing(reason),
                ureq::Error::Io(_) => Trouble::Final(failed(url, format!("{reason} (is there a network?)"))),
                _ => Trouble::Final(failed(url, reason)),
            }
        })?;
        partial.answered = true;

        let status = response.status();
        let length = response.body().content_length();
        let headers = response.headers();
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|&encoding| encoding != "identity") {
            let reason = format!("the server sent it in an encoding that was not asked for, {encoding:?}");
            return Err(Trouble::Final(failed(url, reason)));
        }
        match status {
            StatusCode::OK => {
                partial.start_over().map_err(|error| Trouble::Final(failed(url, error.to_string())))?;
                partial.resume = length.zip(validator(headers));
                if is_html(headers) && first {
                    let note = format!(
                        "{} is a web page (text/html), which is read as it is: is this the address of the text itself?",
                        without_password(url)
                    );
                    tell(Event::Note(note));
                }
            }
            StatusCode::PARTIAL_CONTENT if partial.is_continued_by(headers, length) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.resume = None;
                return Err(Trouble::Passing("the server could not go on where the download broke off".into()));
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                return Err(Trouble::Passing(answered(status)));
            }
            _ if status.is_server_error() => return Err(Trouble::Passing(answered(status))),
            _ => return Err(Trouble::Final(failed(url, answered(status)))),
        }

        // Every byte of the body must arrive: ureq reports a body shorter than its Content-Length or without its last chunk.
        let total = length.map(|length| partial.have + length);
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = read_some(&mut body, &mut buffer, partial.have, total).map_err(Trouble::Passing)?;
            if n == 0 {
                return Ok(());
            }
            partial
                .file
                .write_all(&buffer[..n])
                .map_err(|error| Trouble::Final(failed(url, format!("cannot keep what was downloaded: {error}"))))?;
            partial.have += n as u64;
            partial.best = partial.best.max(partial.have);
            if !tell(Event::Downloading { done: partial.have, total }) {
                return Err(Trouble::Final(Error::Interrupted));
            }
        }
    }
}

impl Partial {
    fn start_over(&mut self) -> io::Result<()> {
        self.have = 0;
        self.resume = None;
        self.file.rewind()?;
        self.file.set_len(0)
    }

    /// Whether a 206 answer is exactly the rest: `Content-Range: bytes HAVE-…/LENGTH`, and no more or less.
    fn is_continued_by(&self, headers: &HeaderMap, length: Option<u64>) -> bool {
        let Some((whole, _)) = self.resume else { return false };
        let expected = format!("bytes {}-{}/{whole}", self.have, whole.saturating_sub(1));
        let found = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        found == Some(&expected) && length == whole.checked_sub(self.have)
    }
}

/// What names this very version of the file: a strong ETag, else the date of its last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let etag = text(header::ETAG).filter(|etag| !etag.starts_with("W/"));
    etag.or_else(|| text(header::LAST_MODIFIED)).map(str::to_owned)
}

fn is_html(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
}

fn answered(status: StatusCode) -> String {
    format!("the server answered {status}")
}

pub(crate) fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "there is no such host".into(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => "the server did not answer in time".into(),
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => format!("the address is malformed ({error})"),
        error => error.to_string(),
    }
}

/// Reads the next bytes of a body; 0 at its end. The error says how far it came: `have` of `total` bytes.
pub(crate) fn read_some(
    body: &mut impl Read,
    buffer: &mut [u8],
    have: u64,
    total: Option<u64>,
) -> Result<usize, String> {
    loop {
        match body.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let of = total.map_or(String::new(), |total| format!(" of {total}"));
                let cause = explain(&ureq::Error::from(error));
                return Err(format!("the connection broke after {have}{of} bytes ({cause})"));
            }
            Ok(n) => return Ok(n),
        }
    }
}

/// Whether a connection that failed so may fare better in a moment. Others (no such host, no route, refused) will not,
/// unless there has been an answer before.
pub(crate) fn is_passing(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    [BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof].contains(&kind)
}

fn failed(url: &str, reason: String) -> Error {
    Error::Download { url: without_password(url), reason }
}

/// An address without `user:password@`, for showing and keeping.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;
