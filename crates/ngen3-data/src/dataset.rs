//! Builds a dataset: text from any sources becomes the folder `_data_NAME_`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_model::TokenizerRef;
use ngen3_model::files::{self, AtomicFile, write_atomic};
use ngen3_model::hash::{hex, sha256};
use sha2::{Digest, Sha256};

use crate::batch::VAL_FILE;
use crate::encode::{EncodedChunk, encode};
use crate::hf::{self, HfSource};
use crate::source::limited::read_at_most;
use crate::source::{DocumentReader, Event, ReadOptions, Source, SplitBy, TextOptions, list};
use crate::token_file::{DATA_FILE, DatasetMeta, Dtype, GPT2_NAME, MASK_FILE, META_FILE, TOKENIZER_FILE};
use crate::{Error, Tokenizer, tokenizer};

/// Arguments of [`build_dataset`].
#[derive(Clone, Debug)]
pub struct DatasetSpec<'a> {
    /// Dataset name; its folder is [`dataset_folder`].
    pub name: &'a str,
    /// Text sources.
    pub sources: &'a [Source],
    /// Path of a Hugging Face tokenizer.json; `None` for the built-in GPT-2 tokenizer.
    pub tokenizer: Option<&'a Path>,
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
    /// Path of a Hugging Face tokenizer.json; `None` for the built-in GPT-2 tokenizer.
    pub tokenizer: Option<&'a Path>,
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

impl<'a> DatasetBuilder<'a> {
    pub(crate) fn new(
        name: &str,
        root: &Path,
        tokenizer: Option<&Path>,
        threads: usize,
        stop: &'a AtomicBool,
    ) -> Result<Self, Error> {
        let folder = root.join(dataset_folder(name)?);
        let tokenizer = tokenizer.map_or_else(|| Ok(Tokenizer::gpt2()), read_tokenizer)?;
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
        let mut writer = TokenWriter::create(&data, Dtype::for_vocab(tokenizer.vocab_size()))?;
        let mut reader = start(&folder.path, tokenizer.clone())?;
        let end = tokenizer.eot();
        let (mut text_bytes, mut documents) = (0, 0);
        encode(&mut reader, &tokenizer, threads, stop, progress, &mut |encoded| match encoded {
            EncodedChunk::Tokens { ids, text_bytes: bytes } => {
                text_bytes += bytes as u64;
                writer.push(&ids)
            }
            EncodedChunk::EndOfDocument => {
                documents += 1;
                writer.push(end.as_slice())
            }
            EncodedChunk::Documents { ids, text_bytes: bytes, count } => {
                text_bytes += bytes as u64;
                documents += count as u64;
                writer.push(&ids)
            }
        })?;
        let text_tokens = writer.tokens - if end.is_some() { documents } else { 0 };
        if text_tokens == 0 {
            return Err(Error::Input("the input contains no text; nothing was written".into()));
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
            chat: None,
        };
        commit_dataset(&folder, writer, None, meta, &tokenizer)?;
        let end_of_text = end.map(|id| tokenizer.decode(&[id]));
        Ok(DatasetSummary { data, text_bytes, text_tokens, documents, end_of_text })
    }
}

/// Renames the finished files into place and adds their hashes to `meta.json`. Each rename is atomic; a crash in between leaves
/// files that do not match, which the token count and the hashes reveal when they are opened.
pub(crate) fn commit_dataset(
    folder: &DatasetFolder,
    writer: TokenWriter,
    mask: Option<TokenWriter>,
    mut meta: DatasetMeta,
    tokenizer: &Tokenizer,
) -> Result<(), Error> {
    let path = |name| folder.path.join(name);
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
    folder.keep();
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::write(path, error)),
        _ => Ok(()),
    }
}

/// Reads a tokenizer.json; its file name becomes the tokenizer's name.
fn read_tokenizer(path: &Path) -> Result<Tokenizer, Error> {
    let bytes = read_at_most(path, tokenizer::MAX_BYTES).map_err(|error| Error::read(path.display(), error))?;
    let name = path.file_name().map_or_else(|| GPT2_NAME.into(), |name| name.to_string_lossy());
    Ok(Tokenizer::from_json(&bytes, &name)?)
}

/// The dataset's folder; dropping it removes the folder if it is new and nothing was kept.
pub(crate) struct DatasetFolder {
    pub(crate) path: PathBuf,
    remove_on_drop: std::cell::Cell<bool>,
}

