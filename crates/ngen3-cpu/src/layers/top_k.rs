//! The k most likely tokens of a vocabulary with their log-probabilities, as a teacher passes them on.

use ngen3_simd::top_k::{Scratch, choose};
use ngen3_simd::{exp_and_sum, max, simd};

/// Fills `ids` as [`choose`] does, and `log_probs` with their log-probabilities at this `temperature`. Overwrites `logits`.
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
