//! Tokens on disk: `data.bin`, token ids in little-endian u16 (u32 for a vocabulary over 65,536), described by the `meta.json`
//! beside it. Without a meta.json it is nanoGPT's format: GPT-2's ids in u16.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use ngen3_model::ChatFormat;
use ngen3_model::hash::sha256;
use ngen3_model::words::count;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::source::limited::read_at_most;
use crate::{Error, Tokenizer, tokenizer};

/// The file that `meta.json` describes.
pub(crate) const DATA_FILE: &str = "data.bin";
pub(crate) const META_FILE: &str = "meta.json";
pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
pub(crate) const MASK_FILE: &str = "mask.bin";

/// Largest `meta.json` accepted, in bytes; it lists the sources.
const META_BYTES: usize = 1 << 26;

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
    meta: Option<DatasetMeta>,
}

/// True if the bytes begin like printable ASCII text. Tokens that do would all have ids of 8,000 to 32,000 with two printable
/// halves.
fn is_text(bytes: &[u8]) -> bool {
    const LOOKED_AT: usize = 512;
    let start = &bytes[..bytes.len().min(LOOKED_AT)];
    start.len() >= 64 && start.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\r' | b'\t'))
}

impl TokenFile {
    /// Opens a token file and checks its size against the `meta.json` beside it; [`TokenFile::verify`] checks its hash. Other
    /// files in the folder (`val.bin`) share that file's tokenizer and dtype.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Read`] for a file that is missing, empty, truncated, or does not match its `meta.json`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display();
        let unreadable = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Error::Data(format!("{shown}: no such file; create it with ngen3 tokenize")),
            _ => Error::read(&shown, error),
        };
        if path.is_dir() {
            return Err(Error::Data(format!(
                "{shown}: expected a token file, got a folder; use {}",
                path.join(DATA_FILE).display()
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
        if let Some(meta) = described(path, &meta).filter(|meta| meta.tokens != size / width) {
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
        Ok(Self { path: path.into(), map, dtype, meta })
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
        self.meta.as_ref()
    }

    /// Vocabulary size of the tokenizer that made the file (highest id + 1), which a model needs to read it.
    ///
    /// # Errors
    /// As [`TokenFile::tokenizer`], if there is no `meta.json`.
    pub fn vocab_size(&self) -> Result<usize, Error> {
        match &self.meta {
            Some(meta) => Ok(meta.vocab_size),
            None => Ok(self.tokenizer()?.vocab_size()),
        }
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

    /// Loads the tokenizer that made the file: the `tokenizer.json` beside it, or else the built-in GPT-2 tokenizer.
    ///
    /// # Errors
    /// [`Error::Data`] or [`Error::Tokenizer`] if `tokenizer.json` is missing, malformed, or not the one used.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let path = self.path.with_file_name(TOKENIZER_FILE);
        let (name, expected) = match &self.meta {
            Some(meta) => match &meta.tokenizer_sha256 {
                Some(expected) => (meta.tokenizer.clone(), Some(expected)),
                None => return Ok(Tokenizer::gpt2()),
            },
            None if !path.exists() => return Ok(Tokenizer::gpt2()),
            None => (TOKENIZER_FILE.into(), None),
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
        let Some(meta) = described(&self.path, &self.meta) else { return Ok(()) };
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
        /// Tokens checked by a thread at a time.
        const STRETCH: usize = 1 << 20;
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
fn described<'a>(path: &Path, meta: &'a Option<DatasetMeta>) -> Option<&'a DatasetMeta> {
    meta.as_ref().filter(|_| path.file_name().is_some_and(|name| name == DATA_FILE))
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
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Makes a folder with these files; returns the error of opening one of them.
    fn open_error(files: &[(&str, &[u8])], name: &str) -> String {
        let folder = folder(files);
        let error = TokenFile::open(&folder.path().join(name)).unwrap_err().to_string();
        assert!(!error.contains('\n'), "one line: {error}");
        error.replace(&format!("{}/", folder.path().display()), "")
    }

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn meta(changes: serde_json::Value) -> Vec<u8> {
        let mut meta = json!({
            "tokenizer": "gpt2", "vocab_size": 50257, "dtype": "uint16", "tokens": 3, "documents": 1, "source": ["a.txt"],
            "sha256": sha256([1, 0, 2, 0, 3, 1]),
        });
        for (key, value) in changes.as_object().unwrap() {
            meta[key] = value.clone();
        }
        meta.to_string().into_bytes()
    }

    const THREE: (&str, &[u8]) = ("data.bin", &[1, 0, 2, 0, 3, 1]);

    #[test]
    fn a_bare_file_is_gpt2_in_u16() {
        let folder = folder(&[("train.bin", THREE.1)]);
        let file = TokenFile::open(&folder.path().join("train.bin")).unwrap();
        assert_eq!((file.len(), file.vocab_size().unwrap(), file.meta()), (3, 50_257, None));
        assert_eq!((file.token(0), file.token(2)), (1, 259));
        let mut tokens = vec![7];
        file.copy(1..3, &mut tokens);
        assert_eq!(tokens, [7, 2, 259]);
        assert_eq!(file.tokenizer().unwrap().name(), "gpt2");
        file.verify().unwrap();
    }

    #[test]
    fn meta_json_decides_dtype_and_vocabulary_and_is_held_against_the_file() {
        let wide = meta(json!({"vocab_size": 70000, "dtype": "uint32", "tokens": 2}));
        let folder =
            folder(&[("data.bin", &[1, 0, 1, 0, 2, 0, 0, 0]), ("meta.json", &wide), ("val.bin", &[9, 0, 0, 0])]);
        let file = TokenFile::open(&folder.path().join("data.bin")).unwrap();
        assert_eq!((file.len(), file.token(0), file.token(1), file.vocab_size().unwrap()), (2, 65_537, 2, 70_000));
        assert!(file.verify().unwrap_err().to_string().contains("has changed since it was made"));
        let val = TokenFile::open(&folder.path().join("val.bin")).unwrap();
        assert_eq!((val.len(), val.token(0)), (1, 9));
        val.verify().unwrap();
    }

    #[test]
    fn files_that_do_not_hold_are_refused() {
        let absent = open_error(&[], "data.bin");
        assert_eq!(absent, "data.bin: no such file; create it with ngen3 tokenize");
        let empty = open_error(&[("data.bin", b"")], "data.bin");
        assert_eq!(empty, "data.bin: the file is empty; create it with ngen3 tokenize");
        let odd = open_error(&[("data.bin", b"abc")], "data.bin");
        assert_eq!(
            odd,
            "data.bin: expected a multiple of 2 bytes (2 per token), got 3 bytes; the file may be truncated"
        );
        let fewer = open_error(&[THREE, ("meta.json", &meta(json!({"tokens": 4})))], "data.bin");
        assert_eq!(fewer, "data.bin: expected 4 tokens as in meta.json, got 3; tokenize again");
        let halved = open_error(&[THREE, ("meta.json", &meta(json!({"dtype": "uint32"})))], "data.bin");
        assert!(halved.contains("expected a multiple of 4 bytes (4 per token), got 6 bytes"), "{halved}");
        for (changes, reason) in [
            (json!({"dtype": "float"}), "unknown variant `float`"),
            (json!({"tokens": -1}), "invalid value"),
            (json!({"vocab_size": 0}), "vocab_size 0 is out of range"),
            (json!({"vocab_size": 70000}), "vocab_size 70000 is out of range for dtype Uint16"),
            (json!({"tokenizer": "mine"}), "needs a tokenizer_sha256"),
        ] {
            let error = open_error(&[THREE, ("meta.json", &meta(changes))], "data.bin");
            assert!(error.starts_with("meta.json: ") && error.contains(reason), "{error}");
        }
        let cut = open_error(&[THREE, ("meta.json", b"{")], "data.bin");
        assert!(cut.starts_with("meta.json: ") && cut.ends_with("; tokenize again"), "{cut}");
        let folder = folder(&[]);
        let error = TokenFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("data.bin") && error.contains("got a folder"), "{error}");
    }

    #[test]
    fn the_tokenizer_is_the_one_that_made_the_data() {
        let json = Tokenizer::gpt2().to_json();
        let hash = sha256(&json);
        let mine = meta(json!({"tokenizer": "mine", "tokenizer_sha256": hash}));
        let tokenizer = |files: &[(&str, &[u8])]| {
            let folder = folder(files);
            TokenFile::open(&folder.path().join("data.bin")).unwrap().tokenizer().map_err(|error| error.to_string())
        };
        let found = tokenizer(&[THREE, ("meta.json", &mine), ("tokenizer.json", json.as_bytes())]).unwrap();
        assert_eq!((found.name(), found.vocab_size()), ("mine", 50_257));
        let left_over = tokenizer(&[THREE, ("meta.json", &meta(json!({}))), ("tokenizer.json", b"left over")]);
        assert_eq!(left_over.unwrap().name(), "gpt2");
        assert_eq!(tokenizer(&[THREE, ("tokenizer.json", json.as_bytes())]).unwrap().name(), "tokenizer.json");
        assert!(tokenizer(&[THREE, ("meta.json", &mine)]).unwrap_err().contains("the tokenizer mine"));
        let other = tokenizer(&[THREE, ("meta.json", &mine), ("tokenizer.json", b"{}")]).unwrap_err();
        assert!(other.contains("not the tokenizer that made"), "{other}");
        assert!(tokenizer(&[THREE, ("tokenizer.json", b"{}")]).is_err());
    }

    #[test]
    fn the_first_token_outside_a_vocabulary_is_named() {
        for outside in [vec![], vec![0], vec![2_500_000], vec![1_048_576, 1_048_577, 2_999_999]] {
            let mut bytes = vec![0; 6_000_000];
            for at in &outside {
                bytes[2 * at..2 * at + 2].copy_from_slice(&50_300u16.to_le_bytes());
            }
            let folder = folder(&[("data.bin", &bytes)]);
            let file = TokenFile::open(&folder.path().join("data.bin")).unwrap();
            file.check_vocab(50_301).unwrap();
            let found = file.check_vocab(50_257).map_err(|error| error.to_string());
            let expected = outside.first().map_or(Ok(()), |at| {
                Err(format!(
                    "{}: token 50300 at position {at} is outside the model's vocabulary of 50257; was it made with \
                     another tokenizer?",
                    file.path().display()
                ))
            });
            assert_eq!(found, expected);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(data in prop::collection::vec(any::<u8>(), 0..40), meta in ".{0,80}", has_meta: bool) {
            let mut files = vec![("data.bin", data.as_slice())];
            if has_meta {
                files.push(("meta.json", meta.as_bytes()));
            }
            let folder = folder(&files);
            if let Ok(file) = TokenFile::open(&folder.path().join("data.bin")) {
                let mut tokens = Vec::new();
                file.copy(0..file.len(), &mut tokens);
                prop_assert_eq!(tokens.len(), data.len() / 2);
                prop_assert_eq!(file.check_vocab(1 << 16).is_ok(), true);
            }
        }
    }
}
