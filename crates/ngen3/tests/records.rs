//! Records as users bring them to `hf_tokenize`: bad ones, other columns, separators, and names that do not exist.

mod common;

use std::fs;
use std::path::Path;

use common::{fail, succeed, texts};

fn tokens(folder: &Path, dataset: &str) -> Vec<u16> {
    let bytes = fs::read(folder.join(format!("_data_{dataset}_/data.bin"))).unwrap();
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Asserts that a command makes a dataset of these documents; returns its notes.
fn made(folder: &Path, line: &str, documents: &[&str]) -> String {
    let (_, err) = succeed(folder, &format!("hf_tokenize --dataset x --hf_dataset {line}"));
    let found = tokens(folder, "x");
    let rows: String = documents.iter().map(|text| format!("{text}\n")).collect();
    fs::write(folder.join("expected.log"), rows).unwrap();
    succeed(folder, "tokenize --dataset expected --txt expected.log --split_by line");
    assert_eq!(found, tokens(folder, "expected"), "{line}");
    err
}

#[test]
fn other_columns_cannot_stop_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, bytes) in [
        (
            "nan.jsonl",
            &b"{\"text\": \"one NaN\", \"score\": NaN}\n{\"a\": [-Infinity, {\"b\": Infinity}], \"text\": \"two\"}\n"[..],
        ),
        ("nan.json", b"[{\"text\": \"one NaN\", \"score\": NaN},\n {\"a\": [-Infinity], \"text\": \"two\"}]"),
        ("bytes.jsonl", b"{\"other\": \"\xff\xfe\", \"text\": \"one NaN\"}\n{\"text\": \"two\"}\n"),
        ("bytes.json", b"[{\"other\": \"\xff\xfe]\", \"text\": \"one NaN\"}, {\"text\": \"two\"}]"),
        ("bytes.csv", b"other,text\n\xff,one NaN\nnan,two\n"),
    ] {
        fs::write(root.join(name), bytes).unwrap();
        assert_eq!(made(root, name, &["one NaN", "two"]), "", "{name}");
    }
}

#[test]
fn bad_records_are_skipped_and_counted_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, bytes, first) in [
        (
            "a.jsonl",
            &b"{\"text\": \"one\"}\n{\"text\": oops}\n{\"text\": 3}\n{\"text\": \"two\"}\n"[..],
            "line 2: expected value (column 10)",
        ),
        (
            "b.json",
            b"[{\"text\": \"one\"}, {\"text\": oops}, 3, {\"text\": \"two\"}]",
            "record 2: expected value (column 11)",
        ),
        ("c.csv", b"n,text\n1,one\n2\n3,\xff\n4,two\n", "line 3: expected 2 columns as in the header, got 1 field"),
        ("d.txt", b"one\n\xff\n\xfe\ntwo\n", "line 2: invalid UTF-8 at byte 0"),
    ] {
        fs::write(root.join(name), bytes).unwrap();
        let error = fail(root, &format!("hf_tokenize --dataset y --hf_dataset {name}"), 1);
        assert!(error.starts_with(&format!("{name}: {first}")), "{error}");
        assert!(error.ends_with(" (use --skip_bad to skip such records)"), "{error}");
        assert!(!root.join("_data_y_").exists());
        let notes = made(root, &format!("{name} --skip_bad"), &["one", "two"]);
        assert!(notes.starts_with(&format!("note: skipped 2 bad records; the first: {name}: {first}")), "{notes}");
        // Skipped records count in slices.
        made(root, &format!("{name} --skip_bad --hf_split train[3:]"), &["two"]);
    }
    for (name, bytes) in [
        ("a.jsonl", &b"{\"text\": \"o\xffne\"}\n{\"text\": \"two\"}\n"[..]),
        ("b.json", b"[{\"text\": \"o\xffne\"}, {\"text\": \"two\"}]"),
        ("c.csv", b"n,text\n1,o\xffne\n2,two\n"),
        ("d.txt", b"o\xffne\ntwo\n"),
    ] {
        fs::write(root.join(name), bytes).unwrap();
        let error = fail(root, &format!("hf_tokenize --dataset y --hf_dataset {name}"), 1);
        assert!(error.contains("invalid UTF-8") && error.contains("--encoding"), "{error}");
        let notes = made(root, &format!("{name} --lossy"), &["o\u{fffd}ne", "two"]);
        assert_eq!(notes, "note: replaced 1 invalid sequence by U+FFFD\n", "{name}");
    }
}

