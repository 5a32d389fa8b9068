//! Byte-level byte-pair encoding: the fast tokenizer.
//!
//! Words are split off by `pretoken/`, looked up in a cache (`cache.rs`), and merged (`merge.rs`) if they are not there.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use foldhash::fast::FixedState;

use super::added::{AddedTokens, Part, parts};
use super::alphabet::{BYTE_OF_ID, bytes_to_unicode, unicode_to_bytes};
use super::cache::{WordCache, short_word, short_word_of_window};
use super::merge::Merges;
use super::normalize::{Normalizer, to_places_in};
use super::pretoken::Pretokenizer;
use super::pretoken::ascii::ascii_word;
use crate::tokenizer::error::Error;
use crate::tokenizer::limits::MAX_WORD;

/// Marks a byte without a token.
const NO_TOKEN: u32 = u32::MAX;

/// A byte-level vocabulary.
pub(in crate::tokenizer) struct Bpe {
    /// The bytes of all tokens in order of id, concatenated; token `i` is `starts[i]..starts[i + 1]`, empty for an unused id.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    /// Id of each single byte; [`NO_TOKEN`] for one that is dropped.
    id_of_byte: [u32; 256],
    /// True if a byte of UTF-8 has no token.
    drops_bytes: bool,
    merges: Merges,
    /// Special tokens, spelled verbatim instead of in the byte alphabet; they are never found in text.
    special: Vec<(String, u32)>,
    steps: Steps,
    /// Id of each token that is also that of a word which is exactly this token, whatever the merges make of it.
    whole_words: HashMap<Box<[u8]>, u32, FixedState>,
    /// Caches that no thread is using.
    caches: Mutex<Vec<WordCache>>,
}

/// Steps from a text to its words.
pub(in crate::tokenizer) struct Steps {
    pub added: AddedTokens,
    pub normalizer: Normalizer,
    pub pretokenizer: Pretokenizer,
    /// True if a word that is a token is never merged.
    pub ignore_merges: bool,
}

impl Default for Steps {
    /// Returns GPT-2's.
    fn default() -> Self {
        Self {
            added: AddedTokens::default(),
            normalizer: Normalizer::None,
            pretokenizer: Pretokenizer::gpt2(),
            ignore_merges: false,
        }
    }
}

impl Bpe {
    /// Makes a vocabulary of the 256 bytes, the tokens that `merges` create, and `eot`, in this order. A merge is (left id, right
    /// id, merged id), of earlier tokens, into the next id or an earlier one of the same bytes. The steps are GPT-2's.
    pub(in crate::tokenizer) fn from_merges(merges: impl ExactSizeIterator<Item = (u32, u32, u32)>, eot: &str) -> Bpe {
        let mut bytes: Vec<u8> = BYTE_OF_ID.to_vec();
        let mut starts: Vec<usize> = (0..=256).collect();
        let mut id_of_byte = [0; 256];
        for (id, &byte) in BYTE_OF_ID.iter().enumerate() {
            id_of_byte[byte as usize] = id as u32;
        }
        let mut table = Merges::with_capacity(merges.len());
        for (left, right, merged) in merges {
            if merged as usize == starts.len() - 1 {
                for part in [left as usize, right as usize] {
                    bytes.extend_from_within(starts[part]..starts[part + 1]);
                }
                starts.push(bytes.len());
            }
            table.push(left, right, merged);
        }
        let special = vec![(eot.to_string(), starts.len() as u32 - 1)];
        bytes.extend_from_slice(eot.as_bytes());
        starts.push(bytes.len());
        Bpe {
            bytes,
            starts,
            id_of_byte,
            drops_bytes: false,
            merges: table,
            special,
            steps: Steps::default(),
            whole_words: HashMap::default(),
            caches: Mutex::default(),
        }
    }

