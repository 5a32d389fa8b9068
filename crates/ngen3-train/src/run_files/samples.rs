//! `samples.jsonl`: texts that the model generated while it was trained.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use ngen3_model::files::write_atomic;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Name of the file in a run's folder.
const NAME: &str = "samples.jsonl";

/// A line of the file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Updates done.
    pub step: u64,
    /// Generated text.
    pub text: String,
}

/// Appends a sample.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn append(folder: &Path, sample: &Sample) -> Result<(), Error> {
    let path = folder.join(NAME);
    let file = OpenOptions::new().append(true).create(true).open(&path);
    let write = |mut file: File| {
        file.write_all(&line(sample))?;
        file.sync_data()
    };
    file.and_then(write).map_err(Error::io("write", &path))
}

/// Drops the samples from step `from` on, and lines that are no samples, as a killed run can leave one.
///
/// # Errors
/// [`Error::Io`] or [`Error::Model`] if the file cannot be read or written.
pub fn cut(folder: &Path, from: u64) -> Result<(), Error> {
    let path = folder.join(NAME);
    // Bytes, not a text: a killed run can tear a character.
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let lines = bytes.split(|&byte| byte == b'\n');
    let samples = lines.filter_map(|line| serde_json::from_slice::<Sample>(line).ok());
    let kept: Vec<u8> = samples.filter(|sample| sample.step < from).flat_map(|sample| line(&sample)).collect();
    if kept.is_empty() {
        return fs::remove_file(&path).map_err(Error::io("remove", &path));
    }
    Ok(write_atomic(&path, |file| file.write_all(&kept))?)
}

fn line(sample: &Sample) -> Vec<u8> {
    let mut line = serde_json::to_vec(sample).expect("a number and a text serialise");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_keeps_the_samples_before_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        cut(folder.path(), 5).unwrap();
        assert!(!path.exists());
        for step in [2, 4, 6] {
            append(folder.path(), &Sample { step, text: format!("at \"{step}\"\n") }).unwrap();
        }
        let torn = Sample { step: 3, text: "Größe".into() };
        // Half of the ö.
        let torn = &line(&torn)[.."{\"step\":3,\"text\":\"Gr".len() + 1];
        assert!(std::str::from_utf8(torn).is_err());
        OpenOptions::new().append(true).open(&path).unwrap().write_all(torn).unwrap();
        cut(folder.path(), 5).unwrap();
        let expected = "{\"step\":2,\"text\":\"at \\\"2\\\"\\n\"}\n{\"step\":4,\"text\":\"at \\\"4\\\"\\n\"}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        cut(folder.path(), 0).unwrap();
        assert!(!path.exists(), "a run at step 0 starts anew");
    }
}
