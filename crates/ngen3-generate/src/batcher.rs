//! Continuous batching: jobs join and leave at every step, as a server needs it.
//!
//! [`Batcher::step`] starts waiting jobs in the order of arrival, feeds the decoder once, with a piece of the prompts that have not
//! been read and one token of each text, and samples the next token of each. A job's text depends on nothing but the job: it is
//! that of [`crate::Generator`] with the same prompt, seed and stream, as long as that does not outgrow the context.
//!
//! A job begins with the pages of another prompt that begins alike, of a running job or one of the latest that have ended, whose
//! prompts are kept until their place is needed. Only prompts are shared: the keys and values of generated tokens, which went
//! through the decoder one at a time, may differ in the last bits from those of a prompt.
//!
//! Pages of the key-value cache are taken as texts grow. When none is left, the job that arrived last is preempted: its pages
//! go to those before it, and it waits, first in the queue, until there is room to feed its text again. Generated tokens are fed
//! again as they were at first, one at a time, so that the text is that of a job that was never preempted. The cache holds at
//! least one context, so that the oldest job always goes on.

use std::collections::VecDeque;
use std::ops::Range;

use ngen3_engine::{Decoder, Error, Feed, Model, PAGE, check_tokens};
use ngen3_model::Config;
use rayon::prelude::*;

use crate::job::{Event, Job, JobId, SubmitError};
use crate::task::Task;

/// Bounds of a batcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatcherLimits {
    /// Number of jobs that run at once.
    pub running: usize,
    /// Tokens whose keys and values are kept in memory, of all jobs together and of prompts that may come again; at least the
    /// model's context.
    pub cache_tokens: usize,
    /// Prompt tokens read per step, at least 32: more make the prompts faster and the steps of running jobs slower.
    pub prompt_tokens: usize,
}

/// Most prompts of ended jobs that are kept.
const MOST_KEPT: usize = 256;

/// Most prompt tokens per step with logits after each: these take a vocabulary of f32 each.
const MOST_SCORED: usize = 128;

/// Jobs in progress on one model.
pub struct Batcher<'a> {
    decoder: Box<dyn Decoder + 'a>,
    config: &'a Config,
    limits: BatcherLimits,
    /// Jobs in the order of arrival, first those that run.
    running: Vec<Running>,
    waiting: VecDeque<Task>,
    /// Prompts of ended jobs, the least recently used first.
    kept: Vec<Kept>,
    /// Sequences of the decoder that nobody uses.
    free: Vec<usize>,
    /// Number of jobs so far.
    jobs: u64,
    /// Number of preemptions so far.
    preemptions: u64,
}

/// A job that has started.
struct Running {
    task: Task,
    /// Its sequence in the decoder.
    sequence: usize,
    /// True once tokens of its own were fed.
    begun: bool,
}

/// Whole pages of the prompt of a job that has ended.
struct Kept {
    tokens: Vec<u32>,
    sequence: usize,
}

/// Tokens of a running job that are fed in one step.
struct Piece {
    /// Index of the job.
    at: usize,
    /// Place of its first token in the job's text.
    first: usize,
    /// Number of tokens.
    len: usize,
    /// Number of tokens with logits.
    logits: usize,
}

impl Piece {
    fn range(&self) -> Range<usize> {
        self.first..self.first + self.len
    }

    fn feed<'t>(&self, running: &'t [Running]) -> Feed<'t> {
        let Running { task, sequence, .. } = &running[self.at];
        Feed { sequence: *sequence, tokens: &task.text[self.range()], logits: self.logits }
    }
}

/// Pages to start with.
#[derive(Clone, Copy, Default)]
struct Prefix {
    pages: usize,
    sequence: usize,
}

