//! Causal self-attention: out = softmax(q·kᵀ/√head_width)·v for each head   (Vaswani et al. 2017).
//!
//! `qkv`: [tokens, 3·width], the output of `c_attn`: queries of all heads, then keys, then values; `out`: [tokens, width], the
//! heads concatenated; `probabilities`, before dropout: [n_head, queries, keys] for each sequence, concatenated.

use std::ops::Range;

use super::layers::{add_scaled, dot};
use crate::Dropout;

/// One sequence of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Range of its tokens in the pass.
    pub tokens: Range<usize>,
    /// Earlier tokens that it attends to.
    pub before: Before,
}

/// Earlier tokens that a sequence attends to besides its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// None.
    Nothing,
    /// A prefix in the same pass, by its range of tokens.
    Tokens(Range<usize>),
    /// Tokens of earlier passes, whose keys and values are in this slot of the cache; those of this pass are appended.
    Cache(usize),
}

/// Key-value cache of one block: `[keys, 2·width]` for each sequence being decoded.
pub type BlockCache = [Vec<f32>];

/// Returns `out` and `probabilities`. Each query attends to the tokens before its sequence and, within it, up to itself.
pub fn attention_forward(
    n_head: usize,
    width: usize,
    qkv: &[f32],
    spans: &[Span],
    cache: &mut BlockCache,
    dropout: Option<Dropout>,
) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut probabilities) = (vec![0.0; qkv.len() / 3], Vec::new());
    let d = width / n_head;
    let scale = 1.0 / (d as f64).sqrt();
    for Span { tokens, before } in spans {
        let mut keys_values = match before {
            Before::Nothing => Vec::new(),
            Before::Tokens(prefix) => keys_and_values(qkv, width, prefix),
            Before::Cache(place) => std::mem::take(&mut cache[*place]),
        };
        let keys_before = keys_values.len() / (2 * width);
        keys_values.extend(keys_and_values(qkv, width, tokens));
        let keys = keys_before + tokens.len();
        for head in 0..n_head {
            let key = |k: usize| &keys_values[k * 2 * width + head * d..][..d];
            let value = |k: usize| &keys_values[(k * 2 + 1) * width + head * d..][..d];
            for (i, token) in tokens.clone().enumerate() {
                let q = &qkv[token * 3 * width + head * d..][..d];
                let scores: Vec<f64> = (0..=keys_before + i).map(|k| dot(q, key(k)) * scale).collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let mut sums = vec![0.0; d];
                let first = probabilities.len();
                probabilities.resize(first + keys, 0.0);
                for (k, score) in scores.iter().enumerate() {
                    let p = ((score - largest).exp() / total) as f32;
                    probabilities[first + k] = p;
                    add_scaled(&mut sums, f64::from(p) * factor(dropout, first + k), value(k));
                }
                let out = &mut out[token * width + head * d..][..d];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
            }
        }
        if let Before::Cache(place) = before {
            cache[*place] = keys_values;
        }
    }
    (out, probabilities)
}

/// Returns the gradient of `qkv`, for sequences that continue nothing. With m the dropout mask, dp = m·(dout·v):
/// dv += p·m·dout,  ds = p·(dp − Σ p·dp)/√head_width,  dq += ds·k,  dk += ds·q.
pub fn attention_backward(
    n_head: usize,
    width: usize,
    qkv: &[f32],
    spans: &[Span],
    probabilities: &[f32],
    dropout: Option<Dropout>,
    dout: &[f32],
) -> Vec<f32> {
    let mut dqkv = vec![0.0; qkv.len()];
    let d = width / n_head;
    let scale = 1.0 / (d as f64).sqrt();
    let mut first = 0;
    for Span { tokens, .. } in spans {
        for head in 0..n_head {
            // Range of a token's query (part 0), key (1) or value (2).
            let place = |token: usize, part: usize| {
                let start = (token * 3 + part) * width + head * d;
                start..start + d
            };
            for (i, query) in tokens.clone().enumerate() {
                let dout = &dout[query * width + head * d..][..d];
                let seen = tokens.start..=query;
                let mut dp = Vec::with_capacity(i + 1);
                for (k, key) in seen.clone().enumerate() {
                    let mask = factor(dropout, first + k);
                    dp.push(mask * dot(dout, &qkv[place(key, 2)]));
                    add_scaled(&mut dqkv[place(key, 2)], f64::from(probabilities[first + k]) * mask, dout);
                }
                let p = &probabilities[first..first + i + 1];
                let inner: f64 = p.iter().zip(&dp).map(|(&p, dp)| f64::from(p) * dp).sum();
                for (k, key) in seen.enumerate() {
                    let ds = f64::from(p[k]) * (dp[k] - inner) * scale;
                    add_scaled(&mut dqkv[place(query, 0)], ds, &qkv[place(key, 1)]);
                    add_scaled(&mut dqkv[place(key, 1)], ds, &qkv[place(query, 0)]);
                }
                first += tokens.len();
            }
        }
    }
    dqkv.iter().map(|&d| d as f32).collect()
}

/// Returns the keys and values of some tokens, `[tokens, 2·width]`.
fn keys_and_values(qkv: &[f32], width: usize, tokens: &Range<usize>) -> Vec<f32> {
    let rows = &qkv[tokens.start * 3 * width..tokens.end * 3 * width];
    rows.chunks_exact(3 * width).flat_map(|row| &row[width..]).copied().collect()
}

/// Returns the dropout factor of the probability at this index.
fn factor(dropout: Option<Dropout>, place: usize) -> f64 {
    dropout.map_or(1.0, |dropout| f64::from(dropout.factor(place as u32)))
}
