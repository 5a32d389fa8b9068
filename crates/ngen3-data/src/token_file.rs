//! Tokens on disk: `data.bin`, token ids in little-endian u16 (u32 for a vocabulary over 65,536), described by the `meta.json`
//! beside it. Without a meta.json it is nanoGPT's format: u16 ids of the characters in the `meta.pkl` beside it, else GPT-2's.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use ngen3_model::ChatFormat;
use ngen3_model::hash::sha256;
use ngen3_model::words::{count, grouped, grouped_count};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::source::bytes::limited::read_at_most;
use crate::tokenizer::{ByteCounter, TextSize};
use crate::vocabulary::BareVocabulary;
use crate::{Error, Tokenizer, tokenizer};

/// The file that `meta.json` describes.
pub(crate) const DATA_FILE: &str = "data.bin";
/// nanoGPT's name of the training split.
const TRAIN_FILE: &str = "train.bin";
pub(crate) const META_FILE: &str = "meta.json";
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
pub(crate) const MASK_FILE: &str = "mask.bin";

/// Tokens read by a thread at a time.
const STRETCH: usize = 1 << 20;

/// Largest `meta.json` accepted, in bytes; it lists the sources.
const META_BYTES: usize = 1 << 26;

/// A bare file whose largest id is below this is not taken for GPT-2's silently: no smaller vocabulary in use is larger.
const SURELY_GPT2: u32 = 49_152;

/// Name of the built-in tokenizer, which needs no file beside the data.
pub(crate) const GPT2_NAME: &str = "gpt2";

/// Integer type of stored token ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Two bytes.
    Uint16,
    /// Four bytes.
    Uint32,
}

impl Dtype {
    /// Returns the smallest type that holds every id of a vocabulary.
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { Self::Uint16 } else { Self::Uint32 }
    }

    /// Bytes per token.
    pub fn size(self) -> usize {
        match self {
            Self::Uint16 => 2,
            Self::Uint32 => 4,
        }
    }
}

/// Contents of `meta.json`, which describes `data.bin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetMeta {
    /// `gpt2` for the built-in tokenizer; any other has its `tokenizer.json` beside the data.
    pub tokenizer: String,
    /// Highest id + 1.
    pub vocab_size: usize,
    /// Type of the token ids, by numpy's name.
    pub dtype: Dtype,
    /// Tokens in `data.bin`.
    pub tokens: u64,
    /// Documents, each ended by the tokenizer's end-of-text token if it has one.
    pub documents: u64,
    /// Sources of the text.
    pub source: Vec<String>,
    /// SHA-256 of `data.bin`, in hexadecimal.
    pub sha256: String,
    /// SHA-256 of `tokenizer.json`, in hexadecimal, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_sha256: Option<String>,
    /// Number of the text's characters that the vocabulary lacks, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_characters: Option<u64>,
    /// Chat format and mask, if the documents are conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<Box<ChatMeta>>,
}

/// Describes `mask.bin`, which a dataset of conversations has beside `data.bin`, with one byte per token: see
/// [`crate::chat::marks`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMeta {
    /// SHA-256 of `mask.bin`, in hexadecimal.
    pub mask_sha256: String,
    /// Meaning of the values in `mask.bin`, for other programs.
    pub mask: String,
    /// Chat format that rendered the conversations.
    pub format: ChatFormat,
}

/// A memory-mapped token file.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    map: Mmap,
    dtype: Dtype,
    description: Description,
}

/// Description of a token file.
#[derive(Debug)]
enum Description {
    Meta(Box<DatasetMeta>),
    Bare(BareVocabulary),
}

/// True if the bytes begin like printable ASCII text. Tokens that do would all have ids of 8,000 to 32,000 with two printable
/// halves.
fn is_text(bytes: &[u8]) -> bool {
    const LOOKED_AT: usize = 512;
    let start = &bytes[..bytes.len().min(LOOKED_AT)];
    start.len() >= 64 && start.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t'))
}

