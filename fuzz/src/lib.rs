//! Helpers shared by the fuzz targets: temporary folders for the input bytes, and the readers that parse them.
//!
//! A target passes if it returns, with a value or an error. It fails on a panic in our code, an invalid memory access, excessive
//! memory use, or a timeout.

pub mod json;

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ngen3_data::source::{ReadOptions, Source, SplitBy, TextEncoding, TextOptions};
use ngen3_data::{HfSource, RecordOptions, fuzz, read_records};

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
        if name.contains('/') {
            fs::create_dir_all(path.parent().expect("a path below the folder")).expect("a folder");
        }
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
    let dataset = Folder::shared().put(name, bytes).display().to_string();
    read_dataset(&dataset, columns);
}

/// Reads a dataset, as [`read_rows`] does.
pub fn read_dataset(dataset: &str, columns: &[&str]) {
    for column in columns {
        let _ = fuzz::documents(&HfSource {
            dataset: dataset.into(),
            config: None,
            split: "train".into(),
            column: Some((*column).into()),
            revision: None,
            separator: "\n".into(),
            options: RecordOptions::default(),
        });
    }
    let _ = read_records(dataset, None, "train", &mut |_| true);
}

/// Reads a text file or an archive of texts, with end-of-text tokens as separators or as text.
pub fn read_text(path: &Path, encoding: Option<TextEncoding>, split_by: SplitBy, marker_splits: bool) {
    let options = ReadOptions {
        text: TextOptions { lossy: marker_splits, encoding },
        split_by,
        marker: Some("<|endoftext|>".into()),
        marker_splits: marker_splits.then_some(true),
        scratch: std::env::temp_dir(),
    };
    let _ = fuzz::texts(&[Source::Path(path.into())], options);
}
