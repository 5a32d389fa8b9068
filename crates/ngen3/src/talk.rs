//! A text as it is made: one sample, streamed.

use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_data::Tokenizer;
use ngen3_engine::{Engine, Generator, Request, Sampling};

use crate::progress::{counted, write_line};

/// Says it where a prompt has more tokens than the model's block.
pub fn say_what_is_seen(tokens: usize, block_size: usize) {
    if tokens > block_size {
        let tokens = counted(tokens as u64);
        write_line(&format!("note: the prompt has {tokens} tokens; the model sees the last {block_size} of them"));
    }
}

/// What is to be made.
pub struct Answer<'a> {
    /// What comes before.
    pub prompt: &'a [u32],
    /// Tokens after which it ends.
    pub length: usize,
    /// The token that ends it.
    pub end: Option<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

impl Answer<'_> {
    /// Makes the text, and gives it to `put` as it comes; `false` if `stop` was set before its end.
    pub fn make(
        &self,
        engine: &dyn Engine,
        tokenizer: &Tokenizer,
        stop: &AtomicBool,
        put: &mut dyn FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let Self { prompt, length, end, sampling } = *self;
        let request = Request { prompt, rows: 1, length, end, vocab_size: tokenizer.vocab_size(), sampling };
        let mut generator = Generator::new(engine, request)?;
        let mut text = tokenizer.stream();
        let mut stopped = false;
        while let Some(tokens) = generator.step()? {
            if let Some(token) = tokens[0] {
                put(&text.push(token))?;
            }
            stopped = stop.load(Ordering::Relaxed);
            if stopped {
                break;
            }
        }
        put(&text.finish())?;
        Ok(!stopped)
    }
}
