//! `/v1/completions`: continues texts.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use ngen3_data::Tokenizer;
use ngen3_generate::TokenLogprobs;
use serde_json::{Map, Value, json};

use super::choice::{Piece, PlacedToken};
use super::error::ApiError;
use super::generation::Generation;
use super::params::wrong;
use super::respond::{Answer, Format};
use super::settings::{MAX_LOGPROBS, Settings};
use super::tokens::{legacy_name, logprob};
use crate::body::JsonBody;
use crate::served::ServedModel;
use crate::state::{App, blocking};

/// Tokens to generate if a request does not say, as OpenAI's.
const DEFAULT_MAX_TOKENS: u64 = 16;

/// Handles a request.
pub(crate) async fn handle(State(app): State<Arc<App>>, JsonBody(mut params): JsonBody) -> Result<Response, ApiError> {
    let model = app.model(params.text("model")?.as_deref())?;
    let settings = Settings::take(&mut params)?;
    let max_tokens = params.whole("max_tokens", 0..=u64::MAX)?.unwrap_or(DEFAULT_MAX_TOKENS);
    let logprobs = params.whole("logprobs", 0..=MAX_LOGPROBS)?.map(|count| count as usize);
    let echo = params.flag("echo")?.unwrap_or(false);
    let prompts = parse_prompts(params.value("prompt"))?;
    params.refuse("best_of", |value| value.as_u64() == Some(1))?;
    params.refuse("suffix", |value| value.as_str() == Some(""))?;
    params.finish()?;

    let tokenizer = model.clone();
    let prompts = blocking(move || prompts.into_iter().map(|prompt| prompt.encode(&tokenizer)).collect());
    let prompts: Vec<EncodedPrompt> = prompts.await?;
    let generation = Generation {
        source: "prompt",
        prompts: prompts.iter().map(|prompt| prompt.ids.clone()).collect(),
        max_tokens: Some(usize::try_from(max_tokens).unwrap_or(usize::MAX)),
        end: model.text_end(),
        top_logprobs: logprobs,
        prompt_logprobs: echo && logprobs.is_some(),
        settings,
        model,
    };
    let pieces = generation.start(&app.config)?;
    let Generation { model, settings, .. } = &generation;
    let answer = Answer {
        model: model.name.clone(),
        texts: prompts.len() * settings.n,
        prompt_tokens: generation.prompt_tokens(),
        stream: settings.stream,
        include_usage: settings.include_usage,
        format: Completion {
            tokenizer: model.tokenizer.clone(),
            prompts,
            n: settings.n,
            echo,
            logprobs: logprobs.is_some(),
        },
    };
    answer.respond(pieces).await
}

/// A prompt as it was sent.
#[derive(Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A prompt as tokens.
struct EncodedPrompt {
    ids: Vec<u32>,
    text: String,
    /// Number of tokens before the text, such as the one that begins documents.
    added: usize,
}

impl Prompt {
    fn encode(self, model: &ServedModel) -> Result<EncodedPrompt, ApiError> {
        let tokenizer = &model.tokenizer;
        let vocab_size = model.config.vocab_size;
        let prompt = match self {
            Self::Text(text) => {
                let ids = tokenizer.encode_prompt(&text).map_err(|error| ApiError::param("prompt", error))?;
                let start = usize::from(tokenizer.document_start().is_some());
                let added = if text.is_empty() { ids.len() } else { start };
                EncodedPrompt { ids, text, added }
            }
            Self::Ids(ids) => {
                if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                    let message = format_args!("token {id} is outside the model's vocabulary of {vocab_size}");
                    return Err(ApiError::param("prompt", message));
                }
                let text = tokenizer.decode(&ids);
                EncodedPrompt { ids, text, added: 0 }
            }
        };
        match prompt.ids.is_empty() {
            true => Err(ApiError::param("prompt", "no characters of the model's vocabulary")),
            false => Ok(prompt),
        }
    }

    fn ids(values: &[Value]) -> Option<Self> {
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        values.iter().map(id).collect::<Option<_>>().map(Self::Ids)
    }
}

/// Parses a text, a list of texts, token ids, or a list of lists of token ids. Without any, a document is begun.
pub(crate) fn parse_prompts(prompt: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of strings, a list of token ids, or a list of those";
    let prompt = prompt.unwrap_or_else(|| "".into());
    let found = match &prompt {
        Value::String(text) => Some(vec![Prompt::Text(text.clone())]),
        Value::Array(values) if values.is_empty() => None,
        Value::Array(values) => Prompt::ids(values).map(|ids| vec![ids]).or_else(|| {
            let one = |value: &Value| match value {
                Value::String(text) => Some(Prompt::Text(text.clone())),
                Value::Array(ids) if !ids.is_empty() => Prompt::ids(ids),
                _ => None,
            };
            values.iter().map(one).collect()
        }),
        _ => None,
    };
    found.ok_or_else(|| wrong("prompt", expected, &prompt))
}

