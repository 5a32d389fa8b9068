//! `ngen3 tokenizer train` from the command line, and the use of its tokenizer.

mod common;

use std::fs;

use common::{contents, fail, succeed};
use ngen3_data::TokenFile;

#[test]
fn a_tokenizer_of_ones_own_makes_a_dataset_and_travels_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let line = "tokenizer train --txt builtin:shakespeare --vocab-size 1000 --out mine.json";
    let (out, err) = succeed(root, line);
    assert!(out.starts_with("mine.json: 1,000 tokens, from 1.1 MB and "), "{out}");
    assert!(err.is_empty(), "{err}");
    let made = fs::read(root.join("mine.json")).unwrap();
    succeed(root, &format!("{line} --threads 1"));
    assert!(fs::read(root.join("mine.json")).unwrap() == made, "threads do not change it");

    let (out, _) = succeed(root, "tokenize --dataset x --txt builtin:shakespeare --tokenizer mine.json");
    assert!(out.contains(" + 1 <|endoftext|>, from 1.1 MB"), "{out}");
    let file = TokenFile::open(&root.join("_data_x_/data.bin")).unwrap();
    file.check_vocab(1_000).unwrap();
    let tokenizer = file.tokenizer().unwrap();
    assert_eq!((tokenizer.name(), tokenizer.vocab_size(), file.vocab_size().unwrap()), ("mine.json", 1_000, 1_000));
    let mut ids = Vec::new();
    file.copy(0..file.len() - 1, &mut ids);
    assert_eq!(file.token(file.len() - 1), 999, "<|endoftext|> is the last id");
    assert!(tokenizer.decode(&ids).as_bytes() == common::shakespeare(), "the text comes back");
    assert!(fs::read(root.join("_data_x_/tokenizer.json")).unwrap() == made);
}

#[test]
fn a_text_too_small_for_the_vocabulary_is_said_and_bad_input_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("a.txt"), "low lower lowest").unwrap();
    let (out, _) = succeed(root, "tokenizer train --txt a.txt --out small.json");
    assert!(out.contains("(not 8,192: no other pair occurs twice in the text)"), "{out}");

    fs::write(root.join("empty.txt"), "").unwrap();
    fs::create_dir(root.join("folder.json")).unwrap();
    fs::write(root.join("meta.json"), "{\"tokenizer\": \"gpt2\", \"tokens\": 3}").unwrap();
    let tokenizer = "{\"model\": {}, \"added_tokens\": [], \"pre_tokenizer\": null}\n";
    fs::write(root.join("chat.jsonl"), tokenizer.repeat(2)).unwrap();
    let before = contents(root);
    for (line, expected) in [
        ("--txt empty.txt --out small.json", "no text to train a tokenizer on"),
        ("--txt a.txt --vocab_size 10 --out small.json", "vocab_size 10 is out of range"),
        ("--txt a.txt --vocab_size 99999999999 --out small.json", "vocab_size 99999999999 is out of range"),
        ("--txt missing.txt --out small.json", "missing.txt: no such file"),
        ("--txt a.txt --out a.txt", "a.txt: already exists and is not a tokenizer; choose another --out"),
        ("--txt a.txt --out meta.json", "meta.json: already exists and is not a tokenizer"),
        ("--txt a.txt --out chat.jsonl", "chat.jsonl: already exists and is not a tokenizer"),
        ("--txt a.txt --out folder.json", "cannot write folder.json: it is a folder"),
        ("--txt a.txt --out nowhere/small.json", "cannot write nowhere/small.json: there is no folder nowhere"),
    ] {
        let error = fail(root, &format!("tokenizer train {line}"), 1);
        assert!(error.starts_with(expected), "{line}: {error}");
    }
    assert_eq!(contents(root), before);
}
