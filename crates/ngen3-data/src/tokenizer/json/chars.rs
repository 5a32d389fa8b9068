//! Files of characters without merges, which run on our own code.

use serde_json::{Map, Value, json};

use super::tokens::{AddedToken, Token, added_ids};
use crate::tokenizer::chars::Chars;

/// Returns the vocabulary of characters if the file describes exactly that: BPE of single characters without merges, no unknown
/// token, no steps before it, tokens joined without spaces after it, all added tokens special. The `tokenizers` crate then drops
/// characters without a token, too.
pub(super) fn chars(
    file: &Value,
    model: &Map<String, Value>,
    vocab: &[Token],
    added: &[AddedToken],
) -> Result<Option<Chars>, String> {
    let null = |value: Option<&Value>| matches!(value, None | Some(Value::Null));
    let null_or = |key: &str, harmless: Value| null(model.get(key)) || model[key] == harmless;
    let plain = (null(file.get("version")) || file["version"] == "1.0")
        && ["normalizer", "pre_tokenizer", "post_processor"].iter().all(|step| null(file.get(*step)))
        && file["decoder"] == json!({"type": "Fuse"})
        && model.get("type").is_some_and(|kind| kind == "BPE")
        && ["dropout", "unk_token"].iter().all(|key| null(model.get(*key)))
        && null_or("continuing_subword_prefix", json!(""))
        && null_or("end_of_word_suffix", json!(""))
        && ["fuse_unk", "byte_fallback", "ignore_merges"].iter().all(|key| null_or(key, json!(false)))
        && model.get("merges") == Some(&json!([]))
        && model["vocab"].is_object()
        && added.iter().all(|added| added.special);
    let single = |&(token, id): &Token| {
        let mut chars = token.chars();
        chars.next().filter(|_| chars.next().is_none()).map(|c| (c, id))
    };
    let (true, Some(tokens)) = (plain, vocab.iter().map(single).collect::<Option<Vec<_>>>()) else { return Ok(None) };
    let given = added_ids(&vocab.iter().copied().collect(), added)?;
    let special = added.iter().map(|added| added.token.0).filter(|token| given.contains_key(token));
    let mut special: Vec<_> = special.map(|token| (token.to_owned(), given[token])).collect();
    special.dedup();
    Ok(Some(Chars::new(tokens.into_iter(), special)))
}
