//! The files of a folder, in memory: read, written back and compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// Fields of a log that hold times or speeds.
const TIMES: [&str; 4] = ["ms_per_step", "tokens_per_s", "elapsed_s", "memory_gib"];

/// Beginning of the name of TensorBoard's files, which continues with the time.
const EVENTS: &str = "events.out.tfevents.";

/// Each file below a folder with its content, and each folder with none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Option<Vec<u8>>>);

impl Tree {
    /// Reads a folder.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.add(folder, folder)?;
        Ok(tree)
    }

    fn add(&mut self, root: &Path, folder: &Path) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.strip_prefix(root)?.to_owned();
            if path.is_dir() {
                self.0.insert(name, None);
                self.add(root, &path)?;
            } else {
                let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.0.insert(name, Some(content));
            }
        }
        Ok(())
    }

    /// Writes it into a folder, which is made.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for (name, content) in &self.0 {
            let path = folder.join(name);
            let written = match content {
                None => fs::create_dir_all(&path),
                Some(content) => fs::write(&path, content),
            };
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Returns the content of a file.
    pub fn file(&self, name: &Path) -> Option<&[u8]> {
        self.0.get(name)?.as_deref()
    }

    /// Returns it with names that depend on the time replaced.
    pub fn without_times(&self) -> Self {
        let plain = |name: &Path| match name.file_name().and_then(|name| name.to_str()) {
            Some(file) if file.starts_with(EVENTS) => name.with_file_name(EVENTS),
            _ => name.to_owned(),
        };
        Self(self.0.iter().map(|(name, content)| (plain(name), content.clone())).collect())
    }
}

/// Returns true for TensorBoard's files, whose content holds times.
pub fn is_events(name: &Path) -> bool {
    name.file_name().is_some_and(|name| name.to_string_lossy().starts_with(EVENTS))
}

/// Returns true for names of files that are being written.
pub fn is_temporary(name: &Path) -> bool {
    let is = |name: &str| name.starts_with('.') && (name.ends_with(".tmp") || name.ends_with(".old"));
    name.iter().any(|part| is(&part.to_string_lossy()))
}

/// Returns the whole lines of a log without times.
///
/// # Errors
/// If a line is not JSON.
pub fn log_lines(content: &[u8]) -> Result<Vec<Value>> {
    let end = content.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let lines = content[..end].split_inclusive(|&byte| byte == b'\n').enumerate();
    let line = |(index, line): (usize, &[u8])| {
        let mut line: Value =
            serde_json::from_slice(line).with_context(|| format!("line {} is not JSON", index + 1))?;
        if let Some(line) = line.as_object_mut() {
            TIMES.iter().for_each(|time| drop(line.remove(*time)));
        }
        Ok(line)
    };
    lines.map(line).collect()
}
