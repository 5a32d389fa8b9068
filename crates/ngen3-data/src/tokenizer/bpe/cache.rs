//! A cache of recent words and their ids: most words of a text recur.
//!
//! Words of up to 15 bytes are in a table with one slot per hash, which a new word takes over: one cache line holds a word and
//! its ids. Longer words are in an ordinary map. Both are bounded, and keys are compared in full, so a cache affects only
//! speed.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// log2 of the number of slots for short words.
const PLACES_LOG2: u32 = 15;
/// Longest word that is cached, in bytes.
const LONGEST: usize = 128;
/// Maximum number of ids outside the table; the cache is cleared when it is reached.
const MOST_IDS: usize = 1 << 18;
/// Maximum number of ids within a slot.
const INLINE: usize = 3;

/// A short word: its bytes from the low end, zeros, and its length in the highest byte.
pub(in crate::tokenizer) type ShortWord = u128;

/// Packs up to 15 bytes.
#[inline]
pub(in crate::tokenizer) fn short_word(bytes: &[u8]) -> ShortWord {
    let mut packed = [0; 16];
    packed[..bytes.len()].copy_from_slice(bytes);
    packed[15] = bytes.len() as u8;
    u128::from_le_bytes(packed)
}

/// Packs the first `length` bytes (1 to 15) of a window of 16.
#[inline]
pub(in crate::tokenizer) fn short_word_of_window(window: u128, length: u32) -> ShortWord {
    (window & ((1 << (8 * length)) - 1)) | u128::from(length) << 120
}

/// A cache of words and their ids: see the module.
pub(in crate::tokenizer) struct WordCache {
    /// A slot: the word's two halves; up to three ids, or their start in `ids`; the number of ids in the top half of the last.
    short: Vec<[u64; 4]>,
    long: HashMap<Box<[u8]>, (u32, u32), FixedState>,
    ids: Vec<u32>,
    /// Length of a word that was too long to be merged.
    pub(in crate::tokenizer) refused: Option<usize>,
}

fn place(word: ShortWord) -> usize {
    let product =
        u128::from(word as u64 ^ 0x9e37_79b9_7f4a_7c15) * u128::from((word >> 64) as u64 ^ 0xe703_7ed1_a0b4_28db);
    let mixed = (product as u64) ^ (product >> 64) as u64;
    (mixed >> (64 - PLACES_LOG2)) as usize
}

impl WordCache {
    pub(in crate::tokenizer) fn new() -> WordCache {
        WordCache { short: vec![[0; 4]; 1 << PLACES_LOG2], long: HashMap::default(), ids: Vec::new(), refused: None }
    }

    /// Appends the ids of `word` to `out`; returns false if it is not cached.
    #[inline]
    pub(in crate::tokenizer) fn get_short(&self, word: ShortWord, out: &mut Vec<u32>) -> bool {
        let [low, high, ids, last] = self.short[place(word)];
        if low != word as u64 || high != (word >> 64) as u64 {
            return false;
        }
        match (last >> 32) as usize {
            1 => out.push(ids as u32),
            2 => out.extend([ids as u32, (ids >> 32) as u32]),
            3 => out.extend([ids as u32, (ids >> 32) as u32, last as u32]),
            count => out.extend_from_slice(&self.ids[ids as usize..][..count]),
        }
        true
    }

    /// Caches a word's ids.
    pub(in crate::tokenizer) fn put_short(&mut self, word: ShortWord, ids: &[u32]) {
        let id = |i: usize| u64::from(ids.get(i).copied().unwrap_or(0));
        let (kept, last) =
            if ids.len() <= INLINE { (id(0) | id(1) << 32, id(2)) } else { (u64::from(self.keep(ids)), 0) };
        self.short[place(word)] = [word as u64, (word >> 64) as u64, kept, last | (ids.len() as u64) << 32];
    }

    /// Appends the ids of a word of over 15 bytes to `out`; returns false if it is not cached.
    pub(in crate::tokenizer) fn get_long(&self, word: &[u8], out: &mut Vec<u32>) -> bool {
        let Some(&(start, count)) = self.long.get(word) else { return false };
        out.extend_from_slice(&self.ids[start as usize..][..count as usize]);
        true
    }

    /// Caches a longer word's ids, unless it is too long to recur.
    pub(in crate::tokenizer) fn put_long(&mut self, word: &[u8], ids: &[u32]) {
        if word.len() <= LONGEST {
            let start = self.keep(ids);
            self.long.insert(word.into(), (start, ids.len() as u32));
        }
    }

    /// Stores ids (at most [`LONGEST`]); returns their start.
    fn keep(&mut self, ids: &[u32]) -> u32 {
        if self.ids.len() + ids.len() > MOST_IDS {
            self.short.fill([0; 4]);
            self.long.clear();
            self.ids.clear();
        }
        let start = self.ids.len() as u32;
        self.ids.extend_from_slice(ids);
        start
    }
}
