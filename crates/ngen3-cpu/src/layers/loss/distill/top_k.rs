//! Teacher given as its k most likely tokens at each position, with the probability of all others lumped into one.
//!
//! With probabilities p and q at the temperature, the set K of these tokens, and the rests p' = 1 − Σ p and q' = 1 − Σ q over
//! K, the forward divergence is Σ over K of p·ln(p/q) + p'·ln(p'/q'). Its gradient with respect to a student logit over T is q
//! − p in K and q·(1 − p'/q') elsewhere. So every word gets the latter, and the words in K get a correction to the former.

use std::ops::Range;

use rayon::prelude::*;

use super::super::soft_targets::{Distill, Teacher};
use super::scratch::factor;
use crate::gemm::tiles::pack::rounded;
use crate::layers::embedding;
use ngen3_simd::sum_zip;

/// Smallest lumped probability that counts: smaller ones are f32 rounding errors of 1.
const NOTHING: f32 = 1e-6;

/// The teacher's most likely tokens in a block.
pub struct TopK<'a> {
    k: usize,
    /// `[tokens, k]`, as `log_probs`.
    ids: &'a [u32],
    log_probs: &'a [f32],
}

/// Gradients of single logits, `[tokens, k]`.
pub struct Corrections<'a> {
    k: usize,
    ids: &'a [u32],
    values: Vec<f32>,
}

impl<'a> TopK<'a> {
    /// Returns the most likely tokens at these positions, if the teacher is given in this form and α > 0.
    pub fn of(distill: &Distill<'a>, tokens: Range<usize>) -> Option<Self> {
        match distill.teacher {
            Teacher::TopK { k, ids, log_probs } if distill.alpha > 0.0 => {
                let places = tokens.start * k..tokens.end * k;
                Some(Self { k, ids: &ids[places.clone()], log_probs: &log_probs[places] })
            }
            _ => None,
        }
    }

    /// Fills the divergences, times T², scales each token's soft factor by 1 − p'/q', and returns the corrections to the
    /// gradient.
    #[expect(clippy::too_many_arguments, reason = "the operands of the loss, each of which the caller has at hand")]
    pub fn settle<const P: usize>(
        self,
        temperature: f32,
        hidden: &[f32],
        wte: &[f32],
        shift: &[f32],
        block: usize,
        factors: &mut [f32],
        divergence: &mut [f32],
    ) -> Corrections<'a> {
        let Self { k, ids, log_probs } = self;
        let width = hidden.len() / divergence.len();
        let mut values = vec![0.0; ids.len()];
        let (soft, tempered) = factors.split_at_mut(factor::TEMPERED * block);
        let soft = &mut soft[factor::SOFT * block..];
        divergence.par_iter_mut().zip(soft.par_iter_mut()).zip(values.par_chunks_mut(k)).enumerate().for_each(
            |(t, ((divergence, soft), values))| {
                let place = t * k..(t + 1) * k;
                let (hidden, ln_p) = (&hidden[t * width..][..width], &log_probs[place.clone()]);
                let (mut p_rest, mut q_rest, mut total) = (1.0, 1.0, 0.0);
                for ((value, &id), &ln_p) in values.iter_mut().zip(&ids[place]).zip(ln_p) {
                    let word = &wte[id as usize * width..][..width];
                    let logit = sum_zip(hidden, word, |h, w| rounded::<P>(h) * rounded::<P>(w));
                    let ln_q = (logit - shift[t]) / temperature - tempered[t];
                    total += ln_p.exp() * (ln_p - ln_q);
                    p_rest -= ln_p.exp();
                    q_rest -= ln_q.exp();
                    *value = ln_q.exp();
                }
                let mut ratio = 0.0;
                if p_rest > NOTHING {
                    let q_rest = f32::max(q_rest, NOTHING);
                    total += p_rest * (p_rest / q_rest).ln();
                    ratio = p_rest / q_rest;
                }
                *divergence = temperature * temperature * total;
                for (value, &ln_p) in values.iter_mut().zip(ln_p) {
                    *value = *soft * (*value * ratio - ln_p.exp());
                }
                *soft *= 1.0 - ratio;
            },
        );
        Corrections { k, ids, values }
    }
}

impl Corrections<'_> {
    /// Adds the contribution of these logit gradients to the gradient of the hidden states.
    pub fn add_to_hidden<const P: usize>(&self, wte: &[f32], dhidden: &mut [f32]) {
        let Self { k, ids, values } = self;
        let width = dhidden.len() * k / ids.len();
        dhidden.par_chunks_exact_mut(width).zip(ids.par_chunks(*k).zip(values.par_chunks(*k))).for_each(
            |(dhidden, (ids, values))| {
                for (&id, value) in ids.iter().zip(values) {
                    let word = &wte[id as usize * width..][..width];
                    dhidden.iter_mut().zip(word).for_each(|(d, w)| *d += value * rounded::<P>(*w));
                }
            },
        );
    }

    /// Adds their contribution to the gradient of the embeddings.
    pub fn add_to_embeddings(&self, hidden: &[f32], dwte: &mut [f32]) {
        embedding::scatter_scaled(self.ids, &self.values, self.k, hidden, dwte);
    }
}
