//! Causal self-attention: out = softmax(q·kᵀ/√head_width)·v for each head   (Vaswani et al. 2017).
//!
//! `qkv`: [tokens, 3·width], query, key and value of every head side by side as `c_attn` makes them; `out`: [tokens, width], the
//! heads merged; saved for backward: `qkv`, `out` and `lse`: [heads, tokens] of each row, one row after the other, the logarithm
//! of each softmax's denominator.
//!
//! No heads × tokens × tokens buffer: a task takes one head of one row, and in it [`TILE`] queries at a time with the keys that
//! they may see; keys after the tile are never touched. Backward makes the probabilities again from `lse` (as
//! FlashAttention does, Dao et al. 2022). A task first copies its operands out of `qkv`, whose rows stand far apart, into
//! scratch memory that stays in its cache, the keys turned into panels of [`NR`] for the product with the queries.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use ngen3_model::Config;
use rayon::prelude::*;

use super::dropout::Dropout;
use super::memory::{Knife, padded};
use super::rows::Span;
use super::simd::{LANES, exp, exp_and_sum, max, simd, sum_zip};
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::{pack, strided};
use crate::gemm::{Canvas, Into, Mat, MatMut};
use crate::profile::{Part, timed};

/// Queries of backward taken together, whose part of the keys' gradients is summed in registers.
const TILE: usize = 64;

/// Heads, and the width of each.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Heads.
    pub n_head: usize,
    /// Width of one head.
    pub head_width: usize,
    /// Tokens in the longest row.
    pub longest: usize,
}

impl Shape {
    /// The model's.
    pub fn new(config: &Config) -> Self {
        Self { n_head: config.n_head, head_width: config.head_width(), longest: config.block_size }
    }

    fn width(&self) -> usize {
        self.n_head * self.head_width
    }

    /// Room that [`forward`] and [`backward`] need on `threads` threads.
    pub fn scratch(&self, threads: usize) -> usize {
        let backward = self.backward_lengths(self.longest).map(padded).iter().sum::<usize>();
        threads * (head_scratch(self.longest, self.head_width) + backward)
    }

    /// Pieces of the scratch memory that only backward needs, for `keys` keys.
    fn backward_lengths(&self, keys: usize) -> [usize; 6] {
        let [by_key, by_channel, scores] = lengths(keys, self.head_width);
        [by_channel, by_key, by_key, by_key, scores, TILE]
    }

    /// One head's query (0), key (1) or value (2) columns in a row of `qkv`.
    fn columns(&self, head: usize, part: usize) -> Range<usize> {
        let first = part * self.width() + head * self.head_width;
        first..first + self.head_width
    }

    /// One head's queries, keys or values of some tokens, `[tokens, head_width]`.
    fn part<'a>(&self, qkv: &'a [f32], tokens: Range<usize>, head: usize, part: usize) -> Mat<'a> {
        let first = (tokens.start * 3 * self.width() + self.columns(head, part).start).min(qkv.len());
        Mat::strided(&qkv[first..], tokens.len(), self.head_width, 3 * self.width())
    }

    /// One head's columns of some tokens of a `[tokens, width]` tensor.
    fn merged<'a>(&self, x: &'a [f32], tokens: Range<usize>, head: usize) -> Mat<'a> {
        let first = tokens.start * self.width() + head * self.head_width;
        Mat::strided(&x[first..], tokens.len(), self.head_width, self.width())
    }
}

/// Elements of one head's keys or values a key to a row, of the same in panels, and of [`TILE`] queries' scores.
fn lengths(keys: usize, head_width: usize) -> [usize; 3] {
    let across = keys.next_multiple_of(NR);
    [keys * head_width, across * head_width, TILE * across]
}

/// Room that [`head_forward`] needs for `keys` keys.
pub fn head_scratch(keys: usize, head_width: usize) -> usize {
    let [by_key, by_channel, scores] = lengths(keys, head_width);
    [by_key, by_key, by_channel, scores].map(padded).iter().sum()
}

