//! Bytes of text that tokens stand for, for losses per byte.

use super::backend::Backend;
use super::codec::Tokenizer;

/// Tokens that the `tokenizers` crate decodes at a time.
const CHUNK: usize = 1 << 16;

/// Mark of a token that stands for no text, in a table of lengths.
const NO_TEXT: u32 = u32::MAX;

/// Tokens that stand for text, and the bytes of that text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextSize {
    /// Number of tokens, without those that stand for no text.
    pub tokens: u64,
    /// Bytes of text.
    pub bytes: u64,
}

impl std::ops::AddAssign for TextSize {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.bytes += other.bytes;
    }
}

impl std::iter::Sum for TextSize {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), |mut sum, size| {
            sum += size;
            sum
        })
    }
}

/// Counts the bytes of text that tokens stand for.
///
/// Special tokens (the ends and beginnings of documents, the marks of a chat) stand for none. The unknown token counts as it is
/// spelled: the text that it stands for is lost.
#[derive(Debug)]
pub struct ByteCounter {
    tokenizer: Tokenizer,
    /// Bytes of each token by id, or [`NO_TEXT`]. Tokens of the `tokenizers` crate have no length of their own.
    lengths: Vec<u32>,
}

impl Tokenizer {
    /// Makes a counter of the bytes that this tokenizer's ids stand for.
    pub fn byte_counter(&self) -> ByteCounter {
        let length = |id: u32| match &self.inner.backend {
            Backend::ByteLevel(bpe) => bpe.token(id).len() as u32,
            Backend::Chars(_) => self.decode(&[id]).len() as u32,
            Backend::HuggingFace(_) => 0,
        };
        let mut lengths: Vec<u32> = (0..self.vocab_size() as u32).map(length).collect();
        let special = self.special_tokens().into_iter().map(|(_, id)| id).filter(|&id| Some(id) != self.unknown());
        for id in special.chain(self.eot()).chain(self.document_start()) {
            if let Some(length) = lengths.get_mut(id as usize) {
                *length = NO_TEXT;
            }
        }
        ByteCounter { tokenizer: self.clone(), lengths }
    }
}

impl ByteCounter {
    /// True for a token that stands for text: every token but the special ones.
    pub fn is_text(&self, id: u32) -> bool {
        self.lengths.get(id as usize) != Some(&NO_TEXT)
    }

    /// Counts the text of adjacent tokens; ids outside the vocabulary count no bytes. A token of part of a character counts its
    /// own bytes. A tokenizer run by the `tokenizers` crate decodes the tokens, 65,536 at a time.
    pub fn count(&self, ids: &[u32]) -> TextSize {
        if !matches!(self.tokenizer.inner.backend, Backend::HuggingFace(_)) {
            let texts = ids.iter().map(|&id| self.lengths.get(id as usize).copied().unwrap_or(0));
            let sizes = texts.filter(|&bytes| bytes != NO_TEXT);
            return sizes.map(|bytes| TextSize { tokens: 1, bytes: bytes.into() }).sum();
        }
        let parts = ids.chunks(CHUNK).flat_map(|chunk| chunk.split(|&id| !self.is_text(id)));
        let size = |part: &[u32]| {
            let bytes = if part.is_empty() { 0 } else { self.tokenizer.decode(part).len() as u64 };
            TextSize { tokens: part.len() as u64, bytes }
        };
        parts.map(size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_text_and_special_tokens_are_none() {
        let text = "Zwölf Boxkämpfer 🥊 jagen Viktor, 日本語.\n\n";
        let chars = |text: &str| {
            let found: std::collections::BTreeSet<char> = text.chars().collect();
            found.into_iter().zip(0..).collect::<Vec<_>>()
        };
        for tokenizer in [Tokenizer::gpt2(), Tokenizer::of_bytes("bytes"), Tokenizer::of_chars(&chars(text), "chars")] {
            let counter = tokenizer.byte_counter();
            let mut ids = tokenizer.encode(text).unwrap();
            let size = TextSize { tokens: ids.len() as u64, bytes: text.len() as u64 };
            assert_eq!(counter.count(&ids), size, "{tokenizer:?}");
            // Parts of a character count their own bytes.
            let halves = |at: usize| [&ids[..at], &ids[at..]].map(|part| counter.count(part)).into_iter().sum();
            assert!((0..=ids.len()).all(|at| size == halves(at)), "{tokenizer:?}");
            ids.extend(tokenizer.eot());
            ids.insert(0, u32::MAX - 1);
            let padded = TextSize { tokens: size.tokens + 1, ..size };
            assert_eq!(
                counter.count(&ids),
                padded,
                "{tokenizer:?}: a document's end, and an id outside the vocabulary"
            );
            assert!(tokenizer.eot().is_none_or(|eot| !counter.is_text(eot)));
        }
    }

    #[test]
    fn tokens_without_a_length_of_their_own_are_decoded() {
        let added = serde_json::json!([{"id": 3, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}]);
        let file = serde_json::json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "one": 1, "twenty": 2}}});
        let tokenizer = Tokenizer::from_json(file.to_string().as_bytes(), "words").unwrap();
        let counter = tokenizer.byte_counter();
        assert!(matches!(tokenizer.inner.backend, Backend::HuggingFace(_)));
        assert_eq!([0, 1, 2, 3].map(|id| counter.is_text(id)), [true, true, true, false]);
        // "one twenty", "one [UNK]".
        assert_eq!(counter.count(&[1, 2, 3, 3, 1, 0, 3]), TextSize { tokens: 4, bytes: 19 });
    }
}
