//! Conversations from files or from the hub, tokenised in order.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::conversation::Conversation;
use super::encode::{ChatEncoder, EncodedChat};
use super::read::{RecordPosition, read_file};
use crate::Error;
use crate::hf::{self, HfSource};
use crate::source::Event;

/// Conversations that are rendered and tokenised at a time, on all threads.
const BATCH_CONVERSATIONS: usize = 1024;

/// The fault of a conversation, at most so many characters of it: it may quote the file.
const MAX_REASON: usize = 300;

/// The place of conversations.
#[derive(Clone, Copy, Debug)]
pub enum ChatInput<'a> {
    /// Files, `-` for stdin.
    Files(&'a [PathBuf]),
    /// A column of a Hugging Face dataset.
    Hf(&'a HfSource),
}

/// A conversation as tokens, with where it came from.
pub(super) struct GatheredChat {
    pub encoded: EncodedChat,
    pub place: RecordPosition,
    /// Which of the inputs.
    pub file: usize,
}

/// Everything gathered.
#[derive(Clone, Debug, Default)]
pub(super) struct GatherSummary {
    /// Source of the conversations: the name of each file.
    pub files: Vec<String>,
    /// Conversations that were bad and left out.
    pub skipped: u64,
}

/// Reads, renders and tokenises all conversations, and gives them to `take` in order. With `answers` it must be possible to
/// tell what the assistant says.
///
/// # Errors
/// [`Error::Read`] naming the file, the place in it and what is wrong; unless `skip_bad`, at the first bad conversation.
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
                        (gatherer.files.len() - 1, RecordPosition { unit: "row", number: record.number });
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
                progress(Event::Note(format!("{empty} of {records} rows are empty and were left out")));
            }
        }
    }
    gatherer.settle()?;
    let ChatGatherer { files, skipped, first, .. } = gatherer;
    if let Some(first) = first {
        progress(Event::Note(format!(
            "conversations that are bad were left out (count: {skipped}); the first: {first}"
        )));
    }
    Ok(GatherSummary { files, skipped })
}

/// Conversations on their way.
struct ChatGatherer<'a> {
    encoder: &'a ChatEncoder,
    answers: bool,
    skip_bad: bool,
    /// Read and not yet rendered.
    waiting: Vec<(usize, RecordPosition, Conversation)>,
    files: Vec<String>,
    skipped: u64,
    /// The first that was left out, and why.
    first: Option<String>,
    take: &'a mut dyn FnMut(GatheredChat) -> Result<(), Error>,
}

impl ChatGatherer<'_> {
    fn add(&mut self, file: usize, place: RecordPosition, found: Result<Conversation, String>) -> Result<(), Error> {
        match found {
            Ok(conversation) => self.waiting.push((file, place, conversation)),
            Err(reason) => {
                // What comes before it may be bad too, and is to be told first.
                self.settle()?;
                self.bad(file, place, &reason)?;
            }
        }
        if self.waiting.len() == BATCH_CONVERSATIONS { self.settle() } else { Ok(()) }
    }

    /// Renders and tokenises what is waiting.
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
            self.first.get_or_insert_with(|| format!("{name}, {place}: {reason}"));
            return Ok(());
        }
        Err(Error::Read { name, reason: format!("{place}: {reason} (--skip_bad leaves out what is bad)") })
    }
}
