//! Requests to the hub: redirects, retries, and the hub's error messages.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::Body;
use ureq::http::{HeaderMap, HeaderName, Method, Response, StatusCode, Uri, header};

use crate::Error;
use crate::http::{FIRST_PAUSE, RequestError, Retry, agent, is_transient_status};
use crate::progress::{Event, ProgressFn};

/// Maximum number of consecutive redirects.
const REDIRECTS: usize = 10;
/// Characters shown of the hub's error message.
const MAX_MESSAGE_CHARS: usize = 300;

const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// Client of one hub.
#[derive(Clone)]
pub(super) struct Client {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<String>,
}

/// Body of a request.
pub(super) struct Payload<'a> {
    /// Media type.
    pub content_type: &'a str,
    pub reader: &'a mut dyn std::io::Read,
    /// Bytes.
    pub length: u64,
}

impl Client {
    pub(super) fn new(endpoint: String, token: Option<String>, timeout: Duration) -> Self {
        // Redirects are followed here, since the hub describes a file in the headers of the redirect to its contents.
        Self { agent: agent(timeout, false), endpoint, token }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns the body of `url`, at most `limit` bytes. `name` is the subject of errors.
    pub(super) fn get_text(
        &self,
        name: &str,
        url: &str,
        limit: u64,
        progress: &mut ProgressFn,
    ) -> Result<String, Error> {
        retry(name, progress, |_| {
            let mut response = self.request(&Method::GET, url, &HeaderMap::new())?;
            response
                .body_mut()
                .with_config()
                .limit(limit)
                .read_to_string()
                .map_err(|error| RequestError::of_connection(error, true))
        })
    }

    /// Makes one request, following redirects; any status but success is an error. A HEAD ends at the hub's own last response,
    /// even if that redirects to another server.
    pub(super) fn request(
        &self,
        method: &Method,
        url: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, RequestError> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(&url).header(header::ACCEPT_ENCODING, "identity");
            if method == Method::HEAD {
                request = self.agent.head(&url).header(header::ACCEPT_ENCODING, "identity");
            }
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let ours = origin(&url) == origin(&self.endpoint);
            if let Some(token) = self.token.as_ref().filter(|_| ours) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| RequestError::of_connection(error, false))?;
            let status = response.status();
            let location = response.headers().get(header::LOCATION).filter(|_| status.is_redirection());
            let Some(location) = location else { return self.check(response) };
            let next = location.to_str().ok().and_then(|location| join(&url, location)).ok_or_else(|| {
                RequestError::Final(format!("{} redirects to an invalid URL: {location:?}", origin(&url)))
            })?;
            if method == Method::HEAD && origin(&next) != origin(&url) {
                return Ok(response);
            }
            url = next;
        }
        Err(RequestError::Final(format!("too many redirects from {}", self.endpoint)))
    }

    /// Makes one request with a body; any status but success is an error. Only the hub receives the token. Redirects are not
    /// followed, since the body can be read only once.
    pub(super) fn send(
        &self,
        method: &Method,
        url: &str,
        payload: Payload<'_>,
    ) -> Result<Response<Body>, RequestError> {
        let mut request = if method == Method::PUT { self.agent.put(url) } else { self.agent.post(url) }
            .header(header::CONTENT_TYPE, payload.content_type)
            .header(header::CONTENT_LENGTH, payload.length);
        if payload.content_type.contains("git-lfs") {
            request = request.header(header::ACCEPT, payload.content_type);
        }
        let ours = origin(url) == origin(&self.endpoint);
        if let Some(token) = self.token.as_ref().filter(|_| ours) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut reader = payload.reader;
        let response = request
            .send(ureq::SendBody::from_reader(&mut reader))
            .map_err(|error| RequestError::of_connection(error, false))?;
        self.check(response)
    }

    /// True if there is an access token.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Returns a successful response; turns any other into an error with advice.
    fn check(&self, mut response: Response<Body>) -> Result<Response<Body>, RequestError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let mut reason = format!("the hub returned {status}");
        if let Some(message) = server_message(&mut response) {
            reason = format!("{reason}: {message}");
        }
        let wait = retry_after(response.headers());
        if is_transient_status(status) {
            return Err(RequestError::Transient { reason, wait, progress: false });
        }
        Err(RequestError::Refused { status, reason: reason + self.advice(status, response.headers()) })
    }

    /// Returns advice for the user about a refusal.
    fn advice(&self, status: StatusCode, headers: &HeaderMap) -> &'static str {
        let code = headers.get(ERROR_CODE).and_then(|code| code.to_str().ok());
        match (status, code) {
            (_, Some("GatedRepo")) if self.token.is_none() => {
                " (request access on its page, then set HF_TOKEN to your access token)"
            }
            (_, Some("GatedRepo")) => " (request access on its page)",
            (_, Some("RevisionNotFound")) => " (check the revision)",
            (StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND, Some("RepoNotFound"))
            | (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _)
                if self.token.is_none() =>
            {
                " (check the name; for a private repository, set HF_TOKEN to a token with access)"
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) | (_, Some("RepoNotFound")) => {
                " (check the name, and that the token from HF_TOKEN or the token file has access)"
            }
            _ => "",
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// Retries a request until it succeeds or a retry cannot help. `name` is the subject of errors.
pub(super) fn retry<T>(
    name: &str,
    progress: &mut ProgressFn,
    attempt: impl FnMut(&mut ProgressFn) -> Result<T, RequestError>,
) -> Result<T, Error> {
    let policy = Retry {
        name,
        pause: FIRST_PAUSE,
        waiting: Some(Event::Downloading { done: 0, total: None }),
        unreachable_hint: "check the network connection, or set HF_HUB_OFFLINE=1 to use the cache",
        error: &|reason| Error::Hub { name: name.into(), reason },
    };
    policy.run(progress, attempt)
}

/// Returns the hub's error message: a header, or `error` in a JSON body.
fn server_message(response: &mut Response<Body>) -> Option<String> {
    let from_header =
        response.headers().get(ERROR_MESSAGE).map(|message| String::from_utf8_lossy(message.as_bytes()).into());
    let message: String = from_header.or_else(|| {
        let body = response.body_mut().with_config().limit(1 << 16).read_to_string().ok()?;
        let body: serde_json::Value = serde_json::from_str(&body).ok()?;
        Some(body.get("error")?.as_str()?.to_owned())
    })?;
    let message: String =
        message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_MESSAGE_CHARS).collect();
    let message: String = message.chars().filter(|c| !c.is_control()).collect();
    Some(message.trim_end_matches('.').to_owned()).filter(|message| !message.is_empty())
}