#[test]
fn separators_of_csv_are_found_or_given() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, text, note) in [
        ("a.csv", "id;text\n1;one, two\n2;\"three; four\"\n", "note: a.csv: fields are separated by ';'"),
        ("b.csv", "id\ttext\n1\tone, two\n2\tthree; four\n", "note: b.csv: fields are separated by '\\t'"),
        ("c.csv", "text|id\none, two|1\nthree; four|2\n", "note: c.csv: fields are separated by '|'"),
        ("d.tsv", "id,text\n1,\"one, two\"\n2,three; four\n", "note: d.tsv: fields are separated by ','"),
        ("e.csv", "id,text\n1,\"one, two\"\n2,three; four\n", ""),
        ("f.csv", "text\n\"one, two\"\nthree; four\n", ""),
    ] {
        fs::write(root.join(name), text).unwrap();
        let notes = made(root, name, &["one, two", "three; four"]);
        assert!(notes.starts_with(note) && note.is_empty() == notes.is_empty(), "{name}: {notes}");
    }
    fs::write(root.join("g.csv"), "id~text\n1~one\n").unwrap();
    assert_eq!(made(root, "g.csv --csv_separator ~", &["one"]), "");
    assert_eq!(made(root, "b.csv --csv_separator \\t", &["one, two", "three; four"]), "");
    let error = fail(root, "hf_tokenize --dataset y --hf_dataset g.csv", 1);
    assert!(error.contains("no column with a usual name; choose one with --hf_text_column: id~text"), "{error}");
    let error = fail(root, "hf_tokenize --dataset y --hf_dataset g.csv --csv_separator ab", 1);
    assert_eq!(error, "--csv_separator: expected one ASCII character that is not a quote or a line break, got \"ab\"");
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("open.csv"), "id,text\n1,fine\n2,\"open\n3,more\n").unwrap();
    fs::write(root.join("open1.csv"), "text\nfine\n\"open\nmore\n").unwrap();
    fs::write(root.join("empty.csv"), "").unwrap();
    fs::write(root.join("blank.csv"), "\n\n").unwrap();
    fs::write(root.join("wide.csv"), b"t\0e\0x\0t\0\n\0a\0\n\0").unwrap();
    let open = "a quote (\") opens a field and is never closed; close it or double it (\"\")";
    let empty = "empty: expected a header line with the names of the columns";
    for (line, expected) in [
        ("open.csv", format!("open.csv: line 3: {open}")),
        ("open1.csv --skip_bad", format!("open1.csv: line 3: {open}")),
        ("empty.csv", format!("empty.csv: {empty}")),
        ("blank.csv", format!("blank.csv: {empty}")),
        ("wide.csv", "wide.csv: expected UTF-8, got what looks like UTF-16 (every second byte is 0)".into()),
        ("data/x.jsonl", "data/x.jsonl: no such file or folder".into()),
        ("x.tar.gz", "x.tar.gz: no such file or folder".into()),
        ("./data", "./data: no such file or folder".into()),
        ("/no/data", "/no/data: no such file or folder".into()),
        ("~/data", "~/data: no such file or folder".into()),
        ("a/b/c", "a/b/c: no such file or folder".into()),
    ] {
        let error = fail(root, &format!("hf_tokenize --dataset y --hf_dataset {line}"), 1);
        assert!(error.starts_with(&expected), "{line}: {error}");
    }
    succeed(root, "tokenize --dataset x --txt builtin:shakespeare");
    let line = "train --variant 7M --data _data_x_/data.bin --max_iters 1 --weight_decay 1e6";
    let output = common::run(root, line);
    let (_, err) = texts(&output, output.status.code().unwrap());
    assert!(!output.status.success());
    assert!(err.contains("weight_decay: expected at most 1 / learning_rate (3333.3"), "{err}");
    assert_eq!(fs::read_dir(root).unwrap().count(), 6, "nothing was written");
}
