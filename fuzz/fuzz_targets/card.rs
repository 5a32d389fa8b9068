#![no_main]
//! Input: the README of a dataset, which selects among existing files.

use libfuzzer_sys::fuzz_target;
use ngen3_fuzz::Folder;

fuzz_target!(|readme: &[u8]| {
    let folder = Folder::new();
    let dataset = folder.path().join("dataset").display().to_string();
    for (name, content) in [
        ("dataset/data/train-00000-of-00001.jsonl", "{\"text\":\"a\"}\n"),
        ("dataset/en/test.csv", "text\nb\n"),
        ("dataset/x.txt", "c\n"),
    ] {
        folder.put(name, content);
    }
    folder.put("dataset/README.md", readme);
    ngen3_fuzz::read_dataset(&folder, &dataset, &["text"]);
    folder.put("dataset/README.md", [b"---\n", readme, b"\n---\n"].concat());
    ngen3_fuzz::read_dataset(&folder, &dataset, &["text"]);
});
