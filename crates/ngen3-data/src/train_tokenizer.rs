//! Makes a tokenizer of text sources and writes its tokenizer.json.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_model::files::{AtomicFile, folder_of};

use crate::source::{DocumentReader, Event, ReadOptions, Source, TextChunk, TextOptions, list};
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
    let listing = list(sources)?;
    listing.report_skipped(progress);
    // Created before any work, so that an unwritable file fails at once.
    let mut file = AtomicFile::create(out)?;
    // A BPE will have GPT-2's pre-tokeniser, so text can be split wherever GPT-2's can.
    let cutter = Tokenizer::gpt2();
    let options = ReadOptions { text, scratch: folder_of(out).into(), ..ReadOptions::default() };
    let mut reader = DocumentReader::start(listing.inputs, options, move |text| cutter.safe_split(text))?;
    let texts = std::iter::from_fn(|| {
        loop {
            match reader.next(stop, progress).transpose()? {
                Ok(TextChunk::Text(text) | TextChunk::Documents { text, .. }) => return Some(Ok(text)),
                Ok(TextChunk::EndOfDocument) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    });
    // Fused, since the reader has nothing more to return after its end.
    let texts = texts.fuse();
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let check_stop = || if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
    let trained = match kind {
        TokenizerKind::Bpe(vocab_size) => train(texts, vocab_size, &name, check_stop)?,
        TokenizerKind::Char(eos) => train_chars(texts, eos, &name)?,
        TokenizerKind::Byte => Trained { tokenizer: Tokenizer::of_bytes(&name), requested: 257, bytes: 0, words: 0 },
    };
    check_stop()?;
    let json = trained.tokenizer.to_json();
    file.write_all(json.as_bytes()).map_err(|error| Error::write(out, error))?;
    file.commit()?;
    Ok(trained)
}
