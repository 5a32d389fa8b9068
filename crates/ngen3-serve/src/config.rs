//! Settings of a server.

use std::path::PathBuf;
use std::time::Duration;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Key that requests must carry as `Authorization: Bearer KEY`; `None` lets everyone in.
    pub api_key: Option<String>,
    /// Origins, such as `https://example.com`, whose pages may call the API from a browser; `*` for all.
    pub cors_origins: Vec<String>,
    /// Maximum size of a request's body in bytes.
    pub max_body: usize,
    /// Maximum number of new tokens per text.
    pub max_tokens: usize,
    /// Maximum number of texts of a model that wait or run; further requests get a 503.
    pub max_requests: usize,
    /// Maximum number of texts of a model that run at once.
    pub max_running: usize,
    /// Memory for the keys and values of a model in bytes; at least those of one context are kept.
    pub cache_bytes: usize,
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Maximum time to receive a request's head, to receive its body, and for a client to take what is sent.
    pub io_time: Duration,
    /// Maximum time from a request to its last token.
    pub request_time: Duration,
    /// Time that requests have to end after the server was asked to stop.
    pub drain_time: Duration,
    /// Folder whose `*.run` folders are shown.
    pub runs: PathBuf,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            cors_origins: Vec::new(),
            max_body: 4 << 20,
            max_tokens: usize::MAX,
            max_requests: 256,
            max_running: 32,
            cache_bytes: 1 << 30,
            max_connections: 1024,
            io_time: Duration::from_secs(30),
            request_time: Duration::from_secs(600),
            drain_time: Duration::from_secs(30),
            runs: PathBuf::from("."),
        }
    }
}
