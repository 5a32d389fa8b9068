//! Builds a dataset: text from any sources becomes the folder `_data_NAME_`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_model::TokenizerRef;
use ngen3_model::files::{self, AtomicFile, NewFolder, write_atomic};
use ngen3_model::hash::{hex, sha256};
use ngen3_model::words::grouped_count;
use sha2::{Digest, Sha256};

use crate::batch::VAL_FILE;
use crate::encode::{EncodedChunk, encode};
use crate::hf::{self, HfSource};
use crate::source::{DocumentReader, Event, ReadOptions, Source, SplitBy, TextOptions, list};
use crate::token_file::{DATA_FILE, DatasetMeta, Dtype, MASK_FILE, META_FILE, TOKENIZER_FILE};
use crate::tokenizer::MissingChars;
use crate::tokenizer_file::{TokenizerFile, chosen};
use crate::{Error, Tokenizer, tokenizer};

/// Arguments of [`build_dataset`].
#[derive(Clone, Debug)]
pub struct DatasetSpec<'a> {
    /// Dataset name; its folder is [`dataset_folder`].
    pub name: &'a str,
    /// Text sources.
    pub sources: &'a [Source],
    /// Hugging Face tokenizer.json; `None` for the built-in GPT-2 tokenizer.
    pub tokenizer: Option<TokenizerFile<'a>>,
    /// Encoding of the sources, and what to do with invalid bytes.
    pub text: TextOptions,
    /// Unit of text that becomes a document.
    pub split_by: SplitBy,
    /// True if the tokenizer's end-of-text token separates documents where it occurs in a text, false if it is text there; `None`
    /// is false, with a note if it occurs.
    pub eot_splits: Option<bool>,
    /// Number of encoding threads.
    pub threads: usize,
    /// Parent of the dataset's folder.
    pub root: &'a Path,
}

/// Arguments of [`build_hf_dataset`].
#[derive(Clone, Debug)]
pub struct HfDatasetSpec<'a> {
    /// Dataset name; its folder is [`dataset_folder`].
    pub name: &'a str,
    /// The records to read.
    pub source: &'a HfSource,
    /// Hugging Face tokenizer.json; `None` for the built-in GPT-2 tokenizer.
    pub tokenizer: Option<TokenizerFile<'a>>,
    /// Number of encoding threads.
    pub threads: usize,
    /// Parent of the dataset's folder.
    pub root: &'a Path,
}

/// A dataset to be built, from text or conversations.
pub(crate) struct DatasetBuilder<'a> {
    pub(crate) folder: PathBuf,
    pub(crate) tokenizer: Tokenizer,
    threads: usize,
    stop: &'a AtomicBool,
}

/// Result of building a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetSummary {
    /// Path of the token file.
    pub data: PathBuf,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Tokens of text, without end-of-text tokens.
    pub text_tokens: u64,
    /// Number of documents.
    pub documents: u64,
    /// Spelling of the token that begins each document, if the tokenizer's settings ask for one.
    pub start_of_text: Option<String>,
    /// Spelling of the token that ends each document, if the tokenizer has one.
    pub end_of_text: Option<String>,
}

/// Returns `_data_NAME_`.
///
/// # Errors
/// [`Error::Input`] for a name that cannot be part of a path.
pub fn dataset_folder(name: &str) -> Result<String, Error> {
    if name.is_empty() || name.contains(|c: char| c == '/' || c == '\\' || c.is_control()) {
        return Err(Error::Input(format!(
            "invalid dataset name {name:?}: it must not be empty or contain /, \\ or control characters"
        )));
    }
    Ok(format!("_data_{name}_"))
}

/// Builds a dataset: `data.bin`, `meta.json`, and `tokenizer.json` unless the tokenizer is the built-in one.
///
/// Files are renamed into place only after every source was read: after an error, an existing dataset of this name is
/// unchanged, and a new one leaves nothing behind. `progress` receives events.
///
/// # Errors
/// Errors of the name, the tokenizer, a source or the disk; [`Error::Input`] when there is no text at all;
/// [`Error::Interrupted`] soon after `stop` is set.
pub fn build_dataset(
    spec: &DatasetSpec,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
) -> Result<DatasetSummary, Error> {
    let target = DatasetBuilder::new(spec.name, spec.root, spec.tokenizer, spec.threads, stop)?;
    let listing = list(spec.sources)?;
    listing.report_skipped(progress);
    let source = spec.sources.iter().map(Source::to_string).collect();
    let eot = target.tokenizer.eot().map(|id| target.tokenizer.decode(&[id])).filter(|eot| !eot.is_empty());
    if spec.eot_splits == Some(true) && eot.is_none() {
        let reason = "the tokenizer has no end-of-text token to separate documents at (--eot_in_text token)";
        return Err(Error::Input(reason.into()));
    }
    target.make(source, progress, |scratch, cutter| {
        let settings = ReadOptions {
            text: spec.text,
            split_by: spec.split_by.clone(),
            marker: eot,
            marker_splits: spec.eot_splits,
            scratch: scratch.into(),
        };
        DocumentReader::start(listing.inputs, settings, move |text| cutter.safe_split(text))
    })
}

