//! Bodies of requests, for fuzz targets: what is done with them before a model is asked.
//!
//! Only the feature `fuzz` compiles this.

use ngen3_data::chat::{ChatMapping, ChatParser, Conversation};
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::params::Params;
use crate::api::settings::Settings;
use crate::api::{chat, completions};

/// Parses the body of a request for completions, or for a chat.
///
/// # Errors
/// The message of the answer.
pub fn request(body: &[u8], is_chat: bool) -> Result<Vec<Conversation>, String> {
    parse(body, is_chat).map_err(|error| error.message)
}

fn parse(body: &[u8], is_chat: bool) -> Result<Vec<Conversation>, ApiError> {
    let mut params = Params::parse(body)?;
    params.text("model")?;
    Settings::take(&mut params)?;
    params.whole("max_tokens", 0..=u64::MAX)?;
    if !is_chat {
        completions::parse_prompts(params.value("prompt"))?;
        params.finish()?;
        return Ok(Vec::new());
    }
    chat::refuse_unsupported(&mut params)?;
    let record = chat::take_conversation(&mut params)?;
    params.finish()?;
    let parser = ChatParser::new(ChatMapping::default(), vec!["tools".into()]);
    let parsed = parser.json(&Value::Object(record)).map_err(|reason| ApiError::param("messages", reason))?;
    Ok(vec![parsed.conversation])
}