/// Hands each of `tasks` to `work`, on as many threads as `scratch` has pieces for.
pub fn for_each_head(tasks: usize, scratch: &mut [f32], piece: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let next = AtomicUsize::new(0);
    scratch.par_chunks_exact_mut(piece).for_each(|piece| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            work(task, piece);
        }
    });
}

/// Dropout of the probabilities of one head of one row, and the number of its first among those of the whole pass.
#[derive(Clone, Copy)]
pub struct HeadDropout {
    dropout: Dropout,
    first: u32,
    /// Keys.
    keys: usize,
}

impl HeadDropout {
    /// Applies it to the probabilities of one query, or to their gradients.
    #[inline(always)]
    fn apply(&self, query: usize, row: &mut [f32]) {
        let first = self.first.wrapping_add((query * self.keys) as u32);
        for (j, p) in row.iter_mut().enumerate() {
            *p *= self.dropout.factor(first.wrapping_add(j as u32));
        }
    }
}

/// The dropout of one head of the span at `start`.
fn head_dropout(
    dropout: Option<Dropout>,
    spans: &[Span],
    span: usize,
    head: usize,
    n_head: usize,
) -> Option<HeadDropout> {
    let dropout = dropout?;
    let before: usize = spans[..span].iter().map(|span| n_head * span.len * span.len).sum();
    let keys = spans[span].len;
    Some(HeadDropout { dropout, first: (before + head * keys * keys) as u32, keys })
}

/// Fills `out` and `lse`. `scratch` is [`Shape::scratch`] long.
pub fn forward(
    shape: Shape,
    spans: &[Span],
    qkv: &[f32],
    dropout: Option<Dropout>,
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Attention);
    let n_head = shape.n_head;
    let tokens = out.len() / shape.width();
    assert_eq!(qkv.len(), 3 * tokens * shape.width(), "queries, keys and values");
    let (out, lse) = (Canvas::new(out, shape.width()), Canvas::new(lse, n_head * tokens));
    for_each_head(spans.len() * n_head, scratch, shape.scratch(1), |task, scratch| {
        let (span, head) = (task / n_head, task % n_head);
        let dropout = head_dropout(dropout, spans, span, head, n_head);
        let Span { start, len, prefix } = spans[span].clone();
        let own = start..start + len;
        // SAFETY: each (row, head) is one task's alone, and windows of different heads share no column.
        let (out, lse) = unsafe {
            let columns = head * shape.head_width..(head + 1) * shape.head_width;
            let first = n_head * start + head * len;
            (out.window(own.clone(), columns), lse.row(0, first..first + len))
        };
        let [before_k, before_v] = [1, 2].map(|part| shape.part(qkv, prefix.clone(), head, part));
        let [q, k, v] = [0, 1, 2].map(|part| shape.part(qkv, own.clone(), head, part));
        head_forward(q, [before_k, k], [before_v, v], dropout, out, lse, scratch);
    });
}

