//! Makes a tokenizer of text sources and writes its tokenizer.json; surveys the text before.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_model::files::{AtomicFile, folder_of};

use crate::source::{DocumentReader, Event, Input, ReadOptions, Source, TextChunk, TextOptions, list};
use crate::tokenizer::{Trained, train, train_chars};
use crate::{Error, Tokenizer};

/// Kind of a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind<'a> {
    /// Byte-level BPE of this many tokens.
    Bpe(usize),
    /// Characters of the text, and the token that ends a document, if any.
    Char(Option<&'a str>),
    /// The 256 bytes and `<|endoftext|>`; needs no text.
    Byte,
}

/// Size and beginning of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextSurvey {
    /// Bytes of text, as UTF-8.
    pub bytes: u64,
    /// Its first words, at most [`BEGINNING`] characters of the first line that has any.
    pub beginning: String,
}

/// Characters of a text's beginning, roughly.
const BEGINNING: usize = 24;

/// Reads all the text of `sources`. `progress` receives events.
///
/// # Errors
/// Errors of a source; [`Error::Interrupted`] when `stop` is set.
pub fn survey_text(
    sources: &[Source],
    text: TextOptions,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
) -> Result<TextSurvey, Error> {
    let listing = list(sources)?;
    let mut survey = TextSurvey::default();
    for text in texts(listing.inputs, text, &std::env::temp_dir(), stop, progress)? {
        let text = text?;
        survey.bytes += text.len() as u64;
        if survey.beginning.is_empty() {
            survey.beginning = beginning_of(&text);
        }
    }
    Ok(survey)
}

/// Returns the first words of the first line that has any.
fn beginning_of(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let mut beginning = String::new();
    for word in line.split_inclusive(char::is_whitespace) {
        if !beginning.is_empty() && beginning.chars().count() + word.chars().count() > BEGINNING {
            break;
        }
        beginning.extend(word.chars().take(BEGINNING));
    }
    beginning.trim_end().to_owned()
}

/// Texts of the inputs, one piece after the other.
fn texts<'a>(
    inputs: Vec<Input>,
    text: TextOptions,
    scratch: &Path,
    stop: &'a AtomicBool,
    progress: &'a mut dyn FnMut(Event),
) -> Result<impl Iterator<Item = Result<String, Error>> + use<'a>, Error> {
    // A BPE will have GPT-2's pre-tokeniser, so text can be split wherever GPT-2's can.
    let cutter = Tokenizer::gpt2();
    let options = ReadOptions { text, scratch: scratch.into(), ..ReadOptions::default() };
    let mut reader = DocumentReader::start(inputs, options, move |text| cutter.safe_split(text))?;
    let texts = std::iter::from_fn(move || {
        loop {
            match reader.next(stop, progress).transpose()? {
                Ok(TextChunk::Text(text) | TextChunk::Documents { text, .. }) => return Some(Ok(text)),
                Ok(TextChunk::EndOfDocument) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    });
    // Fused, since the reader has nothing more to return after its end.
    Ok(texts.fuse())
}

/// Makes a vocabulary of all the text of `sources` and writes it to `out` atomically, as a Hugging Face tokenizer.json. Counts
/// and merges on rayon's current pool. `progress` receives events.
///
/// # Errors
/// Errors of a source, the size or the output file; [`Error::Interrupted`] when `stop` is set.
pub fn train_tokenizer(
    sources: &[Source],
    text: TextOptions,
    kind: TokenizerKind,
    out: &Path,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
) -> Result<Trained, Error> {
    // Created before any work, so that an unwritable file fails at once.
    let mut file = AtomicFile::create(out)?;
    let trained = trained(sources, text, kind, out, stop, progress)?;
    let json = trained.tokenizer.to_json();
    file.write_all(json.as_bytes()).map_err(|error| Error::write(out, error))?;
    file.commit()?;
    Ok(trained)
}

/// Returns true if the file `out` is the one that [`train_tokenizer`] would write, bit for bit. Writes nothing.
///
/// # Errors
/// As [`train_tokenizer`]; [`Error::Read`] for a file that cannot be read.
pub fn is_trained(
    sources: &[Source],
    text: TextOptions,
    kind: TokenizerKind,
    out: &Path,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
) -> Result<bool, Error> {
    let found = std::fs::read(out).map_err(|error| Error::open(out, &error))?;
    Ok(trained(sources, text, kind, out, stop, progress)?.tokenizer.to_json().as_bytes() == found)
}

/// Makes the vocabulary of `out`.
fn trained(
    sources: &[Source],
    text: TextOptions,
    kind: TokenizerKind,
    out: &Path,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
) -> Result<Trained, Error> {
    let listing = list(sources)?;
    listing.report_skipped(progress);
    let texts = texts(listing.inputs, text, folder_of(out), stop, progress)?;
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let check_stop = || if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
    let trained = match kind {
        TokenizerKind::Bpe(vocab_size) => train(texts, vocab_size, &name, check_stop)?,
        TokenizerKind::Char(eos) => train_chars(texts, eos, &name)?,
        TokenizerKind::Byte => Trained { tokenizer: Tokenizer::of_bytes(&name), requested: 257, bytes: 0, words: 0 },
    };
    check_stop()?;
    Ok(trained)
}
