//! Reads documents in order, on its own thread.

use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ngen3_model::words::count;

use super::bytes::archive::{Archive, Content, look_inside};
use super::bytes::download::Client;
use super::bytes::kind::{LOOK, MAGIC_BYTES, advice, binary_of, table_of};
use super::bytes::members::{TextMember, each_text_member};
use super::bytes::open::{ByteSource, open, open_file, open_stored, peek};
use super::bytes::read_error::read_error;
use super::channel::{DocumentReader, DocumentSender};
use super::list::{Input, SHAKESPEARE, Source};
use super::text::encoding::{TextOptions, open_text};
use super::text::pieces::{CHUNK_BYTES, MarkerCount, SplitBy, Splitter};
use super::text::utf8::Utf8Reader;
use crate::Error;
use crate::progress::Event;
use crate::tokenizer::MAX_WORD;

/// Options for reading documents.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Encoding, and what to do with invalid bytes.
    pub text: TextOptions,
    /// Unit of text that becomes a document.
    pub split_by: SplitBy,
    /// Spelling of the tokenizer's end-of-text token, which a text may contain; not empty.
    pub marker: Option<String>,
    /// True if the marker separates documents, false if it is text; `None` is false, with a note if it occurs.
    pub marker_splits: Option<bool>,
    /// Folder for temporary files.
    pub scratch: PathBuf,
}

impl DocumentReader {
    /// Starts reading. `cut` returns where text that may continue can be split (`Tokenizer::safe_split`); text that cannot be
    /// split makes longer chunks, up to whole documents.
    ///
    /// # Errors
    /// [`Error::Input`] if the thread cannot be started.
    pub fn start(
        inputs: Vec<Input>,
        options: ReadOptions,
        cut: impl Fn(&str) -> Option<usize> + Send + 'static,
    ) -> Result<Self, Error> {
        Self::spawn(move |sender| send_documents(sender, inputs, options, cut))
    }
}

/// Reads and sends all documents, as [`DocumentReader::start`] does on its thread.
///
/// # Errors
/// Those of the documents.
pub(crate) fn send_documents(
    sender: DocumentSender,
    inputs: Vec<Input>,
    options: ReadOptions,
    cut: impl Fn(&str) -> Option<usize>,
) -> Result<(), Error> {
    let mut reading = ReaderThread { sender, options, cut, inputs, read_before: 0, client: None };
    (0..reading.inputs.len()).try_for_each(|index| reading.read(index))
}

/// State of the reading thread.
struct ReaderThread<C> {
    sender: DocumentSender,
    options: ReadOptions,
    cut: C,
    inputs: Vec<Input>,
    /// Stored bytes of the documents before the current one.
    read_before: u64,
    /// Created for the first URL.
    client: Option<Client>,
}

/// Stored bytes read of all inputs.
struct BytesRead {
    before: u64,
    current: Arc<AtomicU64>,
    total: Option<u64>,
}

impl BytesRead {
    fn event(&self) -> Event {
        Event::Reading { done: self.before + self.current.load(Ordering::Relaxed), total: self.total }
    }
}

impl<C: Fn(&str) -> Option<usize>> ReaderThread<C> {
    /// Returns the stored bytes of all documents, if every size is known.
    fn total(&self) -> Option<u64> {
        self.inputs.iter().map(|input| input.size).sum()
    }