/// Parses `Retry-After` in seconds; hubs do not use its other form, a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Returns `scheme://host:port`, which decides whether a token may be sent.
fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}").to_ascii_lowercase()
}

/// Resolves a redirect of `url` to `location`; `None` unless it leads to http(s).
fn join(url: &str, location: &str) -> Option<String> {
    let scheme = url.split_once("://")?.0;
    let joined = if location.starts_with("http://") || location.starts_with("https://") {
        location.to_owned()
    } else if location.contains("://") && !location.starts_with('/') {
        return None;
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        origin(url) + location
    } else {
        let path = url.split(['?', '#']).next()?;
        let folder = &path[..path.rfind('/').filter(|&at| at > scheme.len() + 2)?];
        format!("{folder}/{location}")
    };
    joined.parse::<Uri>().ok().map(|_| joined)
}

/// Percent-encodes a path: every byte except letters, digits, `-._~` and slashes.
pub(super) fn encode_path(path: &str) -> String {
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
    utf8_percent_encode(path, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let at = |location| join("http://a.org:8/x/y?z", location);
        assert_eq!(at("https://b.org/c").as_deref(), Some("https://b.org/c"));
        assert_eq!(at("//b.org/c").as_deref(), Some("http://b.org/c"));
        assert_eq!(at("/c?d").as_deref(), Some("http://a.org:8/c?d"));
        assert_eq!(at("c").as_deref(), Some("http://a.org:8/x/c"));
        assert_eq!(at("file:///etc/passwd"), None);
        assert_eq!(join("http://a.org", "c"), None);
    }

    #[test]
    fn paths_are_escaped() {
        assert_eq!(encode_path("a b/ü#?%.txt"), "a%20b/%C3%BC%23%3F%25.txt");
    }

    proptest! {
        #[test]
        fn whatever_a_server_sends_us_to_it_is_http(location in "\\PC{0,30}") {
            if let Some(next) = join("https://a.org/x/y", &location) {
                prop_assert!(next.starts_with("http://") || next.starts_with("https://"));
                // A location without a host stays on the same server.
                if !location.starts_with("//") && !location.starts_with("http") {
                    prop_assert_eq!(origin(&next), "https://a.org");
                }
            }
        }
    }
}
