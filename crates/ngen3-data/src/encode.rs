//! Encodes text on several threads, keeping its order.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use ngen3_model::words::count;

use crate::source::{DocumentReader, Event, TextChunk};
use crate::tokenizer::MissingChars;
use crate::{Error, Tokenizer};

/// Encoded text, in input order.
pub(crate) enum EncodedChunk {
    /// Ids of part of the current document.
    Tokens {
        ids: Vec<u32>,
        /// Bytes of text encoded.
        text_bytes: usize,
        /// Characters that the vocabulary lacks.
        missing: MissingChars,
    },
    /// End of the current document.
    EndOfDocument,
    /// Whole documents.
    Documents {
        /// Their ids, with the tokens that begin and end each document, if there are any.
        ids: Vec<u32>,
        /// Bytes of text encoded.
        text_bytes: usize,
        /// Number of documents.
        count: usize,
        /// Characters that the vocabulary lacks.
        missing: MissingChars,
    },
}

/// Text to encode, and the channel for the result.
struct EncodeJob {
    text: String,
    /// End of each document in `text`, in bytes, if it holds whole documents.
    ends: Option<Vec<usize>>,
    reply: SyncSender<Result<EncodedChunk, Error>>,
}

/// A result not yet passed to `take`.
enum Pending {
    Job(Receiver<Result<EncodedChunk, Error>>),
    EndOfDocument,
}

impl EncodeJob {
    fn encode(&self, tokenizer: &Tokenizer) -> Result<EncodedChunk, Error> {
        let Self { text, ends, .. } = self;
        let mut ids = Vec::with_capacity(text.len() / 3);
        let (text_bytes, mut missing) = (text.len(), MissingChars::default());
        let Some(ends) = ends else {
            tokenizer.encode_counting(text, &mut ids, &mut missing)?;
            return Ok(EncodedChunk::Tokens { ids, text_bytes, missing });
        };
        let mut start = 0;
        for &end in ends {
            ids.extend(tokenizer.document_start());
            tokenizer.encode_counting(&text[start..end], &mut ids, &mut missing)?;
            ids.extend(tokenizer.eot());
            start = end;
        }
        Ok(EncodedChunk::Documents { ids, text_bytes, count: ends.len(), missing })
    }
}

/// Encodes everything from a reader on `threads` threads and passes it to `take` in order.
///
/// # Errors
/// The first error of the reader, the tokenizer or `take`.
pub(crate) fn encode(
    reader: &mut DocumentReader,
    tokenizer: &Tokenizer,
    threads: usize,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Event),
    take: &mut dyn FnMut(EncodedChunk) -> Result<(), Error>,
) -> Result<(), Error> {
    let (jobs, queue) = sync_channel::<EncodeJob>(threads);
    let queue = Mutex::new(queue);
    let work = || {
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            // No more jobs will come.
            let Ok(job) = job else { return };
            // The receiver may be gone after an earlier error.
            let _ = job.reply.send(job.encode(tokenizer));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let thread = std::thread::Builder::new().spawn_scoped(scope, work);
            thread.map_err(|error| Error::Input(format!("cannot start {}: {error}", count(threads, "thread"))))?;
        }
        // Moved in, so that it is dropped, and the workers return, however this closure ends.
        let jobs = jobs;
        let mut pending = VecDeque::new();
        let mut deliver = |pending| match pending {
            Pending::Job(result) => take(result.recv().expect("a worker answers")?),
            Pending::EndOfDocument => take(EncodedChunk::EndOfDocument),
        };
        while let Some(chunk) = reader.next(stop, progress)? {
            let (text, ends) = match chunk {
                TextChunk::Text(text) => (text, None),
                TextChunk::Documents { text, ends } => (text, Some(ends)),
                TextChunk::EndOfDocument => {
                    pending.push_back(Pending::EndOfDocument);
                    continue;
                }
            };
            let (reply, result) = sync_channel(1);
            jobs.send(EncodeJob { text, ends, reply }).expect("the queue outlives this");
            pending.push_back(Pending::Job(result));
            // Enough to keep every thread busy, and bounded so that memory does not grow with the text.
            while pending.len() > 3 * threads {
                pending.pop_front().map_or(Ok(()), &mut deliver)?;
            }
        }
        pending.into_iter().try_for_each(deliver)
    })
}
