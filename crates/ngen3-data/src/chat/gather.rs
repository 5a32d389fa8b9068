//! Reads conversations from files or from the hub, and tokenises them in order.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_model::words::count;
use rayon::prelude::*;

use super::conversation::Conversation;
use super::encode::{ChatEncoder, EncodedChat};
use super::read::{RecordPosition, read_file};
use crate::Error;
use crate::hf::{self, HfSource};
use crate::source::Event;

/// Conversations rendered and tokenised at a time, on all threads.
const BATCH_CONVERSATIONS: usize = 1024;

/// Characters shown of a conversation's error, which may quote the file.
const MAX_REASON: usize = 300;

/// Source of conversations.
#[derive(Clone, Copy, Debug)]
pub enum ChatInput<'a> {
    /// Files; `-` is stdin.
    Files(&'a [PathBuf]),
    /// A column of a Hugging Face dataset.
    Hf(&'a HfSource),
}

/// A tokenised conversation and its origin.
pub(super) struct GatheredChat {
    pub encoded: EncodedChat,
    pub place: RecordPosition,
    /// Index of the input file.
    pub file: usize,
}

/// Result of [`gather`].
#[derive(Clone, Debug, Default)]
pub(super) struct GatherSummary {
    /// Name of each input file.
    pub files: Vec<String>,
    /// Number of bad conversations that were skipped.
    pub skipped: u64,
}

/// Reads, renders and tokenises all conversations, and passes them to `take` in order. With `answers`, the assistant's tokens
/// must be identifiable.
///
/// # Errors
/// [`Error::Read`] naming the file, the position in it and the reason. With `skip_bad`, bad conversations are no error.
pub(super) fn gather(
    input: ChatInput,
    encoder: &ChatEncoder,
    answers: bool,
    skip_bad: bool,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
    take: &mut dyn FnMut(GatheredChat) -> Result<(), Error>,
) -> Result<GatherSummary, Error> {
    let files: Vec<String> = match input {
        ChatInput::Files(paths) => paths
            .iter()
            .map(|path| if path == Path::new("-") { "stdin".into() } else { path.display().to_string() })
            .collect(),
        ChatInput::Hf(_) => Vec::new(),
    };
    let mut gatherer =
        ChatGatherer { encoder, answers, skip_bad, waiting: Vec::new(), files, skipped: 0, first: None, take };
    let go_on = || if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
    match input {
        ChatInput::Files(paths) => {
            for (file, path) in paths.iter().enumerate() {
                read_file(path, &mut |place, conversation| {
                    go_on()?;
                    gatherer.add(file, place, conversation)
                })?;
            }
        }
        ChatInput::Hf(source) => {
            let found = hf::resolve(source, &mut |event| {
                progress(event);
                go_on().is_ok()
            })?;
            let (mut records, mut empty) = (0, 0);
            found.conversations(
                &mut |event| {
                    progress(event);
                    go_on().is_ok()
                },
                &mut |record| {
                    go_on()?;
                    records += 1;
                    if gatherer.files.last().is_none_or(|last| last != record.name) {
                        gatherer.files.push(record.name.to_owned());
                    }
                    let (file, place) =
                        (gatherer.files.len() - 1, RecordPosition { unit: "record", number: record.number });
                    match record.text.filter(|text| !text.is_empty()) {
                        Some(text) => gatherer.add(file, place, Conversation::from_cell(text)),
                        None => {
                            empty += 1;
                            Ok(())
                        }
                    }
                },
            )?;
            if empty > 0 {
                progress(Event::Note(format!("skipped {empty} of {records} records: they are empty")));
            }
        }
    }
    gatherer.settle()?;
    if let Some(note) = encoder.tokenizer().missing_note(&encoder.missing()) {
        progress(Event::Note(note));
    }
    let ChatGatherer { files, skipped, first, .. } = gatherer;
    if let Some(first) = first {
        let skipped = count(skipped, "bad conversation");
        progress(Event::Note(format!("skipped {skipped}; the first: {first}")));
    }
    Ok(GatherSummary { files, skipped })
}

/// State of reading conversations.
struct ChatGatherer<'a> {
    encoder: &'a ChatEncoder,
    answers: bool,
    skip_bad: bool,
    /// Read but not yet rendered.
    waiting: Vec<(usize, RecordPosition, Conversation)>,
    files: Vec<String>,
    skipped: u64,
    /// The first skipped conversation and its error.
    first: Option<String>,
    take: &'a mut dyn FnMut(GatheredChat) -> Result<(), Error>,
}

impl ChatGatherer<'_> {
    fn add(&mut self, file: usize, place: RecordPosition, found: Result<Conversation, String>) -> Result<(), Error> {
        match found {
            Ok(conversation) => self.waiting.push((file, place, conversation)),
            Err(reason) => {
                // An earlier conversation may be bad too, and must be reported first.
                self.settle()?;
                self.bad(file, place, &reason)?;
            }
        }
        if self.waiting.len() == BATCH_CONVERSATIONS { self.settle() } else { Ok(()) }
    }

    /// Renders and tokenises the waiting conversations.
    fn settle(&mut self) -> Result<(), Error> {
        let waiting = std::mem::take(&mut self.waiting);
        let (encoder, answers) = (self.encoder, self.answers);
        let encoded: Vec<_> =
            waiting.par_iter().map(|(_, _, conversation)| encoder.encode(conversation, answers)).collect();
        for ((file, place, _), encoded) in waiting.into_iter().zip(encoded) {
            match encoded {
                Ok(encoded) => (self.take)(GatheredChat { encoded, place, file })?,
                Err(reason) => self.bad(file, place, &reason)?,
            }
        }
        Ok(())
    }

    fn bad(&mut self, file: usize, place: RecordPosition, reason: &str) -> Result<(), Error> {
        let name = self.files[file].clone();
        let reason: String =
            reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_REASON).collect();
        if self.skip_bad {
            self.skipped += 1;
            self.first.get_or_insert_with(|| format!("{name}: {place}: {reason}"));
            return Ok(());
        }
        let reason = format!("{place}: {reason} (use --skip_bad to skip such conversations)");
        Err(Error::Read { name, reason })
    }
}
