//! Top-k selection: the k most likely tokens of a vocabulary, from its logits.
//!
//! Sorting 50,257 logits to keep 64 costs more than computing them. Instead, the maximum of each group of logits is taken
//! first. The k-th largest maximum is a threshold that at least k logits reach, and few others. Only groups whose maximum
//! reaches it are searched, and only the logits that reach it are sorted.

use crate::{max, simd};

/// Groups per selected logit: enough that few other logits reach the threshold.
const GROUPS: usize = 4;

/// Largest number of logits in a group.
const MAX_GROUP: usize = 64;

/// Working memory of the selection.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Largest logit of each group.
    largest: Vec<f32>,
    /// The same values, partially sorted.
    ordered: Vec<f32>,
    /// Tokens whose logit reaches the threshold.
    reach: Vec<u32>,
}

/// Fills `ids`, `[k]`, with the tokens of the k largest logits, largest first; ties go to the lowest id.
///
/// # Panics
/// If k exceeds the number of logits.
pub fn choose(logits: &[f32], ids: &mut [u32], scratch: &mut Scratch) {
    let (k, n) = (ids.len(), logits.len());
    assert!(k <= n, "expected k ≤ {n}, got {k}");
    if k == 0 {
        return;
    }
    let Scratch { largest, ordered, reach } = scratch;
    let group = (n / (GROUPS * k)).clamp(1, MAX_GROUP);
    largest.clear();
    simd(
        #[inline(always)]
        || largest.extend(logits.chunks(group).map(max)),
    );
    ordered.clone_from(largest);
    let (_, &mut bound, _) = ordered.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    reach.clear();
    for (i, (group_logits, &largest)) in logits.chunks(group).zip(&*largest).enumerate() {
        if largest >= bound {
            let first = (i * group) as u32;
            let ids = (first..).zip(group_logits).filter(|&(_, &logit)| logit >= bound);
            reach.extend(ids.map(|(id, _)| id));
        }
    }
    // NaN logits do not reach the threshold.
    if reach.len() < k {
        reach.clear();
        reach.extend(0..n as u32);
    }
    // The sum makes -0 equal to 0.
    let value = |id: u32| logits[id as usize] + 0.0;
    let before = |a: &u32, b: &u32| value(*b).total_cmp(&value(*a)).then(a.cmp(b));
    if k < reach.len() {
        reach.select_nth_unstable_by(k - 1, before);
    }
    reach[..k].sort_unstable_by(before);
    ids.copy_from_slice(&reach[..k]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers in [-1, 1) that look random (xorshift, Marsaglia 2003).
    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Reference: sorts all logits.
    fn sorted(logits: &[f32], k: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).expect("numbers"));
        ids.truncate(k);
        ids
    }

    fn check(logits: &[f32], k: usize, scratch: &mut Scratch) {
        let mut ids = vec![u32::MAX; k];
        choose(logits, &mut ids, scratch);
        assert_eq!(ids, sorted(logits, k), "{k} of {}", logits.len());
    }

    #[test]
    fn the_largest_are_chosen_from_a_whole_vocabulary() {
        let mut scratch = Scratch::default();
        for seed in 0..3 {
            let logits = random(50_257, seed);
            // Rounding makes many of them equal.
            let rounded: Vec<f32> = logits.iter().map(|x| (x * 40.0).round()).collect();
            for k in [1, 64, 1_000, 20_000, 50_257] {
                check(&logits, k, &mut scratch);
                check(&rounded, k, &mut scratch);
            }
            check(&logits, 64, &mut scratch);
            assert!(scratch.reach.len() < 3 * 64, "{} reach the threshold", scratch.reach.len());
        }
    }

    #[test]
    fn in_order_reversed_all_alike_or_no_numbers() {
        let mut scratch = Scratch::default();
        let rising: Vec<f32> = (0..1_000).map(|i| i as f32).collect();
        let falling: Vec<f32> = rising.iter().rev().copied().collect();
        let mut broken = rising.clone();
        broken[3..990].fill(f32::NAN);
        for logits in [rising, falling, vec![0.5; 1_000], broken, vec![f32::NAN; 700], vec![f32::NEG_INFINITY; 70]] {
            for k in [1, 7, 64] {
                let mut ids = vec![0; k];
                choose(&logits, &mut ids, &mut scratch);
                assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), k, "ids are distinct");
                if !logits.iter().any(|logit| logit.is_nan()) {
                    check(&logits, k, &mut scratch);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_numbers_give_what_sorting_gives(
            logits in prop::collection::vec(-3i8..3, 1..300),
            wide in prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::ZERO, 1..300),
            k in 1usize..300,
        ) {
            let mut scratch = Scratch::default();
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            check(&logits, k.min(logits.len()), &mut scratch);
            check(&wide, k.min(wide.len()), &mut scratch);
        }
    }
}
