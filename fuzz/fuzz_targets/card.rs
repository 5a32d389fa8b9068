#![no_main]
//! Input: the README of a dataset, or the YAML at its head, which selects among existing files.

use std::fs;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use ngen3_fuzz::Folder;

static DATASET: LazyLock<Folder> = LazyLock::new(|| {
    let folder = Folder::new();
    for (name, content) in [
        ("dataset/data/train-00000-of-00001.jsonl", "{\"text\":\"a\"}\n"),
        ("dataset/en/test.csv", "text\nb\n"),
        ("dataset/x.txt", "c\n"),
    ] {
        folder.put(name, content);
    }
    folder
});

fuzz_target!(|readme: &[u8]| {
    let dataset = DATASET.path().join("dataset");
    let head = if readme.starts_with(b"---") { readme.to_vec() } else { [b"---\n", readme, b"\n---\n"].concat() };
    fs::write(dataset.join("README.md"), head).expect("a file");
    ngen3_fuzz::read_dataset(&dataset.display().to_string(), &["text"]);
});
