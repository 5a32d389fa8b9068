//! Trains a byte-level BPE (Sennrich et al. 2016): counts the words of the text, then repeatedly merges the most frequent pair
//! of adjacent tokens within words.
//!
//! The words are counted in parallel. Merging keeps, for every pair, its count and the words it occurs in, so a merge costs only
//! what it changes; a heap holds the counts, and outdated ones are corrected when they surface. The result depends on the text
//! alone: counts are sums, and of equally frequent pairs the one with the lower left id, then the lower right id, is merged
//! first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::FixedState;
use ngen3_model::hf::Roles;
use rayon::prelude::*;

use super::Error;
use super::backend::Backend;
use super::bpe::Bpe;
use super::bpe::alphabet::BYTE_OF_ID;
use super::bpe::pretoken::Pretokenizer;
use super::codec::Tokenizer;
use super::limits::{ENDOFTEXT, MAX_VOCAB_SIZE};

/// Minimum count of a pair that is merged.
const MIN_COUNT: u64 = 2;
/// Longer words (text without spaces: a genome, base64) are counted in parts of this many bytes, since a merge scans the whole
/// of every word that it changes.
const LONGEST_WORD: usize = 512;
/// Text gathered before its words are counted in parallel, in bytes.
const BATCH: usize = 32 << 20;
/// Text that one thread counts at a time, in bytes.
const PIECE: usize = 1 << 20;

/// Result of [`train`].
pub struct Trained {
    /// The tokenizer. Its vocabulary is smaller than [`requested`](Trained::requested) if the text ran out of pairs that
    /// occur twice.
    pub tokenizer: Tokenizer,
    /// Requested vocabulary size.
    pub requested: usize,
    /// Bytes of text.
    pub bytes: u64,
    /// Number of distinct words.
    pub words: usize,
}

impl Trained {
    /// True if the vocabulary has the requested size. If not, the text was too small (or too uniform) for it.
    pub fn reached(&self) -> bool {
        self.tokenizer.vocab_size() == self.requested
    }
}

/// Trains a byte-level BPE with GPT-2's pre-tokenizer: ids 0 to 255 are the single bytes, then come the merges, and
/// `<|endoftext|>` has the last id. Each text is a document, or part of one split by [`Tokenizer::safe_split`]. Runs on rayon's
/// current pool; the result is the same on any number of threads. `before_merge` is called before each merge and can stop the
/// training.
///
/// # Errors
/// The first error of `texts` or `before_merge`; [`Error::VocabSize`] below 257 or above [`MAX_VOCAB_SIZE`]; [`Error::NoText`].
/// Too little text for `vocab_size` is not an error: see [`Trained::reached`].
pub fn train<S, E>(
    texts: impl Iterator<Item = Result<S, E>>,
    vocab_size: usize,
    name: &str,
    before_merge: impl FnMut() -> Result<(), E>,
) -> Result<Trained, E>
where
    S: AsRef<str> + Sync,
    E: From<Error>,
{
    if !(257..=MAX_VOCAB_SIZE).contains(&vocab_size) {
        return Err(Error::VocabSize(vocab_size).into());
    }
    let (counts, bytes) = count_words(texts)?;
    if counts.is_empty() {
        return Err(Error::NoText.into());
    }
    let words = counts.len();
    let merges = BpeTrainer::new(counts).train(vocab_size - 257, before_merge)?;
    let bpe = Bpe::from_merges(merges.into_iter(), ENDOFTEXT);
    let roles = Roles::ending_with(Some(ENDOFTEXT));
    let tokenizer = Tokenizer::made(name, Backend::ByteLevel(Box::new(bpe)), &roles);
    Ok(Trained { tokenizer, requested: vocab_size, bytes, words })
}

type Counts = HashMap<Box<[u8]>, u64, FixedState>;

/// Counts every distinct word, and the bytes of all texts.
fn count_words<S: AsRef<str> + Sync, E>(mut texts: impl Iterator<Item = Result<S, E>>) -> Result<(Counts, u64), E> {
    let (mut counts, mut bytes) = (Counts::default(), 0);
    loop {
        let (mut batch, mut size) = (Vec::new(), 0);
        while size < BATCH
            && let Some(text) = texts.next().transpose()?
        {
            size += text.as_ref().len();
            batch.push(text);
        }
        if batch.is_empty() {
            return Ok((counts, bytes));
        }
        bytes += size as u64;
        let pieces: Vec<&str> = batch.iter().flat_map(|text| pieces(text.as_ref())).collect();
        let counted = pieces.par_iter().fold(Counts::default, count).reduce(Counts::default, add);
        counts = add(counts, counted);
    }
}

/// Splits a text into pieces of about [`PIECE`] bytes without changing its words.
fn pieces(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let mut size = PIECE;
        while size < text.len() {
            let begin = &text[..text.floor_char_boundary(size)];
            if let Some(cut) = Pretokenizer::gpt2().safe_split(begin, |_, _| true) {
                let (piece, rest) = text.split_at(cut);
                text = rest;
                return Some(piece);
            }
            size *= 2;
        }
        (!text.is_empty()).then(|| std::mem::take(&mut text))
    })
}

fn count(mut counts: Counts, text: &&str) -> Counts {
    let (pretokenizer, bytes) = (Pretokenizer::gpt2(), text.as_bytes());
    let mut start = 0;
    while start < bytes.len() {
        let end = pretokenizer.word_end(bytes, start);
        for word in bytes[start..end].chunks(LONGEST_WORD) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(word.into(), 1);
                }
            }
        }
        start = end;
    }
    counts
}

