//! HTTP for downloads and uploads: client settings, retries, and receiving a body.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ngen3_model::words::count;
use ureq::http::StatusCode;

use crate::Error;
use crate::progress::{Event, ProgressFn};

/// Retries in a row, without a byte of progress, before giving up.
const RETRIES: u32 = 4;
/// Pause before the first retry; it doubles with each retry.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause that a server may request.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Interval at which a waiting caller is asked whether to stop.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a response, and of each further read of its body.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(60);
const BUFFER: usize = 1 << 18;

/// Reason why an attempt failed.
pub(crate) enum RequestError {
    /// A retry may help, no earlier than after `wait`. `progress` is true if the attempt made progress.
    Transient { reason: String, wait: Option<Duration>, progress: bool },
    /// A retry cannot help.
    Final(String),
    /// No connection: unknown host, no route, refused. A retry may help if there was a connection a moment ago.
    Unreachable(String),
    /// The server refused the request with this status.
    Refused { status: StatusCode, reason: String },
    /// A failure that is not the server's.
    Other(Error),
}

impl RequestError {
    /// Makes a [`RequestError::Transient`] without progress or a minimum wait.
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient { reason: reason.into(), wait: None, progress: false }
    }

    /// Classifies a failed connection. `answered` is true if the server had begun to respond.
    pub(crate) fn of_connection(error: ureq::Error, answered: bool) -> Self {
        let reason = explain(&error);
        match error {
            ureq::Error::Timeout(_) => Self::transient(reason),
            ureq::Error::Io(error) if answered || is_transient(error.kind()) => Self::transient(reason),
            ureq::Error::Io(_) | ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Self::Unreachable(reason),
            // ureq's error for a connection that closes before or during a response.
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

/// Makes a client. `timeout` applies to a response and to each further read of its body.
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

/// Repeats a request until it succeeds, fails for good, or was retried [`RETRIES`] times without progress.
pub(crate) struct Retry<'a> {
    /// Subject of notes.
    pub name: &'a str,
    /// Pause before the first retry.
    pub pause: Duration,
    /// Event sent during a pause so that the caller can stop; without it a pause cannot be stopped.
    pub waiting: Option<Event>,
    /// Advice when the server cannot be reached.
    pub unreachable_hint: &'a str,
    /// Turns a reason into an error.
    pub error: &'a dyn Fn(String) -> Error,
}

impl Retry<'_> {
    /// Runs attempts; `progress` receives a note before each retry.
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
                return Err((self.error)(format!("{reason} (the server asks to retry after {} s)", pause.as_secs())));
            }
            if !progress(Event::Note(format!("{}: {reason}; retrying in {pause:?}", self.name))) {
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

/// Passes a body to `write`, a buffer at a time. `have` of `total` bytes were received before.
///
/// Every byte must arrive: ureq reports a body that is shorter than its Content-Length or lacks its last chunk.
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
                let reason = format!("connection lost after {done}{of} bytes ({cause})");
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

/// True for statuses after which a retry may succeed.
pub(crate) fn is_transient_status(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) || status.is_server_error()
}

/// True for connection errors after which a retry may succeed. Others (unknown host, no route, refused) persist, unless the
/// server has responded before.
fn is_transient(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    [BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof].contains(&kind)
}

/// Describes a connection error.
pub(crate) fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "host not found".into(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => "the server did not respond in time".into(),
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => format!("malformed URL ({error})"),
        error => error.to_string(),
    }
}

/// Returns a URL without `user:password@`, for display and storage.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}
