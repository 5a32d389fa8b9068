//! The k likeliest of a vocabulary, from its logits.
//!
//! Sorting 50,257 logits to keep 64 of them costs more than making them. Here they are looked at in groups, of which only the
//! largest logit is kept at first: the k-th largest of those is a bound that at least k logits reach, and that few others do.
//! What reaches it is in groups whose largest does, and only that is sorted.

use ngen3_simd::{exp_and_sum, max, simd};

/// Groups for each logit that is wanted: enough that few logits besides reach the bound.
const GROUPS: usize = 4;

/// Logits in a group at most.
const MAX_GROUP: usize = 64;

/// What choosing works in.
#[derive(Default)]
pub struct Scratch {
    /// The largest logit of each group.
    largest: Vec<f32>,
    /// The same, in another order.
    ordered: Vec<f32>,
    /// Tokens whose logit reaches the bound.
    reach: Vec<u32>,
}

/// Fills `ids` with the tokens of the largest logits, largest first, of equals the lowest id first.
///
/// # Panics
/// If more are wanted than there are.
pub fn choose(logits: &[f32], ids: &mut [u32], scratch: &mut Scratch) {
    let (k, n) = (ids.len(), logits.len());
    assert!(k <= n, "{k} of {n} logits");
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
    // Logits that are no numbers reach nothing.
    if reach.len() < k {
        reach.clear();
        reach.extend(0..n as u32);
    }
    let before = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if k < reach.len() {
        reach.select_nth_unstable_by(k - 1, before);
    }
    reach[..k].sort_unstable_by(before);
    ids.copy_from_slice(&reach[..k]);
}

/// Fills `ids` as [`choose`] does, and `log_probs` with the logarithms of their probabilities when all logits are divided by
/// `temperature`. What the logits were is gone then.
pub fn choose_tempered(
    logits: &mut [f32],
    temperature: f32,
    ids: &mut [u32],
    log_probs: &mut [f32],
    scratch: &mut Scratch,
) {
    choose(logits, ids, scratch);
    for (log_prob, &id) in log_probs.iter_mut().zip(&*ids) {
        *log_prob = logits[id as usize];
    }
    let (largest, total) = simd(
        #[inline(always)]
        || {
            let largest = max(logits);
            (largest, exp_and_sum(logits, 1.0 / temperature, largest))
        },
    );
    for log_prob in log_probs {
        *log_prob = (*log_prob - largest) / temperature - total.ln();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::testing::random;

    /// By sorting all of them.
    fn sorted(logits: &[f32], k: usize) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
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
            // Rounded, many are equal.
            let rounded: Vec<f32> = logits.iter().map(|x| (x * 40.0).round()).collect();
            for k in [1, 64, 1_000, 20_000, 50_257] {
                check(&logits, k, &mut scratch);
                check(&rounded, k, &mut scratch);
            }
            check(&logits, 64, &mut scratch);
            assert!(scratch.reach.len() < 3 * 64, "{} reach the bound", scratch.reach.len());
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
                assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), k, "each once");
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
