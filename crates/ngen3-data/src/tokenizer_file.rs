//! A tokenizer.json that the user names, with the files beside it.

use std::path::Path;

use ngen3_model::hf::Roles;
use serde_json::Value;

use crate::source::bytes::limited::read_at_most;
use crate::tokenizer::MAX_BYTES;
use crate::{Error, Tokenizer};

/// A tokenizer.json, and the roles of its tokens that the user names.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerFile<'a> {
    /// Path of the file.
    pub path: &'a Path,
    /// Token that ends a document; `None` to find it: see [`Roles`].
    pub eos: Option<&'a str>,
    /// Token that begins a text; `None` to find it.
    pub bos: Option<&'a str>,
}

impl<'a> From<&'a Path> for TokenizerFile<'a> {
    fn from(path: &'a Path) -> Self {
        Self { path, eos: None, bos: None }
    }
}

impl TokenizerFile<'_> {
    /// Reads the file; its name becomes the tokenizer's. Special tokens that `tokenizer_config.json`, `special_tokens_map.json` or
    /// `generation_config.json` beside it declares are kept in the tokenizer.
    ///
    /// # Errors
    /// [`Error::Read`] for a file that cannot be read; [`Error::Tokenizer`] for a malformed one; [`Error::Input`] for a token that
    /// it lacks.
    pub fn read(&self) -> Result<Tokenizer, Error> {
        let Self { path, eos, bos } = *self;
        let bytes = read_at_most(path, MAX_BYTES).map_err(|error| Error::read(path.display(), error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Checks the file before its parts are looked at.
        let tokenizer = Tokenizer::from_json(&bytes, &name)?;
        let Ok(mut file) = serde_json::from_slice::<Value>(&bytes) else { return Ok(tokenizer) };
        for (flag, token) in [("eos_token", eos), ("bos_token", bos)] {
            if let Some(token) = token.filter(|token| tokenizer.id_of(token).is_none()) {
                return Err(Error::Input(format!(
                    "--{flag}: {} has no token {token:?}; expected one of its vocabulary{}",
                    path.display(),
                    examples(&tokenizer)
                )));
            }
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut roles = Roles::beside(folder, &file)?;
        if let Some(eos) = eos {
            roles = roles.with_document_end(eos);
        }
        roles.bos = bos.map(str::to_owned).or(roles.bos);
        match roles.keep_in(&mut file) {
            true => Ok(Tokenizer::from_json(file.to_string().as_bytes(), &name)?),
            false => Ok(tokenizer),
        }
    }
}

/// Formats a few special tokens of a tokenizer.
fn examples(tokenizer: &Tokenizer) -> String {
    const SHOWN: usize = 4;
    let special: Vec<_> = tokenizer.special_tokens().into_iter().take(SHOWN).map(|(token, _)| token).collect();
    if special.is_empty() { String::new() } else { format!(", such as {}", special.join(", ")) }
}

/// Reads the tokenizer that the user chose: the built-in one for `None`.
pub(crate) fn chosen(file: Option<TokenizerFile>) -> Result<Tokenizer, Error> {
    file.map_or_else(|| Ok(Tokenizer::gpt2()), |file| file.read())
}
