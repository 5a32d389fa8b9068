//! Reads and writes Hugging Face's tokenizer.json.
//!
//! Files are untrusted, so ids are checked before they determine the size of anything. A file whose every setting is that of
//! `bpe/` becomes a [`Bpe`], one of single characters without merges a [`Chars`]; any other runs on the `tokenizers` crate.

use std::collections::{HashMap, HashSet};

use ngen3_model::TokenizerRef;
use ngen3_model::hf::Roles;
use serde_json::{Map, Value, json};

use super::backend::{Backend, run_library};
use super::bpe::Bpe;
use super::bpe::alphabet::{bytes_to_unicode, unicode_to_bytes};
use super::bpe::merge::Merges;
use super::chars::Chars;
use super::limits::MAX_VOCAB_SIZE;
use super::missing::Missing;

/// Largest file accepted, in bytes: the limit of checkpoints, which store it.
pub(crate) const MAX_BYTES: usize = TokenizerRef::MAX_BYTES;

/// A tokenizer.json.
pub(super) struct File {
    pub backend: Backend,
    /// The file as it is.
    pub text: String,
    pub roles: Roles,
    /// Fate of characters without a token; `None` if there are none.
    pub missing: Option<Missing>,
}

/// Reads a tokenizer.json. The error is the reason alone.
pub(super) fn read(bytes: &[u8]) -> Result<File, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("the file is too large: expected at most {MAX_BYTES} bytes, got {}", bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| format!("invalid UTF-8: {error}"))?;
    // serde_json refuses nesting deeper than 128.
    let file: Value = serde_json::from_str(text).map_err(|error| format!("invalid JSON: {error}"))?;
    let model = file.get("model").and_then(Value::as_object);
    let model = model.ok_or("no \"model\": expected a Hugging Face tokenizer.json")?;
    if let Some(model_type) = model.get("type")
        && !["BPE", "WordPiece", "WordLevel", "Unigram"].iter().any(|known| model_type == known)
    {
        return Err(format!("unknown model type {model_type}: expected BPE, WordPiece, WordLevel or Unigram"));
    }
    let vocab = vocab(model)?;
    let added = added_tokens(&file)?;
    check_distinct(&vocab, &added)?;
    check_prefix(model)?;
    let backend = if let Some(bpe) = byte_level(&file, model, &vocab, &added)? {
        Backend::ByteLevel(Box::new(bpe))
    } else if let Some(chars) = chars(&file, model, &vocab, &added)? {
        Backend::Chars(Box::new(chars))
    } else {
        Backend::HuggingFace(Box::new(hugging_face(bytes, &added)?))
    };
    let whole = matches!(backend, Backend::ByteLevel(_)) || encodes_all(&file, model, &vocab);
    let missing = (!whole).then(|| Missing { unknown: unknown(model, &vocab) });
    let roles = Roles::of(&file);
    Ok(File { backend, text: text.to_string(), roles, missing })
}

/// Returns true if the model has tokens for all bytes and uses them: as a fallback, or since text becomes bytes first.
fn encodes_all(file: &Value, model: &Map<String, Value>, vocab: &[Token]) -> bool {
    let has_type = |part: &Value, name: &str| {
        let steps = ["pretokenizers", "normalizers"].iter().find_map(|steps| part[*steps].as_array());
        part["type"] == name || steps.is_some_and(|steps| steps.iter().any(|step| step["type"] == name))
    };
    let spelling: fn(u8) -> String = if model.get("byte_fallback") == Some(&Value::Bool(true)) {
        |byte| format!("<0x{byte:02X}>")
    } else if has_type(&file["pre_tokenizer"], "ByteLevel") || has_type(&file["normalizer"], "ByteLevel") {
        |byte| bytes_to_unicode(&[byte])
    } else {
        return false;
    };
    let tokens: HashSet<&str> = vocab.iter().map(|&(token, _)| token).collect();
    (0..=255).all(|byte| tokens.contains(spelling(byte).as_str()))
}

