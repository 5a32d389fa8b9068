//! HTTP as every download and upload does it: one client set-up, one way to retry, one way to receive a body.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ngen3_model::words::count;
use ureq::http::StatusCode;

use crate::Error;
use crate::progress::{Event, ProgressFn};

/// Attempts that may fail one after the other without a byte of progress, after the first.
const RETRIES: u32 = 4;
/// Pause before the first retry; it doubles with each one.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How often whoever watches is asked, during a wait, whether to go on.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait for an answer, and for any next byte of it.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 18;

/// Why an attempt ended early.
pub(crate) enum RequestError {
    /// Trying again may help, at the earliest after `wait`. `progress` tells whether the attempt got anywhere.
    Transient { reason: String, wait: Option<Duration>, progress: bool },
    /// Trying again is no use.
    Final(String),
    /// There was no connection at all: no such host, no route, refused. Trying again may help if there was one just now.
    Unreachable(String),
    /// The server says no, by this status.
    Refused { status: StatusCode, reason: String },
    /// Something other than the server.
    Other(Error),
}

impl RequestError {
    /// An error that may be gone at the next attempt.
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient { reason: reason.into(), wait: None, progress: false }
    }

    /// The meaning of a failed connection. `answered` tells whether the server had begun to answer.
    pub(crate) fn of_connection(error: ureq::Error, answered: bool) -> Self {
        let reason = explain(&error);
        match error {
            ureq::Error::Timeout(_) => Self::transient(reason),
            ureq::Error::Io(error) if answered || is_transient(error.kind()) => Self::transient(reason),
            ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Self::Unreachable(reason),
            // What ureq makes of a connection that is closed before or within an answer.
            ureq::Error::Protocol(_) => Self::transient(reason),
            _ => Self::Final(reason),
        }
    }
}

impl<E: Into<Error>> From<E> for RequestError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Makes a client. `timeout` is how long to wait for an answer, and for any next byte of it.
pub(crate) fn agent(timeout: Duration, follow_redirects: bool) -> ureq::Agent {
    let mut config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(timeout))
        .timeout_per_read(Some(timeout))
        .user_agent(concat!("ngen3/", env!("CARGO_PKG_VERSION")));
    if !follow_redirects {
        config = config.max_redirects(0);
    }
    config.build().new_agent()
}

/// A request that is repeated until it works, helps no more, or has failed [`RETRIES`] times after the last progress.
pub(crate) struct Retry<'a> {
    /// Subject of notes.
    pub name: &'a str,
    /// Pause before the first retry.
    pub pause: Duration,
    /// Event with which whoever watches is asked, during a pause, whether to go on; without it nobody is.
    pub waiting: Option<Event>,
    /// Advice when the server cannot be reached.
    pub unreachable_hint: &'a str,
    /// Makes the error of a reason.
    pub error: &'a dyn Fn(String) -> Error,
}

impl Retry<'_> {
    /// Runs attempts; `progress` hears why one is repeated.
    pub(crate) fn run<T>(
        &self,
        progress: &mut ProgressFn,
        mut attempt: impl FnMut(&mut ProgressFn) -> Result<T, RequestError>,
    ) -> Result<T, Error> {
        let (mut attempts, mut failures) = (0, 0);
        loop {
            attempts += 1;
            let (reason, wait, advanced) = match attempt(progress) {
                Ok(value) => return Ok(value),
                Err(RequestError::Other(error)) => return Err(error),
                Err(RequestError::Final(reason) | RequestError::Refused { reason, .. }) => {
                    return Err((self.error)(reason));
                }
                Err(RequestError::Unreachable(reason)) => {
                    return Err((self.error)(format!("{reason} ({})", self.unreachable_hint)));
                }
                Err(RequestError::Transient { reason, wait, progress }) => (reason, wait, progress),
            };
            failures = if advanced { 1 } else { failures + 1 };
            if failures > RETRIES {
                return Err((self.error)(format!("{reason} (gave up after {})", count(attempts, "attempt"))));
            }
            let pause = wait.unwrap_or_else(|| self.pause * 2u32.pow(failures - 1));
            if pause > LONGEST_PAUSE {
                return Err((self.error)(format!("{reason} (it asks us to come back in {} s)", pause.as_secs())));
            }
            if !progress(Event::Note(format!("{}: {reason}; trying again in {pause:?}", self.name))) {
                return Err(Error::Interrupted);
            }
            self.sleep(pause, progress)?;
        }
    }

    fn sleep(&self, pause: Duration, progress: &mut ProgressFn) -> Result<(), Error> {
        let Some(event) = &self.waiting else {
            std::thread::sleep(pause);
            return Ok(());
        };
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::sleep(left.min(POLL_INTERVAL));
            if !progress(event.clone()) {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    }
}

/// Gives a body to `write`, a buffer at a time, to its end. `have` of `total` bytes are there before it.
///
/// Every byte must arrive: ureq reports a body shorter than its Content-Length or without its last chunk.
pub(crate) fn receive(
    mut body: impl Read,
    have: u64,
    total: Option<u64>,
    progress: &mut ProgressFn,
    mut write: impl FnMut(&[u8]) -> Result<(), RequestError>,
) -> Result<(), RequestError> {
    let (mut done, mut buffer) = (have, vec![0; BUFFER]);
    loop {
        let n = match body.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let of = total.map_or(String::new(), |total| format!(" of {total}"));
                let cause = explain(&ureq::Error::from(error));
                let reason = format!("the connection broke after {done}{of} bytes ({cause})");
                return Err(RequestError::Transient { reason, wait: None, progress: done > have });
            }
            Ok(0) => return Ok(()),
            Ok(n) => n,
        };
        write(&buffer[..n])?;
        done += n as u64;
        if !progress(Event::Downloading { done, total }) {
            return Err(Error::Interrupted.into());
        }
    }
}

/// True if a server that answers so may answer otherwise in a moment.
pub(crate) fn is_transient_status(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) || status.is_server_error()
}

/// True if a connection that failed so may fare better in a moment. Others (no such host, no route, refused) will not,
/// unless there has been an answer before.
fn is_transient(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    [BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof].contains(&kind)
}

/// Says what is wrong with a connection.
pub(crate) fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "there is no such host".into(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => "the server did not answer in time".into(),
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => format!("the address is malformed ({error})"),
        error => error.to_string(),
    }
}

/// Returns an address without `user:password@`, for showing and keeping.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}
