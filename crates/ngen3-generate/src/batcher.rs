//! Continuous batching: jobs join and leave at every step, as a server needs it.

use std::fmt;

use ngen3_engine::{Error, Model};

use crate::sampling::Sampling;

/// A text to generate after a prompt.
#[derive(Clone, Debug)]
pub struct Job {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// Maximum number of new tokens; fewer are made if the context has no room for more. 0 only reads the prompt.
    pub max_new_tokens: usize,
    /// Stop tokens, such as the end of text; not part of the text.
    pub end: Vec<u32>,
    /// Only ids below this are sampled: a model's embedding may be larger than its tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Sampling settings.
    pub sampling: Sampling,
    /// Random stream of `sampling.seed`, as the index of a sample of [`crate::Generator`].
    pub stream: u64,
    /// With `Some(k)`, each token comes with its log probability and those of the `k` most likely ones.
    pub top_logprobs: Option<usize>,
    /// Also returns the log probability of each prompt token, with as many of the most likely ones as `top_logprobs`.
    pub prompt_logprobs: bool,
}

/// Name of a job in its batcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

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

/// Log probabilities at one position, of the model's own distribution: before temperature and other settings.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// ln p of the token.
    pub logprob: f32,
    /// The most likely tokens and their ln p, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// Reason for which a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// A stop token followed.
    Stop,
    /// It has as many tokens as were requested, or as fit in the context.
    Length,
}

/// News of a job. Nothing follows [`Event::Ended`] or [`Event::Failed`].
#[derive(Debug)]
pub enum Event {
    /// The prompt was read, by a job that wants its log probabilities.
    Prompt {
        /// Job.
        job: JobId,
        /// `[prompt]`; `None` for the first token, which nothing predicts.
        logprobs: Vec<Option<TokenLogprobs>>,
    },
    /// A token of the text.
    Token {
        /// Job.
        job: JobId,
        /// Token id.
        token: u32,
        /// If the job wants them.
        logprobs: Option<TokenLogprobs>,
    },
    /// The text is complete.
    Ended {
        /// Job.
        job: JobId,
        /// Reason.
        reason: EndReason,
    },
    /// The text cannot be continued.
    Failed {
        /// Job.
        job: JobId,
        /// Invalid logits.
        error: Error,
    },
}

/// Error of a job that cannot run.
#[derive(Debug)]
pub enum SubmitError {
    /// The prompt leaves no room in the context.
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the context, which must hold the prompt and at least one new token, if any is requested.
        context: usize,
    },
    /// An empty prompt, a token outside the vocabulary, or a sampling setting out of range.
    Invalid(Error),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PromptTooLong { tokens, context } => write!(
                f,
                "the prompt has {tokens} tokens, but the model's context is {context} tokens for the prompt and the answer: \
                 shorten the prompt"
            ),
            Self::Invalid(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SubmitError {}

/// Jobs in progress on one model.
pub struct Batcher<'a> {
    _model: &'a dyn Model,
}

impl<'a> Batcher<'a> {
    /// Creates a batcher without jobs.
    ///
    /// # Errors
    /// [`Error::Input`] for limits that are too small; [`Error::Memory`] if the key-value cache does not fit in memory.
    pub fn new(_model: &'a dyn Model, _limits: BatcherLimits) -> Result<Self, Error> {
        Err(Error::Unsupported("batching"))
    }

    /// Adds a job to those that wait. Jobs start in the order of arrival.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(&mut self, _job: Job) -> Result<JobId, SubmitError> {
        Err(SubmitError::Invalid(Error::Unsupported("batching")))
    }

    /// Ends a job, waiting or running. No event follows; one that has ended already stays so.
    pub fn cancel(&mut self, _job: JobId) {}

    /// Runs one step: starts waiting jobs while there is room, reads up to [`BatcherLimits::prompt_tokens`] of their prompts and
    /// generates one token for each job whose prompt has been read.
    ///
    /// # Errors
    /// Those of the engine. No job can go on then.
    pub fn step(&mut self) -> Result<Vec<Event>, Error> {
        Err(Error::Unsupported("batching"))
    }

    /// Returns true if there are no jobs.
    pub fn is_idle(&self) -> bool {
        true
    }

    /// Number of jobs that have started.
    pub fn running(&self) -> usize {
        0
    }

    /// Number of jobs that wait to start.
    pub fn waiting(&self) -> usize {
        0
    }

    /// Share of the key-value cache in use by running jobs, in [0, 1].
    pub fn cache_use(&self) -> f64 {
        0.0
    }
}
