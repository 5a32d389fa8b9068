//! Sends documents from the thread that reads them, as chunks of text.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tempfile::TempDir;

use crate::Error;
use crate::progress::Event;

/// Messages that may wait for the consumer.
const QUEUE: usize = 4;
/// Interval at which a waiting consumer checks whether to stop.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

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
    /// A folder that is read, removed with this: the thread may outlive the program's last steps.
    _folder: Option<TempDir>,
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

/// Runs `read` on the calling thread, and drops what it sends. For fuzz targets: a thread takes longer than a small input.
#[cfg(feature = "fuzz")]
pub(crate) fn read_here(read: impl FnOnce(DocumentSender) -> Result<(), Error>) -> Result<(), Error> {
    /// More messages than an input makes.
    const MESSAGES: usize = 1 << 14;
    thread_local!(static CHANNEL: (SyncSender<Message>, Receiver<Message>) = sync_channel(MESSAGES));
    CHANNEL.with(|(sender, messages)| {
        let result = read(DocumentSender { sender: sender.clone() });
        messages.try_iter().for_each(drop);
        result
    })
}

impl DocumentReader {
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
        Ok(Self { messages, _folder: None })
    }

    /// Returns the same reader, which removes a folder when it is dropped.
    pub(crate) fn with_folder(self, folder: Option<TempDir>) -> Self {
        Self { _folder: folder, ..self }
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
