//! The character classes of the pre-tokenizers' patterns (`\p{L}`, `\p{N}`, `\s`), as a lookup table.
//!
//! The ranges come from `regex-syntax`, as do those of tiktoken. The table has two levels: a block number for each 256 code
//! points, and the distinct blocks.

use std::sync::LazyLock;

/// A character class of the patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tokenizer) enum Class {
    /// Neither white space, letter nor number: `[^\s\p{L}\p{N}]`.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// A number that is a word of its own: in the table of [`single_digits`] only, in which no character that Unicode calls
    /// numeric is of another class.
    Digit,
}

type Block = [Class; 256];

/// The class of every code point.
pub(in crate::tokenizer) struct Classes {
    block_of: Vec<u8>,
    blocks: Vec<Block>,
}

/// Returns the shared table.
pub(in crate::tokenizer) fn classes() -> &'static Classes {
    static CLASSES: LazyLock<Classes> = LazyLock::new(|| Classes::new(|_| false));
    &CLASSES
}

/// Returns the shared table in which digits are words of their own. Which characters are digits is for `char::is_numeric` to
/// say, as in the `tokenizers` crate: it may know other versions of Unicode than `regex-syntax`.
pub(in crate::tokenizer) fn single_digits() -> &'static Classes {
    static CLASSES: LazyLock<Classes> = LazyLock::new(|| Classes::new(char::is_numeric));
    &CLASSES
}

impl Classes {
    fn new(is_digit: impl Fn(char) -> bool) -> Classes {
        let mut class_of = vec![Class::Other; char::MAX as usize + 1];
        for (pattern, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
            let hir = regex_syntax::parse(pattern).expect("a built-in class parses");
            let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = hir.kind() else {
                unreachable!("{pattern} is a class of characters");
            };
            for range in ranges.iter() {
                class_of[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        for c in ('\0'..=char::MAX).filter(|&c| is_digit(c)) {
            class_of[c as usize] = Class::Digit;
        }
        let mut table = Classes { block_of: Vec::new(), blocks: Vec::new() };
        for block in class_of.as_chunks::<256>().0 {
            let number = table.blocks.iter().position(|known| known == block).unwrap_or_else(|| {
                table.blocks.push(*block);
                table.blocks.len() - 1
            });
            table.block_of.push(number.try_into().expect("fewer than 256 distinct blocks"));
        }
        table
    }

    fn of(&self, code: u32) -> Class {
        self.blocks[self.block_of[(code >> 8) as usize] as usize][(code & 0xff) as usize]
    }

    /// Returns the class and the length in bytes of the character that begins at `at`. `bytes` is valid UTF-8.
    #[inline]
    pub(in crate::tokenizer) fn at(&self, bytes: &[u8], at: usize) -> (Class, usize) {
        let low = |i: usize| u32::from(bytes[at + i] & 0x3f);
        let first = u32::from(bytes[at]);
        match first {
            0..0x80 => (self.of(first), 1),
            0x80..0xe0 => (self.of((first & 0x1f) << 6 | low(1)), 2),
            0xe0..0xf0 => (self.of((first & 0xf) << 12 | low(1) << 6 | low(2)), 3),
            _ => (self.of((first & 0x7) << 18 | low(1) << 12 | low(2) << 6 | low(3)), 4),
        }
    }

    /// Returns the end of the characters of one class that begin at `at`.
    pub(in crate::tokenizer) fn run_end(&self, bytes: &[u8], mut at: usize, of: Class) -> usize {
        while at < bytes.len() {
            let (class, length) = self.at(bytes, at);
            if class != of {
                break;
            }
            at += length;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_characters_from_every_plane() {
        for (c, class) in [
            ('a', Class::Letter),
            ('é', Class::Letter),
            ('中', Class::Letter),
            ('𐐀', Class::Letter),
            ('ʰ', Class::Letter),
            ('7', Class::Number),
            ('½', Class::Number),
            ('Ⅷ', Class::Number),
            ('٣', Class::Number),
            (' ', Class::Space),
            ('\u{b}', Class::Space),
            ('\u{85}', Class::Space),
            ('\u{a0}', Class::Space),
            ('\u{2028}', Class::Space),
            ('\u{3000}', Class::Space),
            ('\u{200b}', Class::Other),
            ('\u{301}', Class::Other),
            ('\0', Class::Other),
            ('🎉', Class::Other),
            (char::MAX, Class::Other),
        ] {
            let text = c.to_string();
            assert_eq!(classes().at(text.as_bytes(), 0), (class, text.len()), "{c:?}");
            let class = if class == Class::Number { Class::Digit } else { class };
            assert_eq!(single_digits().at(text.as_bytes(), 0), (class, text.len()), "{c:?}");
        }
    }
}