fn add(a: Counts, b: Counts) -> Counts {
    let (mut more, fewer) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    for (word, count) in fewer {
        *more.entry(word).or_insert(0) += count;
    }
    more
}

/// Two adjacent tokens: (left id, right id).
type Pair = (u32, u32);

/// Occurrences of a pair.
#[derive(Default)]
struct Occurrences {
    /// Number of occurrences in the text.
    count: u64,
    /// The words it is in, and possibly words it was in. Ascending within what one merge added.
    words: Vec<u32>,
}

/// A distinct word of the text.
struct Word {
    /// Its current tokens are `tokens[start..start + len]`.
    start: usize,
    len: usize,
    /// Number of occurrences in the text.
    count: u64,
}

struct BpeTrainer {
    tokens: Vec<u32>,
    words: Vec<Word>,
    pairs: HashMap<Pair, Occurrences, FixedState>,
    /// The most frequent pair is on top, once its count is found to be up to date.
    heap: BinaryHeap<(u64, Reverse<Pair>)>,
}

impl BpeTrainer {
    fn new(counts: Counts) -> BpeTrainer {
        let mut id_of_byte = [0; 256];
        for (id, &byte) in BYTE_OF_ID.iter().enumerate() {
            id_of_byte[byte as usize] = id as u32;
        }
        let mut trainer =
            BpeTrainer { tokens: Vec::new(), words: Vec::new(), pairs: HashMap::default(), heap: BinaryHeap::new() };
        for (word, count) in counts.into_iter().filter(|(word, _)| word.len() > 1) {
            let start = trainer.tokens.len();
            trainer.tokens.extend(word.iter().map(|&byte| id_of_byte[byte as usize]));
            let index = trainer.words.len() as u32;
            trainer.words.push(Word { start, len: word.len(), count });
            for two in trainer.tokens[start..].windows(2) {
                add_pair(&mut trainer.pairs, (two[0], two[1]), index, count);
            }
        }
        trainer.heap = trainer.pairs.iter().map(|(&pair, found)| (found.count, Reverse(pair))).collect();
        trainer
    }

    /// Merges until there are `new_tokens` more tokens or no pair is left; returns (left id, right id, merged id), in order.
    fn train<E>(
        mut self,
        new_tokens: usize,
        mut before_merge: impl FnMut() -> Result<(), E>,
    ) -> Result<Vec<(u32, u32, u32)>, E> {
        let mut bytes_of_token: Vec<Vec<u8>> = BYTE_OF_ID.iter().map(|&byte| vec![byte]).collect();
        let mut token_of_bytes: HashMap<Vec<u8>, u32, FixedState> = HashMap::default();
        let mut merges = Vec::new();
        while bytes_of_token.len() < 256 + new_tokens
            && let Some(pair) = self.most_frequent()
        {
            before_merge()?;
            // Two pairs may spell the same token (ab·c and a·bc); they share its id.
            let bytes = [&*bytes_of_token[pair.0 as usize], &*bytes_of_token[pair.1 as usize]].concat();
            let next = bytes_of_token.len() as u32;
            let merged = *token_of_bytes.entry(bytes.clone()).or_insert(next);
            if merged == next {
                bytes_of_token.push(bytes);
            }
            merges.push((pair.0, pair.1, merged));
            self.merge(pair, merged);
        }
        Ok(merges)
    }

    fn most_frequent(&mut self) -> Option<Pair> {
        while let Some((count, Reverse(pair))) = self.heap.pop() {
            let now = self.pairs.get(&pair).map_or(0, |found| found.count);
            if now == count {
                return (count >= MIN_COUNT).then_some(pair);
            }
            if now > 0 {
                self.heap.push((now, Reverse(pair)));
            }
        }
        None
    }

    /// Replaces `pair` by `merged` in all words, left to right, and updates the pairs.
    fn merge(&mut self, pair: Pair, merged: u32) {
        let mut found = self.pairs.remove(&pair).unwrap_or_default().words;
        found.sort_unstable();
        found.dedup();
        let mut grown: Vec<Pair> = Vec::new();
        for index in found {
            let Word { start, len, count } = self.words[index as usize];
            let tokens = &mut self.tokens[start..start + len];
            let mut written = 0;
            let mut read = 0;
            while read < len {
                if read + 1 == len || (tokens[read], tokens[read + 1]) != pair {
                    tokens[written] = tokens[read];
                    written += 1;
                    read += 1;
                    continue;
                }
                let mut changed = |old: Pair, new: Pair| {
                    if let Some(found) = self.pairs.get_mut(&old) {
                        found.count = found.count.saturating_sub(count);
                    }
                    add_pair(&mut self.pairs, new, index, count);
                    grown.push(new);
                };
                if written > 0 {
                    changed((tokens[written - 1], pair.0), (tokens[written - 1], merged));
                }
                if read + 2 < len {
                    changed((pair.1, tokens[read + 2]), (merged, tokens[read + 2]));
                }
                tokens[written] = merged;
                written += 1;
                read += 2;
            }
            self.words[index as usize].len = written;
        }
        grown.sort_unstable();
        grown.dedup();
        let counted = grown.into_iter().filter_map(|pair| Some((self.pairs.get(&pair)?.count, Reverse(pair))));
        self.heap.extend(counted);
    }
}

fn add_pair(pairs: &mut HashMap<Pair, Occurrences, FixedState>, pair: Pair, word: u32, count: u64) {
    let found = pairs.entry(pair).or_default();
    found.count += count;
    if found.words.last() != Some(&word) {
        found.words.push(word);
    }
}
