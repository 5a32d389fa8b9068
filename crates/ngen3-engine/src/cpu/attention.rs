//! Causal self-attention: out = softmax(q·kᵀ/√head_width)·v for each head   (Vaswani et al. 2017).
//!
//! `qkv`: [rows·seq_len, 3·width], query, key and value of every head side by side as `c_attn` makes them;
//! `out`: [rows·seq_len, width], the heads merged; saved for backward: `qkv` and `lse`: [rows, heads, seq_len], the
//! logarithm of each softmax's denominator.
//!
//! No heads × seq_len × seq_len buffer: a task takes one head of one row, and in it [`TILE`] queries at a time with all the
//! keys that they may see; keys after the tile are never touched. Backward makes the probabilities again from `lse`
//! (as FlashAttention does, Dao et al. 2022).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use ngen3_model::Config;
use rayon::prelude::*;

use super::dropout::Dropout;
use super::simd::{exp, exp_and_sum, max, simd, sum_zip};
use crate::gemm::{Canvas, Into, Mat, MatMut, Threads, matmul_f32};
use crate::profile::{Part, timed};

/// Queries taken together.
const TILE: usize = 64;

/// How attention is cut up.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Independent sequences.
    pub rows: usize,
    /// Tokens in each.
    pub seq_len: usize,
    /// Heads.
    pub n_head: usize,
    /// Width of one head.
    pub head_width: usize,
}

impl Shape {
    /// `tokens` tokens in rows of `seq_len`.
    pub fn new(config: &Config, seq_len: usize, tokens: usize) -> Self {
        Self { rows: tokens / seq_len, seq_len, n_head: config.n_head, head_width: config.head_width() }
    }

    fn width(&self) -> usize {
        self.n_head * self.head_width
    }

    /// Scores of one tile: what each thread needs [`PANELS`] of.
    fn panel(&self) -> usize {
        panel(self.seq_len, self.seq_len)
    }

    /// Room that [`forward`] and [`backward`] need on `threads` threads.
    pub fn scratch(&self, threads: usize) -> usize {
        threads * PANELS * self.panel()
    }

    /// One head's query (0), key (1) or value (2) columns in a row of `qkv`.
    fn columns(&self, head: usize, part: usize) -> Range<usize> {
        let first = part * self.width() + head * self.head_width;
        first..first + self.head_width
    }

    /// One head's queries, keys or values of one row, `[seq_len, head_width]`.
    fn part<'a>(&self, qkv: &'a [f32], row: usize, head: usize, part: usize) -> Mat<'a> {
        let first = row * self.seq_len * 3 * self.width() + self.columns(head, part).start;
        Mat::strided(&qkv[first..], self.seq_len, self.head_width, 3 * self.width())
    }

    /// One head's columns of one row of a `[rows·seq_len, width]` tensor.
    fn merged<'a>(&self, x: &'a [f32], row: usize, head: usize) -> Mat<'a> {
        let first = row * self.seq_len * self.width() + head * self.head_width;
        Mat::strided(&x[first..], self.seq_len, self.head_width, self.width())
    }
}

/// Scores that one tile of `n` queries over `keys` keys takes.
pub fn panel(n: usize, keys: usize) -> usize {
    TILE.min(n) * keys
}

/// Hands each of `tasks` heads to `work`, on as many threads as `scratch` has panels for.
pub fn for_each_head(tasks: usize, scratch: &mut [f32], panel: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let next = AtomicUsize::new(0);
    scratch.par_chunks_exact_mut(panel).for_each(|panel| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task, panel);
        }
    });
}

/// Scores and their gradients.
const PANELS: usize = 2;

/// Fills `out` and `lse`. `scratch` is [`Shape::scratch`] long.
pub fn forward(
    shape: Shape,
    qkv: &[f32],
    dropout: Option<Dropout>,
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Attention);
    let Shape { rows, seq_len, n_head, .. } = shape;
    let (out, lse) = (Canvas::new(out, shape.width()), Canvas::new(lse, seq_len));
    assert_eq!(qkv.len(), 3 * rows * seq_len * shape.width(), "queries, keys and values");
    for_each_head(rows * n_head, scratch, PANELS * shape.panel(), |task, panels| {
        let (row, head) = (task / n_head, task % n_head);
        // SAFETY: each (row, head) is one task's alone, and windows of different heads share no column.
        let (out, lse) = unsafe {
            let columns = head * shape.head_width..(head + 1) * shape.head_width;
            (out.window(row * seq_len..(row + 1) * seq_len, columns), lse.row(task, 0..seq_len))
        };
        let [q, k, v] = [0, 1, 2].map(|part| shape.part(qkv, row, head, part));
        let dropout = dropout.map(|dropout| (dropout, task * seq_len));
        head_forward(q, k, v, 0, dropout, out, lse, panels);
    });
}

