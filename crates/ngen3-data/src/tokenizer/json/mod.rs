//! Reads and writes Hugging Face's tokenizer.json.
//!
//! Files are untrusted. A file whose every setting `bpe/` knows becomes a vocabulary of bytes (`byte_level.rs`), one of single
//! characters without merges a vocabulary of characters (`chars.rs`); any other runs on the `tokenizers` crate. `tokens.rs` reads
//! their tokens; `write.rs` makes files.

mod byte_level;
mod chars;
mod tokens;
mod write;

use std::collections::HashSet;

use ngen3_model::TokenizerRef;
use ngen3_model::hf::Roles;
use serde_json::{Map, Value};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

use self::byte_level::byte_level;
use self::chars::chars;
use self::tokens::{AddedToken, Token, added_tokens, check_added, check_distinct, vocab};
pub(super) use self::write::{write_bpe, write_chars};
use super::backend::{Backend, run_library};
use super::bpe::alphabet::bytes_to_unicode;
use super::missing::Missing;

/// Largest file accepted, in bytes: the limit of checkpoints, which store it.
pub(crate) const MAX_BYTES: usize = TokenizerRef::MAX_BYTES;

/// A tokenizer.json.
pub(super) struct File {
    pub backend: Backend,
    /// The same for text that does not begin a sequence, if the beginning is encoded differently.
    pub within: Option<tokenizers::Tokenizer>,
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
    let within = match &backend {
        Backend::HuggingFace(tokenizer) => within(tokenizer),
        _ => None,
    };
    let whole = match &backend {
        Backend::ByteLevel(bpe) => !bpe.drops_bytes(),
        _ => encodes_all(&file, model, &vocab),
    };
    let missing = (!whole).then(|| Missing { unknown: unknown(model, &vocab) });
    let roles = Roles::of(&file);
    Ok(File { backend, within, text: text.to_string(), roles, missing })
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

/// Makes a copy of a tokenizer for text that does not begin a sequence; `None` if no step treats the beginning differently.
fn within(tokenizer: &tokenizers::Tokenizer) -> Option<tokenizers::Tokenizer> {
    let mut steps = tokenizer.get_pre_tokenizer()?.clone();
    drop_first_space(&mut steps).then(|| {
        let mut within = tokenizer.clone();
        within.with_pre_tokenizer(Some(steps));
        within
    })
}

/// Sets a step to put no space before the first word of a sequence; false if it puts none there alone.
fn drop_first_space(step: &mut PreTokenizerWrapper) -> bool {
    match step {
        PreTokenizerWrapper::Metaspace(space) if space.get_prepend_scheme() == PrependScheme::First => {
            space.set_prepend_scheme(PrependScheme::Never);
            true
        }
        PreTokenizerWrapper::Sequence(steps) => {
            let changed = steps.as_mut().iter_mut().map(drop_first_space);
            changed.filter(|&changed| changed).count() > 0
        }
        _ => false,
    }
}