/// One head of one row: queries `q`, `[n, head_width]`, over keys and values that come in two parts, `[before, head_width]` and
/// `[n, head_width]`. `scratch` is [`head_scratch`] long.
pub fn head_forward(
    q: Mat<'_>,
    k: [Mat<'_>; 2],
    v: [Mat<'_>; 2],
    dropout: Option<HeadDropout>,
    mut out: MatMut<'_>,
    lse: &mut [f32],
    scratch: &mut [f32],
) {
    let (n, width) = (lse.len(), q.cols());
    let offset = k[0].n_rows();
    let keys = offset + n;
    let [by_key, by_channel, scores] = lengths(keys, width);
    let mut knife = Knife(scratch);
    let (k_rows, v_rows) = (knife.cut(by_key), knife.cut(by_key));
    let (k_panels, scores) = (knife.cut(by_channel), knife.cut(scores));
    gather(k, k_rows);
    gather(v, v_rows);
    panels(Mat::new(k_rows, keys, width), k_panels);
    let (v, scale) = (Mat::new(v_rows, keys, width), 1.0 / (width as f32).sqrt());
    for first in (0..n).step_by(strided::rows()) {
        let group = first..(first + strided::rows()).min(n);
        let seen = offset + group.end;
        let across = seen.next_multiple_of(NR);
        products_with_panels(q.rows(group.clone()), k_panels, across, across, scores);
        let mut totals = [1.0; TILE];
        simd(
            #[inline(always)]
            || {
                for ((query, row), total) in group.clone().zip(scores.chunks_exact_mut(across)).zip(&mut totals) {
                    let last = offset + query + 1;
                    // Whole vectors are quicker than a rest, and exp of −∞ is next to nothing.
                    let vectors = &mut row[..last.next_multiple_of(LANES)];
                    vectors[last..].fill(f32::NEG_INFINITY);
                    let largest = max(vectors);
                    *total = exp_and_sum(vectors, scale, largest);
                    row[last..].fill(0.0);
                    lse[query] = largest * scale + total.ln();
                    if let Some(dropout) = dropout {
                        dropout.apply(query, &mut row[..last]);
                    }
                }
            },
        );
        let probabilities = Mat::strided(scores, group.len(), seen, across);
        let mut out = out.rows(group.clone());
        strided::matmul(out.rows(0..group.len()), Into::Set, probabilities, v.rows(0..seen));
        for (i, total) in totals.iter().enumerate().take(group.len()) {
            let scale = 1.0 / total;
            out.row_mut(i).iter_mut().for_each(|x| *x *= scale);
        }
    }
}

/// One query, `[head_width]`, over keys and values where they lie, `[keys, head_width]`: reading them is all the work there
/// is. `scores`: `[keys]`.
pub fn one_query(q: &[f32], k: Mat<'_>, v: Mat<'_>, out: &mut [f32], scores: &mut [f32]) {
    let scale = 1.0 / (q.len() as f32).sqrt();
    simd(
        #[inline(always)]
        || {
            for (i, score) in scores.iter_mut().enumerate() {
                *score = sum_zip(
                    q,
                    k.row(i),
                    #[inline(always)]
                    |a, b| a * b,
                );
            }
            let largest = max(scores);
            let total = exp_and_sum(scores, scale, largest);
            out.fill(0.0);
            for (i, &p) in scores.iter().enumerate() {
                for (out, &v) in out.iter_mut().zip(v.row(i)) {
                    *out += p * v;
                }
            }
            out.iter_mut().for_each(|out| *out /= total);
        },
    );
}

/// Copies the rows of both parts, one after the other.
fn gather(parts: [Mat<'_>; 2], to: &mut [f32]) {
    let width = parts[0].cols();
    let rows = parts.iter().flat_map(|part| (0..part.n_rows()).map(|i| part.row(i)));
    to.chunks_exact_mut(width).zip(rows).for_each(|(to, row)| to.copy_from_slice(row));
}

/// Turns rows into panels of [`NR`] rows, each `[width, NR]`; rows past the end are zeros.
fn panels(rows: Mat<'_>, to: &mut [f32]) {
    let panel = NR * rows.cols();
    for (i, to) in to.chunks_exact_mut(panel).enumerate() {
        pack::panel::<1, NR>(rows, i * NR, bytemuck::cast_slice_mut(to));
    }
}

/// `to = a·panelsᵀ`, with the first `keys` rows of what [`panels`] turned, in rows `stride` apart.
fn products_with_panels(a: Mat<'_>, panels: &[f32], keys: usize, stride: usize, to: &mut [f32]) {
    let width = a.cols();
    for (j, panel) in panels.chunks_exact(NR * width).take(keys / NR).enumerate() {
        let to = MatMut::strided(&mut to[j * NR..], a.n_rows(), NR, stride);
        strided::matmul(to, Into::Set, a, Mat::new(panel, width, NR));
    }
}

/// From `dout`: [tokens, width], the gradient of `out`, fills `dqkv`: [tokens, 3·width]. No row may continue another.
///
/// With p the probabilities:  dv = pᵀ·dout,  dp = dout·vᵀ,  ds = p·(dp − dout·out)/√head_width,  dq = ds·k,  dk = dsᵀ·q, where
/// dout·out is what the sum of p·dp over the keys comes to.
#[expect(clippy::too_many_arguments, reason = "the operands of attention, each of which the caller has at hand")]
pub fn backward(
    shape: Shape,
    spans: &[Span],
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    dropout: Option<Dropout>,
    dout: &[f32],
    dqkv: &mut [f32],
    scratch: &mut [f32],
) {
    let _timed = timed(Part::Attention);
    let Shape { n_head, head_width, .. } = shape;
    assert_eq!(qkv.len(), 3 * out.len(), "queries, keys and values");
    let dqkv = Canvas::new(dqkv, 3 * shape.width());
    for_each_head(spans.len() * n_head, scratch, shape.scratch(1), |task, scratch| {
        let (span, head) = (task / n_head, task % n_head);
        let Span { start, len, .. } = spans[span].clone();
        let tokens = start..start + len;
        let operands = Operands {
            q: shape.part(qkv, tokens.clone(), head, 0),
            k: shape.part(qkv, tokens.clone(), head, 1),
            v: shape.part(qkv, tokens.clone(), head, 2),
            out: shape.merged(out, tokens.clone(), head),
            dout: shape.merged(dout, tokens.clone(), head),
            lse: &lse[n_head * start + head * len..][..len],
        };
        // SAFETY: each (row, head) is one task's alone, and windows of different heads or parts share no column.
        let gradients = [0, 1, 2].map(|part| unsafe { dqkv.window(tokens.clone(), shape.columns(head, part)) });
        let [by_key, by_channel, scores] = lengths(len, head_width);
        let mut knife = Knife(scratch);
        let forward = [by_key, by_key, by_channel, scores].map(|n| knife.cut(n));
        let own = shape.backward_lengths(len).map(|n| knife.cut(n));
        head_backward(operands, head_dropout(dropout, spans, span, head, n_head), gradients, forward, own);
    });
}

/// What one head of one row had in forward, and the gradient of what it gave, each `[len, head_width]`; `lse`: `[len]`.
struct Operands<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    out: Mat<'a>,
    dout: Mat<'a>,
    lse: &'a [f32],
}

/// The gradients of one head's queries, keys and values.
fn head_backward(
    operands: Operands<'_>,
    dropout: Option<HeadDropout>,
    gradients: [MatMut<'_>; 3],
    [q_rows, k_rows, k_panels, scores]: [&mut [f32]; 4],
    [v_panels, dout_rows, dk, dv, dscores, inner]: [&mut [f32]; 6],
) {
    let Operands { q, k, v, out, dout, lse } = operands;
    let [mut dq, mut to_dk, mut to_dv] = gradients;
    let (len, width) = (lse.len(), q.cols());
    let scale = 1.0 / (width as f32).sqrt();
    let none = q.rows(0..0);
    gather([none, v], dout_rows);
    panels(Mat::new(dout_rows, len, width), v_panels);
    gather([none, q], q_rows);
    gather([none, k], k_rows);
    gather([none, dout], dout_rows);
    panels(Mat::new(k_rows, len, width), k_panels);
    let [q, k, dout] = [&*q_rows, k_rows, dout_rows].map(|rows| Mat::new(rows, len, width));
    dk.fill(0.0);
    dv.fill(0.0);
    for first in (0..len).step_by(TILE) {
        let tile = first..(first + TILE).min(len);
        let across = tile.end.next_multiple_of(NR);
        for from in tile.clone().step_by(strided::rows()) {
            let group = from..(from + strided::rows()).min(tile.end);
            let place = (from - first) * across..(group.end - first) * across;
            let (scores, dscores) = (&mut scores[place.clone()], &mut dscores[place]);
            let seen = group.end.next_multiple_of(NR);
            let (q, dout) = (q.rows(group.clone()), dout.rows(group.clone()));
            products_with_panels(q, k_panels, seen, across, scores);
            products_with_panels(dout, v_panels, seen, across, dscores);
            simd(
                #[inline(always)]
                || {
                    for (i, query) in group.clone().enumerate() {
                        inner[query - first] = sum_zip(
                            dout.row(i),
                            out.row(query),
                            #[inline(always)]
                            |a, b| a * b,
                        );
                    }
                    let both = scores.chunks_exact_mut(across).zip(dscores.chunks_exact_mut(across));
                    for (query, (p, dp)) in group.clone().zip(both) {
                        let (last, inner) = (query + 1, inner[query - first]);
                        // Whole vectors; what they hold past the last key is cleared below.
                        let vectors = last.next_multiple_of(LANES);
                        let (p_row, dp_row) = (&mut p[..vectors], &mut dp[..vectors]);
                        for p in p_row.iter_mut() {
                            *p = exp(*p * scale - lse[query]);
                        }
                        if let Some(dropout) = dropout {
                            dropout.apply(query, &mut dp_row[..last]);
                        }
                        for (dp, &p) in dp_row.iter_mut().zip(p_row.iter()) {
                            *dp = p * (*dp - inner) * scale;
                        }
                        if let Some(dropout) = dropout {
                            dropout.apply(query, &mut p_row[..last]);
                        }
                        p[last..].fill(0.0);
                        dp[last..].fill(0.0);
                    }
                },
            );
            let ds = Mat::strided(dscores, group.len(), group.end, across);
            strided::matmul(dq.rows(group.clone()), Into::Set, ds, k.rows(0..group.end));
        }
        // A key has seen nothing of the queries before it.
        for from in (0..tile.end).step_by(strided::rows()) {
            let keys = from..(from + strided::rows()).min(tile.end);
            let queries = from.max(first)..tile.end;
            let rows = (queries.start - first) * across;
            let [p, ds] = [&scores[rows..], &dscores[rows..]]
                .map(|x| Mat::strided(&x[keys.start..], queries.len(), keys.len(), across).t());
            let part = keys.start * width..keys.end * width;
            let dv = MatMut::new(&mut dv[part.clone()], keys.len(), width);
            strided::matmul(dv, Into::Add, p, dout.rows(queries.clone()));
            let dk = MatMut::new(&mut dk[part], keys.len(), width);
            strided::matmul(dk, Into::Add, ds, q.rows(queries));
        }
    }
    for (i, (dk, dv)) in dk.chunks_exact(width).zip(dv.chunks_exact(width)).enumerate() {
        to_dk.row_mut(i).copy_from_slice(dk);
        to_dv.row_mut(i).copy_from_slice(dv);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{check_gradient, dot, random};

    /// Rows of these lengths, of which the second of each pair continues the one that its place names.
    struct Case {
        shape: Shape,
        spans: Vec<Span>,
        tokens: usize,
    }

    impl Case {
        fn new(n_head: usize, head_width: usize, rows: &[(usize, Option<usize>)]) -> Self {
            let (mut spans, mut tokens): (Vec<Span>, usize) = (Vec::new(), 0);
            for &(len, after) in rows {
                let prefix = after.map_or(0..0, |row| spans[row].start..spans[row].start + spans[row].len);
                spans.push(Span { start: tokens, len, prefix });
                tokens += len;
            }
            let longest = spans.iter().map(|span| span.prefix.len() + span.len).max().expect("a row");
            Self { shape: Shape { n_head, head_width, longest }, spans, tokens }
        }

        fn qkv(&self) -> Vec<f32> {
            random(self.tokens * 3 * self.shape.width(), 1)
        }

        fn run(&self, qkv: &[f32], dropout: Option<Dropout>) -> (Vec<f32>, Vec<f32>) {
            let mut out = vec![f32::NAN; self.tokens * self.shape.width()];
            let mut lse = vec![f32::NAN; self.shape.n_head * self.tokens];
            let mut scratch = vec![f32::NAN; self.shape.scratch(2)];
            forward(self.shape, &self.spans, qkv, dropout, &mut out, &mut lse, &mut scratch);
            (out, lse)
        }
    }

    fn rows_alone() -> [Case; 4] {
        [
            Case::new(3, 4, &[(5, None), (5, None)]),
            Case::new(1, 3, &[(1, None)]),
            Case::new(2, 5, &[(TILE + 7, None), (3, None), (40, None)]),
            Case::new(1, 33, &[(2 * TILE + 1, None)]),
        ]
    }

    #[test]
    fn forward_matches_the_definition() {
        let continued = Case::new(2, 4, &[(3, None), (9, None), (70, Some(1)), (5, Some(1)), (6, None), (1, Some(4))]);
        for case in rows_alone().into_iter().chain([continued]) {
            let Shape { n_head, head_width, .. } = case.shape;
            let width = case.shape.width();
            let qkv = case.qkv();
            let (out, _) = case.run(&qkv, None);
            let at = |token: usize, part: usize, head: usize, d: usize| {
                f64::from(qkv[token * 3 * width + part * width + head * head_width + d])
            };
            for (span, head) in case.spans.iter().flat_map(|span| (0..n_head).map(move |head| (span, head))) {
                for query in span.start..span.start + span.len {
                    let seen: Vec<usize> = span.prefix.clone().chain(span.start..query + 1).collect();
                    let score = |j| (0..head_width).map(|d| at(query, 0, head, d) * at(j, 1, head, d)).sum::<f64>();
                    let p: Vec<f64> = seen.iter().map(|&j| (score(j) / (head_width as f64).sqrt()).exp()).collect();
                    for d in 0..head_width {
                        let sum = p.iter().zip(&seen).map(|(p, &j)| p * at(j, 2, head, d)).sum::<f64>();
                        let expected = sum / p.iter().sum::<f64>();
                        let found = f64::from(out[query * width + head * head_width + d]);
                        assert!((found - expected).abs() < 1e-5, "{:?}: {found}, not {expected}", case.shape);
                    }
                }
            }
        }
    }

    #[test]
    fn backward_matches_finite_differences_with_and_without_dropout() {
        for case in rows_alone() {
            for dropout in [None, Dropout::new(0.3, 4, 5)] {
                let qkv = case.qkv();
                let (out, lse) = case.run(&qkv, dropout);
                let dout = random(out.len(), 2);
                let mut dqkv = vec![f32::NAN; qkv.len()];
                let mut scratch = vec![f32::NAN; case.shape.scratch(2)];
                backward(case.shape, &case.spans, &qkv, &out, &lse, dropout, &dout, &mut dqkv, &mut scratch);
                check_gradient(&qkv, &dqkv, |qkv| dot(&case.run(qkv, dropout).0, &dout));
            }
        }
    }

    #[test]
    fn one_query_sees_what_the_last_of_many_sees() {
        let case = Case::new(2, 5, &[(90, None)]);
        let qkv = case.qkv();
        let (out, _) = case.run(&qkv, None);
        for head in 0..2 {
            let [q, k, v] = [0, 1, 2].map(|part| case.shape.part(&qkv, 0..90, head, part));
            let (mut found, mut scores) = ([f32::NAN; 5], [f32::NAN; 90]);
            one_query(q.row(89), k, v, &mut found, &mut scores);
            for (found, expected) in found.iter().zip(&out[89 * 10 + head * 5..]) {
                assert!((found - expected).abs() < 1e-6, "{found}, not {expected}");
            }
        }
    }
}
