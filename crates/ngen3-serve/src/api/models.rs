//! `/v1/models`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::json::json_response;
use crate::served::ServedModel;
use crate::state::App;

/// Handles a request for all models.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Response {
    let data: Vec<_> = app.models.iter().map(|model| entry(&app, model)).collect();
    json_response(&json!({"object": "list", "data": data}))
}

/// Handles a request for one model.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let model = app.model(Some(&name))?;
    Ok(json_response(&entry(&app, &model)))
}

/// Describes a model as OpenAI does, with its context as vLLM does, and if it chats.
fn entry(app: &App, model: &ServedModel) -> Value {
    json!({
        "id": model.name,
        "object": "model",
        "created": app.started,
        "owned_by": "ngen3",
        "max_model_len": model.context(),
        "chat": model.chat.is_some(),
    })
}
