//! The tokens of a tokenizer.json: those of the model, and added ones. Their ids are checked before they determine the size of
//! anything.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::tokenizer::limits::MAX_VOCAB_SIZE;

/// A token and its id.
pub(super) type Token<'a> = (&'a str, u32);

/// An entry of `added_tokens`.
pub(super) struct AddedToken<'a> {
    pub token: Token<'a>,
    pub special: bool,
    /// True if it is looked for in normalized text; `None` if the entry does not say.
    pub normalized: Option<bool>,
    /// True if it is found wherever it stands, and takes no white space around it with it.
    pub plain: bool,
}

/// Returns the model's tokens in the file's order. Unigram models list them; the others map each to its id.
pub(super) fn vocab(model: &Map<String, Value>) -> Result<Vec<Token<'_>>, String> {
    match model.get("vocab") {
        Some(Value::Object(map)) => map.iter().map(|(token, value)| Ok((token.as_str(), id(token, value)?))).collect(),
        Some(Value::Array(list)) if list.len() > MAX_VOCAB_SIZE => {
            Err(format!("expected at most {MAX_VOCAB_SIZE} tokens in the vocabulary, got {}", list.len()))
        }
        Some(Value::Array(list)) => {
            let token = |(i, entry): (usize, &'_ Value)| match entry.get(0) {
                Some(Value::String(_)) => Ok(i as u32),
                _ => Err(format!("entry {i} of the vocabulary has no token")),
            };
            let ids = list.iter().enumerate().map(token).collect::<Result<Vec<u32>, String>>()?;
            Ok(list.iter().filter_map(|entry| entry.get(0)?.as_str()).zip(ids).collect())
        }
        _ => Err("the model has no \"vocab\"".into()),
    }
}

fn id(token: &str, value: &Value) -> Result<u32, String> {
    match value.as_u64() {
        Some(id) if id < MAX_VOCAB_SIZE as u64 => Ok(id as u32),
        Some(id) => Err(format!("token {token:?}: expected an id of at most {}, got {id}", MAX_VOCAB_SIZE - 1)),
        None => Err(format!("token {token:?}: expected an id, got {value}")),
    }
}

pub(super) fn added_tokens(file: &Value) -> Result<Vec<AddedToken<'_>>, String> {
    let entries = match file.get("added_tokens") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value.as_array().ok_or("\"added_tokens\": expected a list")?,
    };
    let read = |(i, entry): (usize, _)| -> Result<AddedToken<'_>, String> {
        let entry: &Value = entry;
        let content = entry.get("content").and_then(Value::as_str).filter(|content| !content.is_empty());
        let content = content.ok_or_else(|| format!("entry {i} of \"added_tokens\" has no content"))?;
        let token = (content, id(content, entry.get("id").unwrap_or(&Value::Null))?);
        let flag = |key: &str| entry.get(key).and_then(Value::as_bool);
        Ok(AddedToken {
            token,
            special: flag("special") == Some(true),
            normalized: flag("normalized"),
            plain: ["single_word", "lstrip", "rstrip"].iter().all(|key| flag(key) == Some(false)),
        })
    };
    entries.iter().enumerate().map(read).collect()
}

/// Rejects two tokens with one id, which would make decoding ambiguous.
pub(super) fn check_distinct(vocab: &[Token], added: &[AddedToken]) -> Result<(), String> {
    let mut token_of_id: HashMap<u32, &str> = HashMap::with_capacity(vocab.len() + added.len());
    for &(token, id) in vocab.iter().chain(added.iter().map(|added| &added.token)) {
        if let Some(other) = token_of_id.insert(id, token).filter(|&other| other != token) {
            return Err(format!("tokens {other:?} and {token:?} both have the id {id}"));
        }
    }
    Ok(())
}

/// Rejects added tokens with unexpected ids. The `tokenizers` crate assigns these ids itself: a token in the model's vocabulary
/// keeps its id there, others follow it in order. Any other id would not mean what the file's model learned.
pub(super) fn check_added<'a>(added: &[AddedToken<'a>], id_of: impl Fn(&'a str) -> Option<u32>) -> Result<(), String> {
    for &AddedToken { token: (token, id), .. } in added {
        let got = id_of(token);
        if got != Some(id) {
            let got = got.map_or("none".to_string(), |got| got.to_string());
            return Err(format!(
                "added token {token:?}: expected the id {got}, got {id} (added tokens keep their id in the model's \
                 vocabulary, or follow it without gaps)"
            ));
        }
    }
    Ok(())
}

/// Returns the ids that the `tokenizers` crate gives the added tokens, which are checked: those of the vocabulary, else the next
/// ones after it.
pub(super) fn added_ids<'a>(
    id_of: &HashMap<&str, u32>,
    added: &[AddedToken<'a>],
) -> Result<HashMap<&'a str, u32>, String> {
    let mut next = id_of.len() as u32;
    let mut given = HashMap::new();
    for &AddedToken { token: (token, _), .. } in added {
        given.entry(token).or_insert_with(|| {
            id_of.get(token).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            })
        });
    }
    check_added(added, |token| given.get(token).copied())?;
    Ok(given)
}