    /// Makes the vocabulary of a tokenizer.json. `tokens`: (spelling, id), ids distinct; `special` and the tokens of `steps`
    /// likewise, and may repeat some of `tokens`. `None` if there are none. Bytes without a token are dropped, which is right only
    /// without ignored merges, normalization and added tokens that are found in text.
    pub(in crate::tokenizer) fn from_tokens(
        tokens: &[(&str, u32)],
        merges: Merges,
        special: Vec<(String, u32)>,
        steps: Steps,
    ) -> Option<Bpe> {
        let verbatim = special.iter().chain(&steps.added.found).map(|(token, id)| (token.as_str(), *id));
        let all = tokens.iter().copied().chain(verbatim);
        let size = all.clone().map(|(_, id)| id as usize + 1).max()?;
        let mut token_of_id = vec![""; size];
        for (token, id) in all {
            token_of_id[id as usize] = token;
        }
        let mut id_of_byte = [NO_TOKEN; 256];
        for &(token, id) in tokens {
            if let Some(&[byte]) = unicode_to_bytes(token).as_deref() {
                id_of_byte[byte as usize] = id;
            }
        }
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for token in token_of_id {
            // As Hugging Face's byte-level decoder does: a token with a character outside the alphabet is plain text.
            bytes.extend(unicode_to_bytes(token).unwrap_or_else(|| token.as_bytes().to_vec()));
            starts.push(bytes.len());
        }
        // UTF-8 has no other bytes.
        let drops_bytes = (0..=0xf4).any(|byte| !matches!(byte, 0xc0 | 0xc1) && id_of_byte[byte] == NO_TOKEN);
        let mut whole_words = HashMap::default();
        if steps.ignore_merges {
            let spelled = |&(token, id): &(&str, u32)| Some((unicode_to_bytes(token)?.into_boxed_slice(), id));
            whole_words = tokens.iter().filter_map(spelled).collect();
        }
        let caches = Mutex::default();
        Some(Bpe { bytes, starts, id_of_byte, drops_bytes, merges, special, steps, whole_words, caches })
    }

    pub(in crate::tokenizer) fn vocab_size(&self) -> usize {
        self.starts.len() - 1
    }

    /// True if some characters have bytes without a token, which are dropped.
    pub(in crate::tokenizer) fn drops_bytes(&self) -> bool {
        self.drops_bytes
    }

    /// Returns true if no byte of a character is dropped.
    pub(in crate::tokenizer) fn has(&self, c: char) -> bool {
        !self.drops_bytes || c.encode_utf8(&mut [0; 4]).bytes().all(|byte| self.has_byte(byte))
    }

    fn has_byte(&self, byte: u8) -> bool {
        self.id_of_byte[byte as usize] != NO_TOKEN
    }

    /// Returns the ids of bytes before any merges.
    fn ids_of_bytes(&self, bytes: &[u8]) -> impl Iterator<Item = u32> {
        bytes.iter().map(|&byte| self.id_of_byte[byte as usize]).filter(|&id| id != NO_TOKEN)
    }

    /// Returns a token's bytes; none for an id that is unused or outside the vocabulary.
    pub(in crate::tokenizer) fn token(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match self.starts.get(id..).and_then(|starts| starts.get(..2)) {
            Some(&[start, end]) => &self.bytes[start..end],
            _ => &[],
        }
    }

    /// Returns the id of a token as tokenizer.json spells it.
    pub(in crate::tokenizer) fn id_of(&self, token: &str) -> Option<u32> {
        if let Some((_, id)) = self.verbatim().find(|(verbatim, _)| verbatim == token) {
            return Some(*id);
        }
        let bytes = unicode_to_bytes(token).filter(|bytes| !bytes.is_empty())?;
        let is_verbatim = |id| self.verbatim().any(|&(_, verbatim)| verbatim == id);
        (0..self.vocab_size() as u32).find(|&id| self.token(id) == bytes && !is_verbatim(id))
    }

    /// Returns the tokens that are spelled verbatim instead of in the byte alphabet.
    fn verbatim(&self) -> impl Iterator<Item = &(String, u32)> {
        self.special.iter().chain(&self.steps.added.found)
    }

    pub(in crate::tokenizer) fn special(&self) -> &[(String, u32)] {
        &self.special
    }

    /// Returns every token's spelling in order of id.
    pub(in crate::tokenizer) fn spellings(&self) -> Vec<String> {
        let mut spellings: Vec<String> =
            (0..self.vocab_size() as u32).map(|id| bytes_to_unicode(self.token(id))).collect();
        for (token, id) in self.verbatim() {
            spellings[*id as usize].clone_from(token);
        }
        spellings
    }

    /// Returns the last byte offset at which `text` can be split so that the ids of the two parts are those of the whole, whatever
    /// follows.
    pub(in crate::tokenizer) fn safe_split(&self, text: &str) -> Option<usize> {
        let Steps { added, normalizer, pretokenizer, .. } = &self.steps;
        pretokenizer.safe_split(text, |left, right| added.separates(left, right) && normalizer.separates(left, right))
    }

    pub(in crate::tokenizer) fn merges(&self) -> &Merges {
        &self.merges
    }

