//! Tokenised conversations, from memory or from the folder that `tokenize` makes.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use memmap2::Mmap;
use ngen3_model::ChatFormat;
use ngen3_model::hash::{hex, sha256};
use ngen3_model::words::count;
use sha2::{Digest, Sha256};

use super::encode::ChatEncoder;
use super::gather::{ChatInput, GatheredChat, gather};
use super::marks;
use crate::source::Event;
use crate::token_file::{MASK_FILE, META_FILE};
use crate::{Error, TokenFile, Tokenizer};

/// Many conversations as tokens.
#[derive(Debug)]
pub struct Chats {
    tokens: Tokens,
    marks: Marks,
    /// Where each conversation begins, and where the last one ends.
    bounds: Vec<usize>,
    /// Where each came from, if it is known: its file, and the place in there.
    places: Vec<(usize, super::read::RecordPosition)>,
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
    /// Reads, renders and tokenises conversations. With `answers` it must be possible to tell what the assistant says. `name`
    /// is how messages call them.
    ///
    /// # Errors
    /// [`Error::Read`] naming a bad conversation, unless `skip_bad`; [`Error::Input`] when there is none at all.
    pub fn read(
        name: &str,
        input: ChatInput,
        encoder: &ChatEncoder,
        answers: bool,
        skip_bad: bool,
        stop: &AtomicBool,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Self, Error> {
        let (mut ids, mut all_marks, mut bounds, mut places) = (Vec::new(), Vec::new(), vec![0], Vec::new());
        let gathered = gather(input, encoder, answers, skip_bad, stop, progress, &mut |found: GatheredChat| {
            ids.extend_from_slice(&found.encoded.ids);
            all_marks.extend_from_slice(&found.encoded.marks);
            bounds.push(ids.len());
            places.push((found.file, found.place));
            Ok(())
        })?;
        if places.is_empty() {
            return Err(Error::Input(format!("there are no conversations in {name}")));
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

    /// Opens `data.bin` and `mask.bin` beside it; `None` if the file is one of plain tokens.
    ///
    /// # Errors
    /// As [`TokenFile::open`]; [`Error::Data`] for a `mask.bin` that is missing, or not of the same making.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        let file = TokenFile::open(path)?;
        let named = path.file_name().is_some_and(|name| name == crate::token_file::DATA_FILE);
        let mask = path.with_file_name(MASK_FILE);
        let wrong = |reason: String| Error::Data(format!("{}: {reason}; tokenize again", mask.display()));
        if named && file.meta().is_none() && mask.exists() {
            return Err(wrong(format!("{META_FILE} is not beside it, which says what it marks")));
        }
        let Some(meta) = file.meta().filter(|meta| named && meta.chat.is_some()).cloned() else { return Ok(None) };
        let chat = meta.chat.expect("looked at just now");
        let opened = File::open(&mask).map_err(|error| wrong(format!("it cannot be read ({error})")))?;
        let len = opened.metadata().map_err(|error| wrong(error.to_string()))?.len();
        if len != meta.tokens {
            return Err(wrong(format!("it has {} for {}", count(len, "byte"), count(meta.tokens, "token"))));
        }
        // SAFETY: as in `TokenFile::open`: we only read the map, and our own writers replace a file by renaming.
        let map = unsafe { Mmap::map(&opened) }.map_err(|error| wrong(error.to_string()))?;
        if sha256(&map) != chat.mask_sha256 {
            return Err(wrong("it has changed since it was made".into()));
        }
        file.verify()?;
        let begins = |(at, mark): (usize, &u8)| (mark & marks::CONVERSATION_START != 0).then_some(at);
        let mut bounds: Vec<usize> = map.iter().enumerate().filter_map(begins).collect();
        if bounds.first() != Some(&0) {
            return Err(wrong("no conversation begins at its first token".into()));
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

    /// Conversations, at least 1.
    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    /// How messages call them.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What they came from.
    pub fn source(&self) -> &[String] {
        &self.source
    }

    /// How they became text.
    pub fn format(&self) -> &ChatFormat {
        &self.format
    }

    /// What made the token ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Conversations that were bad and left out when they were read.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Tells these conversations from others: SHA-256 of tokens and marks, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// True if anybody's turns are among them: not all texts are conversations.
    pub fn have_turns(&self) -> bool {
        // A text is learned whole; of a conversation whose turns could not be told apart some token is not.
        self.marks.as_slice().iter().any(|mark| mark & marks::TURN_START != 0 || mark & marks::TARGET == 0)
    }

    /// The places of a conversation's tokens.
    pub(super) fn range(&self, conversation: usize) -> std::ops::Range<usize> {
        self.bounds[conversation]..self.bounds[conversation + 1]
    }

    /// The marks of all tokens.
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

    /// Checks that a model with this vocabulary can read every token.
    ///
    /// # Errors
    /// [`Error::Data`] naming the first token that it cannot.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<(), Error> {
        match &self.tokens {
            Tokens::File(file) => file.check_vocab(vocab_size),
            Tokens::Memory(ids) => match ids.iter().find(|&&id| id as usize >= vocab_size) {
                None => Ok(()),
                Some(id) => Err(Error::Data(format!(
                    "token {id} of {} is outside the model's vocabulary of {vocab_size}",
                    self.name
                ))),
            },
        }
    }

    /// A conversation, as a message calls it.
    pub(super) fn title(&self, conversation: usize) -> String {
        match self.places.get(conversation) {
            Some((file, place)) => format!("{}: {place}", self.source[*file]),
            None => format!("{}: conversation {}", self.name, conversation + 1),
        }
    }
}
