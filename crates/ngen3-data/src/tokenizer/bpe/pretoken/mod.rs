//! Pre-tokenizers: split a text into words; byte pairs are then merged within each.
//!
//! Each is a regular expression of the field, written by hand: `gpt2.rs` and `llama3.rs` have one match of theirs, and the
//! places where a text can be split without changing any word. `ascii.rs` is the common case of all of them.

pub(in crate::tokenizer) mod ascii;
mod gpt2;
mod llama3;
#[cfg(test)]
mod tests;

use super::classes::{Class, Classes, classes, single_digits};

/// A pre-tokenizer.
#[derive(Clone, Copy)]
pub(in crate::tokenizer) struct Pretokenizer {
    classes: &'static Classes,
    pattern: Pattern,
}

#[derive(Clone, Copy)]
enum Pattern {
    Gpt2,
    Llama3 {
        /// Maximum number of digits in a word.
        digits: usize,
    },
}

impl Pretokenizer {
    /// Returns GPT-2's pre-tokenizer.
    pub(in crate::tokenizer) fn gpt2() -> Self {
        Self { classes: classes(), pattern: Pattern::Gpt2 }
    }

    /// Returns SmolLM2's pre-tokenizer: digits are words of their own, GPT-2's pattern splits the text between them.
    pub(in crate::tokenizer) fn smollm2() -> Self {
        Self { classes: single_digits(), pattern: Pattern::Gpt2 }
    }

    /// Returns Llama 3's pre-tokenizer: a word has up to three digits.
    pub(in crate::tokenizer) fn llama3() -> Self {
        Self { classes: classes(), pattern: Pattern::Llama3 { digits: 3 } }
    }

    /// Returns the pre-tokenizer of Qwen 2 and later: Llama 3's, but digits are words of their own.
    pub(in crate::tokenizer) fn qwen2() -> Self {
        Self { classes: classes(), pattern: Pattern::Llama3 { digits: 1 } }
    }

    /// Returns the end of the word that begins at `start`. `bytes` is valid UTF-8 and longer than `start`.
    pub(in crate::tokenizer) fn word_end(&self, bytes: &[u8], start: usize) -> usize {
        match self.pattern {
            Pattern::Gpt2 => gpt2::word_end(self.classes, bytes, start),
            Pattern::Llama3 { digits } => llama3::word_end(self.classes, bytes, start, digits),
        }
    }

    /// Returns the last offset at which `text` can be split so that, whatever follows, both parts have the words of the whole.
    /// `accepts` is asked about the characters on both sides.
    ///
    /// The left part never ends in white space, so `(?!\S)` sees the same in it as in the whole; and no pattern looks behind.
    pub(in crate::tokenizer) fn safe_split(&self, text: &str, accepts: impl Fn(char, char) -> bool) -> Option<usize> {
        let bytes = text.as_bytes();
        let mut right: Option<(usize, char, Class)> = None;
        for (at, c) in text.char_indices().rev() {
            let (class, _) = self.classes.at(bytes, at);
            if let Some((cut, next, next_class)) = right
                && match self.pattern {
                    Pattern::Gpt2 => gpt2::splits_between((c, class), next_class),
                    Pattern::Llama3 { digits } => llama3::splits_between(class, (next, next_class), digits),
                }
                && accepts(c, next)
            {
                return Some(cut);
            }
            right = Some((at, c, class));
        }
        None
    }
}
