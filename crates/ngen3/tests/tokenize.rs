//! `ngen3 tokenize` from the command line.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{complaint, contents, fail, ngen3, run, shakespeare, succeed, texts};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tokens(folder: &Path, dataset: &str) -> Vec<u16> {
    let bytes = fs::read(folder.join(format!("_data_{dataset}_/data.bin"))).unwrap();
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

#[test]
fn tiny_shakespeare_has_the_tokens_that_tiktoken_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let (out, err) = succeed(folder.path(), "tokenize --dataset ts --txt builtin:shakespeare");
    assert!(out.starts_with("_data_ts_/data.bin: 338,025 tokens of text + 1 <|endoftext|>, from 1.1 MB in "), "{out}");
    assert!(err.is_empty(), "{err}");
    let tokens = tokens(folder.path(), "ts");
    assert_eq!(tokens.len(), 338_026);
    // "First Citizen:\nBefore we" and the end-of-text token, as in tiktoken.
    assert_eq!(tokens[..6], [5962, 22307, 25, 198, 8421, 356]);
    assert_eq!(tokens[338_025], 50_256);
    let meta = fs::read_to_string(folder.path().join("_data_ts_/meta.json")).unwrap();
    for field in ["\"tokenizer\": \"gpt2\"", "\"vocab_size\": 50257", "\"tokens\": 338026", "\"documents\": 1"] {
        assert!(meta.contains(field), "{meta}");
    }
}

#[test]
fn the_same_text_gives_the_same_tokens_wherever_it_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let text = shakespeare();
    let (start, rest) = text.split_at(300_001);
    fs::create_dir_all(root.join("books/deep")).unwrap();
    fs::write(root.join("books/deep/plain.txt"), &text).unwrap();
    fs::write(root.join("books/cover.png"), "not text").unwrap();
    fs::write(root.join("a.gz"), [gzip(start), gzip(rest)].concat()).unwrap();
    fs::write(root.join("a.zst"), zstd::encode_all(&text[..], 1).unwrap()).unwrap();
    fs::write(root.join("signed.txt"), [b"\xef\xbb\xbf", &text[..]].concat()).unwrap();

    succeed(root, "tokenize --dataset expected --txt builtin:shakespeare");
    let expected = tokens(root, "expected");
    let url = serve(gzip(&text), "Content-Encoding: gzip");
    for source in ["books/deep/plain.txt", "books", "a.gz", "a.zst", "signed.txt", &url] {
        for threads in [1, 3] {
            let line = format!("tokenize --dataset=other --threads {threads} --txt {source}");
            let (out, err) = succeed(root, &line);
            assert!(out.contains("338,025 tokens of text + 1 <|endoftext|>"), "{source}: {out}");
            assert_eq!(err.contains("skipped 1 of the folder's entries, such as books/cover.png"), source == "books");
            assert!(tokens(root, "other") == expected, "{source} with {threads} threads");
        }
    }

    let mut child = ngen3(root, "tokenize --dataset piped --txt -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    texts(&child.wait_with_output().unwrap(), 0);
    assert!(tokens(root, "piped") == expected, "stdin");
}

/// Serves `body` on loopback while the test runs; returns a URL that redirects once.
fn serve(body: Vec<u8>, header: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/moved", listener.local_addr().unwrap());
    let found = format!("HTTP/1.1 200 OK\r\n{header}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let request = lines.next().unwrap();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let answer = match request.split(' ').nth(1) {
                Some("/moved") => {
                    "HTTP/1.1 301 Moved\r\nLocation: /text\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                }
                Some("/text") => &found,
                _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            };
            stream.write_all(answer.as_bytes()).unwrap();
            if answer == found {
                stream.write_all(&body).unwrap();
            }
        }
    });
    url
}

#[test]
fn every_file_is_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, text) in [("a.txt", "one"), ("b.txt", ""), ("c.log", "three"), ("d.txt", " <|endoftext|>")] {
        fs::write(root.join(name), text).unwrap();
    }
    let (out, err) = succeed(root, "tokenize --dataset x --txt c.log a.txt --txt b.txt --txt d.txt");
    // The characters <|endoftext|> within a text are text.
    assert_eq!(tokens(root, "x"), [15542, 50_256, 505, 50_256, 1279, 91, 437, 1659, 5239, 91, 29, 50_256]);
    assert!(out.contains("9 tokens of text + 3 <|endoftext|>"), "{out}");
    let note = "note: d.txt: <|endoftext|> occurs 1 time and was read as text; pass --eot_in_text token to separate documents \
                there, or --eot_in_text text to keep it\n";
    assert_eq!(err, format!("note: b.txt: skipped because it is empty\n{note}"));
}

#[test]
fn bytes_that_are_not_utf8_are_named_or_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut text = shakespeare();
    text[700_000] = 0xff;
    fs::write(root.join("bad.txt"), &text).unwrap();
    let error = fail(root, "tokenize --dataset x --txt bad.txt", 1);
    assert_eq!(
        error,
        "bad.txt: invalid UTF-8 at byte 700000 (0xff); convert the file, or pass --encoding (such as cp1252) or --lossy \
         (tokenize, tokenizer train)"
    );
    assert!(!root.join("_data_x_").exists());
    fs::write(root.join("bad.txt.gz"), gzip(&text)).unwrap();
    let error = fail(root, "tokenize --dataset x --txt bad.txt.gz", 1);
    assert!(error.starts_with("bad.txt.gz: invalid UTF-8 at byte 700000 of the decompressed text (0xff)"), "{error}");

    let (_, err) = succeed(root, "tokenize --dataset x --txt bad.txt --lossy");
    assert_eq!(err, "note: bad.txt: replaced 1 invalid UTF-8 sequence by U+FFFD\n");
    fs::write(root.join("replaced.txt"), String::from_utf8_lossy(&text).as_bytes()).unwrap();
    succeed(root, "tokenize --dataset y --txt replaced.txt");
    assert!(tokens(root, "x") == tokens(root, "y"));
}

