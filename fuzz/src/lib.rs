//! Helpers shared by the fuzz targets: temporary folders for the input bytes, and the readers that parse them.
//!
//! A target passes if it returns, with a value or an error. It fails on a panic in our code, an invalid memory access, excessive
//! memory use, or a timeout.

pub mod json;

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use ngen3_data::source::{Source, SplitBy, TextEncoding, TextOptions};
use ngen3_data::{DatasetSpec, HfDatasetSpec, HfSource, RecordOptions, build_dataset, build_hf_dataset, read_records};

/// Temporary folder of one run. `TMPDIR=/dev/shm` puts it in memory.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Creates an empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the folder of this thread, which every input shares: a new folder for each would take most of the time.
    pub fn shared() -> Rc<Self> {
        thread_local!(static SHARED: Rc<Folder> = Rc::new(Folder::new()));
        SHARED.with(Rc::clone)
    }

    /// Writes a file and creates its parent folders.
    pub fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a path below the folder")).expect("a folder");
        fs::write(&path, bytes).expect("a file");
        path
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

/// Aborts only on panics in our own code. Third-party libraries may panic on damaged files, which we catch; libFuzzer's own
/// hook would abort on those too.
pub fn allow_panics_of_libraries() {
    panic::set_hook(Box::new(|info| {
        let of_a_library = info.location().is_some_and(|place| place.file().contains("/registry/"));
        if !of_a_library {
            eprintln!("{info}");
            std::process::abort();
        }
    }));
}

/// Returns a `.safetensors` file of a header: its length before it, and zeros after it, as many as its largest number up to 65,536.
pub fn safetensors(header: &str) -> Vec<u8> {
    let numbers = header.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    let data = numbers.filter(|&number: &usize| number <= 1 << 16).max().unwrap_or(0);
    let mut file = Vec::with_capacity(8 + header.len() + data);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header.as_bytes());
    file.resize(8 + header.len() + data, 0);
    file
}

/// Reads a file of records in both ways: as documents from each of these columns, and as whole records, as evaluation tasks do.
pub fn read_rows(name: &str, bytes: &[u8], columns: &[&str]) {
    let folder = Folder::new();
    let dataset = folder.put(name, bytes).display().to_string();
    read_dataset(&folder, &dataset, columns);
}

/// Reads a dataset, as [`read_rows`] does.
pub fn read_dataset(folder: &Folder, dataset: &str, columns: &[&str]) {
    for column in columns {
        let source = HfSource {
            dataset: dataset.into(),
            config: None,
            split: "train".into(),
            column: Some((*column).into()),
            revision: None,
            separator: "\n".into(),
            options: RecordOptions::default(),
        };
        let spec = HfDatasetSpec { name: "x", source: &source, tokenizer: None, threads: 1, root: folder.path() };
        let _ = build_hf_dataset(&spec, &AtomicBool::new(false), &mut |_| ());
    }
    let _ = read_records(dataset, None, "train", &mut |_| true);
}

/// Reads a text file or an archive of texts, its end-of-text tokens as separators and as text.
pub fn read_text(folder: &Folder, path: &Path, encoding: Option<TextEncoding>, split_by: SplitBy) {
    for (lossy, eot_splits) in [(true, Some(true)), (false, None)] {
        let spec = DatasetSpec {
            name: "x",
            sources: &[Source::Path(path.into())],
            tokenizer: None,
            text: TextOptions { lossy, encoding },
            split_by: split_by.clone(),
            eot_splits,
            threads: 1,
            root: folder.path(),
        };
        let _ = build_dataset(&spec, &AtomicBool::new(false), &mut |_| ());
    }
}
