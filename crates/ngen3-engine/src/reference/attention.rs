//! Causal self-attention: out = softmax(q·kᵀ/√head_width)·v for each head   (Vaswani et al. 2017).
//!
//! `qkv`: [tokens, qkv_width], the output of `c_attn`: queries of all heads, then keys, then values; `out`: [tokens, q_width], the
//! heads concatenated; `probabilities`, before dropout: [n_head, queries, keys] for each sequence, concatenated. With fewer heads
//! of keys and values than of queries, neighbouring heads of queries share one (Ainslie et al. 2023).

use std::ops::Range;

use ngen3_model::Config;

use super::layers::{add_scaled, dot};
use crate::{Before, Dropout, Span};

/// Key-value cache of one block: `[keys, 2·kv_width]` for each sequence being decoded.
pub type BlockCache = [Vec<f32>];

/// Heads of attention.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Heads of queries.
    n_head: usize,
    /// Heads of keys and of values.
    n_kv_head: usize,
    /// Width of one head.
    width: usize,
}

impl Heads {
    /// Returns the heads of a model.
    pub fn new(config: &Config) -> Self {
        Self { n_head: config.n_head, n_kv_head: config.kv_heads(), width: config.head_width() }
    }

    /// Width of a row of `qkv`.
    fn row(self) -> usize {
        (self.n_head + 2 * self.n_kv_head) * self.width
    }

    /// Width of a token's keys.
    fn keys(self) -> usize {
        self.n_kv_head * self.width
    }

    /// Columns of a head's query in a row of `qkv`, which are those of its output in `out`.
    fn query(self, head: usize) -> Range<usize> {
        head * self.width..(head + 1) * self.width
    }

    /// Columns of the key that a head of queries reads, among the keys.
    fn key(self, head: usize) -> Range<usize> {
        self.query(head / (self.n_head / self.n_kv_head))
    }

    /// Columns of each head's query and key in a row of `qkv`, and true for a key.
    pub fn queries_and_keys(self) -> impl Iterator<Item = (Range<usize>, bool)> {
        (0..self.n_head + self.n_kv_head).map(move |head| (self.query(head), head >= self.n_head))
    }
}

/// Returns `out` and `probabilities`. Each query attends to the tokens before its sequence and, within it, up to itself.
pub fn attention_forward(
    heads: Heads,
    qkv: &[f32],
    spans: &[Span],
    cache: &mut BlockCache,
    dropout: Option<Dropout>,
) -> (Vec<f32>, Vec<f32>) {
    let (row, kv) = (heads.row(), heads.keys());
    let width = heads.n_head * heads.width;
    let (mut out, mut probabilities) = (vec![0.0; qkv.len() / row * width], Vec::new());
    let scale = 1.0 / (heads.width as f64).sqrt();
    for Span { tokens, before } in spans {
        let mut keys_values = match before {
            Before::Nothing => Vec::new(),
            Before::Tokens(prefix) => keys_and_values(heads, qkv, prefix),
            Before::Cache(place) => std::mem::take(&mut cache[*place]),
        };
        let keys_before = keys_values.len() / (2 * kv);
        keys_values.extend(keys_and_values(heads, qkv, tokens));
        let keys = keys_before + tokens.len();
        for head in 0..heads.n_head {
            let key = |k: usize| &keys_values[k * 2 * kv..][heads.key(head)];
            let value = |k: usize| &keys_values[(k * 2 + 1) * kv..][heads.key(head)];
            for (i, token) in tokens.clone().enumerate() {
                let q = &qkv[token * row..][heads.query(head)];
                let scores: Vec<f64> = (0..=keys_before + i).map(|k| dot(q, key(k)) * scale).collect();
                let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                let mut sums = vec![0.0; heads.width];
                let first = probabilities.len();
                probabilities.resize(first + keys, 0.0);
                for (k, score) in scores.iter().enumerate() {
                    let p = ((score - largest).exp() / total) as f32;
                    probabilities[first + k] = p;
                    add_scaled(&mut sums, f64::from(p) * factor(dropout, first + k), value(k));
                }
                let out = &mut out[token * width..][heads.query(head)];
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
    heads: Heads,
    qkv: &[f32],
    spans: &[Span],
    probabilities: &[f32],
    dropout: Option<Dropout>,
    dout: &[f32],
) -> Vec<f32> {
    let row = heads.row();
    let width = heads.n_head * heads.width;
    let mut dqkv = vec![0.0; qkv.len()];
    let scale = 1.0 / (heads.width as f64).sqrt();
    let mut first = 0;
    for Span { tokens, .. } in spans {
        for head in 0..heads.n_head {
            // Range of a token's query (part 0), key (1) or value (2).
            let place = |token: usize, part: usize| {
                let (start, columns) = match part {
                    0 => (0, heads.query(head)),
                    part => (width + (part - 1) * heads.keys(), heads.key(head)),
                };
                let start = token * row + start;
                start + columns.start..start + columns.end
            };
            for (i, query) in tokens.clone().enumerate() {
                let dout = &dout[query * width..][heads.query(head)];
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

/// Returns the keys and values of some tokens, `[tokens, 2·kv_width]`.
fn keys_and_values(heads: Heads, qkv: &[f32], tokens: &Range<usize>) -> Vec<f32> {
    let rows = &qkv[tokens.start * heads.row()..tokens.end * heads.row()];
    rows.chunks_exact(heads.row()).flat_map(|row| &row[heads.n_head * heads.width..]).copied().collect()
}

/// Returns the dropout factor of the probability at this index.
fn factor(dropout: Option<Dropout>, place: usize) -> f64 {
    dropout.map_or(1.0, |dropout| f64::from(dropout.factor(place as u32)))
}
