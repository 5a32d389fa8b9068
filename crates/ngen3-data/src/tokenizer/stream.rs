//! Text from ids as they come, one at a time.

use super::backend::Backend;
use super::codec::Tokenizer;

/// Turns ids into text as they come: each [`push`](TextStream::push) gives what can be shown now. What all calls and
/// [`finish`](TextStream::finish) give, end to end, is what [`Tokenizer::decode`] gives for all ids at once. (With one
/// exception: the decoder of a tokenizer run by the `tokenizers` crate may rewrite earlier text once it sees later ids. What
/// was shown stays, and all from the first difference on is shown after it.)
pub struct TextStream {
    tokenizer: Tokenizer,
    /// For byte-level tokenizers: the beginning of a character whose rest has not come.
    bytes: Vec<u8>,
    /// For others: the last ids shown, which later ones may depend on, then those not shown.
    ids: Vec<u32>,
    /// How many of `ids` are shown.
    shown: usize,
}

impl Tokenizer {
    /// Text from ids as they come.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }
}

impl TextStream {
    fn new(tokenizer: Tokenizer) -> TextStream {
        TextStream { tokenizer, bytes: Vec::new(), ids: Vec::new(), shown: 0 }
    }

    /// The text that can be shown after this id: whole characters only, "" if none is complete. An id outside the
    /// vocabulary gives nothing.
    pub fn push(&mut self, id: u32) -> String {
        match &self.tokenizer.inner.backend {
            Backend::ByteLevel(bpe) => {
                self.bytes.extend_from_slice(bpe.token(id));
                take_complete(&mut self.bytes)
            }
            Backend::HuggingFace(tokenizer) => {
                if tokenizer.id_to_token(id).is_none() {
                    return String::new();
                }
                self.ids.push(id);
                self.take(false)
            }
        }
    }

    /// The text still held back: an incomplete character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        match &self.tokenizer.inner.backend {
            Backend::ByteLevel(_) => String::from_utf8_lossy(&self.bytes).into_owned(),
            Backend::HuggingFace(_) => self.take(true),
        }
    }

    /// What the ids not shown add to those shown. A character in the making decodes to U+FFFD at the end: wait for more.
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

/// Takes the complete characters off the front, with U+FFFD for what can never become one, exactly as
/// `String::from_utf8_lossy` would.
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
