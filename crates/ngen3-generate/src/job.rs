//! Jobs of a [`crate::Batcher`], and their news.

use std::fmt;

use ngen3_engine::Error;

use crate::logprobs::TokenLogprobs;
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
pub struct JobId(pub(crate) u64);

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
    /// The stop token that ended the text, of a job that wants log probabilities. Not part of the text.
    Stop {
        /// Job.
        job: JobId,
        /// Token id.
        token: u32,
        /// Its log probabilities.
        logprobs: TokenLogprobs,
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