impl TokenFile {
    /// Returns the token file of a folder: its `data.bin` or nanoGPT's `train.bin`. `None` if it has neither, or `path` is no
    /// folder.
    ///
    /// # Errors
    /// [`Error::Data`] if it has both.
    pub fn in_folder(path: &Path) -> Result<Option<PathBuf>, Error> {
        let mut found = [DATA_FILE, TRAIN_FILE].map(|name| path.join(name)).into_iter().filter(|file| file.is_file());
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::Data(format!(
                "{}: expected one token file, got {DATA_FILE} and {TRAIN_FILE}; name one of them",
                path.display()
            ))),
            (found, _) => Ok(found),
        }
    }

    /// Opens a token file, or that of a folder, and checks its size against the `meta.json` beside it; [`TokenFile::verify`]
    /// checks its hash. Other files in the folder (`val.bin`) share that file's tokenizer and dtype.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Read`] for a file that is missing, empty, truncated, or does not match its `meta.json`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let found = Self::in_folder(path)?;
        let path = found.as_deref().unwrap_or(path);
        let shown = path.display();
        let unreadable = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Error::Data(format!("{shown}: no such file; create it with ngen3 tokenize")),
            _ => Error::read(&shown, error),
        };
        if path.is_dir() {
            return Err(Error::Data(format!(
                "{shown}: expected a token file, got a folder without {DATA_FILE} or {TRAIN_FILE}; create one with ngen3 \
                 tokenize"
            )));
        }
        let file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let meta = read_meta(&path.with_file_name(META_FILE))?;
        let dtype = meta.as_ref().map_or(Dtype::Uint16, |meta| meta.dtype);
        if size == 0 {
            return Err(Error::Data(format!("{shown}: the file is empty; create it with ngen3 tokenize")));
        }
        let width = dtype.size() as u64;
        if !size.is_multiple_of(width) {
            return Err(Error::Data(format!(
                "{shown}: expected a multiple of {width} bytes ({width} per token), got {}; the file may be truncated",
                count(size, "byte")
            )));
        }
        if let Some(meta) = described(path, meta.as_ref()).filter(|meta| meta.tokens != size / width) {
            return Err(Error::Data(format!(
                "{shown}: expected {} as in {META_FILE}, got {}; tokenize again",
                count(meta.tokens, "token"),
                size / width
            )));
        }
        // SAFETY: we only read the map. Our own writers replace a file by renaming, so its pages stay unchanged; like every
        // user of mmap we rely on no other program truncating the file meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        if meta.is_none() && is_text(&map) {
            return Err(Error::Data(format!(
                "{shown}: expected token ids, got text; tokenize it with ngen3 tokenize --txt"
            )));
        }
        let bare = || {
            let tokenizer = path.with_file_name(TOKENIZER_FILE);
            Description::Bare(BareVocabulary::of(path.parent().unwrap_or(Path::new("")), &tokenizer))
        };
        let description = meta.map_or_else(bare, |meta| Description::Meta(Box::new(meta)));
        Ok(Self { path: path.into(), map, dtype, description })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of tokens, at least 1.
    pub fn len(&self) -> usize {
        self.map.len() / self.dtype.size()
    }

    /// True if there are no tokens; never, since an empty file does not open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Contents of `meta.json`, if there is one.
    pub fn meta(&self) -> Option<&DatasetMeta> {
        match &self.description {
            Description::Meta(meta) => Some(meta),
            Description::Bare(_) => None,
        }
    }

    /// Vocabulary size of the tokenizer that made the file (highest id + 1), which a model needs to read it.
    ///
    /// # Errors
    /// As [`TokenFile::tokenizer`], if nothing beside the file tells it.
    pub fn vocab_size(&self) -> Result<usize, Error> {
        match &self.description {
            Description::Meta(meta) => Ok(meta.vocab_size),
            Description::Bare(BareVocabulary::Chars(chars)) => Ok(chars.vocab_size),
            Description::Bare(_) => Ok(self.tokenizer()?.vocab_size()),
        }
    }

    /// True if nothing beside the file tells its vocabulary, so that [`TokenFile::tokenizer`] is GPT-2's by assumption.
    pub fn is_assumed(&self) -> bool {
        matches!(self.description, Description::Bare(BareVocabulary::Assumed(_)))
    }

    /// Formats a note on taking the file for GPT-2's tokens, if that is assumed and doubtful: its largest id is far below GPT-2's,
    /// or a file beside it describes another vocabulary but cannot be used. Reads the whole file, on all threads.
    pub fn doubt(&self) -> Option<String> {
        let Description::Bare(BareVocabulary::Assumed(beside)) = &self.description else { return None };
        let (largest, gpt2) = (self.max(), Tokenizer::gpt2().vocab_size());
        if beside.is_none() && largest >= SURELY_GPT2 {
            return None;
        }
        let beside = beside.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        Some(format!(
            "{}: taken as GPT-2's tokens; its largest id is {} of {}{beside}; if another tokenizer made it, put its \
             tokenizer.json or nanoGPT's meta.pkl beside it, or tokenize the text with ngen3 tokenize",
            self.path.display(),
            grouped(largest.into()),
            grouped(gpt2 as u64)
        ))
    }

    /// Largest token id.
    fn max(&self) -> u32 {
        let stretches = self.map.par_chunks(STRETCH * self.dtype.size());
        stretches.map(|bytes| decode(self.dtype, bytes).max().unwrap_or(0)).max().unwrap_or(0)
    }

    /// Returns one token.
    ///
    /// # Panics
    /// If `at` is not below [`TokenFile::len`].
    pub fn token(&self, at: usize) -> u32 {
        let width = self.dtype.size();
        decode(self.dtype, &self.map[at * width..(at + 1) * width]).next().expect("the slice holds one token")
    }

    /// Appends a range of tokens to `out`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn copy(&self, range: Range<usize>, out: &mut Vec<u32>) {
        let width = self.dtype.size();
        out.extend(decode(self.dtype, &self.map[range.start * width..range.end * width]));
    }

    /// Counts the text that the tokens from `start` on stand for, on all threads.
    pub fn text_size(&self, start: usize, counter: &ByteCounter) -> TextSize {
        let width = self.dtype.size();
        let stretches = self.map[start * width..].par_chunks(STRETCH * width);
        stretches.map(|bytes| counter.count(&decode(self.dtype, bytes).collect::<Vec<_>>())).sum()
    }

    /// Formats a note on characters that the vocabulary lacked when the file was made; `None` if there were none.
    pub fn missing_note(&self) -> Option<String> {
        let lost = grouped_count(self.meta()?.missing_characters?, "character");
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        Some(format!(
            "{name}: {lost} of the text were not in the vocabulary when it was tokenized; values per byte count only the \
             text that its tokens stand for"
        ))
    }

    /// Loads the tokenizer that made the file: the `tokenizer.json` beside it, the characters of nanoGPT's `meta.pkl`, or else the
    /// built-in GPT-2 tokenizer.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Tokenizer`] if `tokenizer.json` is missing, malformed, or not the one used.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let path = self.path.with_file_name(TOKENIZER_FILE);
        let (name, expected) = match &self.description {
            Description::Meta(meta) => match &meta.tokenizer_sha256 {
                Some(expected) => (meta.tokenizer.clone(), Some(expected)),
                None => return Ok(Tokenizer::gpt2()),
            },
            Description::Bare(BareVocabulary::Chars(vocabulary)) => {
                return Ok(Tokenizer::of_chars(&vocabulary.chars, "meta.pkl"));
            }
            Description::Bare(BareVocabulary::Assumed(_)) => return Ok(Tokenizer::gpt2()),
            Description::Bare(BareVocabulary::TokenizerJson) => (TOKENIZER_FILE.into(), None),
        };
        let bytes = read_at_most(&path, tokenizer::MAX_BYTES).map_err(|error| {
            let shown = self.path.display();
            Error::Data(format!("{}: cannot read the tokenizer {name} of {shown}: {error}", path.display()))
        })?;
        if expected.is_some_and(|expected| *expected != sha256(&bytes)) {
            return Err(Error::Data(format!(
                "{}: not the tokenizer that made {}; tokenize again",
                path.display(),
                self.path.display()
            )));
        }
        Ok(Tokenizer::from_json(&bytes, &name)?)
    }

    /// Reads the whole file and compares its SHA-256 with `meta.json`, if there is one.
    ///
    /// # Errors
    /// [`Error::Data`] if they differ.
    pub fn verify(&self) -> Result<(), Error> {
        let Some(meta) = described(&self.path, self.meta()) else { return Ok(()) };
        if meta.sha256 == sha256(&self.map) {
            return Ok(());
        }
        let shown = self.path.display();
        Err(Error::Data(format!(
            "{shown}: SHA-256 does not match {META_FILE}: the file has changed since it was made; tokenize again"
        )))
    }

    /// Checks, on all threads, that every token id is below `vocab_size`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first token outside the vocabulary.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), Error> {
        let outside = |token: u32| token as usize >= vocab_size;
        // The maximum needs no branch per token, and a valid file needs nothing else.
        let stretches = self.map.par_chunks(STRETCH * self.dtype.size());
        let first = stretches.enumerate().find_map_first(|(stretch, bytes)| {
            let max = decode(self.dtype, bytes).max();
            let at = max.filter(|&max| outside(max)).and(decode(self.dtype, bytes).position(outside))?;
            Some(stretch * STRETCH + at)
        });
        match first {
            None => Ok(()),
            Some(at) => Err(Error::Data(format!(
                "{}: token {} at position {at} is outside the model's vocabulary of {vocab_size}; was it made with \
                 another tokenizer?",
                self.path.display(),
                self.token(at)
            ))),
        }
    }
}

