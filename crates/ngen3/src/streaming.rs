//! Generates text token by token: the sampling flags, stop texts, and streaming.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use clap::builder::NonEmptyStringValueParser;
use ngen3_data::Tokenizer;
use ngen3_data::tokenizer::{MissingChars, TextStream};
use ngen3_engine::{Dtype, Model, Options};
use ngen3_generate::{Generator, Request, Sampling};
use ngen3_model::Variant;
use ngen3_model::words::grouped;

use crate::decoding::{self, DecodeQuant, Loaded};
use crate::progress::write_line;
use crate::threads::Threads;

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
    /// Precision: auto (the fastest that the processor supports), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    /// Weights to decode with: auto (those of a Q4_0, Q4_1 or Q8_0 GGUF file as they are, unless --dtype is given; otherwise
    /// none), none (the weights in --dtype), int8 (one scale per output) or int4 (one scale per 32 weights, as Q4_0)
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    quant: DecodeQuant,
    #[command(flatten)]
    threads: Threads,
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

    /// Loads the model that a flag names.
    ///
    /// # Errors
    /// Those of [`decoding::load`].
    pub fn load(&self, named: &Path, variant: Option<&Variant>) -> anyhow::Result<Loaded> {
        decoding::load(named, variant, self.quant, self.dtype)
    }

    /// Opens the model.
    ///
    /// # Errors
    /// Those of [`Loaded::open`].
    pub fn open(&self, model: Loaded) -> anyhow::Result<Box<dyn Model>> {
        let options = Options { threads: self.threads.count(), dtype: self.dtype, ..Options::default() };
        model.open(self.quant, options)
    }
}

/// Returns a number that differs from run to run and is short enough to type.
fn seed_of_the_moment() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_micros() as u64 % 1_000_000_000
}

/// A text that grows by tokens, up to the first stop text.
pub struct Text<'a> {
    stream: Option<TextStream>,
    stops: &'a [String],
    /// Text held back because it may begin a stop text.
    held: String,
    /// Text that is ready to print.
    pub ready: String,
    /// True once the text is complete.
    pub ended: bool,
}

impl<'a> Text<'a> {
    /// Returns an empty text.
    pub fn new(stream: TextStream, stops: &'a [String]) -> Self {
        Self { stream: Some(stream), stops, held: String::new(), ready: String::new(), ended: false }
    }

    /// Adds a token.
    pub fn push(&mut self, token: u32) {
        let text = self.stream.as_mut().map(|stream| stream.push(token)).unwrap_or_default();
        self.add(&text);
    }

    /// Completes the text: no token follows.
    pub fn finish(&mut self) {
        if self.ended {
            return;
        }
        let text = self.stream.take().map(TextStream::finish).unwrap_or_default();
        self.add(&text);
        self.ready.push_str(&std::mem::take(&mut self.held));
        self.ended = true;
    }

    fn add(&mut self, text: &str) {
        if self.ended {
            return;
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.ready.push_str(&self.held[..at]);
            self.held.clear();
            self.ended = true;
            return;
        }
        let begins_a_stop = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let safe = starts.into_iter().find(begins_a_stop).unwrap_or(self.held.len());
        self.ready.extend(self.held.drain(..safe));
    }
}

/// Encodes a prompt, after the token that begins documents, if any. An empty one becomes that token, else the end-of-text
/// token, else a line break.
///
/// # Errors
/// A prompt without a character of the vocabulary, or that the tokenizer cannot encode.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> anyhow::Result<Vec<u32>> {
    let mut ids: Vec<u32> = tokenizer.document_start().into_iter().collect();
    match tokenizer.eot() {
        Some(eot) if prompt.is_empty() && ids.is_empty() => ids.push(eot),
        None if prompt.is_empty() && ids.is_empty() => ids = tokenizer.encode("\n")?,
        _ => tokenizer.encode_into(prompt, &mut ids)?,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the text printed after each piece, and whether a stop text ended it.
    fn printed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut text = Text::new(Tokenizer::gpt2().stream(), &stops);
        let mut printed: Vec<_> = pieces
            .iter()
            .map(|piece| {
                text.add(piece);
                std::mem::take(&mut text.ready)
            })
            .collect();
        let stopped = text.ended;
        text.finish();
        printed.push(text.ready);
        (printed, stopped)
    }

    #[track_caller]
    fn assert_printed(stops: &[&str], pieces: &[&str], expected: &[&str], stopped: bool) {
        assert_eq!(printed(stops, pieces), (expected.iter().map(ToString::to_string).collect(), stopped));
    }

    #[test]
    fn text_without_stops_is_printed_as_it_comes() {
        assert_printed(&[], &["a", "", "bc"], &["a", "", "bc", ""], false);
    }

    #[test]
    fn a_stop_is_found_across_pieces_and_not_printed() {
        assert_printed(&["END"], &["one E", "N", "D two", "three"], &["one ", "", "", "", ""], true);
        assert_printed(&["END"], &["EEN", "DX"], &["E", "", ""], true);
    }

    #[test]
    fn what_only_began_like_a_stop_is_printed_later() {
        assert_printed(&["END"], &["a E", "N", "X E"], &["a ", "", "ENX ", "E"], false);
        assert_printed(&["aab"], &["aa", "a", "b!"], &["", "a", "", ""], true);
    }

    #[test]
    fn the_first_of_several_stops_ends_the_text() {
        assert_printed(&["two", "one"], &["zero one two"], &["zero ", ""], true);
        assert_printed(&["ab", "b"], &["xab"], &["x", ""], true);
    }

    #[test]
    fn characters_of_several_bytes_are_never_split() {
        assert_printed(&["é!"], &["größe é", "é", "!?"], &["größe ", "é", "", ""], true);
    }
}