/// Returns the token of unknown characters or words.
fn unknown(model: &Map<String, Value>, vocab: &[Token]) -> Option<(String, u32)> {
    let found = match (model.get("unk_token"), model.get("unk_id").and_then(Value::as_u64)) {
        (Some(Value::String(token)), _) => vocab.iter().find(|(known, _)| known == token),
        (_, Some(id)) => vocab.iter().find(|&&(_, known)| u64::from(known) == id),
        _ => None,
    };
    found.map(|&(token, id)| (token.to_owned(), id))
}

/// A token and its id.
type Token<'a> = (&'a str, u32);

/// An entry of `added_tokens`.
struct AddedToken<'a> {
    token: Token<'a>,
    special: bool,
}

/// Returns the model's tokens in the file's order. Unigram models list them; the others map each to its id.
fn vocab(model: &Map<String, Value>) -> Result<Vec<Token<'_>>, String> {
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

fn added_tokens(file: &Value) -> Result<Vec<AddedToken<'_>>, String> {
    let entries = match file.get("added_tokens") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value.as_array().ok_or("\"added_tokens\": expected a list")?,
    };
    let read = |(i, entry): (usize, _)| -> Result<AddedToken<'_>, String> {
        let entry: &Value = entry;
        let content = entry.get("content").and_then(Value::as_str).filter(|content| !content.is_empty());
        let content = content.ok_or_else(|| format!("entry {i} of \"added_tokens\" has no content"))?;
        let token = (content, id(content, entry.get("id").unwrap_or(&Value::Null))?);
        Ok(AddedToken { token, special: entry.get("special") == Some(&Value::Bool(true)) })
    };
    entries.iter().enumerate().map(read).collect()
}

/// Rejects two tokens with one id, which would make decoding ambiguous.
fn check_distinct(vocab: &[Token], added: &[AddedToken]) -> Result<(), String> {
    let mut token_of_id: HashMap<u32, &str> = HashMap::with_capacity(vocab.len() + added.len());
    for &(token, id) in vocab.iter().chain(added.iter().map(|added| &added.token)) {
        if let Some(other) = token_of_id.insert(id, token).filter(|&other| other != token) {
            return Err(format!("tokens {other:?} and {token:?} both have the id {id}"));
        }
    }
    Ok(())
}

/// Rejects merges that the `tokenizers` crate panics on: it strips the prefix off the right part of every merge.
fn check_prefix(model: &Map<String, Value>) -> Result<(), String> {
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or("");
    for merge in model.get("merges").and_then(Value::as_array).into_iter().flatten() {
        let right = match merge {
            Value::String(line) => line.split(' ').nth(1),
            merge => merge.get(1).and_then(Value::as_str),
        };
        if right.is_some_and(|right| !right.starts_with(prefix)) {
            return Err(format!("merge {merge}: the right part lacks the continuing_subword_prefix {prefix:?}"));
        }
    }
    Ok(())
}

