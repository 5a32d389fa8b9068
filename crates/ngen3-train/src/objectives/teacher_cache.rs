//! Cache of a teacher's predictions on a training set, computed once: `--teacher_cache DIR`.
//!
//! The training part is cut into consecutive windows of `block_size` tokens, from which training draws its sequences (without
//! a cache, a sequence starts at any token). For each position of each window the folder holds the teacher's `top_k` most likely
//! tokens at the temperature, and their log probabilities over the whole vocabulary; the remaining tokens count as one.
//! `cache.json` identifies the cache ([`CacheIdentity`]); `windows-00000.bin` and so on hold a fixed number of windows each: the
//! ids `[block_size, top_k]` of a window (u16, or u32 for a large vocabulary), then its log probabilities (f32), all
//! little-endian. Files are written atomically, and existing ones are not recomputed.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ngen3_engine::{Dtype, Teacher, TopK};
use ngen3_model::files::{create_folders, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::objectives::identity;
use crate::{DataIdentity, Error, TokenObjective};

/// Format version in `cache.json`.
const FORMAT: &str = "ngen3 teacher cache 1";

/// Approximate size of a file in bytes: the most that is lost if filling is interrupted.
const FILE_BYTES: usize = 8 << 20;

/// Identity of a cache. It serves runs in which everything but the dtype is the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheIdentity {
    format: String,
    /// SHA-256 of the teacher's shape and weights, and their quantisation, if any.
    pub teacher: String,
    /// Dtype the teacher computed in. A complete cache serves runs in any dtype; older caches lack the field.
    pub dtype: String,
    /// SHA-256 of the token file.
    pub data: String,
    /// Number of training tokens in the file.
    pub train_tokens: u64,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Tokens per window.
    pub block_size: usize,
    /// Temperature of both distributions.
    pub temperature: f32,
    /// Tokens per position.
    pub top_k: usize,
    windows_per_file: usize,
}

impl CacheIdentity {
    /// Creates the identity of a cache of `teacher` on `data`.
    pub fn new(
        teacher: String,
        dtype: Dtype,
        data: DataIdentity,
        vocab_size: usize,
        block_size: usize,
        temperature: f32,
        top_k: usize,
    ) -> Self {
        let DataIdentity { train_tokens, sha256: data, .. } = data;
        let (format, dtype, windows_per_file) = (FORMAT.into(), dtype.to_string(), 1);
        let mut about = Self {
            format,
            teacher,
            dtype,
            data,
            train_tokens,
            vocab_size,
            block_size,
            temperature,
            top_k,
            windows_per_file,
        };
        about.windows_per_file = (FILE_BYTES / about.window_bytes()).max(1);
        about
    }

    fn id_bytes(&self) -> usize {
        ngen3_data::Dtype::for_vocab(self.vocab_size).size()
    }

    fn window_bytes(&self) -> usize {
        self.block_size * self.top_k * (self.id_bytes() + 4)
    }
}

/// A folder with a teacher's predictions.
#[derive(Debug)]
pub struct TeacherCache {
    folder: PathBuf,
    about: CacheIdentity,
    /// Number of windows.
    windows: usize,
    /// Dtype of the existing predictions, if it differs from the run's.
    other_dtype: Option<String>,
}

