//! Converts text to token ids and back.

use std::sync::{Arc, LazyLock};

use ngen3_model::TokenizerRef;
use ngen3_model::hf::Roles;
use ngen3_model::words::grouped;

use super::backend::{Backend, run_library};
use super::limits::ENDOFTEXT;
use super::missing::{Missing, MissingChars};
use super::{Error, gpt2, json};

/// Converts text to token ids and back. Cheap to clone; any number of threads can share one.
#[derive(Clone)]
pub struct Tokenizer {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    name: String,
    pub(super) backend: Backend,
    /// The same for text that does not begin a sequence, if the beginning is encoded differently.
    within: Option<tokenizers::Tokenizer>,
    /// The tokenizer.json that it was read from, if any.
    json: Option<String>,
    vocab_size: usize,
    roles: RoleIds,
    /// Fate of characters without a token; `None` if every text is encoded whole.
    missing: Option<Missing>,
}

/// Ids of the special tokens by role.
#[derive(Clone, Copy, Default)]
struct RoleIds {
    document_end: Option<u32>,
    turn_end: Option<u32>,
    bos: Option<u32>,
    document_start: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.name(), self.vocab_size())
    }
}

impl Tokenizer {
    /// Returns GPT-2's byte-level BPE, with the ids of tiktoken's `gpt2`, from the vocabulary embedded in the program.
    pub fn gpt2() -> Tokenizer {
        static GPT2: LazyLock<Tokenizer> = LazyLock::new(|| {
            let backend = Backend::ByteLevel(Box::new(gpt2::gpt2()));
            Tokenizer::made("gpt2", backend, &Roles::ending_with(Some(ENDOFTEXT)))
        });
        GPT2.clone()
    }

    /// Loads a tokenizer from the bytes of a Hugging Face tokenizer.json. `name` is its name in errors and `meta.json`.
    ///
    /// # Errors
    /// [`Error::Json`] if the file is malformed, over 48 MiB, or has invalid ids: two tokens with one id, an id of
    /// [`MAX_VOCAB_SIZE`](super::MAX_VOCAB_SIZE) or more, an added token with another id than the one it gets.
    pub fn from_json(bytes: &[u8], name: &str) -> Result<Tokenizer, Error> {
        let json::File { backend, within, text, roles, missing } =
            json::read(bytes).map_err(|reason| Error::Json { name: name.into(), reason })?;
        Ok(Tokenizer::new(name.into(), (backend, within), Some(text), &roles, missing))
    }

    /// Makes a tokenizer that no file describes yet.
    pub(super) fn made(name: &str, backend: Backend, roles: &Roles) -> Tokenizer {
        let missing = matches!(backend, Backend::Chars(_)).then_some(Missing { unknown: None });
        Tokenizer::new(name.into(), (backend, None), None, roles, missing)
    }

    fn new(
        name: String,
        (backend, within): (Backend, Option<tokenizers::Tokenizer>),
        json: Option<String>,
        roles: &Roles,
        missing: Option<Missing>,
    ) -> Tokenizer {
        let vocab_size = match &backend {
            Backend::ByteLevel(bpe) => bpe.vocab_size(),
            Backend::Chars(chars) => chars.vocab_size(),
            Backend::HuggingFace(tokenizer) => {
                tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
            }
        };
        let id = |token: &Option<String>| id_in(&backend, token.as_deref()?);
        let bos = id(&roles.bos);
        let roles = RoleIds {
            document_end: id(&roles.document_end),
            turn_end: id(&roles.turn_end),
            bos,
            document_start: bos.filter(|_| roles.add_bos),
        };
        Tokenizer { inner: Arc::new(Inner { name, backend, within, json, vocab_size, roles, missing }) }
    }

    /// Name that it was made with: "gpt2" for the built-in tokenizer, and for any other with that name: see
    /// [`reference`](Tokenizer::reference).
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Highest id + 1, including added tokens.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Id of the token that ends a document, such as `<|endoftext|>`. [`Roles`] says how it is found.
    pub fn eot(&self) -> Option<u32> {
        self.inner.roles.document_end
    }

