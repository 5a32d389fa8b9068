//! The thread of a model. It alone owns the model and its [`Batcher`]; requests send it jobs and receive [`Update`]s.
//!
//! A job holds one of a bounded number of places from its submission to its end. It is cancelled when its receiver is dropped, at the
//! latest after the step under way. Its channel has room for everything that it can produce, so that a slow reader holds nothing up.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::time::Instant;

use ngen3_engine::{Error, Model};
use ngen3_generate::{Batcher, BatcherLimits, EndReason, Event, Job, JobId, TokenLogprobs};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::metrics::ModelMetrics;

/// Opens a model on the thread that will own it.
pub type OpenModel = Box<dyn FnOnce() -> Result<Box<dyn Model>, String> + Send>;

/// News of one job.
#[derive(Debug)]
pub(crate) enum Update {
    /// Log probabilities of the prompt, `[prompt]`.
    Prompt(Vec<Option<TokenLogprobs>>),
    /// The next token.
    Token(u32, Option<TokenLogprobs>),
    /// The stop token that follows the text.
    Stop(u32, TokenLogprobs),
    /// The text is complete.
    Ended(EndReason),
    /// The text cannot be continued.
    Failed(String),
}

/// Handle of a model's thread, which ends after the last handle is dropped.
#[derive(Debug)]
pub(crate) struct Engine {
    inbox: std_mpsc::Sender<Submission>,
    places: Arc<Semaphore>,
    max_jobs: usize,
}

/// A job on its way to the thread.
struct Submission {
    job: Job,
    ticket: Ticket,
}

/// The part of a job that stays with the thread.
struct Ticket {
    updates: Sender<Update>,
    submitted: Instant,
    /// True until the first token.
    is_first: bool,
    _place: OwnedSemaphorePermit,
}

/// Reason for which jobs are not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// More jobs than the server ever accepts.
    TooMany(usize),
    /// No place at the moment.
    Busy,
    /// The thread has ended.
    Gone,
}

impl Engine {
    /// Starts the thread and opens the model there.
    ///
    /// # Errors
    /// If the model cannot be opened, or the thread cannot be started.
    pub fn start(
        name: &str,
        open: OpenModel,
        limits: BatcherLimits,
        max_jobs: usize,
        metrics: ModelMetrics,
    ) -> Result<Self, String> {
        let (inbox, submissions) = std_mpsc::channel();
        let (opened, is_open) = std_mpsc::channel();
        let places = Arc::new(Semaphore::new(max_jobs));
        let closing = Closing(Arc::clone(&places));
        let run = move || {
            let _closing = closing;
            match open() {
                Err(error) => drop(opened.send(Err(error))),
                Ok(model) => match Batcher::new(&*model, limits) {
                    Err(error) => drop(opened.send(Err(error.to_string()))),
                    Ok(batcher) => {
                        let _ = opened.send(Ok(()));
                        Worker { batcher, tickets: HashMap::new(), metrics }.run(&submissions);
                    }
                },
            }
        };
        let thread = std::thread::Builder::new().name(format!("model {name}"));
        thread.spawn(run).map_err(|error| format!("cannot start a thread: {error}"))?;
        is_open.recv().unwrap_or_else(|_| Err("its thread ended".into()))?;
        Ok(Self { inbox, places, max_jobs })
    }

    /// Reserves places for this many jobs.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn reserve(&self, jobs: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let count = u32::try_from(jobs).ok().filter(|_| jobs <= self.max_jobs);
        let count = count.ok_or(Refusal::TooMany(self.max_jobs))?;
        Arc::clone(&self.places).try_acquire_many_owned(count).map_err(|error| match error {
            TryAcquireError::NoPermits => Refusal::Busy,
            TryAcquireError::Closed => Refusal::Gone,
        })
    }

    /// Submits a job to one of the reserved places. A thread that has ended drops the job, and so closes its channel.
    pub fn submit(&self, job: Job, places: &mut OwnedSemaphorePermit) -> Receiver<Update> {
        // The prompt's update and the last one, besides the tokens.
        let (updates, receiver) = channel(job.max_new_tokens + 2);
        let place = places.split(1).expect("a place was reserved for each job");
        let ticket = Ticket { updates, submitted: Instant::now(), is_first: true, _place: place };
        let _ = self.inbox.send(Submission { job, ticket });
        receiver
    }

    /// Returns true while the thread runs.
    pub fn is_alive(&self) -> bool {
        !self.places.is_closed()
    }
}

