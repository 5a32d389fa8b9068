//! Losses from logits: cross entropy, and a student's divergence from its teacher   (Hinton et al. 2015).
//!
//! `logits`: [tokens, vocab_size]; `targets`: [tokens]; losses: [tokens], 0 where the target is ignored. A backward function
//! returns the gradient of `weight` times the sum of the losses, [tokens, vocab_size].

use crate::{DistillConfig, Divergence, IGNORE, TopK};

/// Total probability of the tokens outside the teacher's top k above which they count; less is rounding error of the others.
const NOTHING: f64 = 1e-6;

/// Cross entropy: −ln softmax(logits)[target].
pub fn cross_entropy_forward(logits: &[f32], targets: &[u32]) -> Vec<f32> {
    let rows = logits.chunks_exact(logits.len() / targets.len()).zip(targets);
    rows.map(|(logits, &target)| match target {
        IGNORE => 0.0,
        target => -log_softmax(logits, 1.0)[target as usize] as f32,
    })
    .collect()
}

/// dlogits = weight·(softmax(logits) − onehot(target))
pub fn cross_entropy_backward(logits: &[f32], targets: &[u32], weight: f32) -> Vec<f32> {
    let vocab_size = logits.len() / targets.len();
    let mut dlogits = vec![0.0; logits.len()];
    let rows = logits.chunks_exact(vocab_size).zip(dlogits.chunks_exact_mut(vocab_size)).zip(targets);
    for ((logits, dlogits), &target) in rows.filter(|(_, target)| **target != IGNORE) {
        for (token, (dlogit, ln_q)) in dlogits.iter_mut().zip(log_softmax(logits, 1.0)).enumerate() {
            let expected = if token == target as usize { 1.0 } else { 0.0 };
            *dlogit = (f64::from(weight) * (ln_q.exp() - expected)) as f32;
        }
    }
    dlogits
}

/// Output of a teacher at the same positions.
pub enum Guide {
    /// Logits, `[tokens, vocab_size]`.
    Logits(Vec<f32>),
    /// Most likely tokens, at the same temperature.
    TopK(TopK),
}

/// T²·D(p, q) of the teacher's p and the student's q, both softmax(logits/T).
pub fn divergence_forward(logits: &[f32], targets: &[u32], guide: &Guide, distill: &DistillConfig) -> Vec<f32> {
    let temperature = f64::from(distill.temperature);
    let rows = logits.chunks_exact(logits.len() / targets.len()).zip(targets).enumerate();
    rows.map(|(token, (logits, &target))| match target {
        IGNORE => 0.0,
        _ => (temperature * temperature * distance(logits, guide, token, distill).0) as f32,
    })
    .collect()
}

/// dlogits = weight·T·∂D/∂(logits/T)
pub fn divergence_backward(
    logits: &[f32],
    targets: &[u32],
    guide: &Guide,
    distill: &DistillConfig,
    weight: f32,
) -> Vec<f32> {
    let vocab_size = logits.len() / targets.len();
    let mut dlogits = vec![0.0; logits.len()];
    let rows = logits.chunks_exact(vocab_size).zip(dlogits.chunks_exact_mut(vocab_size)).zip(targets).enumerate();
    for (token, ((logits, dlogits), _)) in rows.filter(|(_, (_, target))| **target != IGNORE) {
        for (dlogit, slope) in dlogits.iter_mut().zip(distance(logits, guide, token, distill).1) {
            *dlogit = (f64::from(weight) * f64::from(distill.temperature) * slope) as f32;
        }
    }
    dlogits
}

/// Returns D at one position and ∂D/∂z, `[vocab_size]`, for z = logits/T.
fn distance(logits: &[f32], guide: &Guide, token: usize, distill: &DistillConfig) -> (f64, Vec<f64>) {
    let ln_q = log_softmax(logits, distill.temperature);
    match guide {
        Guide::Logits(teacher) => {
            let teacher = &teacher[token * logits.len()..][..logits.len()];
            let ln_p = log_softmax(teacher, distill.temperature);
            match distill.divergence {
                Divergence::ForwardKl => forward_kl(&ln_p, &ln_q),
                Divergence::ReverseKl => reverse_kl(&ln_p, &ln_q),
                Divergence::JensenShannon => jensen_shannon(&ln_p, &ln_q),
            }
        }
        Guide::TopK(TopK { k, ids, log_probs }) => {
            let place = token * k..(token + 1) * k;
            forward_kl_of_top_k(&ids[place.clone()], &log_probs[place], &ln_q)
        }
    }
}