/// One head of one sequence: queries `q`, `[n, head_width]`, at positions `offset..offset + n`, over keys `k` and values `v`,
/// `[offset + n, head_width]`. `panel` has room for `min(n, TILE)` rows of `offset + n` scores. With dropout comes the number
/// of this head's first query among all.
#[expect(clippy::too_many_arguments, reason = "the operands of attention, each of which the caller has at hand")]
pub fn head_forward(
    q: Mat<'_>,
    k: Mat<'_>,
    v: Mat<'_>,
    offset: usize,
    dropout: Option<(Dropout, usize)>,
    mut out: MatMut<'_>,
    lse: &mut [f32],
    panel: &mut [f32],
) {
    let (n, scale) = (lse.len(), 1.0 / (q.cols() as f32).sqrt());
    for first in (0..n).step_by(TILE) {
        let tile = first..(first + TILE).min(n);
        let keys = offset + tile.end;
        let scores = &mut panel[..tile.len() * keys];
        matmul_f32(
            MatMut::new(scores, tile.len(), keys),
            Into::Set,
            q.rows(tile.clone()),
            k.rows(0..keys).t(),
            Threads::One,
        );
        simd(
            #[inline(always)]
            || {
                for (query, row) in tile.clone().zip(scores.chunks_exact_mut(keys)) {
                    let (seen, unseen) = row.split_at_mut(offset + query + 1);
                    let largest = max(seen);
                    let total = exp_and_sum(seen, scale, largest);
                    for p in seen.iter_mut() {
                        *p /= total;
                    }
                    unseen.fill(0.0);
                    lse[query] = largest * scale + total.ln();
                    if let Some((dropout, first_query)) = dropout {
                        drop_row(dropout, first_query + query, offset + n, seen);
                    }
                }
            },
        );
        let probabilities = Mat::new(scores, tile.len(), keys);
        matmul_f32(out.rows(tile), Into::Set, probabilities, v.rows(0..keys), Threads::One);
    }
}

/// Applies dropout to the probabilities, or their gradients, of one query: `query` counts over all rows and heads.
#[inline(always)]
fn drop_row(dropout: Dropout, query: usize, seq_len: usize, row: &mut [f32]) {
    let first = (query as u32).wrapping_mul(seq_len as u32);
    for (j, p) in row.iter_mut().enumerate() {
        *p *= dropout.factor(first.wrapping_add(j as u32));
    }
}

