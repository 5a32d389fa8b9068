//! Tokenizer of a folder: `tokenizer.json`, or GPT-2's older `vocab.json` and `merges.txt`.
//!
//! This crate does not tokenise. It understands enough of the file to recognise GPT-2's tokenizer and to write the older files
//! and GGUF's lists.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::roles::Roles;
use crate::files::{parse_json, pretty_json, read_error, read_object, read_text};
use crate::gguf::name_of;
use crate::hash::sha256;
use crate::{ChatFormat, Error, GPT2_VOCAB_SIZE, TokenizerRef};

/// Size limit of each file, in bytes.
const MAX_BYTES: u64 = TokenizerRef::MAX_BYTES as u64;
/// End-of-document token of GPT-2, the last of its vocabulary.
pub(super) const ENDOFTEXT: &str = "<|endoftext|>";
/// SHA-256 of GPT-2's tokens in order of id, joined by line breaks.
const GPT2_TOKENS: &str = "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f";
/// SHA-256 of OpenAI's `vocab.bpe`, which is also merges.txt.
const GPT2_MERGES: &str = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5";

/// Reads the tokenizer of a folder, for a model with this vocabulary size. With `has_chat`, the chat format has the tokens of
/// conversations.
///
/// # Errors
/// [`Error::Read`] if a file is too large or not JSON. The tokenizer is checked when it is used.
pub(super) fn read(folder: &Path, vocab_size: usize, has_chat: bool) -> Result<TokenizerRef, Error> {
    let path = folder.join("tokenizer.json");
    let (text, json): (String, Value) = match read_text(&path, MAX_BYTES)? {
        Some(text) => {
            let json = parse_json(&text).map_err(read_error(&path))?;
            (text, json)
        }
        None => match read_older(folder)? {
            Some(json) => (json.to_string(), json),
            None => return Ok(TokenizerRef::guess(vocab_size)),
        },
    };
    if is_gpt2(&json) {
        return Ok(TokenizerRef::Gpt2);
    }
    if !json.is_object() {
        // Reported when it is used.
        return Ok(TokenizerRef::Json(text));
    }
    let roles = Roles::beside(folder, &json)?;
    Ok(with_roles(Some(text), json, roles, has_chat))
}

/// Keeps the roles in a parsed tokenizer.json; `text` is its text, if there is one. With `has_chat`, the chat format has the tokens
/// of conversations.
pub(crate) fn with_roles(text: Option<String>, mut json: Value, mut roles: Roles, has_chat: bool) -> TokenizerRef {
    if has_chat {
        let Roles { turn_end, bos, .. } = Roles::of(&json);
        roles = Roles { turn_end, bos: if roles.add_bos { roles.bos } else { bos }, ..roles };
    }
    let changed = roles.keep_in(&mut json);
    TokenizerRef::Json(text.filter(|_| !changed).unwrap_or_else(|| json.to_string()))
}

/// Builds a tokenizer.json from `vocab.json`, `merges.txt` and the files beside them.
fn read_older(folder: &Path) -> Result<Option<Value>, Error> {
    let object = |name: &str| read_object(&folder.join(name), MAX_BYTES);
    let vocab = object("vocab.json")?;
    if vocab.is_empty() {
        return Ok(None);
    }
    let path = folder.join("merges.txt");
    let Some(merges) = read_text(&path, MAX_BYTES)? else {
        return Err(read_error(&path)("missing, but required by vocab.json".into()));
    };
    let merges: Vec<&str> = merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    let added = object("added_tokens.json")?;
    let prefix_space = object("tokenizer_config.json")?.remove("add_prefix_space");
    let entry = |content: &str, id: &Value, special: bool| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": special
        })
    };
    let special = vocab.get(ENDOFTEXT).map(|id| entry(ENDOFTEXT, id, true));
    let mut added: Vec<Value> = added
        .iter()
        .filter(|(content, _)| *content != ENDOFTEXT)
        .map(|(content, id)| entry(content, id, false))
        .chain(special)
        .collect();
    added.sort_by_key(|entry| entry["id"].as_u64());
    let prefix_space = prefix_space.unwrap_or(Value::Bool(false));
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": true
    });
    Ok(Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges
        }
    })))
}

/// Returns true if a tokenizer.json is GPT-2's: its vocabulary, its merges, its rules.
pub(crate) fn is_gpt2(file: &Value) -> bool {
    // The rest is slow.
    if file["model"]["vocab"].as_object().is_none_or(|vocab| vocab.len() + 1 < GPT2_VOCAB_SIZE) {
        return false;
    }
    let Some(lists) = ByteLevel::of(file).filter(|lists| lists.tokens.len() == GPT2_VOCAB_SIZE) else { return false };
    let tokens: Vec<&str> = lists.tokens.iter().filter_map(|token| Some(token.as_ref()?.text)).collect();
    let added = file["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    tokens.len() == GPT2_VOCAB_SIZE
        && added.iter().all(|entry| entry["content"] == ENDOFTEXT && entry["special"] == true)
        && sha256(tokens.join("\n")) == GPT2_TOKENS
        && sha256(merges_txt(&lists.merges)) == GPT2_MERGES
}

/// Returns the content of merges.txt: a line per merge, in order of priority.
pub(super) fn merges_txt(merges: &[(&str, &str)]) -> String {
    let mut text = String::from("#version: 0.2\n");
    for (left, right) in merges {
        writeln!(text, "{left} {right}").expect("writing to a String cannot fail");
    }
    text
}

/// Returns the merges of a BPE model; `None` if it is another model or a merge is not a pair.
fn merges(file: &Value) -> Option<Vec<(&str, &str)>> {
    fn pair(merge: &Value) -> Option<(&str, &str)> {
        match merge {
            Value::String(line) => line.split_once(' '),
            merge => match merge.as_array()?.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
        }
    }
    if file["model"].get("type").is_some_and(|kind| kind != "BPE") {
        return None;
    }
    let header = |merge: &&Value| merge.as_str().is_some_and(|line| line.starts_with("#version"));
    file["model"]["merges"].as_array()?.iter().skip_while(header).map(pair).collect()
}

/// Token of a byte-level vocabulary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    /// Text in the byte alphabet; plain text for added tokens.
    pub text: &'a str,
    /// `Some(true)` for a special token such as `<|endoftext|>`, `Some(false)` for another added one, `None` for one of bytes
    /// and merges.
    pub added: Option<bool>,
}

