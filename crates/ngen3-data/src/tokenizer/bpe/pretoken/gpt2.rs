//! GPT-2's pattern:
//!
//! ```text
//! '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! With a table of [`Class::Digit`] it is SmolLM2's: each digit is a word, and the pattern sees the text between digits as if it
//! ended there.

use super::super::classes::{Class, Classes};

/// Returns the end of the word that begins at `start`. `bytes` is valid UTF-8 and longer than `start`.
pub(super) fn word_end(classes: &Classes, bytes: &[u8], start: usize) -> usize {
    let first = bytes[start];
    if first == b'\'' {
        match &bytes[start + 1..] {
            [b's' | b'd' | b'm' | b't', ..] => return start + 2,
            [b'l', b'l', ..] | [b'v', b'e', ..] | [b'r', b'e', ..] => return start + 3,
            _ => {}
        }
    }
    let body = start + usize::from(first == b' ' && start + 1 < bytes.len());
    match classes.at(bytes, body) {
        (Class::Space, _) => {}
        // The text before a digit ends there: that is the space alone.
        (Class::Digit, _) if body > start => return body,
        (Class::Digit, length) => return body + length,
        (class, length) => return classes.run_end(bytes, body + length, class),
    }
    // White space: all of it at the end of the text; else all but its last character, which begins or is the next word.
    let (mut last, mut end) = (start, start);
    while end < bytes.len() {
        match classes.at(bytes, end) {
            (Class::Space, length) => {
                last = end;
                end += length;
            }
            (Class::Digit, _) => break,
            _ => return if last > start { last } else { end },
        }
    }
    end
}

/// Returns true if both sides have the words of the whole when a text is split between these characters.
///
/// That is between a character that is not white space and one of another class, since every word but a contraction has one
/// class, after at most one leading space; a contraction's class changes after its `'`, so there is no split there.
pub(super) fn splits_between((left, class): (char, Class), next: Class) -> bool {
    class != Class::Space && (class != next || class == Class::Digit) && !(left == '\'' && next == Class::Letter)
}
