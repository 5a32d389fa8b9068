//! Admission of requests: by host and origin, then by key.
//!
//! A page of another site that is open in the user's browser can send requests to this machine. Its `Origin` gives it away; if it has
//! its own name point here (DNS rebinding), its `Host` does. Programs send no `Origin`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::api::error::ApiError;
use crate::state::App;

/// Paths that need no key: the page, which asks for it, and the health check.
const OPEN: [&str; 2] = ["/", "/health"];

/// Checks a request before its handler, and counts the response.
pub(crate) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.filter(|origin| is_listed(&app, origin));
    let mut response = match check(&app, &request, allowed.is_some()) {
        Err(error) => error.into_response(),
        Ok(()) if request.method() == Method::OPTIONS => preflight(),
        Ok(()) => next.run(request).await,
    };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    let headers = response.headers_mut();
    let no_sniffing = (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    headers.insert(no_sniffing.0, no_sniffing.1);
    app.metrics.count_response(response.status().as_u16());
    response
}

fn check(app: &App, request: &Request, origin_allowed: bool) -> Result<(), ApiError> {
    let forbidden = |message: &str| Err(ApiError::new(StatusCode::FORBIDDEN, message));
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if app.is_loopback && !is_loopback_name(host) {
        return forbidden("expected localhost, 127.0.0.1 or [::1] as the Host: this server is for this machine only");
    }
    if let Some(origin) = headers.get(header::ORIGIN)
        && !origin_allowed
        && !is_same(origin, host)
    {
        return forbidden("requests from pages of this origin are not allowed (--cors_origin)");
    }
    let needs_key = request.method() != Method::OPTIONS && !OPEN.contains(&request.uri().path());
    match &app.config.api_key {
        Some(key) if needs_key && !has_key(headers, key) => {
            let message = "missing or wrong API key: expected the header Authorization: Bearer KEY";
            Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
        }
        _ => Ok(()),
    }
}

/// Compares in a time that does not depend on where the keys differ.
fn has_key(headers: &HeaderMap, key: &str) -> bool {
    let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
    sent.is_some_and(|(scheme, sent)| scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(sent.ct_eq(key.as_bytes())))
}

fn is_listed(app: &App, origin: &HeaderValue) -> bool {
    app.config.cors_origins.iter().any(|listed| listed == "*" || listed.as_bytes() == origin.as_bytes())
}

/// Returns true if an origin is the server itself, as the browser addressed it.
fn is_same(origin: &HeaderValue, host: &str) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let name = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    name.is_some_and(|name| name.eq_ignore_ascii_case(host))
}

/// Returns true if a `Host` is this machine, with any port. A loopback address is no name that somebody else could point here.
fn is_loopback_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Answers a browser that asks what a page may send.
fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.0.0.2", "[::1]:8000", "[::1]"] {
            assert!(is_loopback_name(host), "{host}");
        }
        for host in
            ["", "evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "128.0.0.1", "[::2]", "localhost@evil.com"]
        {
            assert!(!is_loopback_name(host), "{host}");
        }
    }

    #[test]
    fn the_key_must_be_the_same_in_every_byte() {
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        for right in ["Bearer secret", "bearer secret"] {
            assert!(has_key(&with(right), "secret"));
        }
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer Secret", "secret", "Basic secret", "Bearer", ""] {
            assert!(!has_key(&with(wrong), "secret"), "{wrong}");
        }
        assert!(!has_key(&HeaderMap::new(), "secret"));
    }

    #[test]
    fn an_origin_is_compared_with_its_port() {
        let same = |origin: &'static str| is_same(&HeaderValue::from_static(origin), "localhost:8000");
        assert!(same("http://localhost:8000"));
        assert!(
            !same("http://localhost:8001") && !same("http://localhost") && !same("null") && !same("localhost:8000")
        );
    }
}
