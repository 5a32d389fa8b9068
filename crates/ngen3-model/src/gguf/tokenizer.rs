//! Tokenizer of a file, as a Hugging Face tokenizer.json.
//!
//! The metadata holds a vocabulary, its merges or scores, and names the rules around them. The result is the tokenizer.json that
//! the model was published with: byte-level BPE (`tokenizer.ggml.model` is `gpt2`), or SentencePiece's BPE with bytes for unknown
//! characters (`llama`).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::file::Gguf;
use super::merges;
use super::pre_tokenizer::{self, PreTokenizer, byte_level};
use super::value::{Array, Strings};
use crate::hf::{Roles, is_gpt2, with_roles};
use crate::words::count;
use crate::{ChatFormat, Error, TokenizerRef};

/// Types of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;
/// Largest vocabulary accepted, as in tokenizer.json.
const MAX_TOKENS: usize = 1 << 22;
/// SentencePiece's space.
const SPACE: &str = "\u{2581}";

/// Tokenizer of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    /// The tokenizer, with the roles of its special tokens.
    pub tokenizer: TokenizerRef,
    /// Chat template with its special tokens.
    pub chat: Option<ChatFormat>,
    /// Assumptions and omissions, a line each.
    pub notes: Vec<String>,
}

/// Reads the tokenizer of a file; `None` if it has none.
///
/// # Errors
/// [`Error::Read`] if the file holds another kind of tokenizer, an unsupported pre-tokenizer, or lists that do not match.
pub fn tokenizer(file: &Gguf) -> Result<Option<Tokenizer>, Error> {
    let model = match file.text("tokenizer.ggml.model")? {
        None | Some("none") => return Ok(None),
        Some(model @ ("gpt2" | "llama")) => model,
        Some(other) => {
            return Err(
                file.error(format!("tokenizer.ggml.model: unsupported tokenizer {other:?}: expected gpt2 or llama"))
            );
        }
    };
    let byte_level = model == "gpt2";
    let mut notes = Vec::new();
    let vocab = Vocab::read(file, !byte_level, &mut notes)?;
    let special = Special::read(file, &vocab, !byte_level, &mut notes)?;
    let (json, add_bos) = if byte_level {
        let pre = file.text("tokenizer.ggml.pre")?.filter(|name| !name.is_empty());
        if pre.is_none() {
            notes.push("the file names no pre-tokenizer: text is split by llama.cpp's default rules".into());
        }
        let steps = pre_tokenizer::named(pre.unwrap_or("default")).map_err(|reason| file.error(reason))?;
        (byte_level_json(file, &vocab, &special, &steps)?, steps.add_bos)
    } else {
        (sentencepiece_json(file, &vocab, &special, &mut notes)?, true)
    };
    let flag = |key: &str, default| Ok(file.flag(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default));
    let add_bos = flag("add_bos_token", add_bos)? && special.bos.is_some();
    let add_eos = flag("add_eos_token", false)? && special.eos.is_some();

    let text = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize)).map(str::to_owned);
    let (bos, eos) = (text(special.bos), text(special.eos));
    let template = file.text("tokenizer.chat_template")?;
    let chat = template.map(|template| ChatFormat {
        template: template.into(),
        bos_token: bos.clone(),
        eos_token: eos.clone(),
    });
    let json =
        with_template(json, add_bos.then_some(special.bos).flatten(), add_eos.then_some(special.eos).flatten(), &vocab);
    let tokenizer = if is_gpt2(&json) {
        TokenizerRef::Gpt2
    } else {
        let roles = Roles::declared(&json, eos, text(special.eot).into_iter().collect(), bos, add_bos);
        with_roles(None, json, roles, chat.is_some())
    };
    if let TokenizerRef::Json(text) = &tokenizer
        && text.len() > TokenizerRef::MAX_BYTES
    {
        return Err(too_large(file));
    }
    Ok(Some(Tokenizer { tokenizer, chat, notes }))
}

fn too_large(file: &Gguf) -> Error {
    file.error(format!(
        "the tokenizer is too large: expected a tokenizer.json of at most {} bytes",
        TokenizerRef::MAX_BYTES
    ))
}

/// Lists of the vocabulary, by id.
struct Vocab<'a> {
    tokens: &'a Strings,
    types: Vec<i64>,
    /// Scores; empty if the file has none.
    scores: Vec<f64>,
    merges: Option<&'a Strings>,
}

