//! Tokens and their log probabilities as the API writes them.

use ngen3_data::Tokenizer;
use serde_json::{Value, json};

use super::choice::PlacedToken;

/// Log probability that stands for −∞, which JSON lacks; OpenAI's.
const IMPOSSIBLE: f32 = -9999.0;

/// Returns a log probability as JSON.
pub(crate) fn logprob(value: f32) -> Value {
    json!(value.max(IMPOSSIBLE))
}

/// Returns the name of a token in the logprobs of completions: its text, or its bytes if they are no text.
pub(crate) fn legacy_name(tokenizer: &Tokenizer, id: u32) -> String {
    match String::from_utf8(tokenizer.token_bytes(id)) {
        Ok(text) => text,
        Err(error) => {
            let escaped = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", escaped.collect::<String>())
        }
    }
}

/// Returns a token with its log probability in an answer of chat.
pub(crate) fn chat_token(tokenizer: &Tokenizer, token: &PlacedToken) -> Option<Value> {
    let logprobs = token.logprobs.as_ref()?;
    let mut entry = one(tokenizer, token.id, logprobs.logprob);
    entry["top_logprobs"] = logprobs.top.iter().map(|&(id, value)| one(tokenizer, id, value)).collect();
    Some(entry)
}

fn one(tokenizer: &Tokenizer, id: u32, value: f32) -> Value {
    let bytes = tokenizer.token_bytes(id);
    json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob(value), "bytes": bytes})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_character_is_named_by_its_bytes() {
        let gpt2 = Tokenizer::gpt2();
        let names =
            |text: &str| gpt2.encode(text).unwrap().into_iter().map(|id| legacy_name(&gpt2, id)).collect::<Vec<_>>();
        assert_eq!(names("é"), ["é"]);
        assert_eq!(names("🙂"), ["bytes:\\xf0\\x9f", "bytes:\\x99\\x82"]);
        assert_eq!(logprob(f32::NEG_INFINITY), json!(-9999.0));
    }
}
