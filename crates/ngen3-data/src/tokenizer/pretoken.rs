//! GPT-2's pre-tokeniser: where a text is cut into words before byte pairs are merged within each.
//!
//! ```text
//! '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! written by hand: [`word_end`] is one match of the pattern. Beside it, [`ascii_word`] is the same for the common case
//! (a word of ASCII letters, perhaps after a space) without a branch per byte, and [`safe_split`] finds where a text may be
//! cut in two without changing any word.

use super::classes::{Class, Classes};

/// The end of the word that begins at `start`. `bytes` is valid UTF-8 and longer than `start`.
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
    let (class, length) = classes.at(bytes, body);
    if class != Class::Space {
        let mut end = body + length;
        while end < bytes.len() {
            let (next, length) = classes.at(bytes, end);
            if next != class {
                break;
            }
            end += length;
        }
        return end;
    }
    // White space: all of it at the end of the text; else all but its last character, which begins or is the next word.
    let (mut last, mut end) = (start, start);
    while end < bytes.len() {
        let (class, length) = classes.at(bytes, end);
        if class != Class::Space {
            return if last > start { last } else { end };
        }
        last = end;
        end += length;
    }
    end
}

/// The length of the word that `window`'s first bytes hold, when it is ASCII letters, perhaps after one space, and ends
/// within the window before another ASCII character (one beyond ASCII may be a letter). Otherwise 0, or a length over 15.
#[inline]
pub(super) fn ascii_word(window: u128) -> u32 {
    const EACH: u128 = u128::from_le_bytes([1; 16]);
    const HIGH: u128 = EACH * 0x80;
    // Per byte: lower case, then bit 7 tells "at least 'a'" and "beyond 'z'". No carry: the addends' bit 7 is clear.
    let lower = (window | (EACH * 0x20)) & !HIGH;
    let letter = (lower + (EACH * (0x80 - b'a' as u128))) & !(lower + (EACH * (0x7f - b'z' as u128))) & !window & HIGH;
    let space = u32::from(window as u8 == b' ');
    let letters = (!letter & HIGH) >> (8 * space);
    let length = letters.trailing_zeros() / 8;
    let end = space + length;
    if length == 0 || end > 15 || (window >> (8 * end)) as u8 >= 0x80 { 0 } else { end }
}

/// The last place where `text` may be cut so that, whatever follows it, the words of the two parts are those of the whole.
///
/// That is between a character that is not white space and one of another class, since every word but a contraction holds
/// one class, after at most one leading space; a contraction's class changes after its `'`, so there is no cut there. The
/// left part ends in no white space, so `(?!\S)` sees in it what it sees in the whole, and the pattern never looks behind.
pub(super) fn safe_split(classes: &Classes, text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut right = None;
    for (at, c) in text.char_indices().rev() {
        let (class, _) = classes.at(bytes, at);
        if let Some((cut, next)) = right
            && class != Class::Space
            && class != next
            && !(c == '\'' && next == Class::Letter)
        {
            return Some(cut);
        }
        right = Some((at, class));
    }
    None
}
