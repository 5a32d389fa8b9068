//! Reads conversations from files or from the hub, and tokenises them in order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_model::words::count;
use rayon::prelude::*;

use super::conversation::Conversation;
use super::encode::{AnswerCounts, ChatEncoder, EncodedChat};
use super::input::{ChatMapping, ChatParser, ParsedChat, RecordPosition, read_file};
use crate::Error;
use crate::hf::{self, HfSource};
use crate::source::{Event, TextEncoding};

/// Conversations rendered and tokenised at a time, on all threads.
const BATCH_CONVERSATIONS: usize = 1024;

/// Characters shown of a conversation's error, which may quote the file.
const MAX_REASON: usize = 300;

/// Source of conversations.
#[derive(Clone, Copy, Debug)]
pub enum ChatInput<'a> {
    /// Files, `-` is stdin; and their encoding, if they are not UTF-8 and do not tell.
    Files(&'a [PathBuf], Option<TextEncoding>),
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
    /// Name of each input file with conversations.
    pub files: Vec<String>,
    /// Number of bad conversations that were skipped.
    pub skipped: u64,
}

/// How to read conversations.
#[derive(Clone, Debug, Default)]
pub struct ChatReading {
    /// Roles and columns that the user named.
    pub mapping: ChatMapping,
    /// True if the assistant's tokens must be identifiable.
    pub answers: bool,
    /// True to skip and count bad conversations; otherwise the first one is an error.
    pub skip_bad: bool,
}

