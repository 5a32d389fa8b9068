//! Texts that a teacher writes for a student of any tokenizer: `--teacher_writes N`.
//!
//! The folder holds `texts.jsonl`, one line per text in the order of their numbers, `writing.json`, which identifies the texts
//! ([`WritingIdentity`]), and a dataset of them in the student's tokens (`data.bin`, `meta.json`, `tokenizer.json`). Texts are
//! appended as they are written; a line that a killed run left incomplete is written again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ngen3_data::{DatasetMeta, Tokenizer, build_texts};
use ngen3_model::files::{create_folders, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Error;
use crate::objectives::identity;

/// Format version in `writing.json`.
const FORMAT: &str = "ngen3 teacher texts 1";

/// Largest `writing.json` accepted, in bytes.
const IDENTITY_BYTES: u64 = 1 << 16;

/// Settings of the writing, which decide each text, and the origin of its prompt. More texts can be added to those of the same
/// identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WritingIdentity {
    /// SHA-256 of the teacher's shape and weights, and their quantisation, if any.
    pub teacher: String,
    /// SHA-256 of the token file that the prompts are from.
    pub data: String,
    /// Number of its first tokens that prompts are drawn from.
    pub train_tokens: usize,
    /// Tokens of a prompt, in the data's tokenizer.
    pub prompt_tokens: usize,
    /// Maximum number of the teacher's tokens after the prompt.
    pub length: usize,
    /// Divisor of the teacher's logits.
    pub temperature: f32,
    /// Total probability of the tokens that are sampled from.
    pub top_p: f32,
    /// Random seed of prompts and texts.
    pub seed: u64,
}

/// A line of `texts.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenText {
    /// Beginning, from the data.
    pub prompt: String,
    /// Continuation by the teacher.
    pub continuation: String,
    /// Number of the teacher's tokens in it.
    pub tokens: u64,
    /// True if it ended because it reached the maximum length.
    pub cut: bool,
}

impl WrittenText {
    /// True if the teacher wrote nothing, so that there is nothing to learn.
    pub fn is_empty(&self) -> bool {
        self.continuation.trim().is_empty()
    }
}

/// A folder with a teacher's texts.
#[derive(Debug)]
pub struct TeacherTexts {
    folder: PathBuf,
    file: File,
    texts: Vec<WrittenText>,
}

impl TeacherTexts {
    /// Opens or creates a folder, which stays locked until this is dropped.
    ///
    /// # Errors
    /// [`Error::File`] if it holds texts of another identity or a damaged line; [`Error::Usage`] while another run uses it;
    /// [`Error::Io`].
    pub fn open(folder: &Path, about: &WritingIdentity) -> Result<Self, Error> {
        create_folders(folder).map_err(Error::io("create the folder", folder))?;
        let path = folder.join("texts.jsonl");
        if folder.join("data.bin").exists() && !folder.join("writing.json").exists() {
            let what = "holds another dataset; choose another --teacher_texts";
            return Err(Error::file(folder, what));
        }
        let options = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = options.map_err(Error::io("open", &path))?;
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            let folder = folder.display();
            return Err(Error::Usage(format!(
                "another run is writing {folder}; wait for it or choose another --teacher_texts"
            )));
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io("read", &path))?;
        check_identity(folder, about, !text.is_empty())?;
        // What follows the last line break was not written whole.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(Error::io("write", &path))?;
            file.seek(SeekFrom::End(0)).map_err(Error::io("write", &path))?;
        }
        let texts = parse(&text[..whole]).map_err(|what| Error::file(&path, what))?;
        Ok(Self { folder: folder.into(), file, texts })
    }

    /// Returns the texts so far, in the order of their numbers.
    pub fn texts(&self) -> &[WrittenText] {
        &self.texts
    }

    /// Adds texts to the file.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written.
    pub fn append(&mut self, texts: Vec<WrittenText>) -> Result<(), Error> {
        let mut lines = String::new();
        for text in &texts {
            lines += &serde_json::to_string(text).expect("texts and numbers serialise");
            lines.push('\n');
        }
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(Error::io("write", &self.folder.join("texts.jsonl")))?;
        self.texts.extend(texts);
        Ok(())
    }

    /// Builds the dataset of the first `n` texts, without empty ones, in a tokenizer's tokens: `data.bin` in the folder. `source`
    /// describes their origin. Returns its description.
    ///
    /// # Errors
    /// [`Error::Data`] if the dataset cannot be written or has no tokens.
    pub fn build(&self, n: usize, source: String, tokenizer: &Tokenizer) -> Result<DatasetMeta, Error> {
        let texts = self.texts.iter().take(n).filter(|text| !text.is_empty());
        let texts: Vec<String> = texts.map(|text| format!("{}{}", text.prompt, text.continuation)).collect();
        Ok(build_texts(&self.folder, source, tokenizer, texts.iter().map(String::as_str))?)
    }
}

/// Parses whole lines.
///
/// # Errors
/// The reason, which names the line.
pub fn parse(text: &[u8]) -> Result<Vec<WrittenText>, String> {
    let lines = text.split_inclusive(|byte| *byte == b'\n').enumerate();
    let line = |(index, line)| {
        let wrong = |error| {
            format!("line {}: expected a text of a teacher ({error}); delete the line and those after it", index + 1)
        };
        serde_json::from_slice(line).map_err(wrong)
    };
    lines.map(line).collect()
}