/// Returns `meta` if the file is the `data.bin` that it describes.
fn described<'a>(path: &Path, meta: Option<&'a DatasetMeta>) -> Option<&'a DatasetMeta> {
    meta.filter(|_| path.file_name().is_some_and(|name| name == DATA_FILE))
}

/// Decodes tokens from bytes; a remainder too short for a token is ignored.
fn decode(dtype: Dtype, bytes: &[u8]) -> impl Iterator<Item = u32> {
    // One of the two is empty; both loops are simple enough to be vectorised.
    let (narrow, wide) = match dtype {
        Dtype::Uint16 => (bytes, &[][..]),
        Dtype::Uint32 => (&[][..], bytes),
    };
    let narrow = narrow.as_chunks().0.iter().map(|&token| u32::from(u16::from_le_bytes(token)));
    narrow.chain(wide.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token)))
}

fn read_meta(path: &Path) -> Result<Option<DatasetMeta>, Error> {
    let broken = |reason: String| Error::Data(format!("{}: {reason}; tokenize again", path.display()));
    let bytes = match read_at_most(path, META_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(broken(error.to_string())),
    };
    let meta: DatasetMeta = serde_json::from_slice(&bytes).map_err(|error| broken(error.to_string()))?;
    if meta.vocab_size == 0 || Dtype::for_vocab(meta.vocab_size).size() > meta.dtype.size() {
        return Err(broken(format!("vocab_size {} is out of range for dtype {:?}", meta.vocab_size, meta.dtype)));
    }
    if meta.tokenizer_sha256.is_none() && meta.tokenizer != GPT2_NAME {
        return Err(broken(format!("tokenizer {:?} needs a tokenizer_sha256", meta.tokenizer)));
    }
    Ok(Some(meta))
}

#[cfg(test)]
mod tests;
