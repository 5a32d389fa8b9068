//! Files as users bring them: archives, compressions, encodings, separators, and what is not text.

mod common;

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::process::Stdio;

use common::{contents, fail, ngen3, succeed, texts};

/// "one\n", compressed by `xz -9`.
const XZ: &[u8] = &[
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x1c, 0x00, 0x00,
    0x00, 0x10, 0xcf, 0x58, 0xcc, 0x01, 0x00, 0x03, 0x6f, 0x6e, 0x65, 0x0a, 0x00, 0xf5, 0x5c, 0xbb, 0x56, 0x1f, 0xc6,
    0xfd, 0x86, 0x00, 0x01, 0x1c, 0x04, 0x6f, 0x2c, 0x9c, 0xc1, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00, 0x00,
    0x04, 0x59, 0x5a,
];
/// The same with a dictionary of 512 MiB (`xz --lzma2=dict=512MiB`).
const XZ_LARGE: &[u8] = &[
    0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01, 0x22, 0x00, 0x00,
    0x00, 0x82, 0x40, 0xac, 0xdc, 0x01, 0x00, 0x03, 0x6f, 0x6e, 0x65, 0x0a, 0x00, 0xf5, 0x5c, 0xbb, 0x56, 0x1f, 0xc6,
    0xfd, 0x86, 0x00, 0x01, 0x1c, 0x04, 0x6f, 0x2c, 0x9c, 0xc1, 0x1f, 0xb6, 0xf3, 0x7d, 0x01, 0x00, 0x00, 0x00, 0x00,
    0x04, 0x59, 0x5a,
];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns a tar archive; names that end in `/` are folders.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        // Written as it is: the library refuses names that lead outside.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        archive.append(&header, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in members {
        if name.ends_with('/') {
            archive.add_directory(*name, options).unwrap();
        } else {
            archive.start_file(*name, options).unwrap();
            archive.write_all(bytes).unwrap();
        }
    }
    archive.finish().unwrap().into_inner()
}

fn tokens(folder: &Path, dataset: &str) -> Vec<u16> {
    let bytes = fs::read(folder.join(format!("_data_{dataset}_/data.bin"))).unwrap();
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Tokens of these documents, each a file of its own.
fn expected(folder: &Path, documents: &[&str]) -> Vec<u16> {
    let names: Vec<_> = (0..documents.len()).map(|n| format!("expected{n}.log")).collect();
    for (name, text) in names.iter().zip(documents) {
        fs::write(folder.join(name), text).unwrap();
    }
    succeed(folder, &format!("tokenize --dataset expected --eot_in_text text --txt {}", names.join(" ")));
    tokens(folder, "expected")
}

fn pipe(folder: &Path, line: &str, bytes: &[u8], code: i32) -> (String, String) {
    let mut command = ngen3(folder, line);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    texts(&child.wait_with_output().unwrap(), code)
}

const MEMBERS: [(&str, &[u8]); 9] = [
    ("books/", b""),
    ("./books/a.txt", b"one\n"),
    ("books/._a.txt", b"\0\x05\x16\x07"),
    ("books/cover.png", b"\x89PNG\r\n\x1a\n"),
    ("books/README", b"two"),
    ("books/data", b"\0\0\0\0\0"),
    ("../../b.md", b"three"),
    ("books/c.txt", b""),
    ("d.bin", b"text by content, not by name"),
];

#[test]
fn the_texts_of_an_archive_are_documents_whatever_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let expected = expected(root, &["one\n", "two", "three"]);
    let (tar, zip) = (tar(&MEMBERS), zip(&MEMBERS));
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    for (name, bytes) in [
        ("x.tar", tar.clone()),
        ("x.tar.gz", gzip(&tar)),
        ("x.tgz", gzip(&tar)),
        ("x.tar.zst", zstd),
        ("x.tar.bz2", bzip2(&tar)),
        ("x.zip", zip.clone()),
        ("tar.txt", tar.clone()),
        ("zip", zip.clone()),
    ] {
        fs::write(root.join(name), bytes).unwrap();
        let (_, err) = succeed(root, &format!("tokenize --dataset x --txt {name}"));
        assert!(tokens(root, "x") == expected, "{name}: {:?}", tokens(root, "x"));
        let skipped = format!(
            "note: {name}: skipped 5 of its 9 members, such as books/._a.txt (1 folder, 1 hidden file, 3 binary files)\n"
        );
        assert_eq!(err, format!("note: books/c.txt in {name}: skipped because it is empty\n{skipped}"), "{name}");
    }
    for bytes in [gzip(&tar), zip] {
        pipe(root, "tokenize --dataset x --txt -", &bytes, 0);
        assert!(tokens(root, "x") == expected, "stdin");
    }
    assert!(!root.join("../../b.md").exists());
}

