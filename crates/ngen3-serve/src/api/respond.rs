//! The answer of a request: as one JSON object, or as a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, unfold};
use serde_json::{Map, Value, json};

use super::choice::Piece;
use super::error::ApiError;
use crate::json::json_response;

/// Pieces of the texts of a request, as they come.
pub(crate) type Pieces = BoxStream<'static, Result<Piece, ApiError>>;

/// Shape of an answer.
pub(crate) trait Format: Send + 'static {
    /// Prefix of an answer's id.
    const ID: &'static str;
    /// `object` of an answer, and of an event of a stream.
    const OBJECTS: [&'static str; 2];

    /// Returns the first entry of `choices` of a text in a stream, if it comes before all tokens.
    fn opening(&self, index: usize) -> Option<Value>;

    /// Returns the entries of `choices` for a piece of a text in a stream.
    fn parts(&self, piece: &Piece) -> Vec<Value>;

    /// Returns the entry of `choices` for a whole text.
    fn whole(&self, text: &Piece) -> Value;
}

/// An answer without its texts.
pub(crate) struct Answer<F> {
    pub format: F,
    pub model: String,
    /// Number of texts.
    pub texts: usize,
    pub prompt_tokens: usize,
    pub stream: bool,
    pub include_usage: bool,
}

impl<F: Format> Answer<F> {
    /// Answers with the pieces.
    ///
    /// # Errors
    /// The first error among the pieces; in a stream, that is an event instead.
    pub async fn respond(self, pieces: Pieces) -> Result<Response, ApiError> {
        let head = Head {
            id: format!("{}-{:032x}", F::ID, rand::random::<u128>()),
            object: F::OBJECTS[usize::from(self.stream)],
            created: seconds_since_1970(),
            model: self.model.clone(),
        };
        match self.stream {
            true => Ok(self.events(head, pieces)),
            false => self.collect(head, pieces).await,
        }
    }

    async fn collect(self, head: Head, mut pieces: Pieces) -> Result<Response, ApiError> {
        let mut texts = vec![Piece::default(); self.texts];
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            let index = piece.index;
            texts[index].append(piece);
        }
        texts.iter_mut().enumerate().for_each(|(index, text)| text.index = index);
        let choices = texts.iter().map(|text| self.format.whole(text)).collect();
        let tokens = texts.iter().map(|text| text.num_tokens).sum();
        let mut answer = head.with(choices);
        answer.insert("usage".into(), self.usage(tokens));
        Ok(json_response(&Value::Object(answer)))
    }

    fn events(self, head: Head, pieces: Pieces) -> Response {
        let events = Events { answer: self, head, pieces, ready: VecDeque::new(), tokens: 0, ended: false };
        let stream = unfold(events.opened(), |mut events| async {
            let event = events.next().await?;
            Some((Ok::<_, Infallible>(Event::default().data(event)), events))
        });
        Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
    }

    fn usage(&self, tokens: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens})
    }
}

/// Fields that every object of an answer has.
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    fn with(&self, choices: Vec<Value>) -> Map<String, Value> {
        let Self { id, object, created, model } = self;
        let head = [("id", json!(id)), ("object", json!(object)), ("created", json!(created)), ("model", json!(model))];
        head.into_iter().chain([("choices", choices.into())]).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A stream in progress.
struct Events<F> {
    answer: Answer<F>,
    head: Head,
    pieces: Pieces,
    /// Events to send before the next piece.
    ready: VecDeque<String>,
    /// Tokens generated so far.
    tokens: usize,
    ended: bool,
}

impl<F: Format> Events<F> {
    fn opened(mut self) -> Self {
        let openings: Vec<_> = (0..self.answer.texts).filter_map(|index| self.answer.format.opening(index)).collect();
        openings.into_iter().for_each(|opening| self.push(vec![opening], Value::Null));
        self
    }

    async fn next(&mut self) -> Option<String> {
        while self.ready.is_empty() && !self.ended {
            match self.pieces.next().await {
                Some(Ok(piece)) => {
                    self.tokens += piece.num_tokens;
                    let parts = self.answer.format.parts(&piece);
                    parts.into_iter().for_each(|part| self.push(vec![part], Value::Null));
                }
                Some(Err(error)) => {
                    self.ready.push_back(error.json().to_string());
                    self.end();
                }
                None => {
                    if self.answer.include_usage {
                        self.push(Vec::new(), self.answer.usage(self.tokens));
                    }
                    self.end();
                }
            }
        }
        self.ready.pop_front()
    }

    fn push(&mut self, choices: Vec<Value>, usage: Value) {
        let mut event = self.head.with(choices);
        if self.answer.include_usage {
            event.insert("usage".into(), usage);
        }
        self.ready.push_back(Value::Object(event).to_string());
    }

    /// Ends the stream; texts that are not complete are cancelled.
    fn end(&mut self) {
        self.ready.push_back("[DONE]".into());
        self.pieces = futures_util::stream::empty().boxed();
        self.ended = true;
    }
}

/// Returns the time in seconds since 1970.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
