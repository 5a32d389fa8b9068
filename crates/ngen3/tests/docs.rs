//! The command lines of README.md and docs/commands run as they are written, and lead somewhere.
//!
//! A line that begins with `$ ` in a `console` block is run by the shell, page after page in one folder, so that a page may use
//! the files of those before it. Only the length of training is changed. Blocks after `<!-- needs the network -->` are skipped,
//! and listed.
#![cfg(unix)]

mod common;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const NETWORK: &str = "<!-- needs the network -->";

/// Pages of docs/commands: each may use files of those before it.
const PAGES: [&str; 19] = [
    "tokenize",
    "hf_tokenize",
    "tokenizer",
    "train",
    "sample",
    "distill",
    "finetune",
    "hf_finetune",
    "chat",
    "serve",
    "eval",
    "export",
    "import",
    "variants",
    "devices",
    "bench",
    "trace",
    "completions",
    "man",
];
/// Those that need no files of others.
const ALONE: [&str; 2] = ["quickstart", "make"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the command lines of a page: (needs the network, line).
fn command_lines(page: &str) -> Vec<(bool, String)> {
    let (mut found, mut inside, mut network) = (Vec::new(), false, false);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            network &= !inside;
            inside = !inside && line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            let mut command = command.to_owned();
            while command.ends_with('\\') {
                command.pop();
                command += lines.next().expect("a continued line ends").trim_start();
            }
            found.push((network, command));
        } else if !inside && !line.is_empty() {
            network = line == NETWORK;
        }
    }
    found
}

/// Returns the same command with a few steps or seconds of training, few tokens of a teacher, and an end of a server.
fn shortened(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let Some(at) = words.iter().position(|word| word == "ngen3") else { return line.to_owned() };
    if let Some(minutes) = words.iter().position(|word| word == "--minutes") {
        words[minutes + 1] = "0.1".into();
        return words.join(" ");
    }
    let (flag, steps) = match words.get(at + 1).map(String::as_str) {
        Some("serve") => return format!("timeout --preserve-status --signal TERM 5 {line} --port 0"),
        Some("train" | "distill") => ("--max_iters", if line.contains("--resume") { "3" } else { "2" }),
        Some("finetune" | "hf_finetune") => ("--finetune_iters", "2"),
        Some("quickstart") => ("--steps", "12"),
        _ => return line.to_owned(),
    };
    match words.iter().position(|word| word == flag) {
        Some(at) => words[at + 1] = steps.into(),
        None => words.extend([flag.into(), steps.into()]),
    }
    if line.contains("--teacher_cache") {
        words.extend(["--val_fraction".into(), "0.95".into()]);
    }
    if let Some(at) = words.iter().position(|word| word == "--teacher_writes") {
        words[at + 1] = "64".into();
        words.extend(["--teacher_length".into(), "24".into()]);
    }
    if flag != "--steps" {
        words.extend(["--eval_iters".into(), "1".into(), "--batch_size".into(), "2".into()]);
    }
    words.join(" ")
}

/// Runs a line with `ngen3` on the path.
fn shell(folder: &Path, line: &str) {
    let binaries = Path::new(env!("CARGO_BIN_EXE_ngen3")).parent().unwrap().to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([binaries].into_iter().chain(env::split_paths(&path))).unwrap();
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", path)
        .env("HOME", folder)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "$ {line}\n{}{}", text(&output.stdout), text(&output.stderr));
}

/// Runs the lines of a page; returns how many were run.
fn run_page(folder: &Path, name: &str, lines: Vec<(bool, String)>) -> usize {
    let mut ran = 0;
    for (network, line) in lines {
        if network {
            eprintln!("SKIPPED: {name}: needs the network: {line}");
        } else {
            shell(folder, &shortened(&line));
            ran += 1;
        }
    }
    ran
}

#[test]
fn command_lines_of_the_pages_run() {
    let folder = tempfile::tempdir().unwrap();
    for name in PAGES {
        let page = format!("docs/commands/{name}.md");
        assert!(run_page(folder.path(), &page, command_lines(&read(&page))) > 0, "{page} shows no command");
    }
    for name in ALONE {
        let folder = tempfile::tempdir().unwrap();
        let page = format!("docs/commands/{name}.md");
        assert!(run_page(folder.path(), &page, command_lines(&read(&page))) > 0, "{page} shows no command");
    }
}

#[test]
fn command_lines_of_the_readme_run() {
    let readme = read("README.md");
    let (alone, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let conversation = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Hello!\"}]}\n";
    fs::write(folder.path().join("chats.jsonl"), conversation.repeat(4)).unwrap();
    let mut ran = 0;
    for (_, line) in command_lines(&readme) {
        // Two commands are for a checkout: the first is this program, the second this test's own.
        let line = line.split('#').next().unwrap().trim_end();
        match line.strip_prefix("cargo run --release -- ") {
            Some(arguments) => shell(alone.path(), &shortened(&format!("ngen3 {arguments}"))),
            None if line.starts_with("ngen3 ") => shell(alone.path(), &shortened(line)),
            None => assert_eq!(line, "cargo test --workspace"),
        }
        ran += 1;
    }
    assert_eq!(ran, 5);
    let rows: Vec<_> = readme.lines().filter(|line| line.starts_with("| [`")).collect();
    for row in &rows {
        let example = row.split("`ngen3 ").nth(1).and_then(|rest| rest.split('`').next()).expect("an example");
        run_page(folder.path(), "README.md", vec![(row.contains(NETWORK), format!("ngen3 {}", with_input(example)))]);
    }
    assert!(rows.len() >= PAGES.len());
}

/// A chat needs something to answer.
fn with_input(example: &str) -> String {
    match example.strip_prefix("chat ") {
        Some(_) => format!("{example} < chats.jsonl"),
        None => example.to_owned(),
    }
}

#[test]
fn every_command_has_a_page_and_a_line_in_the_readme() {
    let (help, _) = common::succeed(&root(), "--help");
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands = commands.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let commands: BTreeSet<_> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > PAGES.len(), "{help}");
    let readme = read("README.md");
    for command in commands.iter().filter(|command| **command != "help") {
        let page = format!("docs/commands/{command}.md");
        assert!(root().join(&page).is_file(), "{page} is missing");
        assert!(readme.contains(&page), "README.md does not mention {page}");
    }
    let tested: BTreeSet<_> = PAGES.into_iter().chain(ALONE).collect();
    for entry in fs::read_dir(root().join("docs/commands")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".md").expect("a page");
        assert!(commands.contains(name), "docs/commands/{name}.md describes no command");
        assert!(tested.contains(name), "docs/commands/{name}.md is not run");
    }
}

#[test]
fn links_between_pages_lead_to_files() {
    let mut pages = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned(), "benches/README.md".to_owned()];
    for folder in ["docs", "docs/commands"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        pages.extend(names.filter(|name| name.ends_with(".md")).map(|name| format!("{folder}/{name}")));
    }
    for page in &pages {
        let text = read(page);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = root().join(page).parent().unwrap().to_owned();
            let path = if file.is_empty() { root().join(page) } else { folder.join(file) };
            assert!(path.exists(), "{page} links to {target}, which does not exist");
            let heading = anchor.replace('-', " ");
            let found = anchor.is_empty()
                || fs::read_to_string(&path)
                    .unwrap()
                    .lines()
                    .any(|line| line.starts_with('#') && line.trim_start_matches('#').trim().to_lowercase() == heading);
            assert!(found, "{page} links to {target}, a heading that does not exist");
        }
    }
}
