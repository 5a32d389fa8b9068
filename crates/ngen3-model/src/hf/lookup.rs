//! Finds tokens in a parsed tokenizer.json.

use serde_json::Value;

/// Returns the entries of `added_tokens`.
pub(super) fn added_tokens(file: &Value) -> &[Value] {
    file["added_tokens"].as_array().map_or(&[], Vec::as_slice)
}

/// Returns the id of a token, as tokenizer.json spells it.
pub(super) fn id_of(file: &Value, token: &str) -> Option<u32> {
    let id = match added_tokens(file).iter().find(|entry| entry["content"] == token) {
        Some(entry) => &entry["id"],
        None => match &file["model"]["vocab"] {
            // A Unigram model lists its tokens in order of their ids.
            Value::Array(list) => {
                return list.iter().position(|entry| entry[0] == token).and_then(|id| u32::try_from(id).ok());
            }
            vocab => vocab.get(token)?,
        },
    };
    u32::try_from(id.as_u64()?).ok()
}

/// Returns the token with this id, as tokenizer.json spells it.
pub(super) fn token_of(file: &Value, id: u64) -> Option<&str> {
    if let Some(entry) = added_tokens(file).iter().find(|entry| entry["id"] == id) {
        return entry["content"].as_str();
    }
    match &file["model"]["vocab"] {
        Value::Object(vocab) => {
            let (token, _) = vocab.iter().find(|(_, value)| value.as_u64() == Some(id))?;
            Some(token)
        }
        Value::Array(list) => list.get(usize::try_from(id).ok()?)?.get(0)?.as_str(),
        _ => None,
    }
}
