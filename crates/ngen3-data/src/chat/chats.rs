//! Tokenised conversations, in memory or from a folder made by `tokenize`.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use memmap2::Mmap;
use ngen3_model::ChatFormat;
use ngen3_model::hash::{hex, sha256};
use ngen3_model::words::count;
use sha2::{Digest, Sha256};

use super::encode::ChatEncoder;
use super::gather::{ChatInput, ChatReading, GatheredChat, gather};
use super::marks;
use crate::source::Event;
use crate::token_file::{MASK_FILE, META_FILE};
use crate::{Error, TokenFile, Tokenizer};

/// Tokenised conversations.
#[derive(Debug)]
pub struct Chats {
    tokens: Tokens,
    marks: Marks,
    /// Start of each conversation in tokens, and the end of the last.
    bounds: Vec<usize>,
    /// Origin of each conversation, if known: the index of its file, and its position there.
    places: Vec<(usize, super::input::RecordPosition)>,
    name: String,
    source: Vec<String>,
    format: ChatFormat,
    tokenizer: Tokenizer,
    skipped: u64,
    sha256: String,
}

#[derive(Debug)]
enum Tokens {
    File(Box<TokenFile>),
    Memory(Vec<u32>),
}

#[derive(Debug)]
enum Marks {
    File(Mmap),
    Memory(Vec<u8>),
}

impl Marks {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::File(map) => map,
            Self::Memory(marks) => marks,
        }
    }
}

impl Chats {
    /// Reads, renders and tokenises conversations. `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Read`] naming a bad conversation, unless these are skipped; [`Error::Input`] when there is none at all.
    pub fn read(
        name: &str,
        input: ChatInput,
        encoder: &ChatEncoder,
        reading: &ChatReading,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Self, Error> {
        let (mut ids, mut all_marks, mut bounds, mut places) = (Vec::new(), Vec::new(), vec![0], Vec::new());
        let gathered = gather(input, encoder, reading, stop, progress, &mut |found: GatheredChat| {
            ids.extend_from_slice(&found.encoded.ids);
            all_marks.extend_from_slice(&found.encoded.marks);
            bounds.push(ids.len());
            places.push((found.file, found.place));
            Ok(())
        })?;
        if places.is_empty() {
            return Err(Error::Input(format!("{name}: no conversations found")));
        }
        let mut hash = Sha256::new();
        ids.iter().for_each(|id: &u32| hash.update(id.to_le_bytes()));
        hash.update(&all_marks);
        Ok(Self {
            tokens: Tokens::Memory(ids),
            marks: Marks::Memory(all_marks),
            bounds,
            places,
            name: name.into(),
            source: gathered.files,
            format: encoder.template().format().clone(),
            tokenizer: encoder.tokenizer().clone(),
            skipped: gathered.skipped,
            sha256: hex(hash),
        })
    }

    /// Opens `data.bin` with the `mask.bin` beside it; `None` if it holds plain tokens.
    ///
    /// # Errors
    /// As [`TokenFile::open`]; [`Error::Data`] for a `mask.bin` that is missing or does not match.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        let file = TokenFile::open(path)?;
        let named = path.file_name().is_some_and(|name| name == crate::token_file::DATA_FILE);
        let mask = path.with_file_name(MASK_FILE);
        let wrong = |reason: String| Error::Data(format!("{}: {reason}; tokenize again", mask.display()));
        if named && file.meta().is_none() && mask.exists() {
            return Err(wrong(format!("expected {META_FILE} beside it")));
        }
        let Some(meta) = file.meta().filter(|meta| named && meta.chat.is_some()).cloned() else { return Ok(None) };
        let chat = meta.chat.expect("checked above");
        let opened = File::open(&mask).map_err(|error| wrong(error.to_string()))?;
        let len = opened.metadata().map_err(|error| wrong(error.to_string()))?.len();
        if len != meta.tokens {
            let (tokens, bytes) = (count(meta.tokens, "token"), count(len, "byte"));
            return Err(wrong(format!("expected one byte for each of {tokens}, got {bytes}")));
        }
        // SAFETY: as in `TokenFile::open`: we only read the map, and our own writers replace a file by renaming.
        let map = unsafe { Mmap::map(&opened) }.map_err(|error| wrong(error.to_string()))?;
        if sha256(&map) != chat.mask_sha256 {
            return Err(wrong(format!("SHA-256 does not match {META_FILE}: the file has changed since it was made")));
        }
        file.verify()?;
        let begins = |(at, mark): (usize, &u8)| (mark & marks::CONVERSATION_START != 0).then_some(at);
        let mut bounds: Vec<usize> = map.iter().enumerate().filter_map(begins).collect();
        if bounds.first() != Some(&0) {
            return Err(wrong("no conversation starts at its first token".into()));
        }
        bounds.push(file.len());
        let tokenizer = file.tokenizer()?;
        let sha256 = sha256(format!("{} {}", meta.sha256, chat.mask_sha256));
        Ok(Some(Self {
            tokens: Tokens::File(Box::new(file)),
            marks: Marks::File(map),
            bounds,
            places: Vec::new(),
            name: path.display().to_string(),
            source: meta.source,
            format: chat.format,
            tokenizer,
            skipped: 0,
            sha256,
        }))
    }

    /// Number of conversations, at least 1.
    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sources of the conversations.
    pub fn source(&self) -> &[String] {
        &self.source
    }

    /// Chat format that rendered them.
    pub fn format(&self) -> &ChatFormat {
        &self.format
    }

    /// Tokenizer that made the token ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Number of bad conversations that were skipped.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// SHA-256 of tokens and marks, in hexadecimal, which identifies these conversations.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// True if any conversation has turns, as opposed to plain text.
    pub fn have_turns(&self) -> bool {
        // Every token of plain text is a target or of a prompt; a conversation whose turns could not be identified has others.
        let of_text = marks::TARGET | marks::NEVER;
        self.marks.as_slice().iter().any(|mark| mark & marks::TURN_START != 0 || mark & of_text == 0)
    }

    /// Range of a conversation's tokens.
    pub(super) fn range(&self, conversation: usize) -> std::ops::Range<usize> {
        self.bounds[conversation]..self.bounds[conversation + 1]
    }

    /// Marks of all tokens.
    pub(super) fn marks(&self) -> &[u8] {
        self.marks.as_slice()
    }

    /// Appends tokens to `out`.
    pub(super) fn copy(&self, range: std::ops::Range<usize>, out: &mut Vec<u32>) {
        match &self.tokens {
            Tokens::File(file) => file.copy(range, out),
            Tokens::Memory(ids) => out.extend_from_slice(&ids[range]),
        }
    }

    /// Checks that every token id is below `vocab_size`.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first token outside the vocabulary.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), Error> {
        match &self.tokens {
            Tokens::File(file) => file.check_vocab(vocab_size),
            Tokens::Memory(ids) => match ids.iter().find(|&&id| id as usize >= vocab_size) {
                None => Ok(()),
                Some(id) => Err(Error::Data(format!(
                    "{}: token {id} is outside the model's vocabulary of {vocab_size}; was it made with another \
                     tokenizer?",
                    self.name
                ))),
            },
        }
    }

    /// Returns the name of a conversation for messages.
    pub(super) fn title(&self, conversation: usize) -> String {
        match self.places.get(conversation) {
            Some((file, place)) => format!("{}: {place}", self.source[*file]),
            None => format!("{}: conversation {}", self.name, conversation + 1),
        }
    }
}
