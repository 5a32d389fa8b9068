//! Paths of the server.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::{chat, completions, models, tokenize};
use crate::guard::guard;
use crate::json::json_response;
use crate::page;
use crate::runs;
use crate::state::{App, blocking};

/// Permissions of the page: run its own script and call this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns the service of all paths.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(show_page))
        .route("/health", get(health))
        .route("/metrics", get(measurements))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/chat/completions", post(chat::handle))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/runs", get(all_runs))
        .route("/runs/metrics", get(|app, query| run_lines(app, query, runs::METRICS)))
        .route("/runs/samples", get(|app, query| run_lines(app, query, runs::SAMPLES)))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

async fn show_page() -> Response {
    let mut response = Html(page::PAGE).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    match app.models.iter().find(|model| !model.engine.is_alive()) {
        None => Ok(json_response(&json!({"status": "ok"}))),
        Some(model) => Err(ApiError::internal(format!("the thread of {} has ended; restart the server", model.name))),
    }
}

async fn measurements(State(app): State<Arc<App>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text()).into_response()
}

async fn all_runs(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let root = app.config.runs.clone();
    let found = blocking(move || Ok(runs::list(&root))).await?;
    Ok(json_response(&json!({"root": shown(&app.config.runs), "runs": found})))
}

/// Returns the name of a folder for people.
fn shown(folder: &std::path::Path) -> String {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned()).display().to_string()
}

async fn run_lines(
    State(app): State<Arc<App>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    file: &'static str,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let value = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let name = value("run").ok_or_else(|| ApiError::param("run", "missing"))?;
    let offset = value("offset").map_or(Ok(0), |offset| offset.parse());
    let offset = offset.map_err(|_| ApiError::param("offset", "expected a number of bytes"))?;
    let root: PathBuf = app.config.runs.clone();
    let found: Option<Value> = blocking(move || Ok(runs::lines(&root, &name, file, offset))).await?;
    let what = "no such run, or it has none of these lines yet";
    let missing = || ApiError { param: Some("run".into()), ..ApiError::new(StatusCode::NOT_FOUND, what) };
    Ok(json_response(&found.ok_or_else(missing)?))
}

async fn unknown(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("unknown path: {method} {path}")).with_code("unknown_url")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(80).collect();
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"))
}