/// Closes the places when the thread ends, even by a panic.
struct Closing(Arc<Semaphore>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The thread's state.
struct Worker<'a> {
    batcher: Batcher<'a>,
    tickets: HashMap<JobId, Ticket>,
    metrics: ModelMetrics,
}

impl Worker<'_> {
    /// Runs jobs until nobody can submit one any more.
    fn run(mut self, submissions: &std_mpsc::Receiver<Submission>) {
        loop {
            if self.batcher.is_idle() {
                self.report();
                let Ok(submission) = submissions.recv() else { return };
                self.accept(submission);
            }
            submissions.try_iter().for_each(|submission| self.accept(submission));
            let events = self.cancel_abandoned().and_then(|()| self.batcher.step());
            // Before the events: whoever has an answer finds it in the metrics.
            self.report();
            match events {
                Ok(events) => events.into_iter().for_each(|event| self.deliver(event)),
                // The other jobs' keys and values are in doubt too: none goes on.
                Err(error) => self.fail_all(&error),
            }
        }
    }

    fn accept(&mut self, Submission { job, ticket }: Submission) {
        let prompt_tokens = job.prompt.len();
        match self.batcher.submit(job) {
            Ok(id) => {
                self.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
                self.tickets.insert(id, ticket);
            }
            Err(error) => drop(ticket.updates.try_send(Update::Failed(error.to_string()))),
        }
    }

    fn cancel_abandoned(&mut self) -> Result<(), Error> {
        let abandoned = self.tickets.iter().filter(|(_, ticket)| ticket.updates.is_closed());
        for id in abandoned.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.tickets.remove(&id);
            self.batcher.cancel(id)?;
        }
        Ok(())
    }

    fn deliver(&mut self, event: Event) {
        let (job, update) = match event {
            Event::Prompt { job, logprobs } => (job, Update::Prompt(logprobs)),
            Event::Token { job, token, logprobs } => (job, Update::Token(token, logprobs)),
            Event::Stop { job, token, logprobs } => (job, Update::Stop(token, logprobs)),
            Event::Ended { job, reason } => (job, Update::Ended(reason)),
            Event::Failed { job, error } => (job, Update::Failed(error.to_string())),
        };
        let Some(ticket) = self.tickets.get_mut(&job) else { return };
        if matches!(update, Update::Token(..)) {
            self.metrics.generated_tokens.inc();
            if std::mem::take(&mut ticket.is_first) {
                self.metrics.first_token_s.observe(ticket.submitted.elapsed().as_secs_f64());
            }
        }
        let is_last = matches!(update, Update::Ended(_) | Update::Failed(_));
        // Fails if the receiver is gone; the job is then cancelled before the next step.
        let _ = ticket.updates.try_send(update);
        if is_last {
            self.tickets.remove(&job);
        }
    }

    fn fail_all(&mut self, error: &Error) {
        for (id, ticket) in self.tickets.drain() {
            let _ = self.batcher.cancel(id);
            let _ = ticket.updates.try_send(Update::Failed(error.to_string()));
        }
    }

    fn report(&self) {
        self.metrics.running.set(self.batcher.running() as i64);
        self.metrics.waiting.set(self.batcher.waiting() as i64);
        self.metrics.cache_use.set(self.batcher.cache_use());
        let preemptions = self.batcher.preemptions();
        self.metrics.preemptions.inc_by(preemptions.saturating_sub(self.metrics.preemptions.get()));
    }
}