/// Compares `writing.json` with the identity of this run, or writes it. It must be there if there are `texts`.
fn check_identity(folder: &Path, about: &WritingIdentity, texts: bool) -> Result<(), Error> {
    let path = folder.join("writing.json");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound && !texts => return write_identity(&path, about),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let found: Map<String, Value> = serde_json::from_reader(file.take(IDENTITY_BYTES))
        .map_err(|error| Error::file(&path, format!("expected JSON of a teacher's texts ({error})")))?;
    let format = found.get("format").and_then(Value::as_str).unwrap_or_default();
    let difference = match format == FORMAT {
        true => identity::difference(&found, about, &[]),
        false => Some(format!("expected format {FORMAT:?}, got {format:?}")),
    };
    match difference {
        // Without texts, nothing is lost.
        Some(_) if !texts => write_identity(&path, about),
        Some(difference) => {
            Err(Error::file(&path, format!("not for this run: {difference}; choose another --teacher_texts")))
        }
        None => Ok(()),
    }
}

fn write_identity(path: &Path, about: &WritingIdentity) -> Result<(), Error> {
    let text = serde_json::to_string(about).expect("names and numbers serialise");
    let mut about: Map<String, Value> = serde_json::from_str(&text).expect("what serialises is JSON");
    about.insert("format".into(), FORMAT.into());
    let text = serde_json::to_string_pretty(&about).expect("what was JSON serialises");
    write_atomic(path, |file| file.write_all(format!("{text}\n").as_bytes()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn about() -> WritingIdentity {
        WritingIdentity {
            teacher: "ab".into(),
            data: "cd".into(),
            train_tokens: 90,
            prompt_tokens: 4,
            length: 8,
            temperature: 0.7,
            top_p: 0.9,
            seed: 1,
        }
    }

    fn text(prompt: &str, continuation: &str) -> WrittenText {
        WrittenText { prompt: prompt.into(), continuation: continuation.into(), tokens: 3, cut: true }
    }

    #[test]
    fn texts_are_kept_and_an_incomplete_line_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("a"), dir.path().join("a/texts.jsonl"));
        let mut texts = TeacherTexts::open(&folder, &about()).unwrap();
        texts.append(vec![text("a\n", "b\u{2028}"), text("", " ")]).unwrap();
        let error = TeacherTexts::open(&folder, &about()).unwrap_err().to_string();
        assert!(error.starts_with("another run is writing "), "{error}");
        drop(texts);
        let whole = fs::read_to_string(&file).unwrap();
        assert_eq!(whole.lines().count(), 2);
        fs::write(&file, format!("{whole}{{\"prompt\": \"c")).unwrap();
        let mut texts = TeacherTexts::open(&folder, &about()).unwrap();
        assert_eq!(texts.texts(), [text("a\n", "b\u{2028}"), text("", " ")]);
        texts.append(vec![text("c", "d")]).unwrap();
        let meta = texts.build(3, "written".into(), &Tokenizer::gpt2()).unwrap();
        let data = texts.folder.join("data.bin");
        assert_eq!((meta.documents, meta.source.clone()), (2, vec!["written".to_owned()]));
        let file_of = ngen3_data::TokenFile::open(&data).unwrap();
        let mut ids = Vec::new();
        file_of.copy(0..file_of.len(), &mut ids);
        assert_eq!(Tokenizer::gpt2().decode(&ids), "a\nb\u{2028}<|endoftext|>cd<|endoftext|>");
        drop(texts);
        assert_eq!(TeacherTexts::open(&folder, &about()).unwrap().texts().len(), 3);
    }

    #[test]
    fn texts_of_other_settings_and_damaged_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        TeacherTexts::open(folder, &WritingIdentity { seed: 2, ..about() }).unwrap();
        let mut texts = TeacherTexts::open(folder, &about()).unwrap();
        texts.append(vec![text("a", "b")]).unwrap();
        drop(texts);
        let refused = |about: &WritingIdentity| TeacherTexts::open(folder, about).unwrap_err().to_string();
        let error = refused(&WritingIdentity { temperature: 0.8, ..about() });
        assert!(error.contains("not for this run: expected temperature 0.8, got 0.7; choose another"), "{error}");
        let before = fs::read(folder.join("texts.jsonl")).unwrap();
        for line in ["{}\n", "[1]\n", "\n", "\u{ff}x\n"] {
            fs::write(folder.join("texts.jsonl"), [&before, line.as_bytes()].concat()).unwrap();
            let error = refused(&about());
            assert!(
                error.contains("texts.jsonl: line 2: expected a text of a teacher (") && !error.contains('\n'),
                "{error}"
            );
        }
        fs::write(folder.join("texts.jsonl"), before).unwrap();
        fs::write(folder.join("writing.json"), "[]").unwrap();
        assert!(refused(&about()).contains("writing.json: expected JSON of a teacher's texts"));
        fs::remove_file(folder.join("writing.json")).unwrap();
        assert!(refused(&about()).contains("writing.json"));
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("data.bin"), [0, 0]).unwrap();
        let error = TeacherTexts::open(&other, &about()).unwrap_err().to_string();
        assert!(error.ends_with("holds another dataset; choose another --teacher_texts"), "{error}");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    }
}