/// llama.cpp's name of GPT-2's pre-tokenizer.
const GPT2: &str = "gpt-2";

/// Byte-level BPE with a pre-tokenizer that llama.cpp has, and no other steps.
#[derive(Debug)]
pub(super) struct ByteLevel<'a> {
    /// Tokens by id; `None` where an id has no token.
    pub tokens: Vec<Option<Token<'a>>>,
    pub merges: Vec<(&'a str, &'a str)>,
    /// llama.cpp's name of the pre-tokenizer.
    pub pre: &'static str,
}

impl<'a> ByteLevel<'a> {
    /// Reads a tokenizer.json; `None` if it is of another kind.
    pub fn of(file: &'a Value) -> Option<Self> {
        let model = &file["model"];
        let none = |value: Option<&Value>| value.is_none_or(Value::is_null);
        let none_or = |key: &str, empty: Value| none(model.get(key)) || model[key] == empty;
        let plain = file["decoder"]["type"] == "ByteLevel"
            && none(model.get("dropout"))
            && none_or("continuing_subword_prefix", json!(""))
            && none_or("end_of_word_suffix", json!(""));
        let pre = name_of(file).filter(|_| plain)?;
        let merges = merges(file)?;
        let vocab = model["vocab"].as_object()?;
        let added = file.get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let size = vocab.len() + added.len();
        let mut tokens = vec![None; size];
        let mut put = |text, id: &Value, added| {
            let slot = tokens.get_mut(usize::try_from(id.as_u64()?).ok()?)?;
            *slot = Some(Token { text, added });
            Some(())
        };
        for (token, id) in vocab {
            put(token, id, None)?;
        }
        for entry in added {
            put(entry["content"].as_str()?, &entry["id"], Some(entry["special"] == true))?;
        }
        while tokens.last().is_some_and(Option::is_none) {
            tokens.pop();
        }
        Some(Self { tokens, merges, pre })
    }
}

/// Returns the names and contents of the tokenizer's files, as `transformers` writes them. `text` is the tokenizer.json and
/// `json` its parsed form, `eot` the end-of-document token, `chat` the chat format, `max_length` the context length in tokens.
pub(super) fn files(
    text: &str,
    json: &Value,
    eot: Option<&str>,
    chat: Option<&ChatFormat>,
    max_length: usize,
) -> Vec<(&'static str, String)> {
    let byte_level = ByteLevel::of(json).is_some_and(|found| found.pre == GPT2) && eot == Some(ENDOFTEXT);
    let mut special = Map::new();
    if let Some(eot) = eot {
        special.extend(["bos_token", "eos_token", "unk_token"].map(|role| (role.to_string(), eot.into())));
    }
    if let Some(chat) = chat {
        for (role, token) in [("bos_token", &chat.bos_token), ("eos_token", &chat.eos_token)] {
            special.extend(token.iter().map(|token| (role.to_string(), token.as_str().into())));
        }
    }
    let roles = Roles::of(json);
    if chat.is_none() {
        special.extend(roles.bos.map(|bos| ("bos_token".to_string(), bos.into())));
    }
    let mut settings = special.clone();
    if roles.add_bos {
        settings.insert("add_bos_token".into(), true.into());
    }
    settings.extend(chat.map(|chat| ("chat_template".to_string(), chat.template.as_str().into())));
    settings.insert("clean_up_tokenization_spaces".into(), false.into());
    settings.insert("model_max_length".into(), max_length.into());
    // GPT-2's class brings GPT-2's rules with it; the general one uses only those of the file.
    let class = if byte_level { "GPT2Tokenizer" } else { "PreTrainedTokenizerFast" };
    settings.insert("tokenizer_class".into(), class.into());
    if byte_level {
        settings.insert("add_prefix_space".into(), false.into());
    }
    let mut files = vec![
        ("tokenizer.json", text.to_string()),
        ("tokenizer_config.json", pretty_json(&settings.into())),
        ("special_tokens_map.json", pretty_json(&special.into())),
    ];
    // The older files describe bytes and merges, not a vocabulary of characters.
    let merges = merges(json).filter(|merges| byte_level || !merges.is_empty());
    if let (Some(merges), Some(vocab)) = (merges, json["model"]["vocab"].as_object()) {
        files.push(("vocab.json", serde_json::to_string(vocab).expect("JSON serialises")));
        files.push(("merges.txt", merges_txt(&merges)));
    }
    files
}
