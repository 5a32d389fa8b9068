//! Runs the program as a user does; shared by the tests of several commands.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Tiny-shakespeare, from the program's own data.
pub fn shakespeare() -> Vec<u8> {
    zstd::decode_all(&include_bytes!("../../../ngen3-data/data/tinyshakespeare.txt.zst")[..]).unwrap()
}

/// `ngen3 LINE` in a folder; `line` is split at spaces.
pub fn ngen3(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ngen3"));
    command.args(line.split(' ')).current_dir(folder);
    for proxy in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env_remove(proxy);
    }
    command
}

/// Runs a command, interrupts it once stderr contains `place`, and returns all of stderr.
pub fn interrupt_at(command: Command, place: &str) -> String {
    signal_at(command, place, "INT", Some(130))
}

/// As [`interrupt_at`], with another signal, and any exit code unless one is given.
pub fn signal_at(mut command: Command, place: &str, signal: &str, code: Option<i32>) -> String {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains(place) {
        assert_ne!(stderr.read_line(&mut text).unwrap(), 0, "{text}");
    }
    assert!(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap().success());
    stderr.read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    assert!(code.is_none_or(|code| status.code() == Some(code)), "{status}: {text}");
    text
}

pub fn run(folder: &Path, line: &str) -> Output {
    ngen3(folder, line).output().unwrap()
}

/// Runs a command that must succeed; returns stdout and stderr.
pub fn succeed(folder: &Path, line: &str) -> (String, String) {
    texts(&run(folder, line), 0)
}

/// Runs a command that must fail with this code; returns its one-line error.
pub fn fail(folder: &Path, line: &str, code: i32) -> String {
    complaint(&run(folder, line), code)
}

pub fn complaint(output: &Output, code: i32) -> String {
    let (out, err) = texts(output, code);
    assert!(out.is_empty(), "{out}");
    let lines: Vec<_> = err.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert_eq!(lines.len(), 1, "one line: {err}");
    lines[0].strip_prefix("error: ").unwrap_or_else(|| panic!("{err}")).to_owned()
}

pub fn texts(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (out, err)
}

/// The lines of metrics.jsonl in a run's folder, without timings.
pub fn metrics(folder: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(name).join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for time in ["ms_per_step", "tokens_per_s", "elapsed_s", "memory_gib"] {
            line.as_object_mut().unwrap().remove(time);
        }
        line
    };
    text.lines().map(line).collect()
}

/// Makes a file read-only.
pub fn protect(path: &Path) {
    let mut permissions = fs::metadata(path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).unwrap();
}

/// Every file below a folder, with its contents.
pub fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.push((path.display().to_string(), Vec::new()));
            found.extend(contents(&path));
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}