#[test]
fn xz_and_bzip2_are_unpacked_in_files_folders_and_members() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let expected = expected(root, &["one\n", "one\n", "one\n"]);
    fs::create_dir(root.join("texts")).unwrap();
    fs::write(root.join("texts/a.txt.xz"), XZ).unwrap();
    fs::write(root.join("texts/b.md.bz2"), [bzip2(b"on"), bzip2(b"e\n")].concat()).unwrap();
    fs::write(root.join("c"), [XZ, &[]].concat()).unwrap();
    succeed(root, "tokenize --dataset x --txt texts c");
    assert_eq!(tokens(root, "x"), expected);
    fs::write(root.join("x.tar"), tar(&[("a.txt.gz", &gzip(b"one\n")), ("b.xz", XZ), ("c.bz2", &bzip2(b"one\n"))]))
        .unwrap();
    succeed(root, "tokenize --dataset x --txt x.tar");
    assert_eq!(tokens(root, "x"), expected);
    fs::write(root.join("large.xz"), XZ_LARGE).unwrap();
    let error = fail(root, "tokenize --dataset y --txt large.xz", 1);
    assert_eq!(error, "large.xz: its dictionary is larger than the limit of 100 MiB; compress it with a smaller one");
    fs::write(root.join("cut.xz"), &XZ[..40]).unwrap();
    let error = fail(root, "tokenize --dataset y --txt cut.xz", 1);
    assert!(error.starts_with("cut.xz: compressed data "), "{error}");
}

#[test]
fn hostile_and_damaged_archives_give_one_line_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let text = b"some words of a text that is long enough ".repeat(100);
    let (plain, zipped) = (tar(&[("a.txt", &text)]), zip(&[("a.txt", &text)]));
    // A header that claims eight exabytes.
    let mut absurd = tar(&[("a.txt", b"short")]);
    let mut header = tar::Header::new_gnu();
    header.set_path("a.txt").unwrap();
    header.set_size(1 << 62);
    header.set_cksum();
    absurd[..512].copy_from_slice(header.as_bytes());
    // A name that does not end.
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..4].copy_from_slice(b"name");
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let endless = [&header.as_bytes()[..], &vec![b'a'; 8 << 20]].concat();
    let mut damaged = zipped.clone();
    damaged[60] ^= 0xff;
    for (name, bytes, expected) in [
        ("cut.tar", &plain[..2000], "a.txt in cut.tar: the tar archive ends early; it may be truncated"),
        (
            "cut.tar.gz",
            &gzip(&plain)[..60],
            "a.txt in cut.tar.gz: compressed data ends early; the file may be truncated",
        ),
        ("absurd.tar", &absurd, "a.txt in absurd.tar: the tar archive ends early; it may be truncated"),
        ("endless.tar", &endless, "endless.tar: the headers of a member are larger than the limit of 1048576 bytes"),
        ("endless.tar.gz", &gzip(&endless), "endless.tar.gz: the headers of a member are larger than the limit"),
        ("cut.zip", &zipped[..zipped.len() / 2], "cut.zip: damaged or truncated zip archive"),
        ("damaged.zip", &damaged, "a.txt in damaged.zip: damaged or truncated zip archive"),
        ("empty.zip", &zip(&[]), "the input contains no text; nothing was written"),
        (
            "zip.gz",
            &gzip(&zipped),
            "zip.gz: a zip archive within compressed data is not supported; decompress it first",
        ),
        (
            "inner.tar",
            &tar(&[("a.zip", &zipped)]),
            "a.zip in inner.tar: archives within archives are not supported; unpack it first",
        ),
        ("inner2.tar", &tar(&[("a", &zipped)]), "a in inner2.tar: expected text, got a zip archive; unpack it first"),
        (
            "tables.tar",
            &tar(&[("a.txt", b"a"), ("x/b.jsonl", b"{}")]),
            "x/b.jsonl in tables.tar: expected text, got JSON lines by its name; use ngen3 hf_tokenize --hf_dataset tables.tar",
        ),
        (
            "tables.zip",
            &zip(&[("b.csv.gz", b"")]),
            "b.csv.gz in tables.zip: expected text, got CSV by its name; use ngen3 hf_tokenize --hf_dataset tables.zip",
        ),
    ] {
        fs::write(root.join(name), bytes).unwrap();
        let error = fail(root, &format!("tokenize --dataset x --txt {name}"), 1);
        assert!(error.starts_with(expected), "{name}: {error}");
        fs::remove_file(root.join(name)).unwrap();
    }
    assert!(contents(root).is_empty());
}

