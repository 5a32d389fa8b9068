//! Merges byte pairs within one word: always the leftmost pair of the lowest rank, until no pair has a merge.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::FixedState;

/// No merge for this pair.
const NONE: u32 = u32::MAX;
/// Up to this many symbols, a scan for the lowest rank is faster than a heap.
const SCAN: usize = 64;

/// The merges by pair. Rank 0 is applied first.
#[derive(Default)]
pub(in crate::tokenizer) struct Merges {
    /// (left id, right id) → (rank, the merged token's id)
    by_pair: HashMap<(u32, u32), (u32, u32), FixedState>,
}

impl Merges {
    pub(in crate::tokenizer) fn with_capacity(count: usize) -> Merges {
        Merges { by_pair: HashMap::with_capacity_and_hasher(count, FixedState::default()) }
    }

    /// Adds a merge with the next rank; returns false, adding nothing, if the pair already has one.
    pub(in crate::tokenizer) fn push(&mut self, left: u32, right: u32, merged: u32) -> bool {
        let rank = self.by_pair.len() as u32;
        let entry = self.by_pair.entry((left, right));
        let new = matches!(entry, Entry::Vacant(_));
        entry.or_insert((rank, merged));
        new
    }

    /// True if there are no merges: every byte is a token.
    pub(in crate::tokenizer) fn is_empty(&self) -> bool {
        self.by_pair.is_empty()
    }

    /// Returns the merges in order of rank: (left id, right id).
    pub(in crate::tokenizer) fn in_order(&self) -> Vec<(u32, u32)> {
        let mut pairs: Vec<_> = self.by_pair.iter().map(|(&pair, &(rank, _))| (rank, pair)).collect();
        pairs.sort_unstable();
        pairs.into_iter().map(|(_, pair)| pair).collect()
    }

    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        self.by_pair.get(&(left, right)).copied().unwrap_or((NONE, 0))
    }

    /// Merges the symbols of one word, `out[start..]`, in place.
    pub(in crate::tokenizer) fn apply(&self, out: &mut Vec<u32>, start: usize) {
        match out.len() - start {
            0 | 1 => {}
            2..=SCAN => {
                let left = self.scan(&mut out[start..]);
                out.truncate(start + left);
            }
            _ => {
                let merged = self.heap(&out[start..]);
                out.truncate(start);
                out.extend(merged);
            }
        }
    }

    /// For short words: finds the lowest rank among all pairs, merges, and moves the rest up. Returns the number of ids left.
    fn scan(&self, ids: &mut [u32]) -> usize {
        let mut pairs = [(NONE, 0); SCAN];
        for (pair, two) in pairs.iter_mut().zip(ids.windows(2)) {
            *pair = self.get(two[0], two[1]);
        }
        let mut len = ids.len();
        loop {
            // pairs[i] belongs to ids[i] and ids[i + 1]; pairs[len - 1] and beyond are spent.
            let (mut best, mut at) = (NONE, 0);
            for (i, &(rank, _)) in pairs[..len - 1].iter().enumerate() {
                if rank < best {
                    (best, at) = (rank, i);
                }
            }
            if best == NONE {
                return len;
            }
            ids[at] = pairs[at].1;
            ids.copy_within(at + 2..len, at + 1);
            pairs.copy_within(at + 1..len - 1, at);
            len -= 1;
            if at + 1 < len {
                pairs[at] = self.get(ids[at], ids[at + 1]);
            }
            if at > 0 {
                pairs[at - 1] = self.get(ids[at - 1], ids[at]);
            }
        }
    }

    /// For long words, in n log n: a linked list of symbols, and a heap of (rank, position) in which outdated pairs are skipped.
    fn heap(&self, word: &[u32]) -> Vec<u32> {
        struct Symbol {
            id: u32,
            /// (rank, merged id) of this symbol and the next; `NONE` once this symbol is merged away.
            pair: (u32, u32),
            previous: usize,
            next: usize,
        }
        let end = word.len();
        let mut symbols: Vec<Symbol> = word
            .iter()
            .enumerate()
            .map(|(i, &id)| Symbol {
                id,
                pair: word.get(i + 1).map_or((NONE, 0), |&right| self.get(id, right)),
                previous: i.wrapping_sub(1),
                next: i + 1,
            })
            .collect();
        let ranked = symbols.iter().enumerate().filter(|(_, symbol)| symbol.pair.0 != NONE);
        let mut heap: BinaryHeap<_> = ranked.map(|(i, symbol)| Reverse((symbol.pair.0, i))).collect();
        while let Some(Reverse((rank, at))) = heap.pop() {
            if symbols[at].pair.0 != rank {
                continue;
            }
            let right = symbols[at].next;
            let next = symbols[right].next;
            symbols[right].pair.0 = NONE;
            symbols[at].id = symbols[at].pair.1;
            symbols[at].next = next;
            symbols[at].pair = (NONE, 0);
            if next < end {
                symbols[next].previous = at;
            }
            let previous = symbols[at].previous;
            for (left, right) in [(previous, at), (at, next)] {
                if left < end && right < end {
                    symbols[left].pair = self.get(symbols[left].id, symbols[right].id);
                    if symbols[left].pair.0 != NONE {
                        heap.push(Reverse((symbols[left].pair.0, left)));
                    }
                }
            }
        }
        let mut merged = Vec::new();
        let mut at = 0;
        while at < end {
            merged.push(symbols[at].id);
            at = symbols[at].next;
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Implements the definition literally.
    fn plain(merges: &Merges, mut ids: Vec<u32>) -> Vec<u32> {
        loop {
            let ranked = ids.windows(2).enumerate().map(|(i, two)| (merges.get(two[0], two[1]), i));
            match ranked.min_by_key(|&((rank, _), i)| (rank, i)) {
                Some(((rank, merged), at)) if rank != NONE => {
                    ids.splice(at..at + 2, [merged]);
                }
                _ => return ids,
            }
        }
    }

    proptest! {
        #[test]
        fn scan_and_heap_follow_the_definition(
            pairs in prop::collection::vec((0u32..8, 0u32..8), 0..30),
            word in prop::collection::vec(0u32..4, 1..SCAN),
        ) {
            let mut merges = Merges::default();
            for (i, (left, right)) in pairs.into_iter().enumerate() {
                if merges.get(left, right).0 == NONE {
                    merges.push(left, right, 4 + i as u32 % 4);
                }
            }
            let expected = plain(&merges, word.clone());
            prop_assert_eq!(&merges.heap(&word), &expected);
            let mut ids = word;
            let left = merges.scan(&mut ids);
            prop_assert_eq!(&ids[..left], expected);
        }
    }
}
