//! A folder's chat template: `chat_template.jinja`, or the entry `chat_template` of `tokenizer_config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use super::read::read_text;
use crate::checkpoint::refused;
use crate::{ChatFormat, Error};

/// Largest file taken, in bytes.
const MAX_BYTES: u64 = 4 << 20;
/// The settings of a tokenizer.
const SETTINGS: &str = "tokenizer_config.json";

/// Reads the chat template of a folder; `None` if it has none.
///
/// # Errors
/// [`Error::Read`] if a file is too large or no JSON. Whether the template is one shows when it is used.
pub(super) fn read(folder: &Path) -> Result<Option<ChatFormat>, Error> {
    let path = folder.join(SETTINGS);
    let settings: Map<String, Value> = match read_text(&path, MAX_BYTES)? {
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| refused(&path)(format!("it is not what it should be: {error}")))?,
        None => Map::new(),
    };
    // The file of its own comes first, as in `transformers`.
    let template = match read_text(&folder.join("chat_template.jinja"), MAX_BYTES)? {
        Some(template) => Some(template),
        None => settings.get("chat_template").and_then(default_of).map(str::to_owned),
    };
    let token = |name| settings.get(name).and_then(text_of).map(str::to_owned);
    Ok(template.map(|template| ChatFormat { template, bos_token: token("bos_token"), eos_token: token("eos_token") }))
}

/// A template, or of several with names the one that is called `default`.
fn default_of(value: &Value) -> Option<&str> {
    match value {
        Value::Array(named) => named.iter().find(|entry| entry["name"] == "default")?["template"].as_str(),
        value => value.as_str(),
    }
}

/// A token is a string, or an object whose `content` is one.
fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}
