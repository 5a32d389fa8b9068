//! Checks on a command's JSON output file, made before anything is computed for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::Path;

use anyhow::{Context, ensure};
use ngen3_model::files;
use serde::de::IgnoredAny;

/// Format of a command's JSON output.
pub struct OutputFormat {
    /// Name in messages, with its article.
    name: &'static str,
    /// Keys that every object has.
    keys: &'static [&'static str],
}

/// Results of `eval`, in the harness's format.
pub const RESULTS: OutputFormat =
    OutputFormat { name: "a results file of eval", keys: &["results", "configs", "versions", "n-shot"] };
/// A Hugging Face tokenizer.json.
pub const TOKENIZER: OutputFormat =
    OutputFormat { name: "a tokenizer", keys: &["model", "added_tokens", "pre_tokenizer"] };
/// Output of `trace`.
pub const TRACE: OutputFormat = OutputFormat { name: "a trace", keys: &["loss", "grads"] };

/// Checks that the file can be written and does not hold another format, so that a mistyped name replaces nothing.
///
/// # Errors
/// If the file cannot be written or read, or holds another format.
pub fn check(path: &Path, format: &OutputFormat) -> anyhow::Result<()> {
    files::check(path)?;
    let shown = path.display();
    let ours = holds(path, format).with_context(|| format!("cannot read {shown} to check its format"))?;
    let name = format.name;
    ensure!(ours, "{shown}: already exists and is not {name}; choose another --out");
    Ok(())
}

/// Returns whether the file is missing, empty, an object of this format, or a list of such objects.
fn holds(path: &Path, format: &OutputFormat) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    // Unlike a read, it does not repeat what a signal interrupted.
    while let Err(error) = file.fill_buf() {
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let start = file.buffer();
    if start.is_empty() {
        return Ok(true);
    }
    // Keeps only keys, so that a large file takes little memory. Anything after the value, as in JSON lines, is an error.
    let found = match start.trim_ascii_start().first() {
        Some(b'[') => serde_json::from_reader(file),
        _ => serde_json::from_reader(file).map(|object| vec![object]),
    };
    match found {
        Ok(objects) => {
            let objects: Vec<BTreeMap<String, IgnoredAny>> = objects;
            Ok(objects.iter().all(|object| format.keys.iter().all(|key| object.contains_key(*key))))
        }
        Err(error) if error.is_io() => Err(error.into()),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_of_its_own_kind_is_replaced_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        check(&path, &TRACE).unwrap();
        let trace = "{\n  \"loss\": 1.5, \"grads\": {\"wte\": {}}, \"logits\": [1]\n}\n";
        let list = format!("\n [{trace}, {trace}]");
        for text in ["", trace, &list] {
            fs::write(&path, text).unwrap();
            check(&path, &TRACE).unwrap();
        }
        let (lines, mixed) = (trace.replace('\n', "") + "\n{}", format!("[{trace}, {{\"loss\": 1}}]"));
        for text in ["{\"loss\": 1}", &lines, &mixed, "[[1]]", "\"loss\"", "{\"loss\": 1, \"grads\"", "PK\u{3}\u{4}"] {
            fs::write(&path, text).unwrap();
            let error = check(&path, &TRACE).unwrap_err().to_string();
            assert!(error.ends_with("a.json: already exists and is not a trace; choose another --out"));
        }
        fs::write(&path, trace).unwrap();
        let error = check(&path, &TOKENIZER).unwrap_err().to_string();
        assert!(error.contains("a.json: already exists and is not a tokenizer"), "{error}");
    }
}
