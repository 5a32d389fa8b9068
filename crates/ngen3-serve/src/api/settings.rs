//! Parameters that completions and chat share.

use ngen3_data::tokenizer::Text;
use ngen3_generate::Sampling;
use serde_json::Value;

use super::error::ApiError;
use super::params::{Params, wrong};
use crate::served::ServedModel;

/// Most alternatives per token that a request may ask for.
pub(crate) const MAX_LOGPROBS: u64 = 20;
/// Most texts per prompt.
const MAX_N: u64 = 128;
/// Most stop texts.
const MAX_STOPS: usize = 16;

/// Parameters that change nothing in the answer of this server.
const HARMLESS: [&str; 9] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "parallel_tool_calls",
];

/// How texts are generated and returned.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub sampling: Sampling,
    /// Texts per prompt; each has a random stream of its own.
    pub n: usize,
    pub stops: Vec<String>,
    pub stream: bool,
    /// Adds the number of tokens to the end of a stream.
    pub include_usage: bool,
}

impl Settings {
    /// Takes the shared parameters.
    ///
    /// # Errors
    /// A parameter of another type, out of range, or not supported.
    pub fn take(params: &mut Params) -> Result<Self, ApiError> {
        params.ignore(&HARMLESS);
        let is_zero = |value: &Value| value.as_f64() == Some(0.0);
        params.refuse("frequency_penalty", is_zero)?;
        params.refuse("presence_penalty", is_zero)?;
        params.refuse("logit_bias", |value| value.as_object().is_some_and(serde_json::Map::is_empty))?;

        let default = Sampling::default();
        let sampling = Sampling {
            temperature: params.number("temperature")?.unwrap_or(default.temperature),
            top_k: params.whole("top_k", 0..=u64::from(u32::MAX))?.unwrap_or(0) as usize,
            top_p: params.number("top_p")?.unwrap_or(default.top_p),
            min_p: params.number("min_p")?.unwrap_or(default.min_p),
            repetition_penalty: params.number("repetition_penalty")?.unwrap_or(default.repetition_penalty),
            seed: params.whole("seed", 0..=u64::MAX)?.unwrap_or_else(rand::random),
        };
        sampling.validate().map_err(|error| {
            let message = error.to_string();
            let name = message.split(':').next().unwrap_or_default().to_owned();
            ApiError { param: Some(name), ..ApiError::new(axum::http::StatusCode::BAD_REQUEST, message) }
        })?;

        let stops = params.texts("stop")?;
        if stops.len() > MAX_STOPS || stops.iter().any(String::is_empty) {
            return Err(ApiError::param(
                "stop",
                format_args!("expected at most {MAX_STOPS} texts, none of them empty"),
            ));
        }
        let stream = params.flag("stream")?.unwrap_or(false);
        let include_usage = match params.value("stream_options") {
            None => false,
            Some(_) if !stream => return Err(ApiError::param("stream_options", "only allowed with stream: true")),
            Some(Value::Object(options)) => match options.get("include_usage") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(include)) => *include,
                Some(other) => return Err(wrong("stream_options.include_usage", "true or false", other)),
            },
            Some(other) => return Err(wrong("stream_options", "an object", &other)),
        };
        let n = params.whole("n", 1..=MAX_N)?.unwrap_or(1) as usize;
        Ok(Self { sampling, n, stops, stream, include_usage })
    }

    /// Returns an empty text that ends before a stop text.
    pub fn text(&self, model: &ServedModel) -> Text {
        Text::new(model.tokenizer.stream(), &self.stops)
    }
}