/// From `dout`: [rows·seq_len, width], the gradient of `out`, fills `dqkv`: [rows·seq_len, 3·width].
///
/// With p the probabilities:  dv = pᵀ·dout,  dp = dout·vᵀ,  ds = p·(dp − Σ p·dp)/√head_width,  dq = ds·k,  dk = dsᵀ·q.
pub fn backward(
    shape: Shape,
    qkv: &[f32],
    lse: &[f32],
    dropout: Option<Dropout>,
    dout: &[f32],
    dqkv: &mut [f32],
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Attention);
    let Shape { rows, seq_len, n_head, head_width } = shape;
    let scale = 1.0 / (head_width as f32).sqrt();
    assert_eq!(qkv.len(), 3 * rows * seq_len * shape.width(), "queries, keys and values");
    let dqkv = Canvas::new(dqkv, 3 * shape.width());
    for_each_head(rows * n_head, scratch, PANELS * shape.panel(), |task, panels| {
        let (row, head) = (task / n_head, task % n_head);
        let [q, k, v] = [0, 1, 2].map(|part| shape.part(qkv, row, head, part));
        let dout = shape.merged(dout, row, head);
        let lse = &lse[task * seq_len..][..seq_len];
        // SAFETY: each (row, head) is one task's alone, and windows of different heads or parts share no column.
        let [mut dq, mut dk, mut dv] =
            [0, 1, 2].map(|part| unsafe { dqkv.window(row * seq_len..(row + 1) * seq_len, shape.columns(head, part)) });
        let first_query = task * seq_len;
        let (scores, dscores) = panels.split_at_mut(shape.panel());
        // The last tile sees every key, so that it comes first and sets dk and dv, to which the others add.
        for first in (0..seq_len).step_by(TILE).rev() {
            let tile = first..(first + TILE).min(seq_len);
            let keys = tile.end;
            let into = if keys == seq_len { Into::Set } else { Into::Add };
            let (q, dout) = (q.rows(tile.clone()), dout.rows(tile.clone()));
            let (k, v) = (k.rows(0..keys), v.rows(0..keys));
            let scores = &mut scores[..tile.len() * keys];
            let dscores = &mut dscores[..tile.len() * keys];
            matmul_f32(MatMut::new(scores, tile.len(), keys), Into::Set, q, k.t(), Threads::One);
            matmul_f32(MatMut::new(dscores, tile.len(), keys), Into::Set, dout, v.t(), Threads::One);
            simd(
                #[inline(always)]
                || {
                    let both = scores.chunks_exact_mut(keys).zip(dscores.chunks_exact_mut(keys));
                    for (query, (p, dp)) in tile.clone().zip(both) {
                        let (seen, unseen) = p.split_at_mut(query + 1);
                        let (dseen, dunseen) = dp.split_at_mut(query + 1);
                        unseen.fill(0.0);
                        dunseen.fill(0.0);
                        for p in seen.iter_mut() {
                            *p = exp(*p * scale - lse[query]);
                        }
                        if let Some(dropout) = dropout {
                            drop_row(dropout, first_query + query, seq_len, dseen);
                        }
                        let inner = sum_zip(seen, dseen, |p, dp| p * dp);
                        for (dp, &p) in dseen.iter_mut().zip(seen.iter()) {
                            *dp = p * (*dp - inner) * scale;
                        }
                        if let Some(dropout) = dropout {
                            drop_row(dropout, first_query + query, seq_len, seen);
                        }
                    }
                },
            );
            let (p, ds) = (Mat::new(scores, tile.len(), keys), Mat::new(dscores, tile.len(), keys));
            matmul_f32(dv.rows(0..keys), into, p.t(), dout, Threads::One);
            matmul_f32(dk.rows(0..keys), into, ds.t(), q, Threads::One);
            matmul_f32(dq.rows(tile), Into::Set, ds, k, Threads::One);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{check_gradient, dot, random};

    fn shapes() -> [Shape; 3] {
        [
            Shape { rows: 2, seq_len: 5, n_head: 3, head_width: 4 },
            Shape { rows: 1, seq_len: 1, n_head: 1, head_width: 3 },
            Shape { rows: 1, seq_len: TILE + 7, n_head: 2, head_width: 5 },
        ]
    }

    fn run(shape: Shape, qkv: &[f32], dropout: Option<Dropout>) -> (Vec<f32>, Vec<f32>) {
        let mut out = vec![f32::NAN; shape.rows * shape.seq_len * shape.width()];
        let mut lse = vec![f32::NAN; shape.rows * shape.n_head * shape.seq_len];
        forward(shape, qkv, dropout, &mut out, &mut lse, &mut vec![f32::NAN; shape.scratch(2)]);
        (out, lse)
    }

    #[test]
    fn forward_matches_the_definition() {
        for shape in shapes() {
            let Shape { rows, seq_len, n_head, head_width } = shape;
            let width = shape.width();
            let qkv = random(rows * seq_len * 3 * width, 1);
            let (out, _) = run(shape, &qkv, None);
            let at = |row: usize, t: usize, part: usize, head: usize, d: usize| {
                f64::from(qkv[(row * seq_len + t) * 3 * width + part * width + head * head_width + d])
            };
            for (row, head, t) in
                (0..rows * n_head * seq_len).map(|i| (i / seq_len / n_head, i / seq_len % n_head, i % seq_len))
            {
                let score = |j| (0..head_width).map(|d| at(row, t, 0, head, d) * at(row, j, 1, head, d)).sum::<f64>();
                let p: Vec<f64> = (0..=t).map(|j| (score(j) / (head_width as f64).sqrt()).exp()).collect();
                for d in 0..head_width {
                    let expected = (0..=t).map(|j| p[j] * at(row, j, 2, head, d)).sum::<f64>() / p.iter().sum::<f64>();
                    let found = f64::from(out[(row * seq_len + t) * width + head * head_width + d]);
                    assert!((found - expected).abs() < 1e-5, "{shape:?}: {found}, not {expected}");
                }
            }
        }
    }

    #[test]
    fn backward_matches_finite_differences_with_and_without_dropout() {
        for shape in shapes() {
            for dropout in [None, Dropout::new(0.3, 4, 5)] {
                let qkv = random(shape.rows * shape.seq_len * 3 * shape.width(), 1);
                let (out, lse) = run(shape, &qkv, dropout);
                let dout = random(out.len(), 2);
                let mut dqkv = vec![f32::NAN; qkv.len()];
                backward(shape, &qkv, &lse, dropout, &dout, &mut dqkv, &mut vec![f32::NAN; shape.scratch(2)]);
                check_gradient(&qkv, &dqkv, |qkv| dot(&run(shape, qkv, dropout).0, &dout));
            }
        }
    }

    #[test]
    fn queries_after_a_cache_see_what_the_whole_sequence_sees() {
        let shape = Shape { rows: 1, seq_len: 90, n_head: 2, head_width: 4 };
        let qkv = random(shape.seq_len * 3 * shape.width(), 1);
        let (whole, _) = run(shape, &qkv, None);
        for (head, offset) in [(0, 1), (1, 20), (1, 89)] {
            let [q, k, v] = [0, 1, 2].map(|part| shape.part(&qkv, 0, head, part));
            let n = shape.seq_len - offset;
            let mut out = vec![f32::NAN; n * 4];
            let mut panel = vec![f32::NAN; TILE * shape.seq_len];
            let (q, out_view) = (q.rows(offset..shape.seq_len), MatMut::new(&mut out, n, 4));
            head_forward(q, k, v, offset, None, out_view, &mut vec![0.0; n], &mut panel);
            for (t, row) in out.chunks_exact(4).enumerate() {
                for (d, found) in row.iter().enumerate() {
                    assert!((found - whole[(offset + t) * 8 + head * 4 + d]).abs() < 1e-6);
                }
            }
        }
    }
}