#[test]
fn bad_input_gives_one_line_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    succeed(root, "tokenize --dataset x --txt builtin:shakespeare");
    fs::create_dir(root.join("bare")).unwrap();
    fs::write(root.join("_data_file_"), "in the way").unwrap();
    fs::write(root.join("broken.json"), "{").unwrap();
    fs::write(root.join("cut.gz"), &gzip(&shakespeare())[..100_000]).unwrap();
    fs::write(root.join("empty.txt"), "").unwrap();
    fs::write(root.join("plain.gz"), "plain").unwrap();
    fs::write(root.join("wide.txt"), b"a\0b\0").unwrap();
    let before = contents(root);
    let url = serve(Vec::new(), "X: y").replace("/moved", "/missing");
    for (line, expected) in [
        ("--dataset x --txt missing.txt", "missing.txt: no such file or folder"),
        ("--dataset x --txt empty.txt", "the input contains no text; nothing was written"),
        (
            "--dataset x --txt bare",
            "bare: expected .txt or .md files (or with .gz, .zst, .xz, .bz2) in this folder, found none",
        ),
        ("--dataset x --txt cut.gz", "cut.gz: compressed data ends early; the file may be truncated"),
        ("--dataset x --txt plain.gz", "plain.gz: expected .gz data, but the file is not compressed"),
        ("--dataset x --txt wide.txt", "wide.txt: expected UTF-8, got what looks like UTF-16"),
        ("--dataset x --txt builtin:milton", "--txt: unknown built-in text \"milton\": expected"),
        ("--dataset x --txt ftp://a.org/b", "--txt: ftp://a.org/b: expected an http:// or https:// URL"),
        ("--dataset x --txt - -", "stdin (-) can be read only once"),
        (&format!("--dataset x --txt {url}"), &format!("cannot download {url}: the server returned 404 Not Found")),
        ("--dataset x --txt http://127.0.0.1:1/", "cannot download http://127.0.0.1:1/: "),
        ("--dataset x --txt builtin:shakespeare --tokenizer broken.json", "tokenizer broken.json: "),
        ("--dataset x --txt builtin:shakespeare --tokenizer none.json", "none.json: No such file"),
        ("--dataset ../x --txt builtin:shakespeare", "invalid dataset name \"../x\""),
        ("--dataset file --txt builtin:shakespeare", "cannot write _data_file_: "),
    ] {
        let error = fail(root, &format!("tokenize {line}"), 1);
        assert!(error.starts_with(expected), "{line}: {error}");
    }
    for line in [
        "--dataset x",
        "--txt builtin:shakespeare",
        "--dataset x --txt a --threads 0",
        "--dataset x --txt a --no",
        "--dataset x --txt builtin:shakespeare --skip_bad",
        "--dataset x --txt builtin:shakespeare --chat_template t.jinja",
    ] {
        let (out, err) = texts(&run(root, &format!("tokenize {line}")), 2);
        assert!(out.is_empty() && err.starts_with("error: "), "{err}");
    }
    assert_eq!(contents(root), before, "nothing was changed, added or left behind");
}

/// A limit on file sizes simulates a full disk.
#[cfg(unix)]
#[test]
fn a_write_that_fails_leaves_the_old_dataset_and_no_rest() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let full = || {
        // Ignoring SIGXFSZ makes the write fail instead of killing the program.
        let script = "trap '' XFSZ; ulimit -f 64; exec \"$0\" tokenize --dataset x --txt builtin:shakespeare";
        Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_ngen3")]).current_dir(root).output().unwrap()
    };
    let error = complaint(&full(), 1);
    assert!(error.starts_with("cannot write _data_x_/data.bin: ") && error.contains("large"), "{error}");
    assert!(contents(root).is_empty());
    fs::write(root.join("a.txt"), "old").unwrap();
    succeed(root, "tokenize --dataset x --txt a.txt");
    let before = contents(root);
    complaint(&full(), 1);
    assert_eq!(contents(root), before);
}

#[cfg(unix)]
#[test]
fn an_interrupt_while_waiting_for_text_ends_it_tidily() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut child = ngen3(root, "tokenize --dataset x --txt -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"some text, and then silence").unwrap();
    // Signal handlers are installed before the folder is created.
    while !root.join("_data_x_").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it waits for more text");
        std::thread::yield_now();
    }
    let killed = Command::new("sh").args(["-c", "kill -INT \"$0\"", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    // Taken, so that waiting does not close it: the program must end although its stdin stays open.
    let stdin = child.stdin.take();
    assert_eq!(complaint(&child.wait_with_output().unwrap(), 130), "interrupted");
    drop(stdin);
    assert!(contents(root).is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = ngen3(folder.path(), "variants").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn every_help_has_examples() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["", "tokenize ", "variants "] {
        let (out, _) = succeed(folder.path(), &format!("{command}--help"));
        assert!(out.contains("Examples:\n  ngen3 "), "{out}");
    }
}
