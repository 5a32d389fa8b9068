//! Log probabilities of tokens, of the model's own distribution: ln softmax(logits), before temperature and other settings.

use ngen3_engine::Error;
use ngen3_simd::top_k::{Scratch, choose};
use ngen3_simd::{exp, max, simd};

/// Log probabilities at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// ln p of the token.
    pub logprob: f32,
    /// The most likely tokens and their ln p, most likely first; of equally likely ones the lower id.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Computes those of `token` and of the `k` most likely tokens with ids below `vocab_size`.
    ///
    /// # Errors
    /// [`Error::Input`] if the logits are not numbers, or the token has none.
    pub fn of(logits: &[f32], token: u32, k: usize, vocab_size: usize) -> Result<Self, Error> {
        let total = ln_total(logits);
        let logprob = logits.get(token as usize).map(|&logit| (f64::from(logit) - total) as f32);
        match logprob.filter(|logprob| !logprob.is_nan()) {
            None => Err(Error::Input(format!("the model's logits have no probability for token {token}"))),
            Some(logprob) => {
                let top = most_likely(&logits[..vocab_size.min(logits.len())], k);
                let top = top.into_iter().map(|(token, logit)| (token, (f64::from(logit) - total) as f32)).collect();
                Ok(Self { logprob, top })
            }
        }
    }
}

/// Returns ln Σ exp(logit).
fn ln_total(logits: &[f32]) -> f64 {
    /// Terms summed in f32 before they are added in f64.
    const PIECE: usize = 1024;
    let largest = simd(
        #[inline(always)]
        || max(logits),
    );
    let piece = |piece: &[f32]| {
        simd(
            #[inline(always)]
            || ngen3_simd::sum(piece, |logit| exp(logit - largest)),
        )
    };
    let total: f64 = logits.chunks(PIECE).map(|logits| f64::from(piece(logits))).sum();
    f64::from(largest) + total.ln()
}

/// Returns the `k` largest logits and their ids, largest first.
fn most_likely(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut ids = vec![0; k.min(logits.len())];
    choose(logits, &mut ids, &mut Scratch::default());
    ids.into_iter().map(|id| (id, logits[id as usize])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_those_of_a_softmax_in_f64(
            logits in prop::collection::vec(-30.0f32..30.0, 1..3000),
            token: prop::sample::Index,
            k in 0usize..30,
            vocab_size in 1usize..3000,
        ) {
            let token = token.index(logits.len());
            let found = TokenLogprobs::of(&logits, token as u32, k, vocab_size).unwrap();
            let total = logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
            let expected = |token: usize| f64::from(logits[token]) - total;
            prop_assert!((f64::from(found.logprob) - expected(token)).abs() < 1e-5);
            let mut order: Vec<usize> = (0..vocab_size.min(logits.len())).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            order.truncate(k);
            prop_assert_eq!(found.top.len(), order.len());
            for (&(token, logprob), expected_token) in found.top.iter().zip(order) {
                prop_assert_eq!(token as usize, expected_token);
                prop_assert!((f64::from(logprob) - expected(expected_token)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2], &[]] {
            let error = TokenLogprobs::of(logits, 1, 1, 2).unwrap_err().to_string();
            assert!(error.contains("token 1"), "{logits:?}: {error}");
        }
    }
}
