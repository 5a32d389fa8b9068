//! One text of an answer: the updates of its job as pieces of text, up to the first stop text.

use std::collections::VecDeque;

use axum::http::StatusCode;
use futures_util::Stream;
use futures_util::stream::unfold;
use ngen3_data::tokenizer::Text;
use ngen3_generate::{EndReason, TokenLogprobs};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use crate::engine::Update;

/// A token with its place in the text.
#[derive(Clone, Debug)]
pub(crate) struct PlacedToken {
    pub id: u32,
    /// Start, in characters from the beginning of the generated text.
    pub start: usize,
    /// `None` if they are not wanted, and for a prompt's first token.
    pub logprobs: Option<TokenLogprobs>,
}

/// The next part of a text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Piece {
    /// Index of the text in the answer.
    pub index: usize,
    /// Log probabilities of the prompt, if they are wanted: before all text.
    pub prompt: Option<Vec<Option<TokenLogprobs>>>,
    pub text: String,
    /// Tokens whose text is complete.
    pub tokens: Vec<PlacedToken>,
    /// The stop token that follows the text, if log probabilities are wanted.
    pub stop: Option<PlacedToken>,
    /// Tokens generated since the last piece, including those of a stop text.
    pub num_tokens: usize,
    /// `stop` or `length` in the last piece.
    pub finish: Option<&'static str>,
}

impl Piece {
    fn is_empty(&self) -> bool {
        self.prompt.is_none() && self.text.is_empty() && self.tokens.is_empty() && self.finish.is_none()
    }

    /// Adds the next piece of the same text.
    pub fn append(&mut self, next: Self) {
        self.prompt = self.prompt.take().or(next.prompt);
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.num_tokens += next.num_tokens;
        self.stop = self.stop.take().or(next.stop);
        self.finish = next.finish;
    }
}

/// A text in progress.
pub(crate) struct Choice {
    index: usize,
    updates: Receiver<Update>,
    text: Text,
    /// Time at which the server gives up.
    deadline: Instant,
    /// Tokens whose text is not complete or held back, each with its end in characters.
    pending: VecDeque<(PlacedToken, usize)>,
}

impl Choice {
    /// Returns an empty text, the one of this index in the answer.
    pub fn new(index: usize, updates: Receiver<Update>, text: Text, deadline: Instant) -> Self {
        Self { index, updates, text, deadline, pending: VecDeque::new() }
    }

    /// Returns the pieces; the last one has `finish`, or is an error. Dropping the stream cancels the job.
    pub fn pieces(self) -> impl Stream<Item = Result<Piece, ApiError>> + Send {
        unfold(Some(self), |choice| async {
            let mut choice = choice?;
            let piece = choice.next().await;
            let goes_on = piece.as_ref().is_ok_and(|piece| piece.finish.is_none());
            Some((piece, goes_on.then_some(choice)))
        })
    }

    /// Waits for the next piece that is not empty.
    async fn next(&mut self) -> Result<Piece, ApiError> {
        let mut piece = Piece { index: self.index, ..Piece::default() };
        while piece.is_empty() {
            let update = timeout_at(self.deadline, self.updates.recv()).await;
            let update = update.map_err(|_| {
                let message = "the request took longer than the server allows (--timeout_s)";
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).with_code("timeout")
            })?;
            match update {
                Some(Update::Prompt(logprobs)) => piece.prompt = Some(logprobs),
                Some(Update::Token(id, logprobs)) => self.push(&mut piece, id, logprobs),
                Some(Update::Stop(id, logprobs)) => {
                    self.text.finish();
                    piece.stop = Some(PlacedToken { id, start: self.text.decoded(), logprobs: Some(logprobs) });
                }
                Some(Update::Ended(reason)) => {
                    self.text.finish();
                    self.release(&mut piece);
                    let stopped = reason == EndReason::Stop || self.text.is_cut();
                    piece.finish = Some(if stopped { "stop" } else { "length" });
                }
                Some(Update::Failed(message)) => return Err(ApiError::internal(message)),
                None => return Err(ApiError::internal("the model's thread has ended; restart the server")),
            }
        }
        Ok(piece)
    }

    fn push(&mut self, piece: &mut Piece, id: u32, logprobs: Option<TokenLogprobs>) {
        let start = self.text.decoded();
        self.text.push(id);
        self.pending.push_back((PlacedToken { id, start, logprobs }, self.text.decoded()));
        piece.num_tokens += 1;
        self.release(piece);
        if self.text.ended {
            piece.finish = Some("stop");
        }
    }

    /// Moves what is ready to the piece: the text, and the tokens whose text it completes. Of a text that a stop text cuts short,
    /// these are the tokens that begin before the cut.
    fn release(&mut self, piece: &mut Piece) {
        piece.text.push_str(&std::mem::take(&mut self.text.ready));
        let (released, cut) = (self.text.released(), self.text.is_cut());
        let is_ready =
            |(token, end): &mut (PlacedToken, usize)| if cut { token.start < released } else { *end <= released };
        while let Some((token, _)) = self.pending.pop_front_if(is_ready) {
            piece.tokens.push(token);
        }
    }
}
