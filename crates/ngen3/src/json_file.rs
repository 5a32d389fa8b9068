//! A file of JSON that a command leaves: what is checked before anything is computed for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::path::Path;

use anyhow::{Context, ensure};
use ngen3_model::files;
use serde::de::IgnoredAny;

/// What a command writes.
pub struct OutputFormat {
    /// What a user calls it.
    name: &'static str,
    /// What each object of it has.
    keys: &'static [&'static str],
}

/// What `eval` measured, in the harness's shape.
pub const RESULTS: OutputFormat =
    OutputFormat { name: "results of eval", keys: &["results", "configs", "versions", "n-shot"] };
/// A Hugging Face tokenizer.json.
pub const TOKENIZER: OutputFormat =
    OutputFormat { name: "a tokenizer", keys: &["model", "added_tokens", "pre_tokenizer"] };
/// What `trace` writes.
pub const TRACE: OutputFormat = OutputFormat { name: "a trace", keys: &["loss", "grads"] };

/// Checks that the file can be written, and that what it holds now, if anything, is of the same format: what is named by a slip is
/// not replaced.
pub fn check(path: &Path, format: &OutputFormat) -> anyhow::Result<()> {
    files::check(path)?;
    let shown = path.display();
    let ours = holds(path, format).with_context(|| format!("cannot look at {shown}, which would be replaced"))?;
    let name = format.name;
    ensure!(ours, "{shown} is there and holds something else than {name}, which would be lost; choose another --out");
    Ok(())
}

/// True if the file holds nothing, an object of this format, or a list of such.
fn holds(path: &Path, format: &OutputFormat) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let start = file.fill_buf()?;
    if start.is_empty() {
        return Ok(true);
    }
    // Only keys are kept, whatever the size; what follows the value, as in JSON lines, is an error.
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
            assert!(error.ends_with("holds something else than a trace, which would be lost; choose another --out"));
        }
        fs::write(&path, trace).unwrap();
        let error = check(&path, &TOKENIZER).unwrap_err().to_string();
        assert!(error.contains("a.json is there and holds something else than a tokenizer"), "{error}");
    }
}