    /// Appends the ids of `text`.
    ///
    /// # Errors
    /// [`Error::LongWord`].
    pub(in crate::tokenizer) fn encode_into(&self, text: &str, out: &mut Vec<u32>) -> Result<(), Error> {
        self.encode(text, out, None)
    }

    /// Appends the ids of `text`, and to `starts` the place of each in it, in bytes.
    ///
    /// # Errors
    /// [`Error::LongWord`].
    pub(in crate::tokenizer) fn encode_places(
        &self,
        text: &str,
        out: &mut Vec<u32>,
        starts: &mut Vec<usize>,
    ) -> Result<(), Error> {
        self.encode(text, out, Some(starts))
    }

    fn encode(&self, text: &str, out: &mut Vec<u32>, mut starts: Option<&mut Vec<usize>>) -> Result<(), Error> {
        let Steps { added, normalizer, .. } = &self.steps;
        let free = self.caches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut cache = free.unwrap_or_else(WordCache::new);
        parts(added.given.as_ref(), text, |at, part| {
            let first = starts.as_deref().map_or(0, Vec::len);
            match part {
                Part::Token(id) => self.push(id, 0, out, starts.as_deref_mut()),
                Part::Text(text) => {
                    let normal = normalizer.apply(text);
                    parts(added.normalized.as_ref(), &normal, |at, part| match part {
                        Part::Token(id) => self.push(id, at, out, starts.as_deref_mut()),
                        Part::Text(text) => self.encode_words(&mut cache, text, at, out, starts.as_deref_mut()),
                    });
                    if let (Cow::Owned(_), Some(starts)) = (&normal, starts.as_deref_mut()) {
                        to_places_in(text, &mut starts[first..]);
                    }
                }
            }
            for start in starts.iter_mut().flat_map(|starts| &mut starts[first..]) {
                *start += at;
            }
        });
        let refused = cache.refused.take();
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
        refused.map_or(Ok(()), |bytes| Err(Error::LongWord(bytes)))
    }

    fn push(&self, id: u32, at: usize, out: &mut Vec<u32>, starts: Option<&mut Vec<usize>>) {
        out.push(id);
        starts.into_iter().for_each(|starts| starts.push(at));
    }

    /// Appends the ids of text without added tokens, which begins at `at`.
    fn encode_words(
        &self,
        cache: &mut WordCache,
        text: &str,
        at: usize,
        out: &mut Vec<u32>,
        starts: Option<&mut Vec<usize>>,
    ) {
        let first = out.len();
        if self.merges.is_empty() && self.whole_words.is_empty() {
            out.extend(self.ids_of_bytes(text.as_bytes()));
        } else {
            self.encode_with(cache, text.as_bytes(), out);
        }
        if let Some(starts) = starts {
            // The place of each byte that is not dropped.
            let mut places = (at..).zip(text.bytes()).filter(|&(_, byte)| self.has_byte(byte)).map(|(at, _)| at);
            let start_of = |&id: &u32| {
                let start = places.next();
                places.by_ref().take(self.token(id).len() - 1).for_each(drop);
                start
            };
            starts.extend(out[first..].iter().filter_map(start_of));
        }
    }

    fn encode_with(&self, cache: &mut WordCache, bytes: &[u8], out: &mut Vec<u32>) {
        let mut start = 0;
        while start < bytes.len() {
            let (word, end);
            let window = bytes[start..].first_chunk::<16>().map(|window| u128::from_le_bytes(*window));
            let ascii = window.map_or(0, ascii_word);
            if let (Some(window), 1..) = (window, ascii) {
                word = short_word_of_window(window, ascii);
                end = start + ascii as usize;
            } else {
                end = self.steps.pretokenizer.word_end(bytes, start);
                if end - start > 15 {
                    let long = &bytes[start..end];
                    if long.len() > MAX_WORD {
                        cache.refused = Some(long.len());
                    } else if !cache.get_long(long, out) {
                        let ids = self.merge(long, out);
                        cache.put_long(long, &out[ids..]);
                    }
                    start = end;
                    continue;
                }
                word = short_word(&bytes[start..end]);
            }
            if !cache.get_short(word, out) {
                let ids = self.merge(&bytes[start..end], out);
                cache.put_short(word, &out[ids..]);
            }
            start = end;
        }
    }

    /// Appends the ids of one word; returns where they start.
    fn merge(&self, word: &[u8], out: &mut Vec<u32>) -> usize {
        let start = out.len();
        if let Some(&id) = self.whole_words.get(word) {
            out.push(id);
            return start;
        }
        out.extend(self.ids_of_bytes(word));
        self.merges.apply(out, start);
        start
    }
}
