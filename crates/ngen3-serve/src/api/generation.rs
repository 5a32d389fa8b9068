//! Runs the jobs of a request.

use std::sync::Arc;

use axum::http::StatusCode;
use futures_util::stream::{BoxStream, StreamExt, select_all};
use ngen3_generate::Job;
use tokio::time::Instant;

use super::choice::{Choice, Piece};
use super::error::ApiError;
use super::settings::Settings;
use crate::config::ServeConfig;
use crate::engine::Refusal;
use crate::served::ServedModel;

/// A request whose prompts are encoded.
pub(crate) struct Generation {
    pub model: Arc<ServedModel>,
    /// Parameter that the prompts are from.
    pub source: &'static str,
    /// Token ids of each prompt.
    pub prompts: Vec<Vec<u32>>,
    pub settings: Settings,
    /// Maximum number of new tokens per text; `None` for as many as fit.
    pub max_tokens: Option<usize>,
    /// Tokens that end a text and are not part of it.
    pub end: Vec<u32>,
    /// See [`Job::top_logprobs`].
    pub top_logprobs: Option<usize>,
    /// See [`Job::prompt_logprobs`].
    pub prompt_logprobs: bool,
}

impl Generation {
    /// Submits the jobs: the texts of the first prompt, then those of the next. Returns their pieces as they come.
    ///
    /// # Errors
    /// A prompt that is empty or leaves no room in the context; more texts than the server takes, or than it can take now.
    pub fn start(&self, config: &ServeConfig) -> Result<BoxStream<'static, Result<Piece, ApiError>>, ApiError> {
        let texts = self.prompts.len() * self.settings.n;
        let mut places = self.model.engine.reserve(texts).map_err(|refusal| match refusal {
            Refusal::TooMany(most) => {
                let message = format!("expected at most {most} texts in a request, got {texts} (--max_requests)");
                ApiError::new(StatusCode::BAD_REQUEST, message)
            }
            Refusal::Busy => ApiError::busy("the server is full; try again in a moment"),
            Refusal::Gone => ApiError::internal("the model's thread has ended; restart the server"),
        })?;
        let jobs = self.prompts.iter().map(|prompt| self.jobs(prompt, config)).collect::<Result<Vec<_>, _>>()?.concat();
        let deadline = Instant::now() + config.request_time;
        let choice = |(index, job)| {
            let updates = self.model.engine.submit(job, &mut places);
            Choice::new(index, updates, self.settings.text(&self.model), deadline).pieces().boxed()
        };
        Ok(select_all(jobs.into_iter().enumerate().map(choice)).boxed())
    }

    /// Returns the jobs of one prompt.
    fn jobs(&self, prompt: &[u32], config: &ServeConfig) -> Result<Vec<Job>, ApiError> {
        let context = self.model.context();
        let needed = prompt.len() + usize::from(self.max_tokens != Some(0));
        if needed > context {
            let message = format!(
                "this model's context is {context} tokens for the prompt and the answer; the prompt alone has {}: shorten it",
                prompt.len()
            );
            let error = ApiError::new(StatusCode::BAD_REQUEST, message).with_code("context_length_exceeded");
            return Err(ApiError { param: Some(self.source.into()), ..error });
        }
        let room = context - prompt.len();
        let job = |stream| Job {
            prompt: prompt.to_vec(),
            max_new_tokens: self.max_tokens.unwrap_or(room).min(room).min(config.max_tokens),
            end: self.end.clone(),
            vocab_size: self.model.tokenizer.vocab_size(),
            sampling: self.settings.sampling,
            stream,
            top_logprobs: self.top_logprobs,
            prompt_logprobs: self.prompt_logprobs,
        };
        Ok((0..self.settings.n as u64).map(job).collect())
    }

    /// Returns the number of tokens of all prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(Vec::len).sum()
    }
}
