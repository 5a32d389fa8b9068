#![no_main]
//! Input: each JSON or text file of a Hugging Face folder in turn, with the other files valid.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ngen3_fuzz::Folder;
use ngen3_model::{Checkpoint, ParamList};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/ngen3-model/tests/fixtures/hf");

/// Folders of links to the fixtures, each without the file that the input takes the place of.
static FOLDERS: LazyLock<Vec<(Folder, &str)>> = LazyLock::new(|| {
    [
        ("whole", "config.json"),
        ("sharded", "model.safetensors.index.json"),
        ("bin_sharded", "pytorch_model.bin.index.json"),
        ("tokenizer", "tokenizer.json"),
        ("tokenizer", "tokenizer_config.json"),
        ("older_tokenizer", "vocab.json"),
        ("older_tokenizer", "merges.txt"),
    ]
    .map(|(fixture, file)| {
        let folder = Folder::new();
        for entry in fs::read_dir(Path::new(FIXTURES).join(fixture)).expect("fixtures").map(Result::unwrap) {
            std::os::unix::fs::symlink(entry.path(), folder.path().join(entry.file_name())).expect("a link");
        }
        let _ = fs::remove_file(folder.path().join(file));
        (folder, file)
    })
    .into()
});

fuzz_target!(|bytes: &[u8]| {
    for (folder, file) in &*FOLDERS {
        folder.put(file, bytes);
        if let Ok(found) = Checkpoint::load(folder.path()) {
            assert_eq!(found.params.len(), ParamList::new(&found.config).total());
        }
    }
});