#[test]
fn what_is_not_text_is_refused_with_the_command_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (name, bytes, expected) in [
        (
            "x.jsonl",
            &b"{}"[..],
            "x.jsonl: expected text, got JSON lines by its name; use ngen3 hf_tokenize --hf_dataset x.jsonl, or ngen3 tokenize \
             --chats x.jsonl for conversations; to read it as plain text all the same: cat x.jsonl | ngen3 tokenize --txt -",
        ),
        (
            "x.csv.gz",
            b"",
            "x.csv.gz: expected text, got CSV by its name; use ngen3 hf_tokenize --hf_dataset x.csv.gz; to read",
        ),
        (
            "x.parquet",
            b"",
            "x.parquet: expected text, got a Parquet table by its name; use ngen3 hf_tokenize --hf_dataset",
        ),
        ("a", b"PAR1\x15\x04", "a: expected text, got a Parquet table; use ngen3 hf_tokenize --hf_dataset a"),
        ("b.txt", b"%PDF-1.7\n", "b.txt: expected text, got a PDF document; extract its text first"),
        ("c.md", b"\x89PNG\r\n\x1a\n", "c.md: expected text, got an image; convert it to text first"),
        ("d.txt", b"text\0and", "d.txt: expected text, got binary data (byte 4 is NUL); convert it to text first"),
        (
            "e.txt",
            b"p\0l\0a\0i\0n\0",
            "e.txt: expected UTF-8, got what looks like UTF-16 (every second byte is 0); pass",
        ),
    ] {
        fs::write(root.join(name), bytes).unwrap();
        for lossy in ["", " --lossy"] {
            let error = fail(root, &format!("tokenize --dataset x --txt {name}{lossy}"), 1);
            assert!(error.starts_with(expected), "{name}: {error}");
        }
        assert!(!root.join("_data_x_").exists());
    }
    let error = fail(root, "tokenize --dataset x --txt http://127.0.0.1:1/x.jsonl.gz?download=true", 1);
    let expected =
        "expected text, got JSON lines by its name; download it, and use ngen3 hf_tokenize --hf_dataset FILE";
    assert_eq!(error, format!("http://127.0.0.1:1/x.jsonl.gz?download=true: {expected}"));
    let (_, err) = pipe(root, "tokenize --dataset x --txt -", b"PAR1\x15\x04", 1);
    assert!(err.starts_with("error: stdin: expected text, got a Parquet table"), "{err}");
    pipe(root, "tokenize --dataset x --txt -", b"{}", 0);
}