/// D = Σ p·ln(p/q),  ∂D/∂z = q − p   (Hinton et al. 2015).
fn forward_kl(ln_p: &[f64], ln_q: &[f64]) -> (f64, Vec<f64>) {
    (kl(ln_p, ln_q), ln_p.iter().zip(ln_q).map(|(ln_p, ln_q)| ln_q.exp() - ln_p.exp()).collect())
}

/// D = Σ q·ln(q/p),  ∂D/∂z = q·(ln(q/p) − D)   (Gu et al. 2024, MiniLLM).
fn reverse_kl(ln_p: &[f64], ln_q: &[f64]) -> (f64, Vec<f64>) {
    let d = kl(ln_q, ln_p);
    (d, ln_p.iter().zip(ln_q).map(|(ln_p, ln_q)| ln_q.exp() * (ln_q - ln_p - d)).collect())
}

/// D = KL(p ‖ m)/2 + KL(q ‖ m)/2 with m = (p + q)/2,  ∂D/∂z = q·(ln(q/m) − KL(q ‖ m))/2   (Agarwal et al. 2024, GKD, β = 1/2).
fn jensen_shannon(ln_p: &[f64], ln_q: &[f64]) -> (f64, Vec<f64>) {
    let ln_m: Vec<f64> =
        ln_p.iter().zip(ln_q).map(|(&a, &b)| a.max(b) + (-(a - b).abs()).exp().ln_1p() - 2f64.ln()).collect();
    let (from_p, from_q) = (kl(ln_p, &ln_m), kl(ln_q, &ln_m));
    let slopes = ln_q.iter().zip(&ln_m).map(|(ln_q, ln_m)| 0.5 * ln_q.exp() * (ln_q - ln_m - from_q));
    (0.5 * (from_p + from_q), slopes.collect())
}

/// [`forward_kl`] with all tokens but the k of `ids` taken as one, of probability p' = 1 − Σ p and q' = 1 − Σ q:
/// D = Σ p·ln(p/q) over the k + p'·ln(p'/q'),  ∂D/∂z = q − p at the k, q·(1 − p'/q') elsewhere.
fn forward_kl_of_top_k(ids: &[u32], ln_p: &[f32], ln_q: &[f64]) -> (f64, Vec<f64>) {
    let (mut d, mut p_rest, mut q_rest) = (0.0, 1.0, 1.0);
    for (&id, &ln_p) in ids.iter().zip(ln_p) {
        let (ln_p, ln_q) = (f64::from(ln_p), ln_q[id as usize]);
        d += ln_p.exp() * (ln_p - ln_q);
        p_rest -= ln_p.exp();
        q_rest -= ln_q.exp();
    }
    let mut ratio = 0.0;
    if p_rest > NOTHING {
        ratio = p_rest / f64::max(q_rest, NOTHING);
        d += p_rest * ratio.ln();
    }
    let mut slopes: Vec<f64> = ln_q.iter().map(|ln_q| ln_q.exp() * (1.0 - ratio)).collect();
    for (&id, &ln_p) in ids.iter().zip(ln_p) {
        slopes[id as usize] = ln_q[id as usize].exp() - f64::from(ln_p).exp();
    }
    (d, slopes)
}

/// KL(a ‖ b) = Σ a·ln(a/b), from log probabilities.
fn kl(ln_a: &[f64], ln_b: &[f64]) -> f64 {
    ln_a.iter().zip(ln_b).map(|(ln_a, ln_b)| ln_a.exp() * (ln_a - ln_b)).sum()
}

/// ln softmax(logits/T) at one position, `[vocab_size]`.
pub fn log_softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let tempered = || logits.iter().map(|&logit| f64::from(logit) / f64::from(temperature));
    let largest = tempered().fold(f64::NEG_INFINITY, f64::max);
    let ln_total = largest + tempered().map(|logit| (logit - largest).exp()).sum::<f64>().ln();
    tempered().map(|logit| logit - ln_total).collect()
}

#[cfg(test)]
mod tests;
