//! `ngen3 hf_tokenize` from the command line, against a hub on loopback.

mod common;
#[path = "../../ngen3-data/tests/hf_hub/server.rs"]
mod server;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{complaint, contents, fail, ngen3, succeed, texts};
use server::{Access, FakeHub, Fault};

/// Rows with the columns `text` and `utterances`, written by Python's `datasets` in `make_fixtures.py` beside it.
const PARQUET: &[u8] = include_bytes!("../../ngen3-data/tests/hf_rows/fixtures/datasets.parquet");
const SEED: &str = "hf_tokenize --hf_dataset roskoN/dailydialog --hf_split train --hf_text_column utterances --dataset dailydialog_train";

/// `ngen3 LINE` in `folder`, with the cache `folder/hf` and this hub.
fn command(server: &FakeHub, folder: &Path, line: &str) -> Command {
    let mut command = ngen3(folder, line);
    for name in ["HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &server.endpoint).env("HF_HOME", folder.join("hf"));
    command
}

fn run(server: &FakeHub, folder: &Path, line: &str) -> Output {
    command(server, folder, line).output().unwrap()
}

/// DailyDialog as it is on the hub: a script, and the hub's conversion of its data to parquet.
fn dailydialog() -> FakeHub {
    let server = FakeHub::start();
    let card = b"---\nlicense: cc-by-nc-sa-4.0\nlanguage: en\n---\n# Daily dialogs\n";
    server.add(
        "datasets",
        "roskoN/dailydialog",
        "main",
        &[
            ("README.md", card),
            ("dailydialog.py", b"import datasets"),
            ("train.zip", b"PK"),
            ("dataset_infos.json", b"{}"),
        ],
    );
    server.add(
        "datasets",
        "roskoN/dailydialog",
        "refs/convert/parquet",
        &[("default/train/0000.parquet", PARQUET), ("default/test/0000.parquet", b"not asked for")],
    );
    server
}

fn tokens(folder: &Path, dataset: &str) -> Vec<u16> {
    let bytes = fs::read(folder.join(format!("_data_{dataset}_/data.bin"))).unwrap();
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_command_of_the_contract_makes_what_tokenize_makes() {
    let (server, folder) = (dailydialog(), tempfile::tempdir().unwrap());
    let root = folder.path();
    let (out, err) = texts(&run(&server, root, SEED), 0);
    assert!(out.starts_with("_data_dailydialog_train_/data.bin: "), "{out}");
    assert!(out.contains(" + 7 <|endoftext|>, from "), "{out}");
    assert_eq!(err, "note: skipped 5 of 12 records: they have no text\n");
    assert_eq!(names(&root.join("_data_dailydialog_train_")), ["data.bin", "meta.json"]);

    // The same texts as files, by the other command.
    let dialogs = [
        "Hi !\n How are you ? \n",
        "one",
        "a\nb\nc",
        "Hi !\n How are you ? \n",
        "one",
        "a\nb\nc",
        "Hi !\n How are you ? \n",
    ];
    for (n, dialog) in dialogs.iter().enumerate() {
        fs::write(root.join(format!("{n}.txt")), dialog).unwrap();
    }
    succeed(root, "tokenize --dataset other --txt 0.txt 1.txt 2.txt 3.txt 4.txt 5.txt 6.txt");
    assert!(tokens(root, "other") == tokens(root, "dailydialog_train"));
    let meta = fs::read_to_string(root.join("_data_dailydialog_train_/meta.json")).unwrap();
    for field in
        ["\"tokenizer\": \"gpt2\"", "\"documents\": 7", "\"roskoN/dailydialog@", ", split train, column utterances\""]
    {
        assert!(meta.contains(field), "{meta}");
    }
    let asked = server.log();
    assert!(asked.iter().all(|line| !line.contains("test/0000") && !line.contains("train.zip")), "{asked:#?}");

    // Again offline, with flags spelled with hyphens.
    let line =
        "hf-tokenize --hf-dataset roskoN/dailydialog --hf-split train --hf-text-column utterances --dataset again";
    texts(&command(&server, root, line).env("HF_HUB_OFFLINE", "1").output().unwrap(), 0);
    assert!(tokens(root, "other") == tokens(root, "again"));
    assert!(server.log().is_empty());
}

#[test]
fn what_was_fetched_once_is_enough_offline() {
    let (server, folder) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let root = folder.path();
    let (first, second) = ("{\"text\":\"one\"}\n{\"text\":\"two\"}\n", "{\"text\":\"three\"}\n");
    server.add(
        "datasets",
        "a/b",
        "main",
        &[
            ("data/train-00000-of-00002.jsonl", first.as_bytes()),
            ("data/train-00001-of-00002.jsonl", second.as_bytes()),
        ],
    );
    let line = "hf_tokenize --hf_dataset a/b --dataset x";
    let output = run(&server, root, &format!("{line} --hf_split train[:2]"));
    texts(&output, 0);
    let asked = server.log();
    assert!(
        !asked.iter().any(|line| line.contains("00001-of")),
        "rows that are not wanted are not fetched: {asked:#?}"
    );
    let offline = |line: &str| command(&server, root, line).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let error = complaint(&offline(line), 1);
    assert!(error.contains("data/train-00001-of-00002.jsonl of dataset a/b: HF_HUB_OFFLINE is set"), "{error}");
    assert_eq!(tokens(root, "x").iter().filter(|&&token| token == 50_256).count(), 2, "the old one is as it was");
    texts(&run(&server, root, line), 0);
    server.log();
    let (out, _) = texts(&offline(line), 0);
    assert!(out.contains(" + 3 <|endoftext|>"), "{out}");
    assert!(server.log().is_empty());
}

#[test]
fn configurations_revisions_and_separators_are_the_users() {
    let (server, folder) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let root = folder.path();
    let card =
        b"---\nconfigs:\n- config_name: en\n  data_files: en/*.jsonl\n- config_name: de\n  data_files: de.csv\n---\n";
    server.add(
        "datasets",
        "a/b",
        "main",
        &[("README.md", card), ("en/x.jsonl", b"{\"turns\":[\"a\",\"b\"]}\n"), ("de.csv", b"text\nhallo\n")],
    );
    server.add("datasets", "a/b", "v1", &[("train.txt", b"old\n")]);
    let line = |more: &str| format!("hf_tokenize --hf_dataset a/b --dataset x{more}");
    let error = complaint(&run(&server, root, &line("")), 1);
    assert!(error.contains("has several configurations; choose one with --hf_config: en, de"), "{error}");
    texts(&run(&server, root, &line(" --hf_config en --hf_text_column turns --hf_separator=--")), 0);
    succeed(root, "tokenize --dataset y --txt builtin:shakespeare");
    fs::write(root.join("y.txt"), "a--b").unwrap();
    succeed(root, "tokenize --dataset y --txt y.txt");
    assert_eq!(tokens(root, "x"), tokens(root, "y"));
    texts(&run(&server, root, &line(" --hf_config de")), 0);
    let (out, _) = texts(&run(&server, root, &line(" --hf_revision v1")), 0);
    assert!(out.contains("1 token of text + 1 <|endoftext|>"), "{out}");
    for useless in ["--chat_template t.jinja", "--chats --hf_separator x"] {
        let (out, err) = texts(&run(&server, root, &line(&format!(" --hf_config en {useless}"))), 2);
        assert!(out.is_empty() && err.starts_with("error: ") && err.contains("--chats"), "{useless}: {err}");
    }
    let error = complaint(&run(&server, root, &line(" --hf_revision v9")), 1);
    assert!(error.ends_with("404 Not Found: Invalid rev id: v9 (check the revision)"), "{error}");
}

#[test]
fn a_folder_or_file_here_needs_no_hub() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir_all(root.join("mine/test")).unwrap();
    fs::write(root.join("mine/test/a.parquet"), PARQUET).unwrap();
    let server = FakeHub::start();
    for line in [
        "--hf_dataset mine --hf_split test --hf_text_column messages",
        "--hf_dataset mine/test/a.parquet --hf_text_column messages",
    ] {
        let (out, _) = texts(&run(&server, root, &format!("hf_tokenize --dataset x {line}")), 0);
        assert!(out.contains(" + 8 <|endoftext|>"), "{line}: {out}");
    }
    assert!(server.log().is_empty());
}

#[test]
fn trouble_is_one_line_and_leaves_nothing() {
    let (server, folder) = (dailydialog(), tempfile::tempdir().unwrap());
    let root = folder.path();
    server.add("datasets", "a/gated", "main", &[("train.txt", b"x")]);
    server.restrict("datasets", "a/gated", Access::Gated);
    server.add("datasets", "a/cut", "main", &[("train.parquet", &PARQUET[..3000])]);
    server.add("datasets", "a/evil", "main", &[("../../train.txt", b"x")]);
    server.add("datasets", "a/zip", "main", &[("train.zip", b"x")]);
    for (line, expected) in [
        (
            "--hf_dataset roskoN/dailydialog --hf_text_column utterance",
            "default/train/0000.parquet of roskoN/dailydialog: no column \"utterance\"; choose one with --hf_text_column: id, text",
        ),
        ("--hf_dataset roskoN/dailydialog --hf_split valid", "unknown split \"valid\": expected one of test, train"),
        ("--hf_dataset roskoN/dailydialog --hf_config fr", "unknown configuration \"fr\": expected one of default"),
        (
            "--hf_dataset roskoN/nothing",
            "cannot fetch dataset roskoN/nothing: the hub returned 401 Unauthorized: Invalid username or password",
        ),
        (
            "--hf_dataset a/gated",
            "cannot fetch train.txt of dataset a/gated: the hub returned 403 Forbidden: Access to a/gated is restricted",
        ),
        ("--hf_dataset a/cut", "train.parquet of a/cut: not a complete Parquet file; it may be truncated"),
        ("--hf_dataset a/evil", "refused the file name \"../../train.txt\": it points outside the cache"),
        ("--hf_dataset a/zip", "cannot fetch dataset a/zip: no readable files: expected .parquet"),
        ("--hf_dataset no/folder/here", "no/folder/here: no such file or folder"),
        ("--hf_dataset a/b --hf_split train[", "invalid split \"train[\": expected for example train, train[:10%]"),
        ("--hf_dataset a/b --dataset ../x", "cannot be used multiple times"),
    ] {
        let code = if expected.contains("multiple times") { 2 } else { 1 };
        let output = run(&server, root, &format!("hf_tokenize --dataset x {line}"));
        let (out, err) = texts(&output, code);
        assert!(out.is_empty() && err.contains(expected), "{line}: {err}");
        assert_eq!(err.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{err}");
        assert!(
            code == 2 || err.lines().all(|line| line.starts_with("error: ") || line.starts_with("note: ")),
            "{err}"
        );
    }
    assert_eq!(names(root), ["hf"], "only the cache is there");
    let error = fail(root, "hf_tokenize --hf_dataset hf --dataset x --hf_revision v1", 1);
    assert!(error.contains("a local path has no revision v1"), "{error}");
    for name in ["HF_ENDPOINT", "HF_TOKEN"] {
        let output = command(&server, root, SEED).env(name, "no \u{e9} sense").output().unwrap();
        assert!(complaint(&output, 1).contains(name));
    }
    let output = command(&server, root, SEED).env("HF_ENDPOINT", "http://127.0.0.1:1").output().unwrap();
    assert!(complaint(&output, 1).contains("(check the network connection, or set HF_HUB_OFFLINE=1 to use the cache)"));
}

#[test]
fn a_dropped_connection_is_taken_up_and_private_data_is_read_with_a_token() {
    let (server, folder) = (dailydialog(), tempfile::tempdir().unwrap());
    let root = folder.path();
    server.restrict("datasets", "roskoN/dailydialog", Access::Private("hf_secret"));
    server.fault("/other/", 1, Fault::Drop(2000));
    fs::create_dir(root.join("hf")).unwrap();
    fs::write(root.join("hf/token"), "hf_secret\n").unwrap();
    let (out, err) = texts(&run(&server, root, SEED), 0);
    assert!(out.contains(" + 7 <|endoftext|>"), "{out}");
    assert!(
        err.contains("note: default/train/0000.parquet of dataset roskoN/dailydialog: connection lost after 2000 of"),
        "{err}"
    );
    assert!(
        server.log().iter().any(|line| line.starts_with("other server: GET") && line.ends_with("Range=bytes=2000-"))
    );
    let left: Vec<_> =
        contents(&root.join("hf")).into_iter().filter(|(path, _)| path.ends_with(".incomplete")).collect();
    assert!(left.is_empty());
}

/// An interrupted download is resumed by the next run.
#[cfg(unix)]
#[test]
fn an_interrupted_download_goes_on_at_the_next_run() {
    let (server, folder) = (dailydialog(), tempfile::tempdir().unwrap());
    let root = folder.path();
    server.fault("/other/", 1, Fault::Slow(Duration::from_millis(20)));
    let mut child = command(&server, root, SEED).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let blobs = root.join("hf/hub/datasets--roskoN--dailydialog/blobs");
    let started = || {
        // The name of a large file's content is a SHA-256; the README's is shorter.
        fs::read_dir(&blobs).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.ends_with(".incomplete") && name.len() > 64 && entry.metadata().is_ok_and(|meta| meta.len() > 0)
        })
    };
    while !started() {
        assert!(child.try_wait().unwrap().is_none(), "it is downloading");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("sh").args(["-c", "kill -INT \"$0\"", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(complaint(&child.wait_with_output().unwrap(), 130), "interrupted");
    assert_eq!(names(root), ["hf"]);
    server.log();
    texts(&run(&server, root, SEED), 0);
    let log = server.log();
    assert!(log.iter().any(|line| line.starts_with("other server: GET") && line.contains("Range=bytes=")), "{log:#?}");
}

/// Files that are too large are rejected unread.
#[test]
fn files_without_end_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("x.jsonl"), "{\"text\":\"a\"}\n").unwrap();
    fs::write(root.join("x.txt"), "a").unwrap();
    let huge = fs::File::create(root.join("tokenizer.json")).unwrap();
    // Sparse: it takes no room on the disk.
    huge.set_len(1 << 40).unwrap();
    for line in [
        "hf_tokenize --hf_dataset x.jsonl --dataset x --tokenizer tokenizer.json",
        "tokenize --txt x.txt --dataset x --tokenizer tokenizer.json",
    ] {
        let error = fail(root, line, 1);
        assert_eq!(error, "tokenizer.json: the file is larger than the limit of 50331648 bytes");
    }
    fs::create_dir(root.join("set")).unwrap();
    fs::write(root.join("set/train.txt"), "a").unwrap();
    fs::File::create(root.join("set/README.md")).unwrap().set_len(1 << 40).unwrap();
    let error = fail(root, "hf_tokenize --hf_dataset set --dataset x", 1);
    assert_eq!(error, "set/README.md: the file is larger than the limit of 67108864 bytes");
}

#[test]
fn the_help_has_the_command_of_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let (out, _) = succeed(folder.path(), "hf_tokenize --help");
    let words = |text: &str| text.split_whitespace().filter(|&word| word != "\\").collect::<Vec<_>>().join(" ");
    assert!(words(&out).contains(&format!("Examples: ngen3 {SEED} ngen3 ")), "{out}");
}