#[test]
fn other_encodings_are_converted() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let text = "Grüße, café €\n";
    let expected = expected(root, &[text]);
    let utf16: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(root.join("wide.txt"), &utf16).unwrap();
    fs::write(root.join("wide2.txt"), &utf16[2..]).unwrap();
    fs::write(root.join("latin.txt"), b"Gr\xfc\xdfe, caf\xe9 \x80\n").unwrap();
    for (line, note) in [
        ("wide.txt", "note: wide.txt: read as UTF-16LE, by its byte order mark\n"),
        ("wide2.txt --encoding utf-16", ""),
        ("latin.txt --encoding cp1252", ""),
    ] {
        let (_, err) = succeed(root, &format!("tokenize --dataset x --txt {line}"));
        assert_eq!((tokens(root, "x"), err.as_str()), (expected.clone(), note), "{line}");
    }
    let error = fail(root, "tokenize --dataset y --txt latin.txt", 1);
    assert!(
        error.starts_with("latin.txt: invalid UTF-8 at byte 2 (0xfc); convert the file, or pass --encoding"),
        "{error}"
    );
    let (_, err) = texts(&common::run(root, "tokenize --dataset y --txt latin.txt --encoding cp-1252x"), 2);
    assert!(err.contains("unknown encoding \"cp-1252x\": expected for example cp1252"), "{err}");

    // Conversations and tables too.
    let chat = r#"{"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "ü"}]}"#;
    fs::write(root.join("chat.jsonl"), chat).unwrap();
    succeed(root, "tokenize --dataset chat --chats chat.jsonl");
    let wanted = tokens(root, "chat");
    let wide: Vec<u8> = format!("\u{feff}{chat}\n").encode_utf16().flat_map(u16::to_be_bytes).collect();
    fs::write(root.join("wide.jsonl"), wide).unwrap();
    let (_, err) = succeed(root, "tokenize --dataset x --chats wide.jsonl");
    assert_eq!(
        (tokens(root, "x"), err.as_str()),
        (wanted.clone(), "note: wide.jsonl: read as UTF-16BE, by its byte order mark\n")
    );
    let latin: Vec<u8> = chat.chars().map(|c| c as u8).collect();
    fs::write(root.join("latin.jsonl"), latin).unwrap();
    succeed(root, "tokenize --dataset x --chats latin.jsonl --encoding latin1");
    assert_eq!(tokens(root, "x"), wanted);
    fs::write(root.join("latin.csv"), b"id,text\n1,\"Gr\xfc\xdfe, caf\xe9 \x80\n\"\n").unwrap();
    succeed(root, "hf_tokenize --dataset x --hf_dataset latin.csv --encoding cp1252");
    assert_eq!(tokens(root, "x"), expected);
}

#[test]
fn a_text_is_split_into_documents_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let text = "one\ntwo\n\n\nthree<|endoftext|>four\n";
    fs::write(root.join("x.txt"), text).unwrap();
    for (flags, documents, note) in [
        ("--eot_in_text text", vec![text], ""),
        ("--eot_in_text token", vec!["one\ntwo\n\n\nthree", "four\n"], ""),
        ("--split_by paragraph --eot_in_text token", vec!["one\ntwo", "three", "four"], ""),
        (
            "--split_by line --eot_in_text text",
            vec!["one", "two", "three<|endoftext|>four"],
            "note: x.txt: skipped 2 blank documents\n",
        ),
        ("--split_by two\\n\\n --eot_in_text token", vec!["one\n", "\nthree", "four\n"], ""),
        ("--split_by e<| --eot_in_text text", vec!["one\ntwo\n\n\nthre", "endoftext|>four\n"], ""),
    ] {
        let (_, err) = succeed(root, &format!("tokenize --dataset x --txt x.txt {flags}"));
        let found = tokens(root, "x");
        assert_eq!((found, err.as_str()), (expected(root, &documents), note), "{flags}");
    }
    let (_, err) = succeed(root, "tokenize --dataset x --txt x.txt --split_by paragraph");
    assert_eq!(
        err,
        "note: x.txt: <|endoftext|> occurs 1 time and was read as text; pass --eot_in_text token to separate documents there, or \
         --eot_in_text text to keep it\n"
    );
    for flags in ["--split_by=", "--eot_in_text yes"] {
        let output = common::run(root, &format!("tokenize --dataset x --txt x.txt {flags}"));
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && err.starts_with("error: "), "{err}");
    }
    let (_, err) = texts(&common::run(root, "tokenize --dataset x --chats x.txt --split_by line"), 2);
    assert!(err.contains("cannot be used with"), "{err}");
}

