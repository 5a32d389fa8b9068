use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Makes a folder with these files; returns the error of opening one of them.
fn open_error(files: &[(&str, &[u8])], name: &str) -> String {
    let folder = folder(files);
    let error = TokenFile::open(&folder.path().join(name)).unwrap_err().to_string();
    assert!(!error.contains('\n'), "one line: {error}");
    error.replace(&format!("{}/", folder.path().display()), "")
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn meta(changes: serde_json::Value) -> Vec<u8> {
    let mut meta = json!({
        "tokenizer": "gpt2", "vocab_size": 50257, "dtype": "uint16", "tokens": 3, "documents": 1, "source": ["a.txt"],
        "sha256": sha256([1, 0, 2, 0, 3, 1]),
    });
    for (key, value) in changes.as_object().unwrap() {
        meta[key] = value.clone();
    }
    meta.to_string().into_bytes()
}

const THREE: (&str, &[u8]) = ("data.bin", &[1, 0, 2, 0, 3, 1]);

#[test]
fn a_bare_file_is_gpt2_in_u16() {
    let folder = folder(&[("train.bin", THREE.1)]);
    let file = TokenFile::open(&folder.path().join("train.bin")).unwrap();
    assert_eq!((file.len(), file.vocab_size().unwrap(), file.meta()), (3, 50_257, None));
    assert_eq!((file.token(0), file.token(2)), (1, 259));
    let mut tokens = vec![7];
    file.copy(1..3, &mut tokens);
    assert_eq!(tokens, [7, 2, 259]);
    assert_eq!(file.tokenizer().unwrap().name(), "gpt2");
    file.verify().unwrap();
}

#[test]
fn meta_json_decides_dtype_and_vocabulary_and_is_held_against_the_file() {
    let wide = meta(json!({"vocab_size": 70000, "dtype": "uint32", "tokens": 2}));
    let folder = folder(&[("data.bin", &[1, 0, 1, 0, 2, 0, 0, 0]), ("meta.json", &wide), ("val.bin", &[9, 0, 0, 0])]);
    let file = TokenFile::open(&folder.path().join("data.bin")).unwrap();
    assert_eq!((file.len(), file.token(0), file.token(1), file.vocab_size().unwrap()), (2, 65_537, 2, 70_000));
    assert!(file.verify().unwrap_err().to_string().contains("has changed since it was made"));
    let val = TokenFile::open(&folder.path().join("val.bin")).unwrap();
    assert_eq!((val.len(), val.token(0)), (1, 9));
    val.verify().unwrap();
}

#[test]
fn files_that_do_not_hold_are_refused() {
    let absent = open_error(&[], "data.bin");
    assert_eq!(absent, "data.bin: no such file; create it with ngen3 tokenize");
    let empty = open_error(&[("data.bin", b"")], "data.bin");
    assert_eq!(empty, "data.bin: the file is empty; create it with ngen3 tokenize");
    let odd = open_error(&[("data.bin", b"abc")], "data.bin");
    assert_eq!(odd, "data.bin: expected a multiple of 2 bytes (2 per token), got 3 bytes; the file may be truncated");
    let fewer = open_error(&[THREE, ("meta.json", &meta(json!({"tokens": 4})))], "data.bin");
    assert_eq!(fewer, "data.bin: expected 4 tokens as in meta.json, got 3; tokenize again");
    let halved = open_error(&[THREE, ("meta.json", &meta(json!({"dtype": "uint32"})))], "data.bin");
    assert!(halved.contains("expected a multiple of 4 bytes (4 per token), got 6 bytes"), "{halved}");
    for (changes, reason) in [
        (json!({"dtype": "float"}), "unknown variant `float`"),
        (json!({"tokens": -1}), "invalid value"),
        (json!({"vocab_size": 0}), "vocab_size 0 is out of range"),
        (json!({"vocab_size": 70000}), "vocab_size 70000 is out of range for dtype Uint16"),
        (json!({"tokenizer": "mine"}), "needs a tokenizer_sha256"),
    ] {
        let error = open_error(&[THREE, ("meta.json", &meta(changes))], "data.bin");
        assert!(error.starts_with("meta.json: ") && error.contains(reason), "{error}");
    }
    let cut = open_error(&[THREE, ("meta.json", b"{")], "data.bin");
    assert!(cut.starts_with("meta.json: ") && cut.ends_with("; tokenize again"), "{cut}");
    let folder = folder(&[]);
    let error = TokenFile::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("got a folder without data.bin or train.bin"), "{error}");
}

#[test]
fn the_tokenizer_is_the_one_that_made_the_data() {
    let json = Tokenizer::gpt2().to_json();
    let hash = sha256(&json);
    let mine = meta(json!({"tokenizer": "mine", "tokenizer_sha256": hash}));
    let tokenizer = |files: &[(&str, &[u8])]| {
        let folder = folder(files);
        TokenFile::open(&folder.path().join("data.bin")).unwrap().tokenizer().map_err(|error| error.to_string())
    };
    let found = tokenizer(&[THREE, ("meta.json", &mine), ("tokenizer.json", json.as_bytes())]).unwrap();
    assert_eq!((found.name(), found.vocab_size()), ("mine", 50_257));
    let left_over = tokenizer(&[THREE, ("meta.json", &meta(json!({}))), ("tokenizer.json", b"left over")]);
    assert_eq!(left_over.unwrap().name(), "gpt2");
    assert_eq!(tokenizer(&[THREE, ("tokenizer.json", json.as_bytes())]).unwrap().name(), "tokenizer.json");
    assert!(tokenizer(&[THREE, ("meta.json", &mine)]).unwrap_err().contains("the tokenizer mine"));
    let other = tokenizer(&[THREE, ("meta.json", &mine), ("tokenizer.json", b"{}")]).unwrap_err();
    assert!(other.contains("not the tokenizer that made"), "{other}");
    assert!(tokenizer(&[THREE, ("tokenizer.json", b"{}")]).is_err());
}

#[test]
fn the_first_token_outside_a_vocabulary_is_named() {
    for outside in [vec![], vec![0], vec![2_500_000], vec![1_048_576, 1_048_577, 2_999_999]] {
        let mut bytes = vec![0; 6_000_000];
        for at in &outside {
            bytes[2 * at..2 * at + 2].copy_from_slice(&50_300u16.to_le_bytes());
        }
        let folder = folder(&[("data.bin", &bytes)]);
        let file = TokenFile::open(&folder.path().join("data.bin")).unwrap();
        file.check_vocab(50_301).unwrap();
        let found = file.check_vocab(50_257).map_err(|error| error.to_string());
        let expected = outside.first().map_or(Ok(()), |at| {
            Err(format!(
                "{}: token 50300 at position {at} is outside the model's vocabulary of 50257; was it made with \
                 another tokenizer?",
                file.path().display()
            ))
        });
        assert_eq!(found, expected);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(data in prop::collection::vec(any::<u8>(), 0..40), meta in ".{0,80}", has_meta: bool) {
        let mut files = vec![("data.bin", data.as_slice())];
        if has_meta {
            files.push(("meta.json", meta.as_bytes()));
        }
        let folder = folder(&files);
        if let Ok(file) = TokenFile::open(&folder.path().join("data.bin")) {
            let mut tokens = Vec::new();
            file.copy(0..file.len(), &mut tokens);
            prop_assert_eq!(tokens.len(), data.len() / 2);
            prop_assert_eq!(file.check_vocab(1 << 16).is_ok(), true);
        }
    }
}
