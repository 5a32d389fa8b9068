//! Chat template of a folder, from `chat_template.jinja` or the entry `chat_template` of `tokenizer_config.json`, and its
//! special tokens, from that file or `special_tokens_map.json`.

use std::path::Path;

use serde_json::Value;

use super::settings::{Settings, text_of};
use super::tokenizer::ENDOFTEXT;
use crate::files::read_text;
use crate::{ChatFormat, Error};

/// Size limit of `chat_template.jinja`, in bytes.
const MAX_BYTES: u64 = 4 << 20;
/// `transformers`' classes of GPT-2's tokenizer, whose special tokens default to `<|endoftext|>`.
const GPT2: [&str; 2] = ["GPT2Tokenizer", "GPT2TokenizerFast"];

/// Reads the chat template of a folder; `None` if it has none.
///
/// # Errors
/// [`Error::Read`] if a file is too large or not JSON. The template is checked when it is used.
pub(super) fn read(folder: &Path) -> Result<Option<ChatFormat>, Error> {
    let settings = Settings::read(folder)?;
    // A separate file takes precedence, as in `transformers`.
    let template = match read_text(&folder.join("chat_template.jinja"), MAX_BYTES)? {
        Some(template) => Some(template),
        None => settings.entry("chat_template").and_then(default_of).map(str::to_owned),
    };
    let Some(template) = template else { return Ok(None) };
    // Without a class, the model type decides: gpt2.
    let class = settings.entry("tokenizer_class").and_then(Value::as_str);
    let is_gpt2 = class.is_none_or(|class| GPT2.contains(&class));
    let token = |name| match settings.token(name) {
        Some(token) => text_of(token).map(str::to_owned),
        None => is_gpt2.then(|| ENDOFTEXT.to_owned()),
    };
    Ok(Some(ChatFormat { template, bos_token: token("bos_token"), eos_token: token("eos_token") }))
}

/// Returns a template, or the one named `default` of several.
fn default_of(value: &Value) -> Option<&str> {
    match value {
        Value::Array(named) => named.iter().find(|entry| entry["name"] == "default")?["template"].as_str(),
        value => value.as_str(),
    }
}
