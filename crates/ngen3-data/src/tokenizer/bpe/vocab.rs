//! Byte-level byte-pair encoding with GPT-2's pre-tokeniser: the fast tokenizer.
//!
//! Words are split off by `pretoken.rs`, looked up in a cache (`cache.rs`), and merged (`merge.rs`) if they are not there.

use std::sync::{Mutex, PoisonError};

use super::alphabet::{BYTE_OF_ID, bytes_to_unicode, unicode_to_bytes};
use super::cache::{WordCache, short_word, short_word_of_window};
use super::classes::classes;
use super::merge::Merges;
use super::pretoken::{ascii_word, word_end};

/// A byte-level vocabulary.
pub(in crate::tokenizer) struct Bpe {
    /// The bytes of all tokens in order of id, concatenated; token `i` is `starts[i]..starts[i + 1]`, empty for an unused id.
    bytes: Vec<u8>,
    starts: Vec<usize>,
    /// Id of each single byte.
    id_of_byte: [u32; 256],
    merges: Merges,
    /// Special tokens, spelled verbatim instead of in the byte alphabet; they are never found in text.
    special: Vec<(String, u32)>,
    /// Caches that no thread is using.
    caches: Mutex<Vec<WordCache>>,
}

impl Bpe {
    /// Makes a vocabulary of the 256 bytes, the tokens that `merges` create, and `eot`, in this order. A merge is (left id, right
    /// id, merged id), of earlier tokens, into the next id or an earlier one of the same bytes.
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
        Bpe { bytes, starts, id_of_byte, merges: table, special, caches: Mutex::default() }
    }

    /// Makes the vocabulary of a tokenizer.json. `tokens`: (spelling, id), ids distinct; `special` likewise, and may repeat some
    /// of `tokens`. `None` if a byte has no token.
    pub(in crate::tokenizer) fn from_tokens(
        tokens: &[(&str, u32)],
        merges: Merges,
        special: Vec<(String, u32)>,
    ) -> Option<Bpe> {
        let all = tokens.iter().copied().chain(special.iter().map(|(token, id)| (token.as_str(), *id)));
        let size = all.clone().map(|(_, id)| id as usize + 1).max()?;
        let mut token_of_id = vec![""; size];
        for (token, id) in all {
            token_of_id[id as usize] = token;
        }
        let mut id_of_byte = [None; 256];
        for &(token, id) in tokens {
            if let Some(&[byte]) = unicode_to_bytes(token).as_deref() {
                id_of_byte[byte as usize] = Some(id);
            }
        }
        let (mut bytes, mut starts) = (Vec::new(), vec![0]);
        for token in token_of_id {
            // As Hugging Face's byte-level decoder does: a token with a character outside the alphabet is plain text.
            bytes.extend(unicode_to_bytes(token).unwrap_or_else(|| token.as_bytes().to_vec()));
            starts.push(bytes.len());
        }
        let id_of_byte: Option<Vec<u32>> = id_of_byte.into_iter().collect();
        let id_of_byte = id_of_byte?.try_into().ok()?;
        Some(Bpe { bytes, starts, id_of_byte, merges, special, caches: Mutex::default() })
    }

    pub(in crate::tokenizer) fn vocab_size(&self) -> usize {
        self.starts.len() - 1
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
        if let Some((_, id)) = self.special.iter().find(|(special, _)| special == token) {
            return Some(*id);
        }
        let bytes = unicode_to_bytes(token).filter(|bytes| !bytes.is_empty())?;
        let is_verbatim = |id| self.special.iter().any(|&(_, special)| special == id);
        (0..self.vocab_size() as u32).find(|&id| self.token(id) == bytes && !is_verbatim(id))
    }

    pub(in crate::tokenizer) fn special(&self) -> &[(String, u32)] {
        &self.special
    }

    /// Returns every token's spelling in order of id.
    pub(in crate::tokenizer) fn spellings(&self) -> Vec<String> {
        let mut spellings: Vec<String> =
            (0..self.vocab_size() as u32).map(|id| bytes_to_unicode(self.token(id))).collect();
        for (token, id) in &self.special {
            spellings[*id as usize].clone_from(token);
        }
        spellings
    }

    pub(in crate::tokenizer) fn merges(&self) -> &Merges {
        &self.merges
    }

    /// Appends the ids of `text`.
    pub(in crate::tokenizer) fn encode_into(&self, text: &str, out: &mut Vec<u32>) {
        if self.merges.is_empty() {
            out.extend(text.bytes().map(|byte| self.id_of_byte[byte as usize]));
            return;
        }
        let free = self.caches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut cache = free.unwrap_or_else(WordCache::new);
        self.encode_with(&mut cache, text.as_bytes(), out);
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
    }

    fn encode_with(&self, cache: &mut WordCache, bytes: &[u8], out: &mut Vec<u32>) {
        let classes = classes();
        let mut start = 0;
        while start < bytes.len() {
            let (word, end);
            let window = bytes[start..].first_chunk::<16>().map(|window| u128::from_le_bytes(*window));
            let ascii = window.map_or(0, ascii_word);
            if let (Some(window), 1..) = (window, ascii) {
                word = short_word_of_window(window, ascii);
                end = start + ascii as usize;
            } else {
                end = word_end(classes, bytes, start);
                if end - start > 15 {
                    let long = &bytes[start..end];
                    if !cache.get_long(long, out) {
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
        out.extend(word.iter().map(|&byte| self.id_of_byte[byte as usize]));
        self.merges.apply(out, start);
        start
    }
}
