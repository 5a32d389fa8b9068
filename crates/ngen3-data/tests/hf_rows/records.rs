//! Whole records: all formats give the same columns with the same values as the JSON lines.

use std::fs;

use ngen3_data::{Record, read_records};
use serde_json::{Map, Value};

use super::{fixtures, folder};

fn read(dataset: &std::path::Path, split: &str) -> Result<Vec<Record>, String> {
    read_records(dataset.to_str().unwrap(), None, split, &mut |_| true)
        .map(|(_, records)| records)
        .map_err(|error| error.to_string())
}

#[test]
fn all_formats_give_the_same_rows() {
    let lines = fs::read_to_string(fixtures().join("lines.jsonl")).unwrap();
    let expected: Vec<Record> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in [
        "lines.jsonl",
        "array.json",
        "none.parquet",
        "snappy.parquet",
        "brotli.parquet",
        "zstd.parquet",
        "uncompressed.arrow",
        "lz4.arrow",
        "saved.arrow",
    ] {
        let found = read(&fixtures().join(name), "train").unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (mut found, expected) in found.into_iter().zip(&expected) {
            // Some of the files have one more column.
            found.remove("kind");
            assert_eq!(found, *expected, "{name}");
        }
    }
    // A large string and a dictionary are strings like others.
    let found = read(&fixtures().join("large.parquet"), "train").unwrap();
    assert_eq!(found[3]["text"], "two\nlines, \"quoted\"");
    let kinds: Vec<_> = found.iter().take(3).map(|row| row["kind"].clone()).collect();
    assert_eq!(kinds, [Value::from("a"), "b".into(), Value::Null]);
    // A CSV file has only strings.
    for name in ["comma.csv", "tabs.tsv"] {
        let found = read(&fixtures().join(name), "train").unwrap();
        assert_eq!((&found[0]["id"], &found[0]["text"]), (&"0".into(), &"Once upon a time".into()), "{name}");
        assert_eq!(found[1]["text"], Value::Null, "{name}");
    }
    let found = read(&fixtures().join("lines.txt"), "train").unwrap();
    assert_eq!(found[0], Map::from_iter([("text".into(), "one".into())]));
}

#[test]
fn a_file_called_as_the_split_is_the_split() {
    let files = [
        ("dev.jsonl", "{\"n\": 1}\n"),
        ("validation.jsonl", "{\"n\": 2}\n"),
        ("test-00000-of-00001.jsonl", "{\"n\": 3}\n"),
        ("my_train.jsonl", "{\"n\": 4}\n"),
    ];
    let plain = folder(&files);
    for (split, n) in [("dev", 1), ("validation", 2), ("test", 3), ("train", 4)] {
        let found = read(plain.path(), split).unwrap();
        assert_eq!(found.iter().map(|row| row["n"].clone()).collect::<Vec<_>>(), [n], "{split}");
    }
    assert!(read(plain.path(), "other").unwrap_err().contains("unknown split \"other\""));
    // A README takes precedence.
    let readme =
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: dev\n    path: my_train.jsonl\n---\n";
    let told = folder(&[files[0], files[3], ("README.md", readme)]);
    assert_eq!(read(told.path(), "dev").unwrap()[0]["n"], 4);
}

#[test]
fn damage_is_named() {
    let whole = fs::read(fixtures().join("none.parquet")).unwrap();
    let broken = folder(&[
        ("train.jsonl", "{\"a\": 1}\n\n[3]\n"),
        ("a/train.csv", "a,b\n1\n"),
        ("b/train.json", "[{\"a\": 1}, 2]"),
    ]);
    let error = |path: &str| read(&broken.path().join(path), "train").unwrap_err();
    assert!(error("train.jsonl").contains("train.jsonl: line 3: "), "{}", error("train.jsonl"));
    let ragged = error("a/train.csv");
    assert!(ragged.contains("line 2: expected 2 columns as in the header, got 1 field"), "{ragged}");
    assert!(error("b/train.json").contains("train.json: "), "{}", error("b/train.json"));
    fs::write(broken.path().join("train.parquet"), &whole[..whole.len() / 2]).unwrap();
    assert!(error("train.parquet").contains("it may be truncated"), "{}", error("train.parquet"));
}
