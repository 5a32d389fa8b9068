//! Characters of a text that a vocabulary lacks.

use tokenizers::Encoding;

/// Number of different characters kept for messages.
const SHOWN: usize = 5;

/// Fate of the characters that a vocabulary lacks: they become the unknown token, if there is one; otherwise they are dropped.
pub(super) struct Missing {
    /// Its spelling and id.
    pub unknown: Option<(String, u32)>,
}

/// Characters of a text that became no token, or the unknown one. Nothing is counted for a vocabulary that encodes every text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingChars {
    /// Number of these characters.
    pub count: u64,
    /// Number of all characters.
    pub total: u64,
    /// The first few different ones.
    first: Vec<char>,
}

impl MissingChars {
    /// Adds the count of another text.
    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.total += other.total;
        other.first.iter().for_each(|&c| self.show(c));
    }

    /// Counts the characters of `text` that `has` rejects.
    pub(super) fn count_where(&mut self, text: &str, has: impl Fn(char) -> bool) {
        for c in text.chars() {
            self.total += 1;
            if !has(c) {
                self.push(c);
            }
        }
    }

    /// Counts the characters of `text` that no token of its encoding covers, or only the token `unknown`. White space counts only
    /// as part of an unknown token: word-based vocabularies imply it.
    pub(super) fn count_uncovered(&mut self, text: &str, encoding: &Encoding, unknown: Option<u32>) {
        self.total += text.chars().count() as u64;
        let mut at = 0;
        let mut lost = |from: usize, to: usize| {
            let lost = text.get(from..to).unwrap_or_default();
            lost.chars().filter(|c| !c.is_whitespace()).for_each(|c| self.push(c));
        };
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            lost(at, start);
            if Some(id) == unknown {
                lost(start.max(at), end);
            }
            at = at.max(end);
        }
        lost(at, text.len());
    }

    fn push(&mut self, c: char) {
        self.count += 1;
        self.show(c);
    }

    fn show(&mut self, c: char) {
        if self.first.len() <= SHOWN && !self.first.contains(&c) {
            self.first.push(c);
        }
    }

    /// Formats the first few: `'é', '\n', …`.
    pub(super) fn shown(&self) -> String {
        let shown: Vec<_> = self.first.iter().take(SHOWN).map(|c| format!("{c:?}")).collect();
        shown.join(", ") + if self.first.len() > SHOWN { ", …" } else { "" }
    }
}
