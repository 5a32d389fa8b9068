//! Everything that the handlers of requests share.

use std::sync::Arc;

use axum::http::StatusCode;

use crate::api::error::ApiError;
use crate::config::ServeConfig;
use crate::metrics::Metrics;
use crate::served::ServedModel;

/// Shared state of a server.
#[derive(Debug)]
pub(crate) struct App {
    pub config: ServeConfig,
    pub models: Vec<Arc<ServedModel>>,
    pub metrics: Metrics,
    /// Start of the server, in seconds since 1970.
    pub started: u64,
    /// True if only this machine can connect.
    pub is_loopback: bool,
}

impl App {
    /// Returns the model of this name; without a name, the only one.
    ///
    /// # Errors
    /// 404 for an unknown name; 400 without a name among several models.
    pub fn model(&self, name: Option<&str>) -> Result<Arc<ServedModel>, ApiError> {
        let names = || self.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = match (name, &*self.models) {
            (_, []) => {
                return Err(ApiError::new(StatusCode::NOT_FOUND, "this server has no model (--model_checkpoint)")
                    .with_code("model_not_found"));
            }
            (None, [only]) => Some(only),
            (None, _) => return Err(ApiError::param("model", format_args!("missing; expected one of {}", names()))),
            (Some(name), models) => models.iter().find(|model| model.name == name),
        };
        found.cloned().ok_or_else(|| {
            let shown: String = name.unwrap_or_default().chars().take(80).collect();
            let message = format!("no model {shown:?}; expected {}", names());
            let error = ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found");
            ApiError { param: Some("model".into()), ..error }
        })
    }
}

/// Runs a computation that may take a while apart from the threads that serve connections.
///
/// # Errors
/// That of the computation; 500 if it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    compute: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(compute).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be processed")))
}