impl DatasetFolder {
    /// Creates the folder if needed. Checks before any work that each file to be written or removed in it can be.
    pub(crate) fn create(path: PathBuf) -> Result<Self, Error> {
        let created = match std::fs::create_dir(&path) {
            Ok(()) => true,
            Err(_) if path.is_dir() => false,
            Err(error) => return Err(Error::write(path, error)),
        };
        let folder = Self { path, remove_on_drop: created.into() };
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
        Ok(folder)
    }

    fn keep(&self) {
        self.remove_on_drop.set(false);
    }
}

impl Drop for DatasetFolder {
    fn drop(&mut self) {
        if self.remove_on_drop.get() {
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
    pub(crate) fn create(path: &Path, dtype: Dtype) -> Result<Self, Error> {
        let file = AtomicFile::create(path)?;
        Ok(Self { path: path.into(), file, dtype, tokens: 0, hash: Sha256::new(), bytes: Vec::new() })
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
mod tests {
    use std::fs;

    use super::*;
    use crate::TokenFile;

    static GO: AtomicBool = AtomicBool::new(false);

    fn make(
        root: &Path,
        sources: &[Source],
        tokenizer: Option<&Path>,
        threads: usize,
    ) -> Result<DatasetSummary, Error> {
        let spec = DatasetSpec {
            name: "x",
            sources,
            tokenizer,
            text: TextOptions::default(),
            split_by: SplitBy::Document,
            eot_splits: None,
            threads,
            root,
        };
        build_dataset(&spec, &GO, &mut |_| {})
    }

    fn tokens(file: &TokenFile) -> Vec<u32> {
        let mut tokens = Vec::new();
        file.copy(0..file.len(), &mut tokens);
        tokens
    }

    /// Returns a text of several chunks whose ids would reveal a wrong split or order.
    fn long_text() -> String {
        (0..400_000).map(|n| format!("{n} the  'll\n\n é{}", n % 7)).collect()
    }

    #[test]
    fn pieces_and_threads_do_not_change_the_ids() {
        let root = tempfile::tempdir().unwrap();
        let text = long_text();
        let paths = [root.path().join("a.txt"), root.path().join("b.txt")];
        fs::write(&paths[0], &text).unwrap();
        fs::write(&paths[1], "short").unwrap();
        let mut expected = Tokenizer::gpt2().encode(&text).unwrap();
        let short = Tokenizer::gpt2().encode("short").unwrap();
        let text_tokens = expected.len() + short.len();
        expected.push(50_256);
        expected.extend(short);
        expected.push(50_256);
        for threads in [1, 5] {
            let sources = paths.clone().map(Source::Path);
            let summary = make(root.path(), &sources, None, threads).unwrap();
            assert_eq!(summary.text_bytes, text.len() as u64 + 5);
            assert_eq!((summary.text_tokens, summary.documents), (text_tokens as u64, 2));
            assert_eq!(summary.end_of_text.as_deref(), Some("<|endoftext|>"));
            let file = TokenFile::open(&summary.data).unwrap();
            assert!(tokens(&file) == expected, "{threads} threads");
            file.verify().unwrap();
            let meta = file.meta().unwrap();
            assert_eq!((meta.tokenizer.as_str(), meta.vocab_size, meta.dtype), ("gpt2", 50_257, Dtype::Uint16));
            assert_eq!((meta.tokens, meta.documents), (expected.len() as u64, 2));
            assert_eq!(meta.source, paths.clone().map(|path| path.display().to_string()));
            assert_eq!(names(&root.path().join("_data_x_")), ["data.bin", "meta.json"]);
        }
    }

    #[test]
    fn a_tokenizer_of_ones_own_travels_with_the_data_and_leaves_with_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("gpt2");
        fs::write(&path, Tokenizer::gpt2().to_json()).unwrap();
        let summary = make(root.path(), &[Source::Shakespeare], Some(&path), 2).unwrap();
        let folder = root.path().join("_data_x_");
        assert_eq!(names(&folder), ["data.bin", "meta.json", "tokenizer.json"]);
        let file = TokenFile::open(&summary.data).unwrap();
        assert_eq!(file.len(), 338_026);
        assert!(file.meta().unwrap().tokenizer_sha256.is_some(), "although it has the built-in one's name");
        let json = TokenizerRef::Json(Tokenizer::gpt2().to_json());
        assert_eq!(file.tokenizer().unwrap().reference(), json, "a model's reference has the file too");
        make(root.path(), &[Source::Shakespeare], None, 2).unwrap();
        assert_eq!(names(&folder), ["data.bin", "meta.json"]);
    }

    #[test]
    fn after_an_error_there_is_nothing_new_and_the_old_is_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let bad = root.path().join("bad.txt");
        fs::write(&bad, [long_text().as_bytes(), b"\xff"].concat()).unwrap();
        let empty = root.path().join("empty.txt");
        fs::write(&empty, "").unwrap();
        let fails = || {
            for path in [&bad, &empty, &root.path().join("missing.txt")] {
                make(root.path(), &[Source::Path(path.clone())], None, 2).unwrap_err();
            }
            let spec = DatasetSpec {
                name: "x",
                sources: &[Source::Shakespeare],
                tokenizer: None,
                text: TextOptions::default(),
                split_by: SplitBy::Document,
                eot_splits: None,
                threads: 2,
                root: root.path(),
            };
            let error = build_dataset(&spec, &AtomicBool::new(true), &mut |_| {}).unwrap_err();
            assert!(matches!(error, Error::Interrupted));
        };
        fails();
        assert!(!root.path().join("_data_x_").exists());
        let data = make(root.path(), &[Source::Shakespeare], None, 2).unwrap().data;
        fails();
        TokenFile::open(&data).unwrap().verify().unwrap();
        assert_eq!(names(&root.path().join("_data_x_")), ["data.bin", "meta.json"]);
    }

    #[test]
    fn whatever_stands_in_the_way_is_named_before_anything_is_replaced() {
        for name in ["data.bin", "meta.json", "tokenizer.json"] {
            let root = tempfile::tempdir().unwrap();
            let in_the_way = root.path().join("_data_x_").join(name);
            fs::create_dir_all(&in_the_way).unwrap();
            let error = make(root.path(), &[Source::Shakespeare], None, 2).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot write {}: ", in_the_way.display())), "{error}");
            assert_eq!(names(&root.path().join("_data_x_")), [name]);
        }
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("_data_x_"), "a file").unwrap();
        let error = make(root.path(), &[Source::Shakespeare], None, 2).unwrap_err().to_string();
        assert!(error.starts_with("cannot write ") && error.contains("_data_x_"), "{error}");
    }

    #[test]
    fn data_that_is_validated_by_a_file_of_its_own_is_not_replaced_under_it() {
        let root = tempfile::tempdir().unwrap();
        let make = || make(root.path(), &[Source::Shakespeare], None, 2);
        let data = make().unwrap().data;
        let val = data.with_file_name("val.bin");
        // A val.bin made before there is a data.bin belongs to the data.bin to come.
        fs::rename(&data, &val).unwrap();
        make().unwrap();
        let before = fs::metadata(&data).unwrap().modified().unwrap();
        let error = make().unwrap_err().to_string();
        let expected =
            format!("{} is the validation split of {}, which would be replaced; ", val.display(), data.display());
        assert!(error.starts_with(&expected), "{error}");
        assert!(val.exists() && fs::metadata(&data).unwrap().modified().unwrap() == before);
    }

    #[test]
    fn what_is_read_only_is_neither_replaced_nor_removed() {
        let root = tempfile::tempdir().unwrap();
        let tokenizer = root.path().join("own.json");
        fs::write(&tokenizer, Tokenizer::gpt2().to_json()).unwrap();
        make(root.path(), &[Source::Shakespeare], Some(&tokenizer), 2).unwrap();
        let bad = root.path().join("bad.txt");
        fs::write(&bad, b"\xff").unwrap();
        for name in ["data.bin", "meta.json", "tokenizer.json"] {
            let path = root.path().join("_data_x_").join(name);
            let writable = fs::metadata(&path).unwrap().permissions();
            let mut read_only = writable.clone();
            read_only.set_readonly(true);
            fs::set_permissions(&path, read_only).unwrap();
            // Reported before any text is read.
            let error = make(root.path(), &[Source::Path(bad.clone())], None, 2).unwrap_err().to_string();
            assert_eq!(error, format!("cannot write {}: it is read-only", path.display()));
            fs::set_permissions(&path, writable).unwrap();
        }
        make(root.path(), &[Source::Shakespeare], None, 2).unwrap();
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_refused() {
        assert_eq!(dataset_folder("my data.v2").unwrap(), "_data_my data.v2_");
        for name in ["", "a/b", "..\\b", "a\0", "a\n"] {
            assert!(dataset_folder(name).unwrap_err().to_string().contains("invalid dataset name"), "{name:?}");
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