/// Builds a dataset as [`build_dataset`] does, with a document for each record with text in a split of a Hugging Face dataset.
/// Records keep their order.
///
/// # Errors
/// As [`build_dataset`]; errors of the dataset, its split or its column.
pub fn build_hf_dataset(
    spec: &HfDatasetSpec,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
) -> Result<DatasetSummary, Error> {
    let target = DatasetBuilder::new(spec.name, spec.root, spec.tokenizer, spec.threads, stop)?;
    let found = hf::resolve(spec.source, &mut |event| {
        progress(event);
        !stop.load(Ordering::Relaxed)
    })?;
    target.make(vec![found.title()], progress, |scratch, cutter| {
        found.documents(scratch.into(), move |text| cutter.safe_split(text))
    })
}

/// Builds a dataset in a folder of any name from texts in memory, each a document. `source` describes their origin.
///
/// # Errors
/// Errors of the tokenizer and the disk; [`Error::Input`] if no text has a token.
pub fn build_texts<'t>(
    folder: &Path,
    source: String,
    tokenizer: &Tokenizer,
    texts: impl Iterator<Item = &'t str>,
) -> Result<DatasetMeta, Error> {
    let folder = DatasetFolder::create(folder.into())?;
    let mut writer = folder.writer(DATA_FILE, Dtype::for_vocab(tokenizer.vocab_size()))?;
    let (mut documents, mut missing, mut found, mut ids) = (0, MissingChars::default(), false, Vec::new());
    for text in texts {
        ids.clear();
        tokenizer.encode_counting(text, &mut ids, &mut missing)?;
        found |= !ids.is_empty();
        documents += 1;
        writer.push(tokenizer.document_start().as_slice())?;
        writer.push(&ids)?;
        writer.push(tokenizer.eot().as_slice())?;
    }
    if !found {
        return Err(Error::Input("the texts have no token of the vocabulary; nothing was written".into()));
    }
    let meta = DatasetMeta {
        tokenizer: tokenizer.name().into(),
        vocab_size: tokenizer.vocab_size(),
        dtype: writer.dtype,
        tokens: writer.tokens,
        documents,
        source: vec![source],
        sha256: String::new(),
        tokenizer_sha256: None,
        missing_characters: Some(missing.count).filter(|&count| count > 0),
        chat: None,
    };
    commit_dataset(folder, writer, None, meta.clone(), tokenizer)?;
    Ok(meta)
}

impl<'a> DatasetBuilder<'a> {
    pub(crate) fn new(
        name: &str,
        root: &Path,
        tokenizer: Option<TokenizerFile>,
        threads: usize,
        stop: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let folder = root.join(dataset_folder(name)?);
        let tokenizer = chosen(tokenizer)?;
        Ok(Self { folder, tokenizer, threads, stop })
    }