#[test]
fn conversations_are_read_from_archives() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (first, second) = (b"[\"a\", \"b\"]\n[\"c\", \"d\"]\n", b"e\tf\n");
    fs::write(root.join("a.jsonl"), first).unwrap();
    fs::write(root.join("b.txt"), second).unwrap();
    succeed(root, "tokenize --dataset expected --chats a.jsonl b.txt");
    let members: [(&str, &[u8]); 3] = [("x/", b""), ("x/a.jsonl", first), ("x/b.txt", second)];
    fs::write(root.join("x.tar.gz"), gzip(&tar(&members))).unwrap();
    fs::write(root.join("x.zip"), zip(&members)).unwrap();
    for name in ["x.tar.gz", "x.zip"] {
        let (out, err) = succeed(root, &format!("tokenize --dataset x --chats {name}"));
        assert_eq!(tokens(root, "x"), tokens(root, "expected"), "{name}");
        assert!(out.contains("3 conversations"), "{out}");
        assert_eq!(err, format!("note: {name}: skipped 1 of its 3 members, such as x/ (1 folder)\n"));
    }
    fs::write(root.join("bad.zip"), zip(&[("x/a.jsonl", b"[\"a\", \"b\"]\n{\"messages\": []}\n")])).unwrap();
    let error = fail(root, "tokenize --dataset y --chats bad.zip", 1);
    assert!(error.starts_with("x/a.jsonl in bad.zip: line 2: "), "{error}");
    fs::write(root.join("table.tar"), tar(&[("a.parquet", b"PAR1")])).unwrap();
    let error = fail(root, "tokenize --dataset y --chats table.tar", 1);
    assert!(error.starts_with("a.parquet in table.tar: expected conversations, got a Parquet table"), "{error}");
}

#[test]
fn the_tables_of_an_archive_are_a_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let (first, second, other) = (b"{\"text\":\"one\"}\n", b"{\"text\":\"two\"}\n", b"{\"text\":\"three\"}\n");
    let members: [(&str, &[u8]); 6] = [
        ("set/train-1.jsonl", second),
        ("set/train-0.jsonl.gz", &gzip(first)),
        ("set/test.jsonl", other),
        ("set/notes.pdf", b"%PDF-"),
        ("../train-2.jsonl", b"{}"),
        ("._train.jsonl", b"\0"),
    ];
    fs::write(root.join("x.tar.gz"), gzip(&tar(&members))).unwrap();
    fs::write(root.join("x.zip"), zip(&members)).unwrap();
    for name in ["x.tar.gz", "x.zip"] {
        for (split, documents) in [("train", &["one", "two"][..]), ("test", &["three"]), ("train[50%:]", &["two"])] {
            let line = format!("hf_tokenize --dataset x --hf_dataset {name} --hf_split {split}");
            let (_, err) = succeed(root, &line);
            assert_eq!(tokens(root, "x"), expected(root, documents), "{name}");
            let note = format!("note: {name}: skipped 3 of its 6 members, such as set/notes.pdf: not data files\n");
            assert_eq!(err, note);
        }
    }
    fs::write(root.join("bad.tar"), tar(&[("a.jsonl", b"{\"text\":1}\n")])).unwrap();
    let error = fail(root, "hf_tokenize --dataset y --hf_dataset bad.tar", 1);
    assert!(error.starts_with("a.jsonl in bad.tar: record 1: column text: expected a string"), "{error}");
    fs::write(root.join("none.tar"), tar(&[("a.md", b"a")])).unwrap();
    let error = fail(root, "hf_tokenize --dataset y --hf_dataset none.tar", 1);
    assert!(error.starts_with("none.tar: no readable files: expected .parquet"), "{error}");
}
