//! Files of byte-level BPE, which run on our own code.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::tokens::{AddedToken, Token, added_ids};
use crate::tokenizer::bpe::added::{self, AddedTokens};
use crate::tokenizer::bpe::alphabet::unicode_to_bytes;
use crate::tokenizer::bpe::merge::Merges;
use crate::tokenizer::bpe::normalize::Normalizer;
use crate::tokenizer::bpe::pretoken::Pretokenizer;
use crate::tokenizer::bpe::{Bpe, Steps};

/// Llama 3's words.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The words of Qwen 2, 2.5 and 3.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Returns the fast tokenizer if the file describes exactly that: byte-level BPE, a pre-tokenizer and a normalizer
/// that we have, no dropout, no prefixes or suffixes. Either all bytes are in the vocabulary, so that an unknown token is never used,
/// or nothing stands for those that are not (as in SmolLM2's, which lacks some control characters). The post-processor has no
/// effect since nothing is added around the text.
pub(super) fn byte_level(
    file: &Value,
    model: &Map<String, Value>,
    vocab: &[Token],
    added: &[AddedToken],
) -> Result<Option<Bpe>, String> {
    let null_or = |key: &str, harmless: Value| null(model.get(key)) || model[key] == harmless;
    let flag = |key: &str| null(model.get(key)) || model[key].is_boolean();
    let plain = (null(file.get("version")) || file["version"] == "1.0")
        && is_byte_level(&file["decoder"])
        && file["decoder"]["add_prefix_space"].is_boolean()
        && (model.get("type").is_none() || model["type"] == "BPE")
        && null(model.get("dropout"))
        && null_or("continuing_subword_prefix", json!(""))
        && null_or("end_of_word_suffix", json!(""))
        && flag("ignore_merges")
        && flag("fuse_unk")
        && flag("byte_fallback")
        && (null(model.get("unk_token")) || model["unk_token"].is_string())
        && model["vocab"].is_object();
    let (true, Some(merges)) = (plain, model.get("merges").and_then(Value::as_array)) else { return Ok(None) };
    let Some(pretokenizer) = pretokenizer(&file["pre_tokenizer"]) else { return Ok(None) };
    let Some(normalizer) = normalizer(file.get("normalizer")) else { return Ok(None) };
    let Some(found) = found_in_text(added, normalizer) else { return Ok(None) };
    let ignore_merges = model.get("ignore_merges") == Some(&Value::Bool(true));
    let can_drop_bytes = null(model.get("unk_token"))
        && model.get("byte_fallback") != Some(&Value::Bool(true))
        && !ignore_merges
        && normalizer == Normalizer::None
        && found.is_empty();
    let steps = Steps { added: found, normalizer, pretokenizer, ignore_merges };

    let id_of: HashMap<&str, u32> = vocab.iter().copied().collect();
    let mut table = Merges::with_capacity(merges.len());
    for merge in merges {
        let (left, right) = match merge {
            // The first line of the older merges.txt.
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => match line.split_once(' ') {
                Some(pair) => pair,
                None => return Err(format!("merge {line:?}: expected two tokens")),
            },
            merge => match merge.as_array().map(Vec::as_slice) {
                Some([Value::String(left), Value::String(right)]) => (left.as_str(), right.as_str()),
                _ => return Err(format!("merge {merge}: expected two tokens")),
            },
        };
        let find = |token: &str| {
            id_of
                .get(token)
                .copied()
                .ok_or_else(|| format!("merge {merge} needs {token:?}, which is not in the vocabulary"))
        };
        if !table.push(find(left)?, find(right)?, find(&format!("{left}{right}"))?) {
            return Ok(None);
        }
    }
    let given = added_ids(&id_of, added)?;
    let is_added = |token: &str| given.contains_key(token);
    let odd = vocab.iter().filter(|(token, _)| unicode_to_bytes(token).is_none() && !is_added(token)).copied();
    let special = added.iter().filter(|added| added.special).map(|added| added.token.0).collect::<HashSet<_>>();
    let special = special.into_iter().map(|token| (token, given[token])).chain(odd);
    let bpe = Bpe::from_tokens(vocab, table, special.map(|(token, id)| (token.to_string(), id)).collect(), steps);
    Ok(bpe.filter(|bpe| can_drop_bytes || !bpe.drops_bytes()))
}

fn null(value: Option<&Value>) -> bool {
    matches!(value, None | Some(Value::Null))
}

/// Returns true for a step of byte-level BPE: a pre-tokenizer or a decoder.
fn is_byte_level(step: &Value) -> bool {
    step["type"] == "ByteLevel" && step["trim_offsets"].is_boolean()
}

/// Returns the pre-tokenizer if it is one of ours.
fn pretokenizer(part: &Value) -> Option<Pretokenizer> {
    let steps = match part["type"] == "Sequence" {
        true => part["pretokenizers"].as_array()?.as_slice(),
        false => std::slice::from_ref(part),
    };
    let (bytes, before) = steps.split_last()?;
    if !is_byte_level(bytes) || bytes["add_prefix_space"] != false {
        return None;
    }
    let use_regex = match bytes.get("use_regex") {
        None => true,
        Some(value) => value.as_bool()?,
    };
    match (before, use_regex) {
        ([], true) => Some(Pretokenizer::gpt2()),
        // SmolLM, SmolLM2.
        ([digits], true) if digits["type"] == "Digits" && digits["individual_digits"] == true => {
            Some(Pretokenizer::smollm2())
        }
        ([split], false) if split["type"] == "Split" && keeps_matches(split) => {
            match split["pattern"]["Regex"].as_str()? {
                // Llama 3, 3.1, 3.2 and 3.3.
                LLAMA3 => Some(Pretokenizer::llama3()),
                // Qwen 2, 2.5 and 3.
                QWEN2 => Some(Pretokenizer::qwen2()),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Returns true if each match of a step's pattern becomes a word. Our patterns match all text, so that nothing is between matches.
fn keeps_matches(split: &Value) -> bool {
    split["behavior"] == "Isolated" && split["invert"] == false
}

/// Returns the normalizer if it is one of ours.
fn normalizer(part: Option<&Value>) -> Option<Normalizer> {
    match part {
        None | Some(Value::Null) => Some(Normalizer::None),
        Some(part) => (part["type"] == "NFC").then_some(Normalizer::Nfc),
    }
}

/// Returns the added tokens if we find them in text as the `tokenizers` crate does.
fn found_in_text<'a>(added: &[AddedToken<'a>], normalizer: Normalizer) -> Option<AddedTokens> {
    if added.iter().all(|added| added.special) {
        return Some(AddedTokens::default());
    }
    let distinct: HashSet<&str> = added.iter().map(|added| added.token.0).collect();
    let known = |added: &AddedToken<'a>| {
        let &AddedToken { token: (content, id), special, normalized, plain } = added;
        let normalized = normalized?;
        // Normalization could change the token itself, too.
        let itself = normalizer == Normalizer::None || !normalized || content.is_ascii();
        (itself && (special || plain)).then_some(added::AddedToken { content, id, special, normalized })
    };
    let tokens = added.iter().map(known).collect::<Option<Vec<_>>>()?;
    AddedTokens::new(&tokens).filter(|_| distinct.len() == added.len())
}