    /// Encodes and writes the text of the reader that `start` returns. `start` receives a folder for temporary files and the
    /// tokenizer, for splitting text.
    fn make(
        self,
        source: Vec<String>,
        progress: &mut dyn FnMut(Event),
        start: impl FnOnce(&Path, Tokenizer) -> Result<DocumentReader, Error>,
    ) -> Result<DatasetSummary, Error> {
        let Self { folder, tokenizer, threads, stop } = self;
        let folder = DatasetFolder::create(folder)?;
        let data = folder.path.join(DATA_FILE);
        let mut writer = folder.writer(DATA_FILE, Dtype::for_vocab(tokenizer.vocab_size()))?;
        let mut reader = start(&folder.path, tokenizer.clone())?;
        let (start, end) = (tokenizer.document_start(), tokenizer.eot());
        let (mut text_bytes, mut documents, mut missing) = (0, 0, MissingChars::default());
        // True within a document, after its start.
        let mut inside = false;
        encode(&mut reader, &tokenizer, threads, stop, progress, &mut |encoded| match encoded {
            EncodedChunk::Tokens { ids, text_bytes: bytes, missing: lacks } => {
                text_bytes += bytes as u64;
                missing.add(&lacks);
                if !std::mem::replace(&mut inside, true) {
                    writer.push(start.as_slice())?;
                }
                writer.push(&ids)
            }
            EncodedChunk::EndOfDocument => {
                documents += 1;
                inside = false;
                writer.push(end.as_slice())
            }
            EncodedChunk::Documents { ids, text_bytes: bytes, count, missing: lacks } => {
                text_bytes += bytes as u64;
                documents += count as u64;
                missing.add(&lacks);
                writer.push(&ids)
            }
        })?;
        let around = u64::from(start.is_some()) + u64::from(end.is_some());
        let text_tokens = writer.tokens - around * documents;
        if text_tokens == 0 && missing.count > 0 {
            return Err(tokenizer::Error::NoCharacter(tokenizer.name().into()).into());
        }
        if text_tokens == 0 {
            return Err(Error::Input("the input contains no text; nothing was written".into()));
        }
        if let Some(note) = tokenizer.missing_note(&missing) {
            progress(Event::Note(note));
        }
        if end.is_none() && documents > 1 {
            let (name, documents) = (tokenizer.name(), grouped_count(documents, "document"));
            progress(Event::Note(format!(
                "tokenizer {name} has no token that ends a document: {documents} were joined without one; name one with \
                 --eos_token"
            )));
        }

        let meta = DatasetMeta {
            tokenizer: tokenizer.name().into(),
            vocab_size: tokenizer.vocab_size(),
            dtype: writer.dtype,
            tokens: writer.tokens,
            documents,
            source,
            sha256: String::new(),
            tokenizer_sha256: None,
            missing_characters: Some(missing.count).filter(|&count| count > 0),
            chat: None,
        };
        // A scratch file of it may be in the folder.
        drop(reader);
        commit_dataset(folder, writer, None, meta, &tokenizer)?;
        let [start_of_text, end_of_text] = [start, end].map(|id| Some(tokenizer.decode(&[id?])));
        Ok(DatasetSummary { data, text_bytes, text_tokens, documents, start_of_text, end_of_text })
    }
}

/// Writes the files that describe the tokens, then replaces those of an older dataset by all of them at once.
pub(crate) fn commit_dataset(
    folder: DatasetFolder,
    writer: TokenWriter,
    mask: Option<TokenWriter>,
    meta: DatasetMeta,
    tokenizer: &Tokenizer,
) -> Result<(), Error> {
    write_all(&folder, writer, mask, meta, tokenizer).map_err(|error| folder.explain(error))?;
    folder.commit()
}

fn write_all(
    folder: &DatasetFolder,
    writer: TokenWriter,
    mask: Option<TokenWriter>,
    mut meta: DatasetMeta,
    tokenizer: &Tokenizer,
) -> Result<(), Error> {
    let path = |name| folder.files().join(name);
    meta.sha256 = writer.commit()?;
    match (mask, &mut meta.chat) {
        (Some(mask), Some(chat)) => chat.mask_sha256 = mask.commit()?,
        _ => remove_if_there(&path(MASK_FILE))?,
    }
    match tokenizer.reference() {
        TokenizerRef::Json(json) => {
            meta.tokenizer_sha256 = Some(sha256(&json));
            write_atomic(&path(TOKENIZER_FILE), |file| file.write_all(json.as_bytes()))?;
        }
        TokenizerRef::Gpt2 | TokenizerRef::Unknown => remove_if_there(&path(TOKENIZER_FILE))?,
    }
    write_atomic(&path(META_FILE), |file| {
        serde_json::to_writer_pretty(&mut *file, &meta)?;
        file.write_all(b"\n")
    })?;
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::write(path, error)),
        _ => Ok(()),
    }
}

/// The dataset's folder; dropping it removes the folder if it is new and nothing was kept.
pub(crate) struct DatasetFolder {
    pub(crate) path: PathBuf,
    remove_on_drop: bool,
    /// Folder that will replace it, unless it holds files of others, such as links or a teacher's texts: then its own are replaced
    /// one by one, and a mixture of old and new ones is recognised by `meta.json`.
    new: Option<NewFolder>,
}

