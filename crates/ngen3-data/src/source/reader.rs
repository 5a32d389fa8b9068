//! Reads documents in order, on its own thread, and sends them as chunks of text.

use std::io::Cursor;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use ngen3_model::words::count;

use super::download::Client;
use super::list::{Input, SHAKESPEARE, Source};
use super::open::{ByteSource, open, open_file};
use super::utf8::Utf8Reader;
use crate::Error;
use crate::progress::Event;

/// Bytes of text in a chunk, unless the text cannot be split.
const CHUNK_BYTES: usize = 1 << 20;
/// Messages that may wait for the consumer.
const QUEUE: usize = 4;
/// Interval at which a waiting consumer checks whether to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Options for reading documents.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// True to replace invalid UTF-8 by U+FFFD; otherwise it is an error.
    pub lossy: bool,
    /// Folder for the temporary files of downloads.
    pub scratch: PathBuf,
}

/// Text of a [`DocumentReader`], in order. The chunks of a document, concatenated, are its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextChunk {
    /// Part of the current document, never empty.
    Text(String),
    /// End of the current document, which had text.
    EndOfDocument,
    /// Whole documents, none empty, concatenated: many small ones share a chunk.
    Documents {
        /// Their concatenated text.
        text: String,
        /// End of each document in `text`, in bytes.
        ends: Vec<usize>,
    },
}

/// Documents being read on another thread.
pub struct DocumentReader {
    messages: Receiver<Message>,
}

enum Message {
    Event(Event),
    TextChunk(TextChunk),
    /// The last message.
    Done(Result<(), Error>),
}

/// The reading thread's end of the channel.
#[derive(Clone)]
pub(crate) struct DocumentSender {
    sender: SyncSender<Message>,
}

impl DocumentSender {
    /// Sends a chunk.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the consumer is gone.
    pub(crate) fn chunk(&self, chunk: TextChunk) -> Result<(), Error> {
        self.send(Message::TextChunk(chunk))
    }

    /// Sends an event.
    ///
    /// # Errors
    /// As [`DocumentSender::chunk`].
    pub(crate) fn event(&self, event: Event) -> Result<(), Error> {
        self.send(Message::Event(event))
    }

    fn send(&self, message: Message) -> Result<(), Error> {
        self.sender.send(message).map_err(|_| Error::Interrupted)
    }
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
        Self::spawn(move |sender| {
            let mut reading = ReaderThread { sender, options, cut, inputs, read_before: 0, client: None };
            (0..reading.inputs.len()).try_for_each(|index| reading.read(index))
        })
    }

    /// Starts a thread that runs `read` with a sender.
    ///
    /// # Errors
    /// [`Error::Input`] if the thread cannot be started.
    pub(crate) fn spawn(
        read: impl FnOnce(DocumentSender) -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (sender, messages) = sync_channel(QUEUE);
        // Not joined: after an early stop this thread may still be waiting for stdin or the network.
        let thread = std::thread::Builder::new().spawn(move || {
            let result = read(DocumentSender { sender: sender.clone() });
            // A consumer that is gone does not need the result.
            let _ = sender.send(Message::Done(result));
        });
        thread.map_err(|error| Error::Input(format!("cannot start the reading thread: {error}")))?;
        Ok(Self { messages })
    }

    /// Returns the next chunk; `None`, once, after the last. `progress` receives the events in between.
    ///
    /// # Errors
    /// [`Error::Interrupted`] soon after `stop` is set; the error of a document. Nothing follows an error.
    pub fn next(&mut self, stop: &AtomicBool, progress: &mut dyn FnMut(Event)) -> Result<Option<TextChunk>, Error> {
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            match self.messages.recv_timeout(POLL_INTERVAL) {
                Ok(Message::Event(event)) => progress(event),
                Ok(Message::TextChunk(chunk)) => return Ok(Some(chunk)),
                Ok(Message::Done(result)) => return result.map(|()| None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Input("the reading thread ended unexpectedly".into()));
                }
            }
        }
    }
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

impl<C: Fn(&str) -> Option<usize>> ReaderThread<C> {
    /// Returns the stored bytes of all documents, if every size is known.
    fn total(&self) -> Option<u64> {
        self.inputs.iter().map(|input| input.size).sum()
    }

    fn open(&mut self, name: &str, index: usize) -> Result<ByteSource, Error> {
        match &self.inputs[index].source {
            Source::Path(path) => open_file(name, path),
            Source::Stdin => open(name, std::io::stdin(), false),
            Source::Shakespeare => open(name, Cursor::new(SHAKESPEARE), false),
            Source::Url(url) => {
                let sender = self.sender.clone();
                let mut progress = move |event| sender.event(event).is_ok();
                let client = self.client.get_or_insert_with(Client::new);
                let (file, size) = client.download(url, &self.options.scratch, &mut progress)?;
                self.inputs[index].size = Some(size);
                open(name, file, false)
            }
        }
    }

    /// Reads one document to its end.
    fn read(&mut self, index: usize) -> Result<(), Error> {
        let name = self.inputs[index].source.to_string();
        let opened = self.open(&name, index)?;
        let total = self.total();
        let bytes_read = opened.bytes_read.clone();
        let mut reader = Utf8Reader::new(&name, opened, self.options.lossy)?;
        let mut text = String::new();
        let (mut wanted, mut empty) = (CHUNK_BYTES, true);
        while reader.read(&mut text)? {
            let done = self.read_before + bytes_read.load(Ordering::Relaxed);
            if text.len() < wanted {
                continue;
            }
            if let Some(at) = (self.cut)(&text).filter(|&at| at > 0) {
                let rest = text.split_off(at);
                self.sender.chunk(TextChunk::Text(std::mem::replace(&mut text, rest)))?;
                self.sender.event(Event::Reading { done, total })?;
                (wanted, empty) = (CHUNK_BYTES, false);
            } else {
                // Searching again after every buffer would take quadratic time.
                wanted = 2 * text.len();
            }
        }
        self.read_before += bytes_read.load(Ordering::Relaxed);
        if reader.replaced > 0 {
            let sequences = count(reader.replaced, "invalid UTF-8 sequence");
            let note = format!("{name}: replaced {sequences} by U+FFFD");
            self.sender.event(Event::Note(note))?;
        }
        if !text.is_empty() {
            self.sender.chunk(TextChunk::Text(text))?;
        } else if empty {
            self.sender.event(Event::Note(format!("{name}: skipped because it is empty")))?;
            return Ok(());
        }
        self.sender.event(Event::Reading { done: self.read_before, total })?;
        self.sender.chunk(TextChunk::EndOfDocument)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::source::list;

    static GO: AtomicBool = AtomicBool::new(false);

    fn options() -> ReadOptions {
        ReadOptions { lossy: false, scratch: std::env::temp_dir() }
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