    fn open(&mut self, name: &str, index: usize) -> Result<ByteSource<'static>, Error> {
        match &self.inputs[index].source {
            Source::Path(path) => open_file(name, path),
            Source::Stdin => open(name, io::stdin(), false),
            Source::Shakespeare => open(name, Cursor::new(SHAKESPEARE), false),
            Source::Url(url) => {
                let sender = self.sender.clone();
                let mut progress = move |event| sender.event(event).is_ok();
                let client = self.client.get_or_insert_with(Client::new);
                let (file, size) = client.download(url, &self.options.scratch, &mut progress)?;
                self.inputs[index].size = Some(size);
                open_stored(name, file, false)
            }
        }
    }

    /// Reads one input to its end: a document, or an archive of them.
    fn read(&mut self, index: usize) -> Result<(), Error> {
        let name = self.inputs[index].source.to_string();
        let source = self.open(&name, index)?;
        let read = BytesRead { before: self.read_before, current: source.bytes_read.clone(), total: self.total() };
        match look_inside(&name, source, &self.options.scratch)? {
            Content::Document(source) => {
                if let Some(what) = self.document(&name, source, &read)? {
                    return Err(Error::read(&name, format!("expected text, got {what}; {}", advice(&what, &name))));
                }
            }
            Content::Archive(archive) => self.archive(&name, archive, &read)?,
        }
        // Of a zip archive, which is read at several places, the count does not tell.
        self.read_before += self.inputs[index].size.unwrap_or_else(|| read.current.load(Ordering::Relaxed));
        self.sender.event(Event::Reading { done: self.read_before, total: read.total })
    }

    fn archive(&self, name: &str, archive: Archive, read: &BytesRead) -> Result<(), Error> {
        let refuse = |path: &str| {
            let format = table_of(path)?;
            Some(format!("expected text, got {format} by its name; use ngen3 hf_tokenize --hf_dataset {name}"))
        };
        let skipped = each_text_member(name, archive, &refuse, &mut |TextMember { name, source, .. }| {
            Ok(self.document(&name, source, read)?.is_none())
        })?;
        skipped.note(name).map_or(Ok(()), |note| self.sender.event(Event::Note(note)))
    }

    /// Reads one text to its end. Returns a description of one that turns out to be binary data.
    fn document(&self, name: &str, mut source: ByteSource, read: &BytesRead) -> Result<Option<String>, Error> {
        let compressed = source.compressed;
        let failed = |error: io::Error| read_error(name, compressed, &error);
        let start = peek(&mut source.bytes, MAGIC_BYTES).map_err(failed)?;
        if let Some(what) = binary_of(&start) {
            return Ok(Some(what.into()));
        }
        source.bytes = Box::new(Cursor::new(start).chain(source.bytes));
        let mut text = open_text(name, source, self.options.text)?;
        let start = peek(&mut text.bytes, LOOK).map_err(failed)?;
        if let Some(at) = start.iter().position(|&byte| byte == 0) {
            return Ok(Some(format!("binary data (byte {at} is NUL)")));
        }
        text.bytes = Box::new(Cursor::new(start).chain(text.bytes));
        if let Some(note) = text.note.take() {
            self.sender.event(Event::Note(note))?;
        }
        let mut reader = Utf8Reader::new(name, text, self.options.text.lossy);
        let ReadOptions { split_by, marker, marker_splits, .. } = &self.options;
        let separator = marker.as_deref().filter(|_| *marker_splits == Some(true));
        let mut splitter = Splitter::new(&self.sender, &self.cut, split_by, separator);
        // A tokenizer that cuts at no word needs whole documents.
        let can_cut = (self.cut)("two words").is_some();
        let mut markers = marker.as_deref().filter(|_| marker_splits.is_none()).map(MarkerCount::new);
        loop {
            let before = splitter.buffer().len();
            let more = reader.read(splitter.buffer())?;
            if let Some(markers) = &mut markers {
                markers.push(&splitter.buffer()[before..]);
            }
            if !more {
                break;
            }
            splitter.push()?;
            if can_cut && splitter.buffer().len() > MAX_WORD + CHUNK_BYTES {
                let reason = "the text needs spaces, line breaks or other places where words end";
                let long = format!("expected words of at most {MAX_WORD} bytes, got a longer one: {reason}");
                return Err(Error::read(name, long));
            }
            self.sender.event(read.event())?;
        }
        splitter.finish()?;
        let replaced = reader.replaced();
        if replaced > 0 {
            let encoding = self.options.text.encoding.map_or_else(|| "UTF-8".into(), |encoding| encoding.to_string());
            let sequences = count(replaced, &format!("invalid {encoding} sequence"));
            self.note(format!("{name}: replaced {sequences} by U+FFFD"))?;
        }
        if splitter.documents == 0 {
            self.note(format!("{name}: skipped because it is empty"))?;
        } else if splitter.blank > 0 {
            self.note(format!("{name}: skipped {}", count(splitter.blank, "blank document")))?;
        }
        if let Some(MarkerCount { marker, count: times @ 1.., .. }) = markers {
            let times = count(times, "time");
            self.note(format!(
                "{name}: {marker} occurs {times} and was read as text; pass --eot_in_text token to separate documents there, or \
                 --eot_in_text text to keep it"
            ))?;
        }
        Ok(None)
    }

    fn note(&self, note: String) -> Result<(), Error> {
        self.sender.event(Event::Note(note))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::source::channel::TextChunk;
    use crate::source::list;

    static GO: AtomicBool = AtomicBool::new(false);

    fn options() -> ReadOptions {
        ReadOptions { scratch: std::env::temp_dir(), ..ReadOptions::default() }
    }

    /// Returns the texts of the documents, the length of the longest chunk, and the notes.
    fn read_all(reader: Result<DocumentReader, Error>) -> Result<(Vec<String>, usize, Vec<String>), Error> {
        let mut reader = reader?;
        let (mut documents, mut text, mut longest, mut notes) = (Vec::new(), String::new(), 0, Vec::new());
        let mut progress = |event| {
            if let Event::Note(note) = event {
                notes.push(note);
            }
        };
        while let Some(chunk) = reader.next(&GO, &mut progress)? {
            match chunk {
                TextChunk::Text(chunk) => {
                    longest = longest.max(chunk.len());
                    text.push_str(&chunk);
                }
                TextChunk::EndOfDocument => documents.push(std::mem::take(&mut text)),
                TextChunk::Documents { .. } => unreachable!("files are read as chunks of documents"),
            }
        }
        assert!(text.is_empty(), "every text ends with EndOfDocument");
        Ok((documents, longest, notes))
    }

    fn last_space(text: &str) -> Option<usize> {
        text.rfind(' ')
    }

    #[test]
    fn documents_come_whole_and_in_order_and_empty_ones_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let long = "é words ".repeat(700_000);
        for (name, text) in [("a.txt", "first"), ("b.txt", ""), ("c.txt", &long)] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let inputs = list(&[Source::Path(folder.path().into()), Source::Shakespeare]).unwrap().inputs;
        let (documents, longest, notes) = read_all(DocumentReader::start(inputs, options(), last_space)).unwrap();
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[0], "first");
        assert!(documents[1] == long, "the long document is whole");
        assert!(documents[2].starts_with("First Citizen:\n") && documents[2].len() == 1_115_394);
        assert!(longest < 2 * CHUNK_BYTES, "{longest}");
        assert_eq!(notes, [format!("{}: skipped because it is empty", folder.path().join("b.txt").display())]);
    }

    #[test]
    fn a_text_without_a_place_to_cut_comes_in_one_piece() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "x".repeat(3 * CHUNK_BYTES)).unwrap();
        let inputs = list(&[Source::Path(path)]).unwrap().inputs;
        let (documents, longest, _) = read_all(DocumentReader::start(inputs, options(), |_| None)).unwrap();
        assert_eq!((documents[0].len(), longest), (3 * CHUNK_BYTES, 3 * CHUNK_BYTES));
    }

    #[test]
    fn reading_ends_at_a_bad_document_and_when_asked_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, b"fine \xff").unwrap();
        let inputs = list(&[Source::Shakespeare, Source::Path(path)]).unwrap().inputs;
        let error = read_all(DocumentReader::start(inputs.clone(), options(), last_space)).unwrap_err();
        assert!(matches!(error, Error::Utf8 { offset: 5, .. }), "{error}");
        let mut reader = DocumentReader::start(inputs, options(), last_space).unwrap();
        let error = reader.next(&AtomicBool::new(true), &mut |_| {}).unwrap_err();
        assert!(matches!(error, Error::Interrupted), "{error}");
    }

    #[test]
    fn progress_ends_at_the_total() {
        let inputs = list(&[Source::Shakespeare]).unwrap().inputs;
        let mut reader = DocumentReader::start(inputs, options(), last_space).unwrap();
        let mut last = None;
        let mut progress = |event| last = Some(event);
        while reader.next(&GO, &mut progress).unwrap().is_some() {}
        let size = SHAKESPEARE.len() as u64;
        assert_eq!(last, Some(Event::Reading { done: size, total: Some(size) }));
    }
}
