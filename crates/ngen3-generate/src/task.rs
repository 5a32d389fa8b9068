//! A job of a [`crate::Batcher`] and its text so far.

use std::ops::Range;

use ngen3_engine::{Error, PAGE};

use crate::job::{EndReason, Event, Job, JobId};
use crate::logprobs::TokenLogprobs;
use crate::sampling::Sampler;

/// A job and its text so far.
pub(crate) struct Task {
    pub id: JobId,
    pub job: Job,
    sampler: Sampler,
    /// Prompt and generated tokens.
    pub text: Vec<u32>,
    /// Maximum number of new tokens that fit.
    most: usize,
    /// Log probabilities of the prompt's tokens so far.
    prompt_logprobs: Vec<Option<TokenLogprobs>>,
}

impl Task {
    /// Creates a task at the start of its text, for a model with this context length.
    ///
    /// # Errors
    /// A sampling setting out of range.
    pub fn new(id: JobId, job: Job, context: usize) -> Result<Self, Error> {
        let sampler = Sampler::new(job.sampling, job.stream)?;
        let (text, most) = (job.prompt.clone(), job.max_new_tokens.min(context - job.prompt.len()));
        Ok(Self { id, job, sampler, text, most, prompt_logprobs: vec![None] })
    }

    /// Pages of the text after this many further tokens, or at its end: the last token of a text is not fed.
    pub fn pages_after(&self, tokens: usize) -> usize {
        let end = self.job.prompt.len() + self.most.saturating_sub(1);
        (self.text.len() + tokens).min(end).div_ceil(PAGE)
    }

    /// Number of generated tokens, which a job that was preempted feeds again.
    pub fn generated(&self) -> usize {
        self.text.len() - self.job.prompt.len()
    }

    /// Most pages of another prompt that it can start with: at least two of its tokens must be left to feed, since one alone
    /// goes through other products.
    fn sharable(&self) -> usize {
        if self.job.prompt_logprobs { 0 } else { self.job.prompt.len().saturating_sub(2) / PAGE }
    }

    /// Pages of a prompt that it can start with.
    pub fn shares(&self, prompt: &[u32]) -> usize {
        let alike = self.job.prompt.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        (alike / PAGE).min(self.sharable())
    }

    /// Makes a preempted job feed its text again from the start. Events that were sent are not repeated.
    pub fn rewind(&mut self) {
        self.prompt_logprobs = vec![None];
    }

    /// Takes the logits after tokens of the text that were fed: after each, `[fed, vocab_size]`, or after the last one. Returns the
    /// news, and true if the job has ended.
    pub fn news(&mut self, fed: Range<usize>, logits: &[f32], vocab_size: usize) -> (Vec<Event>, bool) {
        let mut events = Vec::new();
        let ended = self.read(fed, logits, vocab_size, &mut events).unwrap_or_else(|error| {
            events.push(Event::Failed { job: self.id, error });
            true
        });
        (events, ended)
    }

    fn read(
        &mut self,
        fed: Range<usize>,
        logits: &[f32],
        vocab_size: usize,
        events: &mut Vec<Event>,
    ) -> Result<bool, Error> {
        let prompt = self.job.prompt.len();
        if fed.start < prompt && self.job.prompt_logprobs {
            for (&token, logits) in self.job.prompt[fed.start + 1..].iter().zip(logits.chunks_exact(vocab_size)) {
                self.prompt_logprobs.push(Some(self.score(logits, token, self.job.top_logprobs.unwrap_or(0))?));
            }
            if fed.end == prompt {
                self.job.prompt_logprobs = false;
                events.push(Event::Prompt { job: self.id, logprobs: std::mem::take(&mut self.prompt_logprobs) });
            }
        }
        // The token after it is known: of a prompt, or of a text that is read again.
        if fed.end < self.text.len() {
            return Ok(false);
        }
        let reason = self.advance(&logits[logits.len() - vocab_size..], events)?;
        events.extend(reason.map(|reason| Event::Ended { job: self.id, reason }));
        Ok(reason.is_some())
    }

    /// Samples the next token from its logits and adds its news. Returns the reason if the text has ended.
    fn advance(&mut self, logits: &[f32], events: &mut Vec<Event>) -> Result<Option<EndReason>, Error> {
        if self.most == 0 {
            return Ok(Some(EndReason::Length));
        }
        let vocab_size = self.job.vocab_size.min(logits.len());
        let token = self.sampler.sample(&logits[..vocab_size], &self.text)?;
        let logprobs = self.job.top_logprobs.map(|k| self.score(logits, token, k)).transpose()?;
        if self.job.end.contains(&token) {
            events.extend(logprobs.map(|logprobs| Event::Stop { job: self.id, token, logprobs }));
            return Ok(Some(EndReason::Stop));
        }
        self.text.push(token);
        events.push(Event::Token { job: self.id, token, logprobs });
        Ok((self.text.len() == self.job.prompt.len() + self.most).then_some(EndReason::Length))
    }

    fn score(&self, logits: &[f32], token: u32, k: usize) -> Result<TokenLogprobs, Error> {
        TokenLogprobs::of(logits, token, k, self.job.vocab_size)
    }
}
