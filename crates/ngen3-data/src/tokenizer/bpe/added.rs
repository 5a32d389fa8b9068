//! Added tokens that are found in text: those of a file that are not special, such as Qwen's `<think>`.
//!
//! Special tokens are text, but as in the `tokenizers` crate, no other token is found in the place of one.

use std::collections::HashSet;

use aho_corasick::{AhoCorasick, MatchKind};

/// An added token of a file.
#[derive(Clone, Copy, Debug)]
pub(in crate::tokenizer) struct AddedToken<'a> {
    pub content: &'a str,
    pub id: u32,
    pub special: bool,
    /// True if it is looked for in normalized text, else in text as it is given.
    pub normalized: bool,
}

/// The added tokens of a file, if some of them are found in text.
#[derive(Default)]
pub(in crate::tokenizer) struct AddedTokens {
    /// Those that are not special, with their ids.
    pub found: Vec<(String, u32)>,
    /// Those looked for in text as it is given.
    pub given: Option<Finder>,
    /// Those looked for in normalized text.
    pub normalized: Option<Finder>,
    /// Characters that follow one another in a token.
    pairs: HashSet<(char, char)>,
}

/// Finds tokens in a text: always the leftmost, and of those that begin at one place the longest.
pub(in crate::tokenizer) struct Finder {
    automaton: AhoCorasick,
    /// Id of each token; `None` for a special one.
    ids: Vec<Option<u32>>,
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::tokenizer) enum Part<'a> {
    Token(u32),
    Text(&'a str),
}

impl AddedTokens {
    /// Makes the set of these tokens. `None` if the library refuses them.
    pub(in crate::tokenizer) fn new(tokens: &[AddedToken]) -> Option<Self> {
        if tokens.iter().all(|token| token.special) {
            return Some(Self::default());
        }
        let (normalized, given): (Vec<AddedToken>, Vec<AddedToken>) = tokens.iter().partition(|token| token.normalized);
        let pairs = tokens.iter().flat_map(|token| token.content.chars().zip(token.content.chars().skip(1))).collect();
        let found = tokens.iter().filter(|token| !token.special).map(|token| (token.content.to_owned(), token.id));
        Some(Self { found: found.collect(), given: Finder::new(&given)?, normalized: Finder::new(&normalized)?, pairs })
    }

    /// True if none are found in text.
    pub(in crate::tokenizer) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Returns true if no token has these characters one after the other: then none reaches across a split between them.
    pub(in crate::tokenizer) fn separates(&self, left: char, right: char) -> bool {
        !self.pairs.contains(&(left, right))
    }
}

impl Finder {
    /// Makes a finder; `Some(None)` if there is nothing to find, `None` if the library refuses the tokens.
    fn new(tokens: &[AddedToken]) -> Option<Option<Self>> {
        if tokens.iter().all(|token| token.special) {
            return Some(None);
        }
        let mut builder = AhoCorasick::builder();
        let built = builder.match_kind(MatchKind::LeftmostLongest).build(tokens.iter().map(|token| token.content));
        let ids = tokens.iter().map(|token| (!token.special).then_some(token.id)).collect();
        Some(Some(Self { automaton: built.ok()?, ids }))
    }

    /// Calls `take` with the parts of a text, in order, and the place of each, in bytes.
    fn parts<'a>(&self, text: &'a str, mut take: impl FnMut(usize, Part<'a>)) {
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            let Some(id) = self.ids[found.pattern().as_usize()] else { continue };
            if found.start() > done {
                take(done, Part::Text(&text[done..found.start()]));
            }
            take(found.start(), Part::Token(id));
            done = found.end();
        }
        if done < text.len() {
            take(done, Part::Text(&text[done..]));
        }
    }
}

/// Calls `take` with the parts of a text, in order, and the place of each, in bytes: all of it if there is no finder.
pub(in crate::tokenizer) fn parts<'a>(finder: Option<&Finder>, text: &'a str, mut take: impl FnMut(usize, Part<'a>)) {
    match finder {
        Some(finder) => finder.parts(text, take),
        None => take(0, Part::Text(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(content: &str, id: u32, special: bool) -> AddedToken<'_> {
        AddedToken { content, id, special, normalized: false }
    }

    fn found<'a>(added: &AddedTokens, text: &'a str) -> Vec<(usize, Part<'a>)> {
        let mut found = Vec::new();
        parts(added.given.as_ref(), text, |at, part| found.push((at, part)));
        found
    }

    #[test]
    fn the_longest_of_the_leftmost_tokens_is_found() {
        let added = AddedTokens::new(&[token("<a", 1, false), token("<a>", 2, false), token("a>b", 3, false)]).unwrap();
        let expected = vec![
            (0, Part::Text("x")),
            (1, Part::Token(2)),
            (4, Part::Token(1)),
            (6, Part::Text(" ")),
            (7, Part::Token(3)),
        ];
        assert_eq!(found(&added, "x<a><a a>b"), expected);
        assert!(found(&added, "").is_empty());
    }

    #[test]
    fn a_special_token_is_text_and_hides_others() {
        let added = AddedTokens::new(&[token("<s>", 1, true), token("s>b", 2, false)]).unwrap();
        assert_eq!(found(&added, "<s>b"), [(0, Part::Text("<s>b"))]);
        assert_eq!(found(&added, "s>b"), [(0, Part::Token(2))]);
        assert!(!added.separates('<', 's') && !added.separates('>', 'b') && added.separates('b', '<'));
        let special = AddedTokens::new(&[token("<s>", 1, true)]).unwrap();
        assert!(special.given.is_none() && special.separates('<', 's'));
    }
}
