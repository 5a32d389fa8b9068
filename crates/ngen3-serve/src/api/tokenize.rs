//! `/tokenize` and `/detokenize`: text to token ids and back, as vLLM's.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::chat;
use super::error::ApiError;
use super::params::wrong;
use crate::body::JsonBody;
use crate::json::json_response;
use crate::state::{App, blocking};

/// Handles `/tokenize`: of a `prompt`, or of `messages`.
pub(crate) async fn tokenize(
    State(app): State<Arc<App>>,
    JsonBody(mut params): JsonBody,
) -> Result<Response, ApiError> {
    let model = app.model(params.text("model")?.as_deref())?;
    let add_special = params.flag("add_special_tokens")?.unwrap_or(true);
    let prompt = params.text("prompt")?;
    let conversation = if prompt.is_none() { Some(chat::take_conversation(&mut params)?) } else { None };
    params.finish()?;
    let context = model.context();
    let ids = blocking(move || {
        let tokenizer = &model.tokenizer;
        let failed = |error: ngen3_data::tokenizer::Error| ApiError::param("prompt", error);
        match (&conversation, &prompt) {
            (Some(conversation), _) => chat::encode(&model, conversation),
            (None, Some(text)) if add_special && !text.is_empty() => tokenizer.encode_prompt(text).map_err(failed),
            (None, text) => tokenizer.encode(text.as_deref().unwrap_or_default()).map_err(failed),
        }
    });
    let ids = ids.await?;
    Ok(json_response(&json!({"tokens": ids, "count": ids.len(), "max_model_len": context})))
}

/// Handles `/detokenize`.
pub(crate) async fn detokenize(
    State(app): State<Arc<App>>,
    JsonBody(mut params): JsonBody,
) -> Result<Response, ApiError> {
    let model = app.model(params.text("model")?.as_deref())?;
    let tokens = params.value("tokens").ok_or_else(|| ApiError::param("tokens", "missing"))?;
    params.finish()?;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|&id| (id as usize) < model.config.vocab_size)
    };
    let ids: Option<Vec<u32>> = tokens.as_array().and_then(|values| values.iter().map(id).collect());
    let expected = format!("a list of token ids below {}", model.config.vocab_size);
    let ids = ids.ok_or_else(|| wrong("tokens", &expected, &tokens))?;
    Ok(json_response(&json!({"prompt": model.tokenizer.decode(&ids)})))
}
