//! Reference text of fine-tuning: its perplexity before and after shows how much the model has forgotten.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_data::Tokenizer;
use ngen3_data::source::shakespeare;
use ngen3_engine::{Batch, IGNORE, Model};
use ngen3_model::files::write_atomic;
use ngen3_model::words::count;
use serde::{Deserialize, Serialize};

use crate::{Error, RunPaths};

/// A reference text, tokenised.
#[derive(Clone, Debug)]
pub struct Reference {
    name: String,
    ids: Vec<u32>,
}

/// Maximum number of tokens of a reference text: enough for two digits of its perplexity.
const REFERENCE_TOKENS: usize = 16_384;
/// Minimum number of tokens per forward pass.
const REFERENCE_PASS: usize = 2_048;

impl Reference {
    /// Tokenises the beginning of a text. Returns `None` if it has fewer than two tokens.
    ///
    /// # Errors
    /// [`Error::Data`] if the tokenizer fails on it.
    pub fn new(name: &str, text: &str, tokenizer: &Tokenizer) -> Result<Option<Self>, Error> {
        let mut ids = tokenizer.encode(text).map_err(ngen3_data::Error::from)?;
        ids.truncate(REFERENCE_TOKENS + 1);
        Ok((ids.len() >= 2).then(|| Self { name: name.into(), ids }))
    }

    /// Name and length, for messages.
    pub fn title(&self) -> String {
        format!("{}, {}", self.name, count(self.ids.len() - 1, "token"))
    }

    /// Computes the perplexity, exp of the mean loss, in sequences of `block_size` tokens, at most the model's context. Returns
    /// `None` if `stop`, checked before each pass, is set.
    ///
    /// # Errors
    /// [`Error::Engine`] if the engine fails.
    pub fn perplexity(
        &self,
        model: &mut dyn Model,
        block_size: usize,
        stop: &AtomicBool,
    ) -> Result<Option<f64>, Error> {
        let block_size = block_size.min(model.config().block_size);
        let (inputs, targets) = (&self.ids[..self.ids.len() - 1], &self.ids[1..]);
        let rows = inputs.len().div_ceil(block_size);
        let (mut sum, mut pass) = (0.0, Batch::default());
        for (index, (inputs, targets)) in inputs.chunks(block_size).zip(targets.chunks(block_size)).enumerate() {
            pass.push(inputs, targets);
            if pass.inputs.len() >= REFERENCE_PASS || index + 1 == rows {
                debug_assert!(!pass.targets.contains(&IGNORE));
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                sum += f64::from(model.loss(&pass)?) * pass.targets.len() as f64;
                pass.clear();
            }
        }
        Ok(Some((sum / targets.len() as f64).exp()))
    }
}

/// `X_model.run/reference.json`: the perplexity on a reference text before and after fine-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceReport {
    /// Name of the text.
    pub text: String,
    /// Perplexity before fine-tuning.
    pub before: f64,
    /// Perplexity of the final model; `None` until the run is finished.
    pub after: Option<f64>,
}

impl ReferenceReport {
    const FILE: &str = "reference.json";

    /// Reads the report of a run; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::File`] if it is damaged.
    pub fn read(paths: &RunPaths) -> Result<Option<Self>, Error> {
        let path = paths.run.join(Self::FILE);
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|error| Error::file(&path, error.to_string()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path)(error)),
        }
    }

    /// Removes the report of an earlier run with the same name.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be removed.
    pub fn remove(paths: &RunPaths) -> Result<(), Error> {
        let path = paths.run.join(Self::FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Writes the report atomically.
    ///
    /// # Errors
    /// [`Error::Model`] if it cannot be written.
    pub fn write(&self, paths: &RunPaths) -> Result<(), Error> {
        write_atomic(&paths.run.join(Self::FILE), |file| {
            serde_json::to_writer_pretty(&mut *file, self)?;
            file.write_all(b"\n")
        })?;
        Ok(())
    }
}

/// Returns name and content of the default reference text.
pub fn default_reference() -> (&'static str, String) {
    ("the last tenth of builtin:shakespeare", last_tenth(&shakespeare()).to_owned())
}

/// Returns the last tenth of a text, from the start of a line: the validation part of a model trained on it.
fn last_tenth(text: &str) -> &str {
    let tail = &text[text.floor_char_boundary(text.len() / 10 * 9)..];
    tail.split_once('\n').map_or(tail, |(_, rest)| rest)
}

/// Reads a reference text.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::File`] if it is not UTF-8.
pub fn read_reference(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    String::from_utf8(bytes)
        .map_err(|error| Error::file(path, format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to())))
}

#[cfg(test)]
mod tests {
    use ngen3_engine::{Slot, Trainer};
    use ngen3_model::{Config, ParamList};

    use super::*;
    use crate::testing::FakeEngine;

    #[test]
    fn a_model_that_knows_nothing_guesses_among_the_whole_vocabulary() {
        let config = Config::new(1, 1, 2, 16, 50_257);
        let mut engine = FakeEngine::new(config.clone(), 1);
        engine.write(Slot::Params, &vec![0.0; ParamList::new(&config).total()]).unwrap();
        let tokenizer = Tokenizer::gpt2();
        // Several passes; the last one is short.
        for words in [2, 17, 3_000] {
            let text = "word ".repeat(words);
            let reference = Reference::new("a text", text.trim_end(), &tokenizer).unwrap().unwrap();
            assert_eq!(reference.title(), format!("a text, {}", count(words - 1, "token")));
            let perplexity = reference.perplexity(&mut engine, usize::MAX, &AtomicBool::new(false)).unwrap().unwrap();
            assert!((perplexity / 50_257.0 - 1.0).abs() < 1e-3, "{perplexity}");
            assert_eq!(reference.perplexity(&mut engine, usize::MAX, &AtomicBool::new(true)).unwrap(), None);
        }
        assert!(Reference::new("a text", "word", &tokenizer).unwrap().is_none());
        let long = Reference::new("a text", &"word ".repeat(30_000), &tokenizer).unwrap().unwrap();
        assert_eq!(long.title(), "a text, 16384 tokens");
    }

    #[test]
    fn the_last_tenth_begins_with_a_line() {
        assert_eq!(last_tenth(&format!("{}é\nlast", "line\n".repeat(10))), "é\nlast");
        assert_eq!(last_tenth("éééééx"), "éx");
        assert_eq!(last_tenth("short"), "short");
        assert_eq!(last_tenth(""), "");
    }
}
