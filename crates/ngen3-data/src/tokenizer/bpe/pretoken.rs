//! GPT-2's pre-tokeniser: splits a text into words; byte pairs are then merged within each.
//!
//! ```text
//! '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//! ```
//!
//! written by hand: [`word_end`] is one match of the pattern. [`ascii_word`] is the same for the common case (a word of ASCII
//! letters, optionally after a space) without a branch per byte, and [`safe_split`] finds where a text can be split without
//! changing any word.

use super::classes::{Class, Classes};

/// Returns the end of the word that begins at `start`. `bytes` is valid UTF-8 and longer than `start`.
pub(in crate::tokenizer) fn word_end(classes: &Classes, bytes: &[u8], start: usize) -> usize {
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

/// Returns the length of the word at the start of `window`, if it is ASCII letters, optionally after one space, followed within
/// the window by another ASCII character (one beyond ASCII may be a letter). Otherwise 0.
#[inline]
pub(in crate::tokenizer) fn ascii_word(window: u128) -> u32 {
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

/// Returns the last offset at which `text` can be split so that, whatever follows, both parts have the words of the whole.
///
/// That is between a character that is not white space and one of another class, since every word but a contraction has one
/// class, after at most one leading space; a contraction's class changes after its `'`, so there is no split there. The left
/// part does not end in white space, so `(?!\S)` sees the same in it as in the whole, and the pattern never looks behind.
pub(in crate::tokenizer) fn safe_split(classes: &Classes, text: &str) -> Option<usize> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::utils::SysRegex;

    use super::super::classes::classes;
    use super::*;

    const PATTERN: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    fn words(text: &str) -> Vec<(usize, usize)> {
        let (mut words, mut start) = (Vec::new(), 0);
        while start < text.len() {
            let end = word_end(classes(), text.as_bytes(), start);
            words.push((start, end));
            start = end;
        }
        words
    }

    fn assert_as_the_pattern(text: &str) {
        let pattern = SysRegex::new(PATTERN).unwrap();
        let expected: Vec<_> = pattern.find_iter(text).collect();
        let got = words(text);
        if let Some(at) = (0..expected.len()).find(|&at| got.get(at) != Some(&expected[at])) {
            let (start, end) = expected[at];
            panic!("word {at} is {:?}, not {:?}", &text[start..end], got.get(at).map(|&(s, e)| &text[s..e]));
        }
        assert_eq!(got.len(), expected.len());
    }

    #[test]
    fn every_character_is_of_the_class_that_the_pattern_says() {
        // After a letter, a number and a mark, each of its own class: the words reveal the class of every character.
        let mut text = String::new();
        for c in '\0'..=char::MAX {
            text.extend(['a', c, '1', c, '!', c]);
        }
        assert_as_the_pattern(&text);
    }

    /// Texts rich in what the pattern treats specially.
    fn text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            4 => "['sdmtlvrea]{1,3}",
            4 => "[ \n\t\r\u{b}\u{85}\u{a0}\u{2003}\u{3000}]{1,3}",
            3 => "[a-zA-Z]{1,20}",
            2 => "[0-9½٣Ⅷ]{1,3}",
            2 => "[!-/@\\[-`{-~\0\u{200b}\u{301}🎉]{1,3}",
            2 => "[éßжя中日ㅎ𐐀]{1,6}",
            1 => any::<char>().prop_map(String::from),
        ];
        prop::collection::vec(part, 0..30).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn words_are_the_matches_of_the_pattern(text in text()) {
            assert_as_the_pattern(&text);
        }

        #[test]
        fn the_quick_way_cuts_the_same_words(text in text()) {
            for (start, end) in words(&text) {
                if let Some(window) = text.as_bytes()[start..].first_chunk::<16>() {
                    let quick = ascii_word(u128::from_le_bytes(*window)) as usize;
                    let word = &text.as_bytes()[start..end];
                    let letters = word.strip_prefix(b" ").unwrap_or(word);
                    let next_is_ascii = text.as_bytes().get(end).is_some_and(u8::is_ascii);
                    let simple = letters.iter().all(u8::is_ascii_alphabetic) && !letters.is_empty();
                    prop_assert_eq!(quick, if simple && word.len() <= 15 && next_is_ascii { word.len() } else { 0 });
                }
            }
        }

        #[test]
        fn a_safe_split_changes_no_word_whatever_follows(before in text(), after in text()) {
            if let Some(cut) = safe_split(classes(), &before) {
                let whole = before.clone() + &after;
                let mut parts = words(&before[..cut]);
                parts.extend(words(&whole[cut..]).into_iter().map(|(start, end)| (start + cut, end + cut)));
                prop_assert!(cut > 0 && cut < before.len());
                prop_assert_eq!(parts, words(&whole));
            }
        }
    }

    #[test]
    fn a_safe_split_is_found_before_the_last_word() {
        let split = |text: &str| safe_split(classes(), text).map(|cut| text.split_at(cut).1.to_string());
        assert_eq!(split("one two three").as_deref(), Some(" three"));
        assert_eq!(split("one two\n\n").as_deref(), Some("\n\n"));
        assert_eq!(split("one two\n  thr").as_deref(), Some("\n  thr"));
        assert_eq!(split("abc123").as_deref(), Some("123"));
        assert_eq!(split("中文。字").as_deref(), Some("字"));
        assert_eq!(split("it's").as_deref(), Some("'s"));
        assert_eq!(split("'s"), None);
        assert_eq!(split("\n\na"), None);
        assert_eq!(split("aaaa"), None);
        assert_eq!(split(" "), None);
        assert_eq!(split(""), None);
    }
}