/// Reads, renders and tokenises all conversations, and passes them to `take` in order.
///
/// # Errors
/// [`Error::Read`] naming the file, the position in it and the reason. With `skip_bad`, bad conversations are no error.
pub(super) fn gather(
    input: ChatInput,
    encoder: &ChatEncoder,
    reading: &ChatReading,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
    take: &mut dyn FnMut(GatheredChat) -> Result<(), Error>,
) -> Result<GatherSummary, Error> {
    let parser = ChatParser::new(reading.mapping.clone(), encoder.template().context_names());
    let mut gatherer = ChatGatherer {
        encoder,
        reading,
        waiting: Vec::new(),
        files: Vec::new(),
        skipped: 0,
        first: None,
        forms: BTreeMap::new(),
        ignored: BTreeMap::new(),
        answers: AnswerCounts::default(),
        left_out: BTreeMap::new(),
        take,
    };
    let go_on = || if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) };
    match input {
        ChatInput::Files(paths, encoding) => {
            for path in paths {
                let note = &mut |note| progress(Event::Note(note));
                read_file(path, &parser, encoding, note, &mut |name, place, conversation| {
                    go_on()?;
                    let file = gatherer.file(name);
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
            let names = if source.column.is_some() { parser.context_columns() } else { parser.columns() };
            found.conversations(
                &names,
                &mut |event| {
                    progress(event);
                    go_on().is_ok()
                },
                &mut |record| {
                    go_on()?;
                    records += 1;
                    let file = gatherer.file(record.name);
                    let place = RecordPosition { unit: "record", number: record.number };
                    let parsed = match record.value {
                        Some(value) => parser.cell(&value, &record.columns),
                        None => parser.row(record.columns),
                    };
                    match parsed {
                        Some(parsed) => gatherer.add(file, place, parsed),
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
    gatherer.notes().into_iter().for_each(|note| progress(Event::Note(note)));
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
    reading: &'a ChatReading,
    /// Read but not yet rendered.
    waiting: Vec<(usize, RecordPosition, Conversation)>,
    files: Vec<String>,
    skipped: u64,
    /// The first skipped conversation and its error.
    first: Option<String>,
    /// Number of conversations of each form, apart from lists of turns and lines of text.
    forms: BTreeMap<String, u64>,
    /// Number of turns with each key that looks like a mark of what is learned, but is unknown.
    ignored: BTreeMap<String, u64>,
    answers: AnswerCounts,
    /// Number of turns of each role whose text the template left out.
    left_out: BTreeMap<&'static str, u64>,
    take: &'a mut dyn FnMut(GatheredChat) -> Result<(), Error>,
}

impl ChatGatherer<'_> {
    /// Returns the index of the file that is being read.
    fn file(&mut self, name: &str) -> usize {
        if self.files.last().is_none_or(|last| last != name) {
            self.files.push(name.to_owned());
        }
        self.files.len() - 1
    }

    fn add(&mut self, file: usize, place: RecordPosition, found: Result<ParsedChat, String>) -> Result<(), Error> {
        match found {
            Ok(ParsedChat { conversation, form, ignored }) => {
                form.into_iter().for_each(|form| *self.forms.entry(form).or_default() += 1);
                ignored.into_iter().for_each(|key| *self.ignored.entry(key).or_default() += 1);
                self.waiting.push((file, place, conversation));
            }
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
        let (encoder, answers) = (self.encoder, self.reading.answers);
        let encoded: Vec<_> =
            waiting.par_iter().map(|(_, _, conversation)| encoder.encode(conversation, answers)).collect();
        for ((file, place, _), encoded) in waiting.into_iter().zip(encoded) {
            match encoded {
                Ok(encoded) => {
                    self.answers += encoded.answers;
                    encoded.left_out.iter().for_each(|role| *self.left_out.entry(role.name()).or_default() += 1);
                    (self.take)(GatheredChat { encoded, place, file })?;
                }
                Err(reason) => self.bad(file, place, &reason)?,
            }
        }
        Ok(())
    }

    /// Says how the conversations were read, if that may not be what the user expects.
    fn notes(&self) -> Vec<String> {
        let form = |(form, number): (&String, &u64)| format!("{form} ({})", count(*number, "conversation"));
        let mut notes = Vec::new();
        if !self.forms.is_empty() {
            notes.push(format!("read {}", self.forms.iter().map(form).collect::<Vec<_>>().join("; ")));
        }
        for (key, number) in &self.ignored {
            let turns = count(*number, "turn");
            notes.push(format!(
                "ignored {key} in {turns}: it looks like a mark of what to learn, but only true, false, 1 or 0 in weight, \
                 loss, train, training, train_on or train_detail is one"
            ));
        }
        for (role, number) in &self.left_out {
            let turns = count(*number, "turn");
            notes.push(format!(
                "the chat template leaves out the text of {turns} of the role {role}; if it does not know the role, name one \
                 that it knows: --roles {role}=user"
            ));
        }
        let AnswerCounts { all, end_not_learned, without_end, merged } = self.answers;
        if end_not_learned > 0 {
            notes.push(format!(
                "{end_not_learned} of {} to learn end before the token that ends the turn, so the model does not learn to \
                 stop: move that token inside {{% generation %}} in the chat template",
                count(all, "answer")
            ));
        }
        if without_end > 0 {
            notes.push(format!(
                "{without_end} of {} to learn end without a special token, so the model does not learn to stop: let the chat \
                 template end the assistant's turns with eos_token",
                count(all, "answer")
            ));
        }
        if merged > 0 {
            let prompts = count(merged, "prompt");
            notes.push(format!(
                "the end of {prompts} merges with the completion into one token, which is learned: end prompts before a space"
            ));
        }
        notes
    }

    fn bad(&mut self, file: usize, place: RecordPosition, reason: &str) -> Result<(), Error> {
        let name = self.files[file].clone();
        let reason: String =
            reason.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(MAX_REASON).collect();
        if self.reading.skip_bad {
            self.skipped += 1;
            self.first.get_or_insert_with(|| format!("{name}: {place}: {reason}"));
            return Ok(());
        }
        let reason = format!("{place}: {reason} (use --skip_bad to skip such conversations)");
        Err(Error::Read { name, reason })
    }
}