    /// Id of the token that ends a turn of a conversation, such as `<|im_end|>`: [`eot`](Tokenizer::eot) if no other does.
    pub fn turn_end(&self) -> Option<u32> {
        self.inner.roles.turn_end
    }

    /// Id of the token that begins a text, `bos_token` in chat templates.
    pub fn bos(&self) -> Option<u32> {
        self.inner.roles.bos
    }

    /// Id of the token that begins every document: [`bos`](Tokenizer::bos), if the tokenizer's settings say `add_bos_token`.
    pub fn document_start(&self) -> Option<u32> {
        self.inner.roles.document_start
    }

    /// Id of the token that characters outside the vocabulary become.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.inner.missing.as_ref()?.unknown.as_ref().map(|&(_, id)| id)
    }

    /// Returns the id of a token as tokenizer.json spells it (in a byte-level vocabulary `Ġ` is a space). Searches the
    /// vocabulary; not for use in a loop.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        id_in(&self.inner.backend, token)
    }

    /// Returns a Hugging Face tokenizer.json with the same ids; for a tokenizer read from one, that file.
    pub fn to_json(&self) -> String {
        let role = |id: Option<u32>| Some(self.decode(&[id?]));
        let RoleIds { document_end, turn_end, bos, document_start } = self.inner.roles;
        let roles = || Roles {
            document_end: role(document_end),
            turn_end: role(turn_end),
            bos: role(bos),
            add_bos: document_start.is_some(),
        };
        match (&self.inner.json, &self.inner.backend) {
            (Some(json), _) => json.clone(),
            (None, Backend::ByteLevel(bpe)) => json::write_bpe(bpe, &roles()),
            (None, Backend::Chars(chars)) => json::write_chars(chars, &roles()),
            (None, Backend::HuggingFace(_)) => unreachable!("these always come from a file"),
        }
    }

    /// Returns the reference to store with a model or a dataset: the built-in tokenizer, or its tokenizer.json.
    pub fn reference(&self) -> TokenizerRef {
        match Arc::ptr_eq(&self.inner, &Self::gpt2().inner) {
            true => TokenizerRef::Gpt2,
            false => TokenizerRef::Json(self.to_json()),
        }
    }

    /// Encodes `text`. See [`encode_into`](Tokenizer::encode_into).
    ///
    /// # Errors
    /// As [`encode_into`](Tokenizer::encode_into).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of `text` to `out`.
    ///
    /// All of it is ordinary text: the characters `<|endoftext|>` become the ids of their spelling, never the special token
    /// (tiktoken's `encode_ordinary`), and no tokens are added around it (no `<s>`, no `[CLS]`). The same holds for a tokenizer
    /// from a file; only its added tokens that are not special are found in text, as its authors intend. The file's settings for
    /// truncation and padding are ignored.
    ///
    /// # Errors
    /// [`Error::Encode`] if a tokenizer from a file, run by the `tokenizers` crate, fails on this text: a model without an
    /// unknown token meets an unknown character, or a regular expression gives up. [`Error::LongWord`] for a word of millions
    /// of characters; byte-level BPE fails on no other text.
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        match &self.inner.backend {
            Backend::ByteLevel(bpe) => bpe.encode_into(text, out)?,
            Backend::Chars(chars) => chars.encode_into(text, out),
            Backend::HuggingFace(tokenizer) => {
                let encoding = self.encode_with(text, || tokenizer.encode_fast(text, false))?;
                out.extend_from_slice(encoding.get_ids());
            }
        }
        Ok(())
    }

    /// Encodes the beginning of a text to continue, after the token that begins documents, if any. An empty one becomes that
    /// token, else the end-of-text token, else a line break. Empty if the vocabulary has no character of it.
    ///
    /// # Errors
    /// As [`encode_into`](Tokenizer::encode_into).
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, Error> {
        let mut ids: Vec<u32> = self.document_start().into_iter().collect();
        match self.eot() {
            Some(eot) if prompt.is_empty() && ids.is_empty() => ids.push(eot),
            None if prompt.is_empty() && ids.is_empty() => self.encode_into("\n", &mut ids)?,
            _ => self.encode_into(prompt, &mut ids)?,
        }
        Ok(ids)
    }

    /// True if there are texts with characters that the vocabulary lacks.
    pub fn can_miss(&self) -> bool {
        self.inner.missing.is_some()
    }

    /// As [`encode_into`](Tokenizer::encode_into); also counts the characters that the vocabulary lacks.
    ///
    /// # Errors
    /// As [`encode_into`](Tokenizer::encode_into).
    pub fn encode_counting(&self, text: &str, out: &mut Vec<u32>, missing: &mut MissingChars) -> Result<(), Error> {
        match (&self.inner.backend, &self.inner.missing) {
            (Backend::HuggingFace(tokenizer), Some(Missing { unknown })) => {
                // Unlike `encode_fast`, with offsets.
                let encoding = self.encode_with(text, || tokenizer.encode(text, false))?;
                out.extend_from_slice(encoding.get_ids());
                missing.count_uncovered(text, &encoding, unknown.as_ref().map(|&(_, id)| id));
                Ok(())
            }
            (Backend::Chars(chars), _) => {
                missing.count_where(text, |c| chars.id(c).is_some());
                self.encode_into(text, out)
            }
            (Backend::ByteLevel(bpe), Some(_)) => {
                missing.count_where(text, |c| bpe.has(c));
                self.encode_into(text, out)
            }
            _ => self.encode_into(text, out),
        }
    }

    /// Formats a note on the characters that the vocabulary lacks; `None` if there are none.
    pub fn missing_note(&self, missing: &MissingChars) -> Option<String> {
        let MissingChars { count, total, .. } = *missing;
        if count == 0 {
            return None;
        }
        let fate = match self.inner.missing.as_ref().and_then(|missing| missing.unknown.as_ref()) {
            Some((unknown, _)) => format!("became {unknown}"),
            None => "were dropped".into(),
        };
        let (count, total, share) = (grouped(count), grouped(total), 100.0 * count as f64 / total as f64);
        // A model's tokenizer is named "of m.pt".
        let name = self.name().strip_prefix("of ").unwrap_or(self.name());
        let shown = missing.shown();
        Some(format!(
            "{count} of {total} characters ({share:.2} %) are not in the vocabulary of {name} and {fate}: {shown}"
        ))
    }

    /// As [`encode_into`](Tokenizer::encode_into); also appends to `starts` the offset of each token in `text`, in bytes. A
    /// byte-level token can start within a character. If the tokenizer normalizes text (`e` with a combining accent becomes `é`),
    /// tokens of characters that it changed start where these begin.
    ///
    /// # Errors
    /// As [`encode_into`](Tokenizer::encode_into).
    pub fn encode_places(&self, text: &str, out: &mut Vec<u32>, starts: &mut Vec<usize>) -> Result<(), Error> {
        self.places(text, true, out, starts)
    }

    /// As [`encode_places`](Tokenizer::encode_places), for text that follows a special token. Some tokenizers (Mistral's) put a space
    /// before the first word of a sequence only.
    ///
    /// # Errors
    /// As [`encode_into`](Tokenizer::encode_into).
    pub fn encode_places_within(&self, text: &str, out: &mut Vec<u32>, starts: &mut Vec<usize>) -> Result<(), Error> {
        self.places(text, false, out, starts)
    }

    fn places(&self, text: &str, begins: bool, out: &mut Vec<u32>, starts: &mut Vec<usize>) -> Result<(), Error> {
        match &self.inner.backend {
            Backend::ByteLevel(bpe) => bpe.encode_places(text, out, starts)?,
            Backend::Chars(chars) => {
                let found = text.char_indices().filter_map(|(at, c)| Some((chars.id(c)?, at)));
                found.for_each(|(id, at)| {
                    out.push(id);
                    starts.push(at);
                });
            }
            Backend::HuggingFace(tokenizer) => {
                let tokenizer = self.inner.within.as_ref().filter(|_| !begins).unwrap_or(tokenizer);
                let encoding = self.encode_with(text, || tokenizer.encode(text, false))?;
                out.extend_from_slice(encoding.get_ids());
                starts.extend(encoding.get_offsets().iter().map(|offsets| offsets.0));
            }
        }
        Ok(())
    }

    /// Runs the `tokenizers` crate on a text.
    fn encode_with(
        &self,
        text: &str,
        encode: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding, Error> {
        run_library(encode).map_err(|reason| Error::Encode {
            name: self.name().into(),
            excerpt: text.chars().take(40).collect(),
            reason,
        })
    }

    /// Returns the special tokens, as they are written, with their ids. They are never found in text.
    pub fn special_tokens(&self) -> Vec<(String, u32)> {
        match &self.inner.backend {
            Backend::ByteLevel(bpe) => bpe.special().to_vec(),
            Backend::Chars(chars) => chars.special().to_vec(),
            Backend::HuggingFace(tokenizer) => {
                let added = tokenizer.get_added_tokens_decoder().into_iter();
                let mut special: Vec<_> =
                    added.filter(|(_, token)| token.special).map(|(id, token)| (token.content, id)).collect();
                special.sort();
                special
            }
        }
    }

    /// Decodes `ids`, special tokens as they are written. Invalid UTF-8 becomes U+FFFD; ids outside the vocabulary are skipped.
    /// (If the decoder of a tokenizer run by the `tokenizers` crate fails: the tokens as tokenizer.json spells them.)
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.inner.backend {
            Backend::ByteLevel(bpe) => {
                let mut bytes = Vec::with_capacity(4 * ids.len());
                for &id in ids {
                    bytes.extend_from_slice(bpe.token(id));
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Backend::Chars(chars) => {
                let mut text = String::with_capacity(ids.len());
                ids.iter().for_each(|&id| chars.decode_into(id, &mut text));
                text
            }
            Backend::HuggingFace(tokenizer) => {
                let decoded = run_library(|| tokenizer.decode(ids, false));
                decoded.unwrap_or_else(|_| ids.iter().filter_map(|&id| tokenizer.id_to_token(id)).collect())
            }
        }
    }

    /// Returns the bytes of a token, which may be part of a character; those of its text, if the `tokenizers` crate runs the
    /// tokenizer. Empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.inner.backend {
            Backend::ByteLevel(bpe) => bpe.token(id).to_vec(),
            _ => self.decode(&[id]).into_bytes(),
        }
    }

    /// Returns the last byte offset at which `text` can be split so that the ids of the two parts, encoded separately, are the
    /// ids of the whole, whatever text follows. `None` if there is none; always `None` for a tokenizer run by the `tokenizers`
    /// crate, whose texts must be encoded whole. Searches from the end, so it is cheap.
    pub fn safe_split(&self, text: &str) -> Option<usize> {
        match &self.inner.backend {
            Backend::ByteLevel(bpe) => bpe.safe_split(text),
            Backend::Chars(_) => (!text.is_empty()).then_some(text.len()),
            Backend::HuggingFace(_) => None,
        }
    }
}

/// Returns the id of a token as tokenizer.json spells it.
fn id_in(backend: &Backend, token: &str) -> Option<u32> {
    match backend {
        Backend::ByteLevel(bpe) => bpe.id_of(token),
        Backend::Chars(chars) => chars.id_of(token),
        Backend::HuggingFace(tokenizer) => tokenizer.token_to_id(token),
    }
}
