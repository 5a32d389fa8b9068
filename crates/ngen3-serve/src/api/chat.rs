//! `/v1/chat/completions`: answers a conversation, which the model's chat template renders.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use ngen3_data::Tokenizer;
use ngen3_data::chat::{ChatEncoder, ChatMapping, ChatParser, Conversation};
use serde_json::{Map, Value, json};

use super::choice::{Piece, PlacedToken};
use super::error::ApiError;
use super::generation::Generation;
use super::params::{Params, wrong};
use super::respond::{Answer, Format};
use super::settings::{MAX_LOGPROBS, Settings};
use super::tokens::chat_token;
use crate::body::JsonBody;
use crate::served::ServedModel;
use crate::state::{App, blocking};

/// Parameters that the chat template reads, beside the messages.
const FOR_TEMPLATE: [&str; 3] = ["tools", "documents", "chat_template_kwargs"];

/// Handles a request.
pub(crate) async fn handle(State(app): State<Arc<App>>, JsonBody(mut params): JsonBody) -> Result<Response, ApiError> {
    let model = app.model(params.text("model")?.as_deref())?;
    let settings = Settings::take(&mut params)?;
    let older = params.whole("max_tokens", 0..=u64::MAX)?;
    let max_tokens = params.whole("max_completion_tokens", 0..=u64::MAX)?.or(older);
    let logprobs = params.flag("logprobs")?.unwrap_or(false);
    let top_logprobs = match params.whole("top_logprobs", 0..=MAX_LOGPROBS)? {
        Some(_) if !logprobs => return Err(ApiError::param("top_logprobs", "only allowed with logprobs: true")),
        count => count.unwrap_or(0) as usize,
    };
    refuse_unsupported(&mut params)?;
    let conversation = take_conversation(&mut params)?;
    params.finish()?;

    let renderer = model.clone();
    let prompt = blocking(move || encode(&renderer, &conversation)).await?;
    let encoder = encoder(&model)?;
    let mut end = model.text_end();
    end.push(encoder.end());
    let generation = Generation {
        source: "messages",
        prompts: vec![prompt],
        max_tokens: max_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
        end,
        top_logprobs: logprobs.then_some(top_logprobs),
        prompt_logprobs: false,
        settings,
        model,
    };
    let pieces = generation.start(&app.config)?;
    let Generation { model, settings, .. } = &generation;
    let answer = Answer {
        model: model.name.clone(),
        texts: settings.n,
        prompt_tokens: generation.prompt_tokens(),
        stream: settings.stream,
        include_usage: settings.include_usage,
        format: Chat { tokenizer: model.tokenizer.clone(), logprobs },
    };
    answer.respond(pieces).await
}

pub(crate) fn refuse_unsupported(params: &mut Params) -> Result<(), ApiError> {
    params.ignore(&["prediction"]);
    params.refuse("response_format", |format| format["type"] == "text")?;
    params.refuse("modalities", |modalities| *modalities == json!(["text"]))?;
    params.refuse("functions", |functions| *functions == json!([]))?;
    params.refuse("function_call", |call| *call == "auto" || *call == "none")?;
    for name in ["audio", "reasoning_effort", "verbosity", "web_search_options"] {
        params.refuse(name, |_| false)?;
    }
    Ok(())
}

/// Takes what the chat template reads, as the object that [`ChatParser`] reads.
pub(crate) fn take_conversation(params: &mut Params) -> Result<Map<String, Value>, ApiError> {
    let messages = match params.value("messages") {
        Some(messages @ Value::Array(_)) => messages,
        Some(other) => return Err(wrong("messages", "a list of messages", &other)),
        None => return Err(ApiError::param("messages", "missing")),
    };
    // The model writes a call of a tool as text, or not; it cannot be forced to.
    params.refuse("tool_choice", |choice| *choice == "auto" || *choice == "none")?;
    let mut record = Map::from_iter([("messages".to_owned(), messages)]);
    for name in FOR_TEMPLATE {
        let value = params.value(name).filter(|value| *value != json!([]) && *value != json!({}));
        record.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(record)
}

/// Returns the encoder of a model's conversations.
fn encoder(model: &ServedModel) -> Result<&ChatEncoder, ApiError> {
    model.chat.as_ref().ok_or_else(|| {
        let message = format!("{} has no chat template: it continues texts (/v1/completions)", model.name);
        let error = ApiError::new(StatusCode::BAD_REQUEST, message).with_code("no_chat_template");
        ApiError { param: Some("model".into()), ..error }
    })
}

/// Encodes a conversation up to where the answer begins.
pub(super) fn encode(model: &ServedModel, record: &Map<String, Value>) -> Result<Vec<u32>, ApiError> {
    let encoder = encoder(model)?;
    let read = encoder.template().context_names();
    for name in &FOR_TEMPLATE[..2] {
        if record.contains_key(*name) && !read.iter().any(|known| known == name) {
            let message = format!("the chat template of {} has no place for them", model.name);
            return Err(ApiError::param(name, message).with_code("unsupported_parameter"));
        }
    }
    let turns = record["messages"].as_array().map_or(&[][..], Vec::as_slice);
    // A string is a turn in training data, but not in this API.
    if let Some(wrong_turn) = turns.iter().find(|turn| !turn.is_object()) {
        return Err(wrong("messages", "objects with role and content", wrong_turn));
    }
    let parser = ChatParser::new(ChatMapping::default(), read);
    let invalid = |reason: String| ApiError::param("messages", reason);
    let parsed = parser.json(&Value::Object(record.clone())).map_err(|reason| invalid(in_words_of_api(&reason)))?;
    let Conversation::Turns { messages, context } = parsed.conversation else {
        return Err(invalid("expected objects with role and content".into()));
    };
    let ids = encoder.prompt_with(&messages, &context).map_err(|error| invalid(error.to_string()))?;
    match ids.is_empty() {
        true => Err(invalid("the chat template renders no text".into())),
        false => Ok(ids),
    }
}

/// Drops a hint at the flags of commands that read training data.
fn in_words_of_api(reason: &str) -> String {
    reason.split("; say what it is with").next().unwrap_or(reason).replace("turn ", "message ")
}

/// Shape of the answer.
struct Chat {
    tokenizer: Tokenizer,
    logprobs: bool,
}

impl Chat {
    fn logprobs(&self, tokens: &[PlacedToken]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let content: Vec<_> = tokens.iter().filter_map(|token| chat_token(&self.tokenizer, token)).collect();
        json!({"content": content, "refusal": null})
    }
}

impl Format for Chat {
    const ID: &'static str = "chatcmpl";
    const OBJECTS: [&'static str; 2] = ["chat.completion", "chat.completion.chunk"];

    fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn parts(&self, piece: &Piece) -> Vec<Value> {
        let entry = |delta: Value, logprobs: Value, finish: Option<&str>| json!({"index": piece.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        let has_content = !piece.text.is_empty() || !piece.tokens.is_empty();
        let content = has_content.then(|| entry(json!({"content": piece.text}), self.logprobs(&piece.tokens), None));
        let finish = piece.finish.map(|finish| entry(json!({}), Value::Null, Some(finish)));
        content.into_iter().chain(finish).collect()
    }

    fn whole(&self, text: &Piece) -> Value {
        json!({
            "index": text.index,
            "message": {"role": "assistant", "content": text.text, "refusal": null},
            "logprobs": self.logprobs(&text.tokens),
            "finish_reason": text.finish,
        })
    }
}