/// Shape of the answer.
struct Completion {
    tokenizer: Tokenizer,
    prompts: Vec<EncodedPrompt>,
    /// Texts per prompt.
    n: usize,
    echo: bool,
    logprobs: bool,
}

impl Completion {
    fn prompt(&self, index: usize) -> &EncodedPrompt {
        &self.prompts[index / self.n]
    }

    /// Returns the tokens of a prompt with their places, as those of a text are.
    fn placed(&self, prompt: &EncodedPrompt, logprobs: &[Option<TokenLogprobs>]) -> Vec<PlacedToken> {
        let mut text = ngen3_data::tokenizer::Text::new(self.tokenizer.stream(), &[]);
        let place = |(position, (&id, logprobs)): (usize, (&u32, &Option<TokenLogprobs>))| {
            let start = text.decoded();
            if position >= prompt.added {
                text.push(id);
                text.ready.clear();
            }
            PlacedToken { id, start, logprobs: logprobs.clone() }
        };
        prompt.ids.iter().zip(logprobs).enumerate().map(place).collect()
    }

    fn logprobs(&self, piece: &Piece) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let prompt = self.prompt(piece.index);
        let before = piece.prompt.as_ref().map(|logprobs| self.placed(prompt, logprobs)).unwrap_or_default();
        let offset = if self.echo { prompt.text.chars().count() } else { 0 };
        // Clients that score a prompt take the last token for a generated one, also if it ends the text.
        let stop = piece.stop.as_ref().filter(|_| self.echo);
        let after =
            piece.tokens.iter().chain(stop).map(|token| PlacedToken { start: offset + token.start, ..token.clone() });
        let all: Vec<_> = before.into_iter().chain(after).collect();
        let name = |id: u32| legacy_name(&self.tokenizer, id);
        let top = |token: &PlacedToken| {
            let logprobs = token.logprobs.as_ref()?;
            // The token itself is among them, as in OpenAI's answers. Of tokens with one name, the most likely one counts.
            let own = (token.id, logprobs.logprob);
            let mut named = Map::new();
            for &(id, value) in logprobs.top.iter().chain([&own]) {
                named.entry(name(id)).or_insert_with(|| logprob(value));
            }
            Some(named)
        };
        json!({
            "tokens": all.iter().map(|token| name(token.id)).collect::<Vec<_>>(),
            "token_logprobs": all.iter().map(|token| Some(logprob(token.logprobs.as_ref()?.logprob))).collect::<Vec<_>>(),
            "top_logprobs": all.iter().map(top).collect::<Vec<_>>(),
            "text_offset": all.iter().map(|token| token.start).collect::<Vec<_>>(),
        })
    }

    /// Returns an entry of `choices`; `echoed` is the prompt, where it stands before the text.
    fn entry(&self, echoed: &str, piece: &Piece) -> Value {
        json!({
            "text": format!("{echoed}{}", piece.text),
            "index": piece.index,
            "logprobs": self.logprobs(piece),
            "finish_reason": piece.finish,
        })
    }
}

impl Format for Completion {
    const ID: &'static str = "cmpl";
    const OBJECTS: [&'static str; 2] = ["text_completion"; 2];

    fn opening(&self, index: usize) -> Option<Value> {
        // With log probabilities, the prompt comes with its own.
        let piece = Piece { index, ..Piece::default() };
        (self.echo && !self.logprobs).then(|| self.entry(&self.prompt(index).text, &piece))
    }

    fn parts(&self, piece: &Piece) -> Vec<Value> {
        let echoed = if piece.prompt.is_some() { &self.prompt(piece.index).text } else { "" };
        vec![self.entry(echoed, piece)]
    }

    fn whole(&self, text: &Piece) -> Value {
        self.entry(if self.echo { &self.prompt(text.index).text } else { "" }, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_come_in_four_forms() {
        let parse = |value: Value| parse_prompts(Some(value));
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(parse(json!("a")).unwrap(), [text("a")]);
        assert_eq!(parse(json!(["a", ""])).unwrap(), [text("a"), text("")]);
        assert_eq!(parse(json!([1, 2])).unwrap(), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(parse(json!([[1], [2, 3]])).unwrap(), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
        assert_eq!(parse_prompts(None).unwrap(), [text("")]);
        for wrong in
            [json!([]), json!([[]]), json!([1, -2]), json!([1, "a"]), json!(5), json!([1.5]), json!([1u64 << 40])]
        {
            let error = parse(wrong.clone()).unwrap_err();
            assert!(error.message.starts_with("prompt: expected a string, a list of"), "{wrong}: {}", error.message);
        }
    }
}
