//! Generates text token by token: the sampling flags, prompts, and streaming.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use clap::builder::NonEmptyStringValueParser;
use ngen3_data::Tokenizer;
use ngen3_data::tokenizer::{MissingChars, Text};
use ngen3_engine::Model;
use ngen3_generate::{Generator, Request, Sampling};
use ngen3_model::words::grouped;

use crate::decoding::DecodeFlags;
use crate::progress::write_line;

/// Flags that control how text is sampled.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct SamplingFlags {
    /// Divides the logits: below 1 favours likely tokens, above 1 flattens the distribution; 0 always takes the most likely
    /// token
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Sample from the K most likely tokens only; 0 disables it
    #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
    top_k: usize,
    /// Sample from the smallest set of tokens whose probabilities add up to P; 1 disables it
    #[arg(long, value_name = "P", default_value_t = 1.0, hide_default_value = true)]
    top_p: f32,
    /// Keep tokens with probability ≥ P × the most likely token's; 0 disables it
    #[arg(long, value_name = "P", default_value_t = 0.0, hide_default_value = true)]
    min_p: f32,
    /// Penalty on tokens that are in the text already, above 1; 1 disables it
    #[arg(long, value_name = "X", default_value_t = 1.0, hide_default_value = true)]
    repetition_penalty: f32,
    /// Stop before this text; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new(), allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Random seed; the same seed gives the same text [default: a new one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    pub decode: DecodeFlags,
}

impl SamplingFlags {
    /// Returns the sampling settings, with a new seed if none was given.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn sampling(&self) -> anyhow::Result<Sampling> {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty, seed, .. } = *self;
        let seed = seed.unwrap_or_else(seed_of_the_moment);
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed };
        sampling.validate()?;
        Ok(sampling)
    }
}

/// Returns a number that differs from run to run and is short enough to type.
fn seed_of_the_moment() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as u64 % 1_000_000_000
}

/// Encodes a prompt: see [`Tokenizer::encode_prompt`].
///
/// # Errors
/// A prompt without a character of the vocabulary, or that the tokenizer cannot encode.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> anyhow::Result<Vec<u32>> {
    let ids = tokenizer.encode_prompt(prompt)?;
    ensure!(!ids.is_empty(), "nothing to start from: expected a --prompt with characters of the model's vocabulary");
    Ok(ids)
}

/// Prints a note if a prompt has more tokens than the model's context.
pub fn say_what_is_seen(tokens: usize, block_size: usize) {
    if tokens > block_size {
        let tokens = grouped(tokens as u64);
        write_line(&format!("note: the prompt has {tokens} tokens; the model sees the last {block_size} of them"));
    }
}

/// Prints a note if a prompt has characters that the vocabulary lacks.
///
/// # Errors
/// A text that the tokenizer cannot encode.
pub fn say_what_is_missing(tokenizer: &Tokenizer, prompt: &str) -> anyhow::Result<()> {
    let mut missing = MissingChars::default();
    if tokenizer.can_miss() {
        tokenizer.encode_counting(prompt, &mut Vec::new(), &mut missing)?;
    }
    if let Some(note) = tokenizer.missing_note(&missing) {
        write_line(&format!("note: of the prompt, {note}"));
    }
    Ok(())
}

/// A request for one text.
pub struct Answer<'a> {
    /// Token ids before it.
    pub prompt: &'a [u32],
    /// Maximum number of tokens.
    pub length: usize,
    /// Token that ends it.
    pub end: Option<u32>,
    /// Texts before which it ends.
    pub stops: &'a [String],
    /// Sampling settings.
    pub sampling: Sampling,
}

impl Answer<'_> {
    /// Generates the text and passes it to `put` piece by piece; `false` if `stop` was set before its end.
    ///
    /// # Errors
    /// Those of the model, the sampler and `put`.
    pub fn make(
        &self,
        model: &dyn Model,
        tokenizer: &Tokenizer,
        stop: &AtomicBool,
        put: &mut dyn FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let Self { prompt, length, end, stops, sampling } = *self;
        let request = Request { prompt, num_samples: 1, length, end, vocab_size: tokenizer.vocab_size(), sampling };
        let mut generator = Generator::new(model, request)?;
        let mut text = Text::new(tokenizer.stream(), stops);
        let mut stopped = false;
        while let Some(tokens) = generator.step()? {
            if let Some(token) = tokens[0] {
                text.push(token);
                put(&std::mem::take(&mut text.ready))?;
            }
            stopped = stop.load(Ordering::Relaxed);
            if stopped || text.ended {
                break;
            }
        }
        let whole = !stopped || text.ended;
        text.finish();
        put(&text.ready)?;
        Ok(whole)
    }
}