impl DatasetFolder {
    /// Creates the folder if needed. Checks before any work that each file to be written or removed in it can be.
    pub(crate) fn create(path: PathBuf) -> Result<Self, Error> {
        let created = match std::fs::create_dir(&path) {
            Ok(()) => {
                files::sync_folder(files::folder_of(&path)).map_err(|error| Error::write(&path, error))?;
                true
            }
            Err(_) if path.is_dir() => false,
            Err(error) => return Err(Error::write(path, error)),
        };
        let mut folder = Self { path, remove_on_drop: created, new: None };
        let at = |name| folder.path.join(name);
        for name in [DATA_FILE, META_FILE, TOKENIZER_FILE, MASK_FILE] {
            files::check(&at(name))?;
        }
        if at(VAL_FILE).exists() && at(DATA_FILE).exists() {
            // It may have been made with another tokenizer, and this build would not remake it.
            let (val, data) = (at(VAL_FILE), at(DATA_FILE));
            return Err(Error::Input(format!(
                "{} is the validation split of {}, which would be replaced; move it away or choose another --dataset",
                val.display(),
                data.display()
            )));
        }
        let ours = |name: &str| [DATA_FILE, META_FILE, TOKENIZER_FILE, MASK_FILE].contains(&name);
        if !folder.path.is_symlink() {
            folder.new = NewFolder::create(&folder.path, true, ours).ok();
        }
        Ok(folder)
    }

    /// Opens a file to write tokens into.
    pub(crate) fn writer(&self, name: &str, dtype: Dtype) -> Result<TokenWriter, Error> {
        let file = AtomicFile::create(&self.files().join(name)).map_err(|error| self.explain(error.into()))?;
        Ok(TokenWriter::new(self.path.join(name), file, dtype))
    }

    /// Returns the folder to write into: the new one, or the dataset's own.
    fn files(&self) -> &Path {
        self.new.as_ref().map_or(&self.path, NewFolder::files)
    }

    /// Replaces a temporary path in an error by the final one.
    fn explain(&self, error: Error) -> Error {
        match (&self.new, error) {
            (Some(new), Error::Write(error)) => Error::Write(new.explain(error)),
            (_, error) => error,
        }
    }

    /// Puts the new folder in the place of the old one.
    fn commit(mut self) -> Result<(), Error> {
        if let Some(new) = self.new.take() {
            // As private as those that they replace.
            for name in ["", DATA_FILE, META_FILE, TOKENIZER_FILE, MASK_FILE] {
                let (old, new) = (self.path.join(name), new.files().join(name));
                if let Some(old) = std::fs::metadata(&old).ok().filter(|_| new.exists()) {
                    std::fs::set_permissions(&new, old.permissions())
                        .map_err(|error| Error::write(&self.path, error))?;
                }
            }
            new.commit()?;
        }
        self.remove_on_drop = false;
        Ok(())
    }
}

impl Drop for DatasetFolder {
    fn drop(&mut self) {
        if self.remove_on_drop {
            // Fails if the folder is not empty after all; then it must stay.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// A `data.bin` or `mask.bin` being written.
pub(crate) struct TokenWriter {
    path: PathBuf,
    file: AtomicFile,
    dtype: Dtype,
    pub(crate) tokens: u64,
    hash: Sha256,
    bytes: Vec<u8>,
}

impl TokenWriter {
    fn new(path: PathBuf, file: AtomicFile, dtype: Dtype) -> Self {
        Self { path, file, dtype, tokens: 0, hash: Sha256::new(), bytes: Vec::new() }
    }

    pub(crate) fn push(&mut self, ids: &[u32]) -> Result<(), Error> {
        self.tokens += ids.len() as u64;
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        match self.dtype {
            // No id is truncated: the vocabulary size determined the dtype.
            Dtype::Uint16 => bytes.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
            Dtype::Uint32 => bytes.extend(ids.iter().flat_map(|&id| id.to_le_bytes())),
        }
        self.push_bytes(&bytes)?;
        self.bytes = bytes;
        Ok(())
    }

    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hash.update(bytes);
        let path = &self.path;
        self.file.write_all(bytes).map_err(|error| Error::write(path, error))
    }

    /// Renames the file into place; returns its SHA-256.
    fn commit(self) -> Result<String, Error> {
        self.file.commit()?;
        Ok(hex(self.hash))
    }
}

#[cfg(test)]
mod tests;
