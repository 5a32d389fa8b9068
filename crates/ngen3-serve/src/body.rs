//! The body of a request: bounded in size and time, and parsed as JSON.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use http_body_util::LengthLimitError;
use tokio::time::timeout;

use crate::api::error::ApiError;
use crate::api::params::Params;
use crate::state::App;

/// Parameters of a request, parsed from its body.
pub(crate) struct JsonBody(pub Params);

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let (limit, time) = (app.config.max_body, app.config.io_time);
        let read = timeout(time, to_bytes(request.into_body(), limit)).await;
        let body = read.map_err(|_| {
            let message = format!("the body did not arrive within {} s", time.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        let body = body.map_err(|error| {
            let source = std::error::Error::source(&error);
            if source.is_some_and(|source| source.is::<LengthLimitError>()) {
                let message = format!("expected a body of at most {limit} bytes (--max_body_mib)");
                return ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message);
            }
            ApiError::new(StatusCode::BAD_REQUEST, "the body could not be read")
        })?;
        Ok(Self(Params::parse(&body)?))
    }
}