impl<'a> Vocab<'a> {
    /// Reads the lists, whose lengths must match. Of scores and merges one is needed: scores only with `scored`.
    fn read(file: &'a Gguf, scored: bool, notes: &mut Vec<String>) -> Result<Self, Error> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let strings = |name: &str| match file.array(&key(name))? {
            None => Ok(None),
            Some(Array::Strings(strings)) => Ok(Some(strings)),
            Some(_) => Err(file.error(format!("{}: expected an array of strings", key(name)))),
        };
        let tokens = strings("tokens")?.ok_or_else(|| file.error(format!("missing {}", key("tokens"))))?;
        if tokens.len() > MAX_TOKENS {
            let got = tokens.len();
            return Err(file.error(format!("{}: expected at most {MAX_TOKENS} tokens, got {got}", key("tokens"))));
        }
        let merges = strings("merges")?;
        // Before JSON is made of them.
        if tokens.bytes() + merges.map_or(0, Strings::bytes) > TokenizerRef::MAX_BYTES {
            return Err(too_large(file));
        }
        let numbers = |name: &str| -> Result<Option<Vec<f64>>, Error> {
            let wrong = || file.error(format!("{}: expected an array of {} numbers", key(name), tokens.len()));
            match file.array(&key(name))? {
                None => Ok(None),
                Some(Array::Numbers(numbers)) => {
                    let values: Option<Vec<f64>> = numbers.iter().map(|value| value.as_f64()).collect();
                    values.filter(|values| values.len() == tokens.len()).map(Some).ok_or_else(wrong)
                }
                Some(_) => Err(wrong()),
            }
        };
        let types = match numbers("token_type")? {
            Some(types) => types.into_iter().map(|value| value as i64).collect(),
            None => {
                notes.push("the file gives no types of tokens: none is special except bos, eos and eot".into());
                vec![NORMAL; tokens.len()]
            }
        };
        let scores = numbers("scores")?.unwrap_or_default();
        if merges.is_none() && (!scored || scores.is_empty()) {
            let needed = if scored { "merges or scores" } else { "merges" };
            return Err(file.error(format!("missing tokenizer.ggml.{needed}")));
        }
        Ok(Self { tokens, types, scores, merges })
    }

    /// Returns the tokens with their ids, without placeholders: ids that stand for nothing.
    fn iter(&self) -> impl Iterator<Item = (u32, &'a str, i64)> {
        let tokens = (0..).zip(self.tokens.iter()).zip(&self.types);
        let placeholder = |id: u32, text: &str| {
            text.strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']')) == Some(id.to_string().as_str())
        };
        tokens
            .map(|((id, text), &kind)| (id, text, kind))
            .filter(move |&(id, text, kind)| !text.is_empty() && (kind != UNUSED || !placeholder(id, text)))
    }

    /// Returns the vocabulary of a tokenizer.json.
    fn json(&self, file: &Gguf) -> Result<Map<String, Value>, Error> {
        let mut ids = Map::new();
        for (id, text, _) in self.iter() {
            if let Some(other) = ids.insert(text.to_owned(), id.into()) {
                let text: String = text.chars().take(40).collect();
                return Err(file.error(format!("tokens {other} and {id} of the vocabulary are both {text:?}")));
            }
        }
        Ok(ids)
    }

    /// Returns the merges that the file lists, as pairs.
    fn pairs(&self, file: &Gguf, merges: &Strings) -> Result<Vec<Value>, Error> {
        let pair = |(index, line): (usize, &str)| {
            let space = line.char_indices().skip(1).find(|&(_, c)| c == ' ');
            let (at, _) = space.ok_or_else(|| {
                let line: String = line.chars().take(40).collect();
                file.error(format!("tokenizer.ggml.merges: expected two tokens, got {line:?} as merge {index}"))
            })?;
            Ok(json!([&line[..at], &line[at + 1..]]))
        };
        merges.iter().enumerate().map(pair).collect()
    }
}

/// Ids of special tokens.
struct Special {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
    unknown: Option<u32>,
}

