//! Training runs: the `*.run` folders below a folder, with the settings and metrics of each.
//!
//! A run is named by its path below that folder. Only names that the walk itself could find are read: no `..`, no hidden
//! folder, no link that leads out.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use ngen3_model::tensors::safetensors::Reader;
use serde_json::{Value, json};

/// Folders this deep are searched.
const MAX_DEPTH: usize = 5;
/// Most folders searched, and most runs found.
const MAX_FOLDERS: usize = 20_000;
const MAX_RUNS: usize = 500;
/// Bytes of metrics read at once.
const MAX_READ: u64 = 1 << 20;
/// File with the metrics of a run.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// File with a run's samples.
pub(crate) const SAMPLES: &str = "samples.jsonl";

/// Lists the runs below `root`, the latest first.
pub(crate) fn list(root: &Path) -> Value {
    let Ok(root) = root.canonicalize() else { return json!([]) };
    let mut runs: Vec<_> = find(&root).into_iter().filter_map(|name| describe(&root, &name)).collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run["modified"].as_u64()));
    Value::Array(runs)
}

/// Returns the names of the folders `*.run` below `root`.
fn find(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut searched) = (Vec::new(), 0);
    let mut folders = VecDeque::from([(PathBuf::new(), 0)]);
    while let Some((folder, depth)) = folders.pop_front() {
        searched += 1;
        if searched > MAX_FOLDERS || found.len() >= MAX_RUNS {
            break;
        }
        let Ok(entries) = fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries.flatten() {
            // The type of a link is that of a link: it is not followed.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let (name, path) = (entry.file_name(), folder.join(entry.file_name()));
            if path.extension().is_some_and(|extension| extension == "run") {
                found.push(path);
            } else if depth < MAX_DEPTH && !name.to_string_lossy().starts_with('.') && name != "node_modules" {
                folders.push_back((path, depth + 1));
            }
        }
    }
    found
}

/// Describes a run: its name, the time and the size of its metrics, the size of its samples, its last line, and the settings in its
/// state, if there is one.
fn describe(root: &Path, name: &Path) -> Option<Value> {
    let folder = root.join(name);
    let mut metrics = open_within(root, &folder.join(METRICS))?;
    let about = metrics.metadata().ok()?;
    let modified = about.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let record = record(root, &folder.with_extension("state").join("state.safetensors"));
    let samples = open_within(root, &folder.join(SAMPLES)).and_then(|file| file.metadata().ok());
    Some(json!({
        "name": name.to_str()?,
        "modified": modified,
        "bytes": about.len(),
        "samples": samples.map_or(0, |about| about.len()),
        "last": last_line(&mut metrics, about.len()),
        "kind": record["kind"],
        "settings": record["settings"],
        "config": record["config"],
        "data": record["data"],
    }))
}

/// Returns the record of a run in its state; null if there is none yet.
fn record(root: &Path, state: &Path) -> Value {
    let Some(file) = open_within(root, state) else { return Value::Null };
    let Ok(len) = file.metadata().map(|about| about.len()) else { return Value::Null };
    let read = Reader::open(file, len).ok();
    let record = read.as_ref().and_then(|file| file.metadata("run"));
    record.and_then(|record| serde_json::from_str(record).ok()).unwrap_or_default()
}

/// Returns the last complete line of a file, parsed.
fn last_line(file: &mut File, len: u64) -> Value {
    const TAIL: u64 = 4096;
    let mut tail = Vec::new();
    let read =
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).and_then(|_| file.take(TAIL).read_to_end(&mut tail));
    let lines = tail.trim_ascii_end().rsplit(|&byte| byte == b'\n');
    read.ok().and_then(|_| lines.into_iter().find_map(|line| serde_json::from_slice(line).ok())).unwrap_or_default()
}

