//! Llama 3's pattern, and that of Qwen 2 and later with `\p{N}` in place of `\p{N}{1,3}`:
//!
//! ```text
//! (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//! ```

use super::super::classes::{Class, Classes};

/// Returns the end of the word that begins at `start`, with at most `digits` digits. `bytes` is valid UTF-8 and longer than
/// `start`.
pub(super) fn word_end(classes: &Classes, bytes: &[u8], start: usize, digits: usize) -> usize {
    let (class, length) = classes.at(bytes, start);
    let next = start + length;
    match class {
        Class::Letter => return classes.run_end(bytes, next, Class::Letter),
        Class::Number | Class::Digit => return numbers_end(classes, bytes, next, digits - 1),
        Class::Other | Class::Space => {}
    }
    if let Some(end) = contraction_end(bytes, start) {
        return end;
    }
    // Class of the character after the first, if there is one.
    let follows = |expected| next < bytes.len() && classes.at(bytes, next).0 == expected;
    if !is_newline(bytes[start]) && follows(Class::Letter) {
        return classes.run_end(bytes, next, Class::Letter);
    }
    if class == Class::Other || (bytes[start] == b' ' && follows(Class::Other)) {
        let end = classes.run_end(bytes, next, Class::Other);
        return end + bytes[end..].iter().take_while(|&&byte| is_newline(byte)).count();
    }
    // White space: up to its last line break; else all of it at the end of the text; else all but its last character, which
    // begins or is the next word.
    let (mut last, mut end, mut lines_end) = (start, start, None);
    while end < bytes.len() {
        let (class, length) = classes.at(bytes, end);
        if class != Class::Space {
            break;
        }
        last = end;
        end += length;
        if is_newline(bytes[last]) {
            lines_end = Some(end);
        }
    }
    match lines_end {
        Some(lines_end) => lines_end,
        None if end < bytes.len() && last > start => last,
        None => end,
    }
}

fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// Returns the end of up to `most` numbers that begin at `at`.
fn numbers_end(classes: &Classes, bytes: &[u8], mut at: usize, most: usize) -> usize {
    for _ in 0..most {
        if at == bytes.len() {
            break;
        }
        let (class, length) = classes.at(bytes, at);
        if class != Class::Number {
            break;
        }
        at += length;
    }
    at
}

/// Returns the end of the contraction that begins at `start`, if one does. Of the letters beyond ASCII only `ſ` differs from one
/// of a contraction by its case alone.
fn contraction_end(bytes: &[u8], start: usize) -> Option<usize> {
    let letters = bytes[start..].strip_prefix(b"'")?;
    let length = match *letters {
        [b's' | b'S' | b't' | b'T' | b'm' | b'M' | b'd' | b'D', ..] => 1,
        [b'r' | b'R' | b'v' | b'V', b'e' | b'E', ..] | [b'l' | b'L', b'l' | b'L', ..] => 2,
        [0xc5, 0xbf, ..] => "ſ".len(),
        _ => return None,
    };
    Some(start + 1 + length)
}

/// Returns true if both sides have the words of the whole when a text is split between these characters.
///
/// That is between a character that is not white space and one of another class, since every word but a contraction has one
/// class, except that letters may follow one other character, and line breaks follow other characters.
pub(super) fn splits_between(class: Class, (next, next_class): (char, Class), digits: usize) -> bool {
    match class {
        Class::Space => false,
        Class::Letter => next_class != Class::Letter,
        Class::Number | Class::Digit => next_class != class || digits == 1,
        Class::Other => match next_class {
            Class::Other | Class::Letter => false,
            Class::Space => !matches!(next, '\r' | '\n'),
            Class::Number | Class::Digit => true,
        },
    }
}
