//! Vocabulary of a token file without a `meta.json`: nanoGPT's `meta.pkl`, or GPT-2's by assumption.

use std::io::ErrorKind;
use std::path::Path;

use ngen3_model::nanogpt::{self, CharVocab};

use crate::source::bytes::limited::read_at_most;

/// nanoGPT's description of characters.
const META_PKL: &str = "meta.pkl";

/// Vocabulary of a file that no `meta.json` describes.
#[derive(Debug)]
pub(crate) enum BareVocabulary {
    /// Characters, from the `meta.pkl` beside it.
    Chars(CharVocab),
    /// That of the `tokenizer.json` beside it.
    TokenizerJson,
    /// Unknown, so GPT-2's is assumed; with the file beside it that may describe another, and why it is not used.
    Assumed(Option<String>),
}

impl BareVocabulary {
    /// Finds the vocabulary of the token files in a folder.
    pub fn of(folder: &Path, tokenizer_json: &Path) -> Self {
        if tokenizer_json.exists() {
            return Self::TokenizerJson;
        }
        let path = folder.join(META_PKL);
        match read_at_most(&path, nanogpt::MAX_BYTES).map(|bytes| CharVocab::parse(&bytes)) {
            Ok(Ok(vocabulary)) => Self::Chars(vocabulary),
            Ok(Err(reason)) => Self::Assumed(Some(format!("{}: {}", path.display(), one_line(&reason)))),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::Assumed(other_meta(folder)),
            Err(error) => Self::Assumed(Some(format!("{}: {error}", path.display()))),
        }
    }
}

/// Returns a file of another program that may describe the tokens: its name is meta or metadata.
fn other_meta(folder: &Path) -> Option<String> {
    let is_meta = |path: &Path| {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
        path.is_file() && stem.is_some_and(|stem| stem == "meta" || stem == "metadata")
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut found: Vec<_> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| is_meta(path));
    let path = found.into_iter().min()?;
    Some(format!("{}: expected {META_PKL} of nanoGPT or meta.json of ngen3", path.display()))
}

/// Replaces control characters, and limits the length: a reason may quote the file.
fn one_line(reason: &str) -> String {
    const MAX_CHARS: usize = 300;
    reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_CHARS).collect()
}