impl TeacherCache {
    /// Opens or creates the folder, for `windows` windows ([`ngen3_data::BatchSampler::windows`]). Checks the size of each file.
    ///
    /// # Errors
    /// [`Error::File`] if the cache has another identity, a file has the wrong size, or missing predictions would be computed in
    /// another dtype than the existing ones; [`Error::Io`].
    pub fn open(folder: &Path, about: CacheIdentity, windows: usize) -> Result<Self, Error> {
        create_folders(folder).map_err(Error::io("create the folder", folder))?;
        let path = folder.join("cache.json");
        let (mut other_dtype, mut missing) = (None, false);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let found: Map<String, Value> = serde_json::from_str(&text)
                    .map_err(|error| Error::file(&path, format!("expected JSON of a teacher cache ({error})")))?;
                let dtype = found.get("dtype").and_then(Value::as_str).filter(|&dtype| dtype != about.dtype);
                other_dtype = dtype.map(str::to_owned);
                if let Some(difference) = identity::difference(&found, &about, &["dtype"]) {
                    let what = format!("not for this run: {difference}; choose another --teacher_cache");
                    return Err(Error::file(&path, what));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => missing = true,
            Err(error) => return Err(Error::io("read", &path)(error)),
        }
        let mut cache = Self { folder: folder.into(), about, windows, other_dtype };
        let (mut whole, mut begun) = (true, false);
        for index in 0..cache.files() {
            let has = cache.has(index)?;
            (whole, begun) = (whole && has, begun || has);
        }
        if missing || !begun && cache.other_dtype.take().is_some() {
            cache.describe()?;
        }
        match &cache.other_dtype {
            Some(dtype) if !whole => Err(Error::file(
                &path,
                format!(
                    "the cache is incomplete and was started in {dtype}, not {}; use --dtype {dtype} or another \
                     --teacher_cache",
                    cache.about.dtype
                ),
            )),
            _ => Ok(cache),
        }
    }