/// Rejects added tokens with unexpected ids. The `tokenizers` crate assigns these ids itself: a token in the model's vocabulary
/// keeps its id there, others follow it in order. Any other id would not mean what the file's model learned.
fn check_added<'a>(added: &[AddedToken<'a>], id_of: impl Fn(&'a str) -> Option<u32>) -> Result<(), String> {
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

fn hugging_face(bytes: &[u8], added: &[AddedToken]) -> Result<tokenizers::Tokenizer, String> {
    // The library has compiled this once; `from_bytes` would be compiled again here, for seconds.
    let text = str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut tokenizer = run_library(|| text.parse::<tokenizers::Tokenizer>())?;
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    // Special tokens in text are text.
    tokenizer.set_encode_special_tokens(true);
    check_added(added, |token| tokenizer.token_to_id(token))?;
    Ok(tokenizer)
}

/// Returns the fast tokenizer if the file describes exactly that: byte-level BPE, all 256 bytes in the vocabulary, GPT-2's
/// pre-tokeniser, no normaliser, no dropout, no prefixes or suffixes, all added tokens special. An unknown token is then never
/// used, and the post-processor has no effect since nothing is added around the text.
fn byte_level(
    file: &Value,
    model: &Map<String, Value>,
    vocab: &[Token],
    added: &[AddedToken],
) -> Result<Option<Bpe>, String> {
    let null = |value: Option<&Value>| matches!(value, None | Some(Value::Null));
    let null_or = |key: &str, harmless: Value| null(model.get(key)) || model[key] == harmless;
    let flag = |key: &str| null(model.get(key)) || model[key].is_boolean();
    let byte_level = |part: &str| file[part]["type"] == "ByteLevel" && file[part]["trim_offsets"].is_boolean();
    let plain = (null(file.get("version")) || file["version"] == "1.0")
        && null(file.get("normalizer"))
        && byte_level("pre_tokenizer")
        && file["pre_tokenizer"]["add_prefix_space"] == false
        && matches!(file["pre_tokenizer"].get("use_regex"), None | Some(Value::Bool(true)))
        && byte_level("decoder")
        && file["decoder"]["add_prefix_space"].is_boolean()
        && (model.get("type").is_none() || model["type"] == "BPE")
        && null(model.get("dropout"))
        && null_or("continuing_subword_prefix", json!(""))
        && null_or("end_of_word_suffix", json!(""))
        && null_or("ignore_merges", json!(false))
        && flag("fuse_unk")
        && flag("byte_fallback")
        && (null(model.get("unk_token")) || model["unk_token"].is_string())
        && model["vocab"].is_object()
        && added.iter().all(|added| added.special);
    let (true, Some(merges)) = (plain, model.get("merges").and_then(Value::as_array)) else { return Ok(None) };

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
    let special = given.iter().map(|(&token, &id)| (token, id)).chain(odd);
    Ok(Bpe::from_tokens(vocab, table, special.map(|(token, id)| (token.to_string(), id)).collect()))
}

/// Returns the vocabulary of characters if the file describes exactly that: BPE of single characters without merges, no unknown
/// token, no steps before it, tokens joined without spaces after it, all added tokens special. The `tokenizers` crate then drops
/// characters without a token, too.
fn chars(
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

/// Returns the ids that the `tokenizers` crate gives the added tokens, which are checked: those of the vocabulary, else the next
/// ones after it.
fn added_ids<'a>(id_of: &HashMap<&str, u32>, added: &[AddedToken<'a>]) -> Result<HashMap<&'a str, u32>, String> {
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

/// Returns a tokenizer.json with the ids of a vocabulary of bytes without gaps.
pub(super) fn write_bpe(bpe: &Bpe, roles: &Roles) -> String {
    let spellings = bpe.spellings();
    let merges: Vec<Value> = bpe
        .merges()
        .in_order()
        .into_iter()
        .map(|(left, right)| json!([spellings[left as usize], spellings[right as usize]]))
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let vocab = spellings.into_iter().zip(0..).map(|(token, id): (_, u32)| (token, id));
    write(bpe.special(), [&byte_level, &byte_level, &byte_level], vocab, merges, roles)
}

/// Returns a tokenizer.json with the ids of a vocabulary of characters.
pub(super) fn write_chars(chars: &Chars, roles: &Roles) -> String {
    let vocab = chars.tokens().map(|(c, id)| (c.to_string(), id));
    let steps = [&Value::Null, &Value::Null, &json!({"type": "Fuse"})];
    write(chars.special(), steps, vocab, Vec::new(), roles)
}

/// Returns a tokenizer.json of a BPE model; `steps` are its pre-tokenizer, post-processor and decoder.
fn write(
    special: &[(String, u32)],
    [pre_tokenizer, post_processor, decoder]: [&Value; 3],
    vocab: impl Iterator<Item = (String, u32)>,
    merges: Vec<Value>,
    roles: &Roles,
) -> String {
    let added = |(content, id): &(String, u32)| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        })
    };
    let vocab: Map<String, Value> = vocab.map(|(token, id)| (token, id.into())).collect();
    let mut file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.iter().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    });
    roles.keep_in(&mut file);
    file.to_string()
}
