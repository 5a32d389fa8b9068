//! What the fuzz targets share: folders that hold the bytes of an input, and what is done with them.
//!
//! A target is right as long as it returns: an error is as good as a value. It fails on a panic of our own, on memory that it
//! should not touch or take, and on time without end.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use ngen3_data::{HfSource, HfDatasetSpec, build_hf_dataset, read_records};

/// A folder for one run. With `TMPDIR=/dev/shm` it is in memory.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes a file, and the folders it stands in.
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

/// Libraries of others may panic on damaged files where we catch it. libFuzzer's own hook ends the program at any panic; this
/// one only at ours.
pub fn allow_panics_of_libraries() {
    panic::set_hook(Box::new(|info| {
        let of_a_library = info.location().is_some_and(|place| place.file().contains("/registry/"));
        if !of_a_library {
            eprintln!("{info}");
            std::process::abort();
        }
    }));
}

/// Reads a file of rows both ways: as documents, by each of these columns, and whole, as benchmarks do.
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
            column: (*column).into(),
            revision: None,
            separator: "\n".into(),
        };
        let spec = HfDatasetSpec { name: "x", source: &source, tokenizer: None, threads: 1, root: folder.path() };
        let _ = build_hf_dataset(&spec, &AtomicBool::new(false), &mut |_| ());
    }
    let _ = read_records(dataset, None, "train", &mut |_| true);
}