impl<'a> Batcher<'a> {
    /// Creates a batcher without jobs.
    ///
    /// # Errors
    /// [`Error::Input`] for limits that are too small; [`Error::Memory`] if the key-value cache does not fit in memory.
    pub fn new(model: &'a dyn Model, limits: BatcherLimits) -> Result<Self, Error> {
        let (config, BatcherLimits { running, cache_tokens, prompt_tokens }) = (model.config(), limits);
        let block = config.block_size;
        for (what, found, least) in [
            ("jobs at once", running, 1),
            ("tokens in the key-value cache", cache_tokens, block),
            ("prompt tokens per step", prompt_tokens, PAGE),
        ] {
            if found < least {
                return Err(Error::Input(format!("{what}: expected at least {least}, got {found}")));
            }
        }
        let sequences = running + MOST_KEPT;
        Ok(Self {
            decoder: model.decoder_within(sequences, cache_tokens.div_ceil(PAGE))?,
            config,
            limits,
            running: Vec::new(),
            waiting: VecDeque::new(),
            kept: Vec::new(),
            free: (0..sequences).rev().collect(),
            jobs: 0,
            preemptions: 0,
        })
    }

    /// Adds a job to those that wait. Jobs start in the order of arrival.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(&mut self, job: Job) -> Result<JobId, SubmitError> {
        let (tokens, context) = (job.prompt.len(), self.config.block_size);
        if tokens + job.max_new_tokens.min(1) > context {
            return Err(SubmitError::PromptTooLong { tokens, context });
        }
        if tokens == 0 {
            return Err(SubmitError::Invalid(Error::Input("empty prompt: expected at least one token".into())));
        }
        check_tokens(&job.prompt, self.config).map_err(SubmitError::Invalid)?;
        let id = JobId(self.jobs);
        self.waiting.push_back(Task::new(id, job, context).map_err(SubmitError::Invalid)?);
        self.jobs += 1;
        Ok(id)
    }

    /// Ends a job, waiting or running. No event follows; one that has ended already stays so.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn cancel(&mut self, job: JobId) -> Result<(), Error> {
        self.waiting.retain(|task| task.id != job);
        let at = self.running.iter().position(|running| running.task.id == job);
        at.map_or(Ok(()), |at| self.leave(at).map(drop))
    }

    /// Runs one step: starts waiting jobs while there is room, reads up to [`BatcherLimits::prompt_tokens`] of their prompts and
    /// generates one token for each job whose prompt has been read.
    ///
    /// # Errors
    /// Those of the engine. No job can go on then.
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        self.start_jobs()?;
        let fed = self.plan()?;
        if fed.is_empty() {
            return Ok(Vec::new());
        }
        let feeds: Vec<Feed<'_>> = fed.iter().map(|piece| piece.feed(&self.running)).collect();
        let mut rest = self.decoder.feed(&feeds)?;
        let vocab_size = self.config.vocab_size;
        let mut fed = fed.iter().peekable();
        let mut read = Vec::new();
        for (at, running) in self.running.iter_mut().enumerate() {
            if let Some(piece) = fed.next_if(|piece| piece.at == at) {
                let (logits, others) = rest.split_at(piece.logits * vocab_size);
                rest = others;
                running.begun = true;
                read.push((piece, &mut running.task, logits));
            }
        }
        // Sampling from a large vocabulary takes as long as a small model does.
        let read = read.into_par_iter().with_max_len(1);
        let news: Vec<_> =
            read.map(|(piece, task, logits)| (piece.at, task.news(piece.range(), logits, vocab_size))).collect();
        let mut events = Vec::new();
        for (at, (more, ended)) in news.into_iter().rev() {
            events.extend(more.into_iter().rev());
            if ended {
                self.leave(at)?;
            }
        }
        events.reverse();
        Ok(events)
    }

    /// Returns true if there are no jobs.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Number of jobs that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Number of times that a job was preempted so far, since the key-value cache was full.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Number of jobs that wait to start or, preempted, to continue.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Share of the key-value cache in use, by running jobs and prompts that are kept, in [0, 1].
    pub fn cache_use(&self) -> f64 {
        let pages = self.limits.cache_tokens.div_ceil(PAGE);
        1.0 - self.decoder.free_pages() as f64 / pages as f64
    }

    /// Starts jobs while there are places, and pages for every job to grow by one more. A preempted job feeds its generated tokens
    /// again, one a step, while the others grow as much: it starts once there is room for that too, or it would be preempted again
    /// before its first new token.
    fn start_jobs(&mut self) -> Result<(), Error> {
        while self.running.len() < self.limits.running
            && let Some(task) = self.waiting.front()
        {
            let prefix = self.prefix(task);
            let wanted = task.pages_after(PAGE) + self.growth(task.generated() + PAGE);
            // Kept prompts are not dropped in vain.
            if self.most_free(prefix) < wanted {
                return Ok(());
            }
            // The pages that it starts with are the last to go.
            self.touch(prefix);
            let Some(sequence) = self.free_sequence() else { return Ok(()) };
            if prefix.pages > 0 {
                self.decoder.share(prefix.sequence, sequence, prefix.pages)?;
            }
            while self.decoder.free_pages() + prefix.pages < wanted && !self.kept.is_empty() {
                self.forget(0);
            }
            let room = self.decoder.free_pages() + prefix.pages >= wanted;
            let Some(task) = self.waiting.pop_front_if(|_| room) else {
                self.release(sequence);
                return Ok(());
            };
            self.running.push(Running { task, sequence, begun: false });
        }
        Ok(())
    }

    /// Decides on what is fed in this step, in the order of the running jobs, and makes room for it.
    fn plan(&mut self) -> Result<Vec<Piece>, Error> {
        let (mut left, mut scored, mut pages) = (self.limits.prompt_tokens, MOST_SCORED, 0);
        let mut fed = Vec::new();
        let mut at = 0;
        while at < self.running.len() {
            if let Some(piece) = self.next_piece(at, left, scored)? {
                let sequence = self.running[at].sequence;
                pages += piece.range().end.div_ceil(PAGE) - self.decoder.len(sequence).div_ceil(PAGE);
                if !self.make_room(pages, at)? {
                    break;
                }
                if piece.len > 1 {
                    left -= piece.len;
                    scored -= if piece.logits > 1 { piece.len } else { 0 };
                }
                fed.push(piece);
            }
            at += 1;
        }
        Ok(fed)
    }

    /// Finds what a running job is fed next: one token of its own, or up to `left` tokens of its prompt, of which up to `scored`
    /// with logits after each. `None` if it has to wait.
    fn next_piece(&mut self, at: usize, left: usize, scored: usize) -> Result<Option<Piece>, Error> {
        let Running { task, sequence, begun } = &self.running[at];
        let (sequence, tokens, all) = (*sequence, task.job.prompt.len(), task.job.prompt_logprobs);
        let mut first = self.decoder.len(sequence);
        if first >= tokens {
            return Ok(Some(Piece { at, first, len: 1, logits: 1 }));
        }
        if !begun {
            // A prompt that is being read, and that begins alike, is waited for.
            let alike = |other: &Running| task.shares(&other.task.job.prompt);
            let soon = self.running[..at].iter().map(alike).max().unwrap_or(0);
            let prefix = self.prefix(task);
            if soon > prefix.pages {
                return Ok(None);
            }
            if prefix.pages > first / PAGE {
                self.decoder.clear(sequence);
                self.decoder.share(prefix.sequence, sequence, prefix.pages)?;
                first = prefix.pages * PAGE;
            }
        }
        let rest = tokens - first;
        let mut len = rest.min(left).min(if all { scored } else { rest });
        // A single token goes through other products than a prompt's.
        if rest - len == 1 {
            len = len.saturating_sub(1);
        }
        let logits = if all { len } else { 1 };
        Ok((len >= rest.min(2)).then_some(Piece { at, first, len, logits }))
    }

    /// Finds the most pages, in memory now, that a job can start with.
    fn prefix(&self, task: &Task) -> Prefix {
        let read = |running: &Running| {
            let prompt = &running.task.job.prompt;
            let read = self.decoder.len(running.sequence).min(prompt.len());
            Prefix { pages: task.shares(&prompt[..read]), sequence: running.sequence }
        };
        let kept = |kept: &Kept| Prefix { pages: task.shares(&kept.tokens), sequence: kept.sequence };
        let all = self.kept.iter().map(kept).chain(self.running.iter().map(read));
        all.fold(Prefix::default(), |best, found| if found.pages > best.pages { found } else { best })
    }

    /// Bound on the pages that a job can have, those that it starts with included, if all kept prompts are dropped.
    fn most_free(&self, prefix: Prefix) -> usize {
        let shared = |kept: &Kept| if kept.sequence == prefix.sequence { prefix.pages } else { 0 };
        let kept = self.kept.iter().map(|kept| kept.tokens.len() / PAGE - shared(kept));
        self.decoder.free_pages() + prefix.pages + kept.sum::<usize>()
    }

    /// Pages that running jobs need for this many more tokens each.
    fn growth(&self, tokens: usize) -> usize {
        let needed = |running: &Running| {
            running.task.pages_after(tokens).saturating_sub(self.decoder.len(running.sequence).div_ceil(PAGE))
        };
        self.running.iter().map(needed).sum()
    }

    /// Frees pages until this many are free: first those of kept prompts, then those of the jobs that arrived last. Returns false
    /// if the job at `at` was among these.
    fn make_room(&mut self, pages: usize, at: usize) -> Result<bool, Error> {
        while self.decoder.free_pages() < pages {
            if self.kept.is_empty() {
                self.preempt()?;
                if self.running.len() == at {
                    return Ok(false);
                }
            } else {
                self.forget(0);
            }
        }
        Ok(true)
    }

    /// Preempts the job that arrived last: it will be the next to start.
    fn preempt(&mut self) -> Result<(), Error> {
        let mut task = self.leave(self.running.len() - 1)?;
        task.rewind();
        self.waiting.push_front(task);
        self.preemptions += 1;
        Ok(())
    }

    /// Marks a kept prompt, if the pages are those of one, as the most recently used.
    fn touch(&mut self, prefix: Prefix) {
        let is_it = |kept: &Kept| prefix.pages > 0 && kept.sequence == prefix.sequence;
        if let Some(at) = self.kept.iter().position(is_it) {
            self.kept[at..].rotate_left(1);
        }
    }

    /// Drops a kept prompt.
    fn forget(&mut self, at: usize) {
        let Kept { sequence, .. } = self.kept.remove(at);
        self.release(sequence);
    }

    /// Clears a sequence that nobody uses any more.
    fn release(&mut self, sequence: usize) {
        self.decoder.clear(sequence);
        self.free.push(sequence);
    }

    /// Takes a sequence that nobody uses, if need be of the kept prompt that was used least recently.
    fn free_sequence(&mut self) -> Option<usize> {
        if self.free.is_empty() && !self.kept.is_empty() {
            self.forget(0);
        }
        self.free.pop()
    }

    /// Takes a job from those that run, and keeps its prompt.
    fn leave(&mut self, at: usize) -> Result<Task, Error> {
        let Running { task, sequence, .. } = self.running.remove(at);
        let prompt = &task.job.prompt;
        let pages = self.decoder.len(sequence).min(prompt.len()) / PAGE;
        let tokens = &prompt[..pages * PAGE];
        if let Some(kept) = self.kept.iter().find(|kept| kept.tokens.starts_with(tokens)) {
            self.touch(Prefix { pages, sequence: kept.sequence });
        } else if pages > 0
            && let Some(to) = self.free_sequence()
        {
            self.decoder.share(sequence, to, pages)?;
            // Those that it continues are part of it.
            while let Some(at) = self.kept.iter().position(|kept| tokens.starts_with(&kept.tokens)) {
                self.forget(at);
            }
            self.kept.push(Kept { tokens: tokens.to_vec(), sequence: to });
        }
        self.release(sequence);
        Ok(task)
    }
}

#[cfg(test)]
mod tests;
