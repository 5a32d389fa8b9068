//! Text is encoded on several threads, and comes out in the order it went in.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use ngen3_model::words::count;

use crate::source::{DocumentReader, Event, TextChunk};
use crate::{Error, Tokenizer};

/// What comes out.
pub(crate) enum EncodedChunk {
    /// The ids of a piece of the current document.
    Tokens {
        ids: Vec<u32>,
        /// Bytes of text that they stand for.
        text_bytes: usize,
    },
    /// The current document ends here.
    EndOfDocument,
    /// Whole documents.
    Documents {
        /// Their ids, with the token that ends each, if there is one.
        ids: Vec<u32>,
        /// Bytes of text that they stand for.
        text_bytes: usize,
        /// How many documents.
        count: usize,
    },
}

/// A piece to be encoded, and where its ids go.
struct EncodeJob {
    text: String,
    /// Where documents end in `text`, if it is whole ones.
    ends: Option<Vec<usize>>,
    reply: SyncSender<Result<EncodedChunk, Error>>,
}

/// What has been asked for and not yet been given to `take`, oldest first.
enum Pending {
    Job(Receiver<Result<EncodedChunk, Error>>),
    EndOfDocument,
}

impl EncodeJob {
    fn encode(&self, tokenizer: &Tokenizer) -> Result<EncodedChunk, Error> {
        let Self { text, ends, .. } = self;
        let mut ids = Vec::with_capacity(text.len() / 3);
        let text_bytes = text.len();
        let Some(ends) = ends else {
            tokenizer.encode_into(text, &mut ids)?;
            return Ok(EncodedChunk::Tokens { ids, text_bytes });
        };
        let mut start = 0;
        for &end in ends {
            tokenizer.encode_into(&text[start..end], &mut ids)?;
            ids.extend(tokenizer.eot());
            start = end;
        }
        Ok(EncodedChunk::Documents { ids, text_bytes, count: ends.len() })
    }
}

/// Encodes all that a feed gives on `threads` threads, and gives it to `take` in order.
///
/// # Errors
/// The first error of the feed, the tokenizer or `take`.
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
            // Whoever asked may have stopped at an earlier error.
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
            // Enough to keep every thread busy; no more, so that memory stays as it is however long the text.
            while pending.len() > 3 * threads {
                pending.pop_front().map_or(Ok(()), &mut deliver)?;
            }
        }
        pending.into_iter().try_for_each(deliver)
    })
}
