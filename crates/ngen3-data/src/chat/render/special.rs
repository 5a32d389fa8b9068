//! Special tokens in the text of conversations: those that the template writes are tokens, those that a turn spells stay text.

use std::borrow::Cow;
use std::ops::Range;

use aho_corasick::{AhoCorasick, Input, MatchKind};
use serde_json::{Map, Value};

use super::template::{BEGIN, END};
use crate::Error;
use crate::chat::conversation::Message;

/// Is inserted where the text of a turn spells a special token, so that it is not taken for one, and removed before tokenizing.
/// A noncharacter of Unicode, like [`BEGIN`] and [`END`].
pub(in crate::chat) const GUARD: char = '\u{fdd2}';
/// Characters that no text may contain.
const MARKS: [char; 3] = [BEGIN, END, GUARD];

/// Turns and the other values that a template reads; copies only where guards were needed.
type Guarded<'a> = (Cow<'a, [Message]>, Cow<'a, Map<String, Value>>);

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub(in crate::chat) struct SpecialTokens {
    tokens: Vec<(String, u32)>,
    /// Finds [`MARKS`] and then the tokens: the first one, and the longest of those at the same position.
    finder: AhoCorasick,
}

impl SpecialTokens {
    /// Takes the tokens and their ids.
    pub(in crate::chat) fn new(mut tokens: Vec<(String, u32)>) -> Result<Self, Error> {
        tokens.retain(|(token, _)| !token.is_empty());
        let marks = MARKS.iter().map(char::to_string);
        let patterns = marks.chain(tokens.iter().map(|(token, _)| token.clone()));
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(patterns);
        let finder = finder.map_err(|error| Error::Data(format!("the tokenizer's special tokens: {error}")))?;
        Ok(Self { tokens, finder })
    }

    /// True if an id is that of a special token.
    pub(in crate::chat) fn has(&self, id: u32) -> bool {
        self.tokens.iter().any(|&(_, special)| special == id)
    }

    /// True if a text ends with a special token.
    pub(in crate::chat) fn end(&self, text: &str) -> bool {
        self.tokens.iter().any(|(token, _)| text.ends_with(token.as_str()))
    }

    /// Returns the byte ranges of the special tokens in a text, and their ids.
    pub(in crate::chat) fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, u32)> + 'a {
        let found = self.finder.find_iter(text);
        found.filter_map(|found| {
            let index = found.pattern().as_usize().checked_sub(MARKS.len())?;
            Some((found.range(), self.tokens[index].1))
        })
    }

    /// Returns the messages and the context with guards where their text spells a special token.
    ///
    /// # Errors
    /// A message for a text that contains one of the characters that mark something here.
    pub(in crate::chat) fn guarded<'a>(
        &self,
        messages: &'a [Message],
        context: &'a Map<String, Value>,
    ) -> Result<Guarded<'a>, String> {
        let are_plain = messages.iter().all(|message| self.is_plain(message)) && self.are_plain(context);
        if are_plain {
            return Ok((Cow::Borrowed(messages), Cow::Borrowed(context)));
        }
        let message = |(message, number): (&Message, usize)| {
            let guarded = || {
                let content = message.content.as_deref().map(|content| self.guarded_text(content)).transpose()?;
                let fields = self.guarded_fields(&message.fields)?;
                Ok::<_, String>(Message { role: message.role, content, fields, train: message.train })
            };
            guarded().map_err(|reason| format!("turn {number}: {reason}"))
        };
        let messages = messages.iter().zip(1..).map(message).collect::<Result<_, _>>()?;
        Ok((Cow::Owned(messages), Cow::Owned(self.guarded_fields(context)?)))
    }

    /// True if no text of a message needs a guard or is refused.
    fn is_plain(&self, message: &Message) -> bool {
        message.content.as_deref().is_none_or(|text| !self.finder.is_match(text)) && self.are_plain(&message.fields)
    }

    fn are_plain(&self, fields: &Map<String, Value>) -> bool {
        fields.iter().all(|(key, value)| !self.finder.is_match(key) && self.is_plain_value(value))
    }

    fn is_plain_value(&self, value: &Value) -> bool {
        match value {
            Value::String(text) => !self.finder.is_match(text),
            Value::Array(items) => items.iter().all(|item| self.is_plain_value(item)),
            Value::Object(fields) => self.are_plain(fields),
            _ => true,
        }
    }

    fn guarded_fields(&self, fields: &Map<String, Value>) -> Result<Map<String, Value>, String> {
        let field = |(key, value): (&String, &Value)| Ok((self.guarded_text(key)?, self.guarded_value(value)?));
        fields.iter().map(field).collect()
    }

    fn guarded_value(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => self.guarded_text(text)?.into(),
            Value::Array(items) => items.iter().map(|item| self.guarded_value(item)).collect::<Result<_, _>>()?,
            Value::Object(fields) => Value::Object(self.guarded_fields(fields)?),
            other => other.clone(),
        })
    }

    fn guarded_text(&self, text: &str) -> Result<String, String> {
        let (mut guarded, mut done) = (String::with_capacity(text.len()), 0);
        // Continues within a token, where another one may begin.
        while let Some(found) = self.finder.find(Input::new(text).range(done..)) {
            let first = text[found.start()..].chars().next().unwrap_or(GUARD);
            if found.pattern().as_usize() < MARKS.len() {
                return Err(format!("invalid character U+{:04X}", u32::from(first)));
            }
            let after_first = found.start() + first.len_utf8();
            guarded.push_str(&text[done..after_first]);
            guarded.push(GUARD);
            done = after_first;
        }
        guarded.push_str(&text[done..]);
        Ok(guarded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_break_every_token_also_those_that_overlap() {
        let tokens = [("<|a|>", 1), ("<|a|>b", 2), ("|>c", 3), ("<<", 4), ("\u{e9}!", 5)];
        let special = SpecialTokens::new(tokens.map(|(token, id)| (token.to_owned(), id)).to_vec()).unwrap();
        let found: Vec<_> = special.find("x<|a|>b<|a|>c\u{e9}!").collect();
        assert_eq!(found, [(1..7, 2), (7..12, 1), (13..16, 5)]);
        for text in ["<|a|>c", "<<<", "x\u{e9}!<|a|>b", "no token", ""] {
            let guarded = special.guarded_text(text).unwrap();
            assert_eq!(special.find(&guarded).count(), 0, "{guarded:?}");
            assert_eq!(guarded.replace(GUARD, ""), text);
        }
        assert!(special.has(4) && !special.has(6) && special.end("a<<") && !special.end("<<a"));
        assert_eq!(special.guarded_text("a\u{fdd0}").unwrap_err(), "invalid character U+FDD0");
    }
}