    /// Writes `cache.json`.
    fn describe(&self) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(&self.about).expect("names and numbers serialise");
        write_atomic(&self.folder.join("cache.json"), |file| file.write_all(format!("{text}\n").as_bytes()))?;
        Ok(())
    }

    /// Dtype of the cached predictions, if it differs from the run's.
    pub fn other_dtype(&self) -> Option<&str> {
        self.other_dtype.as_deref()
    }

    /// Size of the complete cache in bytes, without `cache.json`.
    pub fn bytes(&self) -> u64 {
        (self.windows * self.about.window_bytes()) as u64
    }

    /// Tokens per position.
    pub fn top_k(&self) -> usize {
        self.about.top_k
    }

    fn files(&self) -> usize {
        self.windows.div_ceil(self.about.windows_per_file)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("windows-{index:05}.bin"))
    }

    /// Range of windows in a file.
    fn windows_of(&self, index: usize) -> std::ops::Range<usize> {
        let each = self.about.windows_per_file;
        index * each..((index + 1) * each).min(self.windows)
    }

    /// Returns `true` if a file exists. Fails if it has the wrong size.
    fn has(&self, index: usize) -> Result<bool, Error> {
        let path = self.path(index);
        let expected = (self.windows_of(index).len() * self.about.window_bytes()) as u64;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == expected => Ok(true),
            Ok(metadata) => Err(Error::file(
                &path,
                format!("expected {expected} bytes, got {}; delete the file to recompute it", metadata.len()),
            )),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Computes the missing predictions, `rows` windows at a time. Calls `go_on` with the bytes done of [`TeacherCache::bytes`];
    /// stops and returns `false` if it returns `false`.
    ///
    /// # Errors
    /// Errors of the teacher, and of files that cannot be written.
    pub fn fill(
        &self,
        teacher: &mut dyn Teacher,
        corpus: &mut TokenObjective,
        rows: usize,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<bool, Error> {
        for index in 0..self.files() {
            if self.has(index)? {
                continue;
            }
            let windows: Vec<usize> = self.windows_of(index).collect();
            let mut done = (windows[0] * self.about.window_bytes()) as u64;
            let mut bytes = Vec::with_capacity(windows.len() * self.about.window_bytes());
            for some in windows.chunks(rows) {
                if !go_on(done) {
                    return Ok(false);
                }
                let batch = corpus.window_batch(some);
                let said = teacher.top_k(batch, self.about.top_k, self.about.temperature)?;
                self.encode(&said, &mut bytes);
                done += (some.len() * self.about.window_bytes()) as u64;
            }
            write_atomic(&self.path(index), |file| file.write_all(&bytes))?;
        }
        Ok(go_on(self.bytes()))
    }

    fn encode(&self, TopK { ids, log_probs, .. }: &TopK, out: &mut Vec<u8>) {
        let each = self.about.block_size * self.about.top_k;
        for (ids, log_probs) in ids.chunks_exact(each).zip(log_probs.chunks_exact(each)) {
            match self.about.id_bytes() {
                2 => out.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes())),
                _ => out.extend(ids.iter().flat_map(|id| id.to_le_bytes())),
            }
            out.extend(log_probs.iter().flat_map(|value| value.to_le_bytes()));
        }
    }

    /// Reads the predictions for these windows, `[windows, block_size, top_k]`.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read, [`Error::File`] for invalid ids or log probabilities.
    pub fn read(&self, windows: &[usize]) -> Result<TopK, Error> {
        let CacheIdentity { vocab_size, block_size, top_k, .. } = self.about;
        let numbers = block_size * top_k;
        let mut bytes = vec![0; self.about.window_bytes()];
        let mut found = TopK { k: top_k, ..TopK::default() };
        for window in windows {
            let (index, within) = (window / self.about.windows_per_file, window % self.about.windows_per_file);
            let path = self.path(index);
            File::open(&path)
                .and_then(|mut file| {
                    file.seek(SeekFrom::Start((within * bytes.len()) as u64))?;
                    file.read_exact(&mut bytes)
                })
                .map_err(Error::io("read", &path))?;
            let (ids, log_probs) = bytes.split_at(numbers * self.about.id_bytes());
            match self.about.id_bytes() {
                2 => found.ids.extend(ids.as_chunks().0.iter().map(|&two| u32::from(u16::from_le_bytes(two)))),
                _ => found.ids.extend(ids.as_chunks().0.iter().map(|&four| u32::from_le_bytes(four))),
            }
            found.log_probs.extend(log_probs.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)));
            let start = found.ids.len() - numbers;
            let sound = found.ids[start..].iter().all(|&id| (id as usize) < vocab_size)
                && found.log_probs[start..].iter().all(|value| (f32::MIN..=0.0).contains(value));
            if !sound {
                let what = format!("window {window} is damaged; delete the file to recompute it");
                return Err(Error::file(&path, what));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use ngen3_data::TokenFile;
    use ngen3_engine::{Slot, Trainer};
    use ngen3_model::Config;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::objectives::distill::{DistillRequest, DistillTask};
    use crate::testing::{FakeEngine, settings};

    const TOKENS: u64 = 300;

    /// Not exact in f32, so that reading it back from text is tested.
    const TEMPERATURE: f32 = 1.2;

    fn about(vocab_size: usize) -> CacheIdentity {
        let data = DataIdentity { train_tokens: 240, val_tokens: 60, sha256: "d".into() };
        CacheIdentity {
            windows_per_file: 7,
            ..CacheIdentity::new("t".into(), Dtype::F32, data, vocab_size, 4, TEMPERATURE, 3)
        }
    }

    /// A folder with a file of tokens below 7, the objective on it, and a teacher.
    fn all() -> (TempDir, TokenObjective, FakeEngine) {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..TOKENS).flat_map(|i| ((i * i % 7) as u16).to_le_bytes()).collect();
        fs::write(dir.path().join("data.bin"), bytes).unwrap();
        let config = Config::new(1, 1, 2, 4, 7);
        let corpus =
            TokenObjective::new(TokenFile::open(&dir.path().join("data.bin")).unwrap(), &config, &settings(1)).unwrap();
        (dir, corpus, FakeEngine::new(config, 3))
    }

    /// Opens the cache of that file.
    fn open(folder: &Path, about: CacheIdentity) -> Result<TeacherCache, Error> {
        TeacherCache::open(folder, about, 59)
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_the_teacher_says_comes_back_as_it_was_said() {
        for vocab_size in [7, 70_000] {
            let (dir, mut corpus, mut teacher) = all();
            let cache = open(&dir.path().join("said"), about(vocab_size)).unwrap();
            assert!(cache.fill(&mut teacher, &mut corpus, 3, &mut |_| true).unwrap());
            let windows = [58, 0, 7, 7];
            let said = teacher.top_k(corpus.window_batch(&windows), 3, TEMPERATURE).unwrap();
            assert_eq!(cache.read(&windows).unwrap(), said);
            let files = fs::read_dir(dir.path().join("said")).unwrap();
            let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
            assert!(bytes > cache.bytes() && bytes < cache.bytes() + 1_000);
        }
    }

    #[test]
    fn filling_goes_on_after_the_last_whole_file() {
        let (dir, mut corpus, mut teacher) = all();
        let folder = dir.path().join("said");
        let cache = open(&folder, about(7)).unwrap();
        let mut heard = Vec::new();
        let stopped = cache.fill(&mut teacher, &mut corpus, 3, &mut |bytes| {
            heard.push(bytes);
            heard.len() < 6
        });
        assert!(!stopped.unwrap());
        let window = about(7).window_bytes() as u64;
        assert_eq!(heard, [0, 3, 6, 7, 10, 13].map(|windows| windows * window));
        assert_eq!(names(&folder), ["cache.json", "windows-00000.bin"]);

        // Complete files are kept, even if the teacher's weights change.
        let before = fs::read(folder.join("windows-00000.bin")).unwrap();
        let other = FakeEngine::new(Config::new(1, 1, 2, 4, 7), 9);
        teacher.write(Slot::Params, &other.read(Slot::Params)).unwrap();
        let cache = open(&folder, about(7)).unwrap();
        assert!(cache.fill(&mut teacher, &mut corpus, 3, &mut |_| true).unwrap());
        assert_eq!(names(&folder).len(), 1 + 9, "59 windows, 7 per file");
        assert_eq!(fs::read(folder.join("windows-00000.bin")).unwrap(), before);
        assert_ne!(fs::read(folder.join("windows-00001.bin")).unwrap(), before);
    }

    #[test]
    fn what_a_cache_loses_is_not_worked_out_once_the_run_is_stopped() {
        let (dir, mut corpus, mut teacher) = all();
        let cache = open(&dir.path().join("said"), about(7)).unwrap();
        assert!(cache.fill(&mut teacher, &mut corpus, 3, &mut |_| true).unwrap());
        let mut student = FakeEngine::new(Config::new(1, 1, 2, 4, 7), 4);
        let request = DistillRequest { top_k: Some(3), ..DistillRequest::default() };
        let record = request.settle(None, "t".into()).unwrap();
        let mut task = DistillTask { tokens: corpus, record };
        let found = task.compare(&cache, &mut teacher, &mut student, 2, &AtomicBool::new(true));
        assert_eq!(found.unwrap(), None);
    }

    #[test]
    fn a_cache_is_of_one_dtype_once_the_teacher_has_said_something() {
        let (dir, mut corpus, mut teacher) = all();
        let folder = dir.path().join("said");
        let bf16 = || CacheIdentity { dtype: "bf16".into(), ..about(7) };
        open(&folder, bf16()).unwrap();
        let cache = open(&folder, about(7)).unwrap();
        assert_eq!(cache.other_dtype(), None, "nothing was computed in bf16");
        let mut files = 0;
        let stopped = cache.fill(&mut teacher, &mut corpus, 7, &mut |_| {
            files += 1;
            files < 3
        });
        assert!(!stopped.unwrap());
        let error = open(&folder, bf16()).unwrap_err().to_string();
        assert!(error.contains("was started in f32, not bf16"), "{error}");
        let cache = open(&folder, about(7)).unwrap();
        assert!(cache.fill(&mut teacher, &mut corpus, 7, &mut |_| true).unwrap());
        assert_eq!(open(&folder, bf16()).unwrap().other_dtype(), Some("f32"));
    }

    #[test]
    fn damaged_bytes_are_read_or_refused() {
        let (dir, mut corpus, mut teacher) = all();
        let folder = dir.path().join("said");
        let cache = open(&folder, about(7)).unwrap();
        cache.fill(&mut teacher, &mut corpus, 8, &mut |_| true).unwrap();
        let path = folder.join("windows-00003.bin");
        let whole = fs::read(&path).unwrap();
        proptest!(|(at in 0..whole.len(), byte in any::<u8>())| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            fs::write(&path, bytes).unwrap();
            if let Ok(said) = cache.read(&(21..28).collect::<Vec<_>>()) {
                prop_assert!(said.ids.iter().all(|&id| id < 7));
                prop_assert!(said.log_probs.iter().all(|&value| value <= 0.0 && value.is_finite()));
            }
        });
    }

    proptest! {
        #[test]
        fn any_description_is_read_or_refused(text in "\\PC{0,60}") {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("cache.json"), text).unwrap();
            prop_assert!(open(dir.path(), about(7)).is_err());
        }
    }
}
