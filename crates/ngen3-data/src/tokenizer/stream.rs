//! Streaming decoding: text from ids, one id at a time.

use super::backend::Backend;
use super::codec::Tokenizer;

/// Decodes ids one at a time: each [`push`](TextStream::push) returns the text that can be shown now. The outputs of all calls
/// and of [`finish`](TextStream::finish), concatenated, are what [`Tokenizer::decode`] returns for all ids. (With one
/// exception: the decoder of a tokenizer run by the `tokenizers` crate may change earlier text once it sees later ids. Text that
/// was returned stays, and everything from the first difference on is returned after it.)
pub struct TextStream {
    tokenizer: Tokenizer,
    /// For byte-level tokenizers: the start of an incomplete character.
    bytes: Vec<u8>,
    /// For others: the last ids shown, which later ones may depend on, then those not yet shown.
    ids: Vec<u32>,
    /// Number of `ids` that are shown.
    shown: usize,
}

impl Tokenizer {
    /// Starts streaming decoding.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }
}

impl TextStream {
    fn new(tokenizer: Tokenizer) -> TextStream {
        TextStream { tokenizer, bytes: Vec::new(), ids: Vec::new(), shown: 0 }
    }

    /// Adds an id and returns the text that can be shown now: complete characters only, "" if there is none. An id outside the
    /// vocabulary adds nothing.
    pub fn push(&mut self, id: u32) -> String {
        match &self.tokenizer.inner.backend {
            Backend::ByteLevel(bpe) => {
                self.bytes.extend_from_slice(bpe.token(id));
                take_complete(&mut self.bytes)
            }
            Backend::Chars(_) => self.tokenizer.decode(&[id]),
            Backend::HuggingFace(tokenizer) => {
                if tokenizer.id_to_token(id).is_none() {
                    return String::new();
                }
                self.ids.push(id);
                self.take(false)
            }
        }
    }

    /// Returns the text still held back: an incomplete character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        match &self.tokenizer.inner.backend {
            Backend::ByteLevel(_) => String::from_utf8_lossy(&self.bytes).into_owned(),
            Backend::Chars(_) => String::new(),
            Backend::HuggingFace(_) => self.take(true),
        }
    }

    /// Returns the text that pending ids add. An incomplete character decodes to U+FFFD at the end: then it waits for more ids.
    fn take(&mut self, all: bool) -> String {
        let before = self.tokenizer.decode(&self.ids[..self.shown]);
        let now = self.tokenizer.decode(&self.ids);
        let same = now.chars().zip(before.chars()).take_while(|(new, old)| new == old);
        let new = &now[same.map(|(c, _)| c.len_utf8()).sum()..];
        if new.is_empty() || (!all && new.ends_with(char::REPLACEMENT_CHARACTER)) {
            return String::new();
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        new.to_string()
    }
}

/// Removes the complete characters from the front, with U+FFFD for invalid sequences, exactly as `String::from_utf8_lossy`
/// would.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let invalid = chunk.invalid();
        if !invalid.is_empty() {
            let incomplete = std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if used + invalid.len() == bytes.len() && incomplete {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += invalid.len();
        }
    }
    bytes.drain(..used);
    text
}