/// Returns the complete lines of a run's `file` from byte `offset` on, at most a megabyte of them, and the offset after them. A file
/// that does not have a line's end before `offset` was written anew, and is read from the start.
///
/// `None` if there is no such run below `root`, or it has no such file.
pub(crate) fn lines(root: &Path, name: &str, file: &str, offset: u64) -> Option<Value> {
    let root = root.canonicalize().ok()?;
    let name = Path::new(name);
    let is_plain =
        |part: Component| matches!(part, Component::Normal(part) if !part.to_string_lossy().starts_with('.'));
    if name.extension()? != "run" || !name.components().all(is_plain) {
        return None;
    }
    let mut file = open_within(&root, &root.join(name).join(file))?;
    let continues = offset == 0 || byte_before(&mut file, offset) == Some(b'\n');
    let start = if continues { offset } else { 0 };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start)).ok()?;
    file.take(MAX_READ).read_to_end(&mut bytes).ok()?;
    let complete = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..complete].split(|&byte| byte == b'\n');
    let lines: Vec<Value> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    Some(json!({"lines": lines, "offset": start + complete as u64, "restarted": !continues}))
}

fn byte_before(file: &mut File, offset: u64) -> Option<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset.checked_sub(1)?)).ok()?;
    file.read_exact(&mut byte).ok()?;
    Some(byte[0])
}

/// Opens a plain file if it is below `root`, links resolved.
fn open_within(root: &Path, path: &Path) -> Option<File> {
    let path = path.canonicalize().ok()?;
    (path.starts_with(root) && path.is_file()).then(|| File::open(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn runs_are_found_and_read_from_where_the_reader_was() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(&root.join("a_model.run/metrics.jsonl"), "{\"step\": 0}\n{\"step\": 1}\n{\"st");
        write(&root.join("deep/er/b_model.run/metrics.jsonl"), "");
        write(&root.join(".hidden/c_model.run/metrics.jsonl"), "{}\n");
        write(&root.join("empty.run/other"), "");
        let listed = list(root);
        let mut names: Vec<_> = listed.as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a_model.run", "deep/er/b_model.run"]);
        let a = listed.as_array().unwrap().iter().find(|run| run["name"] == "a_model.run").unwrap();
        assert_eq!((&a["last"], &a["settings"], &a["samples"]), (&json!({"step": 1}), &Value::Null, &json!(0)));
        assert_eq!(lines(root, "a_model.run", SAMPLES, 0), None);
        let sample = "{\"step\":1,\"text\":\"Hi\"}\n";
        write(&root.join("a_model.run/samples.jsonl"), sample);
        let listed = list(root);
        let a = listed.as_array().unwrap().iter().find(|run| run["name"] == "a_model.run").unwrap();
        assert_eq!(a["samples"], sample.len());
        assert_eq!(lines(root, "a_model.run", SAMPLES, 0).unwrap()["lines"], json!([{"step": 1, "text": "Hi"}]));

        let read = lines(root, "a_model.run", METRICS, 0).unwrap();
        assert_eq!(read, json!({"lines": [{"step": 0}, {"step": 1}], "offset": 24, "restarted": false}));
        write(&root.join("a_model.run/metrics.jsonl"), "{\"step\": 0}\n{\"step\": 1}\n{\"step\": 2}\n");
        let read = lines(root, "a_model.run", METRICS, 24).unwrap();
        assert_eq!(read, json!({"lines": [{"step": 2}], "offset": 36, "restarted": false}));
        write(&root.join("a_model.run/metrics.jsonl"), "{\"step\": 0}\n");
        assert_eq!(lines(root, "a_model.run", METRICS, 36).unwrap()["restarted"], true);
    }

    #[test]
    #[cfg(unix)]
    fn nothing_outside_of_the_folder_is_read() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        write(&folder.path().join("secret.run/metrics.jsonl"), "{\"secret\": 1}\n");
        write(&root.join("ok.run/metrics.jsonl"), "{}\n");
        fs::create_dir_all(root.join("leak.run")).unwrap();
        symlink(folder.path().join("secret.run/metrics.jsonl"), root.join("leak.run/metrics.jsonl")).unwrap();
        symlink(folder.path().join("secret.run"), root.join("link.run")).unwrap();
        symlink(folder.path(), root.join("up")).unwrap();
        let absolute = folder.path().join("secret.run");
        for name in [
            "../secret.run",
            "ok.run/../../secret.run",
            "leak.run",
            "link.run",
            "up/secret.run",
            absolute.to_str().unwrap(),
            "ok.run/metrics.jsonl",
            ".",
            "",
            "ok",
            "ok.run\0",
        ] {
            assert_eq!(lines(&root, name, METRICS, 0), None, "{name}");
        }
        assert!(lines(&root, "ok.run", METRICS, 0).is_some());
        assert_eq!(list(&root).as_array().unwrap().len(), 1);
    }
}