impl Special {
    /// Reads the ids. With `defaults`, absent ones are those of SentencePiece's models: 0 is unknown, 1 begins a text, 2 ends it.
    fn read(file: &Gguf, vocab: &Vocab, defaults: bool, notes: &mut Vec<String>) -> Result<Self, Error> {
        let size = vocab.tokens.len();
        let mut id = |name: &str, default: Option<u64>| -> Result<Option<u32>, Error> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            // Some writers put -1 for none.
            if file.value(&key).and_then(|value| value.as_i64()).is_some_and(|id| id < 0) {
                return Ok(None);
            }
            let found = match file.integer(&key)? {
                Some(id) => Some(id),
                None => default.filter(|_| defaults),
            };
            let Some(found) = found else { return Ok(None) };
            let known = u32::try_from(found)
                .ok()
                .filter(|&id| vocab.tokens.get(id as usize).is_some_and(|text| !text.is_empty()));
            if known.is_none() {
                notes.push(format!("{key} is ignored: {found} is not one of the {}", count(size as u64, "token")));
            }
            Ok(known)
        };
        Ok(Self {
            unknown: id("unknown", Some(0))?,
            bos: id("bos", Some(1))?,
            eos: id("eos", Some(2))?,
            eot: id("eot", None)?,
        })
    }

    /// Returns the entries of `added_tokens`: special tokens, and those that are matched whole in text.
    fn added(&self, vocab: &Vocab) -> Vec<Value> {
        let ends = [self.bos, self.eos, self.eot];
        let entry = |(id, text, kind): (u32, &str, i64)| {
            let special = matches!(kind, CONTROL | UNKNOWN) || ends.contains(&Some(id));
            (special || kind == USER_DEFINED).then(|| {
                json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": special
                })
            })
        };
        vocab.iter().filter_map(entry).collect()
    }
}

/// Returns the tokenizer.json of byte-level BPE.
fn byte_level_json(file: &Gguf, vocab: &Vocab, special: &Special, steps: &PreTokenizer) -> Result<Value, Error> {
    let PreTokenizer { normalizer, pre_tokenizer, ignore_merges, .. } = steps;
    let merges = vocab.pairs(file, vocab.merges.unwrap_or(&Strings::default()))?;
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.added(vocab),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": byte_level(true),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocab.json(file)?, "merges": merges
        }
    }))
}

/// Returns the tokenizer.json of SentencePiece's BPE, as Llama's first models have it.
fn sentencepiece_json(file: &Gguf, vocab: &Vocab, special: &Special, notes: &mut Vec<String>) -> Result<Value, Error> {
    let merges = match vocab.merges {
        Some(merges) => vocab.pairs(file, merges)?,
        None => {
            // The others are never made by merges.
            let joins = |kind: i64| !matches!(kind, CONTROL | UNKNOWN | BYTE | UNUSED);
            let tokens: Vec<_> = vocab.iter().filter(|&(.., kind)| joins(kind)).collect();
            let tokens: Vec<_> =
                tokens.into_iter().map(|(id, text, _)| (text, id, vocab.scores[id as usize])).collect();
            let long = tokens.iter().filter(|(text, ..)| text.len() > merges::MAX_BYTES).count();
            if long > 0 {
                let tokens = count(long as u64, "token");
                notes
                    .push(format!("{tokens} of more than {} bytes: text is never encoded as these", merges::MAX_BYTES));
            }
            let found = merges::merges(&tokens, TokenizerRef::MAX_BYTES).map_err(|reason| file.error(reason))?;
            found.into_iter().map(|(left, right)| json!([left, right])).collect()
        }
    };
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut normalizers = vec![replace(" ", SPACE)];
    let mut decoders = vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.added(vocab),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": special.unknown.and_then(|id| vocab.tokens.get(id as usize)),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": vocab.json(file)?, "merges": merges
        }
    }))
}

/// Makes a tokenizer.json add tokens around every text.
fn with_template(mut json: Value, bos: Option<u32>, eos: Option<u32>, vocab: &Vocab) -> Value {
    if bos.is_none() && eos.is_none() {
        return json;
    }
    let token = |id: Option<u32>| Some((id?, vocab.tokens.get(id? as usize)?));
    let (bos, eos) = (token(bos), token(eos));
    let around = |sequence: &str, type_id: u64| {
        let special = |token: Option<(u32, &str)>| {
            token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": type_id}}))
        };
        let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        special(bos).into_iter().chain([text]).chain(special(eos)).collect::<Vec<_>>()
    };
    let tokens = bos.into_iter().chain(eos);
    let tokens: HashMap<&str, Value> =
        tokens.map(|(id, text)| (text, json!({"id": text, "ids": [id], "tokens": [text]}))).collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    json["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": pair,
        "special_tokens": tokens
    });
    json
}
