//! Causal self-attention: out = softmax(q·kᵀ/√head_width)·v for each head   (Vaswani et al. 2017).
//!
//! `qkv`: [tokens, 3·width], query, key and value of every head side by side as `c_attn` makes them; `out`: [tokens, width], the
//! heads merged; saved for backward: `qkv`, `out` and `lse`: [heads, tokens] of each row, one row after the other, the logarithm
//! of each softmax's denominator.
//!
//! No heads × tokens × tokens buffer: a task takes one head of one row, and in it a few queries at a time with the keys that
//! they may see; keys after those are never touched. Backward (`attention/backward.rs`) makes the probabilities again from `lse`
//! (as FlashAttention does, Dao et al. 2022). A task first brings its operands out of `qkv`, whose rows stand far apart, into
//! scratch memory that stays in its cache, as cells of `P` elements (`gemm/tiles.rs`): pairs of bf16, or f32 one by one. Scores
//! and probabilities are f32.

mod backward;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::cast_slice_mut;
use ngen3_model::Config;
use rayon::prelude::*;

pub use backward::backward;

use super::dropout::Dropout;
use crate::base::memory::{Knife, padded};
use crate::base::profile::{Part, timed};
use crate::engine::batch_plan::Span;
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::strided::{self, ROWS};
use crate::gemm::tiles::{cells, pack, packed_len};
use crate::gemm::{Canvas, Into, Mat, MatMut, Precision};
use ngen3_simd::{LANES, exp, exp_and_sum, max, simd, sum_zip};

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
        let backward: usize = backward::lengths(self.longest, self.head_width).map(padded).iter().sum();
        threads * backward.max(head_scratch(self.longest, self.head_width))
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

/// Numbers that hold one head's `keys` keys or values as rows, in panels of [`NR`], and the scores of `queries` queries, whether
/// in cells of one element or of two.
fn lengths(keys: usize, head_width: usize, queries: usize) -> [usize; 3] {
    let across = keys.next_multiple_of(NR);
    [keys * head_width, across * head_width, queries * across]
}

/// Room that [`head_forward`] needs for `keys` keys.
pub fn head_scratch(keys: usize, head_width: usize) -> usize {
    forward_lengths(keys, head_width).map(padded).iter().sum()
}

/// The pieces of [`head_forward`]'s scratch memory.
fn forward_lengths(keys: usize, head_width: usize) -> [usize; 6] {
    let [rows, panels, scores] = lengths(keys, head_width, ROWS);
    [rows, rows, rows, panels, scores, scores]
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
#[expect(clippy::too_many_arguments, reason = "the operands of attention, each of which the caller has at hand")]
pub fn forward(
    precision: Precision,
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
    let head = match precision {
        Precision::F32 => head_forward::<1>,
        Precision::Bf16 => head_forward::<2>,
    };
    for_each_head(spans.len() * n_head, scratch, shape.scratch(1), |task, scratch| {
        let (span, i) = (task / n_head, task % n_head);
        let dropout = head_dropout(dropout, spans, span, i, n_head);
        let Span { start, len, prefix } = spans[span].clone();
        let own = start..start + len;
        // SAFETY: each (row, head) is one task's alone, and windows of different heads share no column.
        let (out, lse) = unsafe {
            let columns = i * shape.head_width..(i + 1) * shape.head_width;
            let first = n_head * start + i * len;
            (out.window(own.clone(), columns), lse.row(0, first..first + len))
        };
        let [before_k, before_v] = [1, 2].map(|part| shape.part(qkv, prefix.clone(), i, part));
        let [q, k, v] = [0, 1, 2].map(|part| shape.part(qkv, own.clone(), i, part));
        head(q, [before_k, k], [before_v, v], dropout, out, lse, scratch);
    });
}

/// One head of one row: queries `q`, `[n, head_width]`, over keys and values that come in two parts, `[before, head_width]` and
/// `[n, head_width]`. `scratch` is [`head_scratch`] long.
pub fn head_forward<const P: usize>(
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
    let mut knife = Knife(scratch);
    let [joined, q_cells, v_cells, k_panels, scores, p_cells] = forward_lengths(keys, width).map(|n| knife.cut(n));
    let k_panels = panels::<P>(joined_rows(k, joined), k_panels);
    let v = down::<P>(joined_rows(v, joined), v_cells);
    let (q, scale) = (along::<P>(q, q_cells), 1.0 / (width as f32).sqrt());
    for first in (0..n).step_by(ROWS) {
        let group = first..(first + ROWS).min(n);
        let seen = offset + group.end;
        let across = seen.next_multiple_of(NR);
        products_with_panels::<P>(q.rows(group.clone()), k_panels, across, across, scores);
        let mut totals = [1.0; ROWS];
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
        let probabilities = along_or_same::<P>(Mat::strided(scores, group.len(), seen, across), p_cells);
        let mut out = out.rows(group.clone());
        strided::matmul::<P>(out.rows(0..group.len()), Into::Set, probabilities, v.rows(0..cells::<P>(seen)));
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

/// The rows of both parts, one after the other; copied where there are two.
fn joined_rows<'a>(parts: [Mat<'a>; 2], to: &'a mut [f32]) -> Mat<'a> {
    if parts[0].n_rows() == 0 {
        return parts[1];
    }
    let (n, width) = (parts[0].n_rows() + parts[1].n_rows(), parts[0].cols());
    let rows = parts.iter().flat_map(|part| (0..part.n_rows()).map(|i| part.row(i)));
    to.chunks_exact_mut(width).zip(rows).for_each(|(to, row)| to.copy_from_slice(row));
    Mat::new(&to[..n * width], n, width)
}

/// Rows as an operand that is multiplied along them, `[rows, width/P]`.
fn along<'a, const P: usize>(rows: Mat<'_>, to: &'a mut [f32]) -> Mat<'a, u32> {
    let depth = cells::<P>(rows.cols());
    let to = cast_slice_mut(&mut to[..rows.n_rows() * depth]);
    pack::along::<P>(rows, to);
    Mat::new(to, rows.n_rows(), depth)
}

/// As [`along`], for rows that are in cache already: cells of one element are the rows themselves.
fn along_or_same<'a, const P: usize>(rows: Mat<'a>, to: &'a mut [f32]) -> Mat<'a, u32> {
    if P == 1 { rows.cells() } else { along::<P>(rows, to) }
}

/// Rows as an operand that is multiplied across them, `[rows/P, width]`.
fn down<'a, const P: usize>(rows: Mat<'_>, to: &'a mut [f32]) -> Mat<'a, u32> {
    let depth = cells::<P>(rows.n_rows());
    let to = cast_slice_mut(&mut to[..depth * rows.cols()]);
    pack::down::<P>(rows, to);
    Mat::new(to, depth, rows.cols())
}

/// As [`down`], for rows that are in cache already.
fn down_or_same<'a, const P: usize>(rows: Mat<'a>, to: &'a mut [f32]) -> Mat<'a, u32> {
    if P == 1 { rows.cells() } else { down::<P>(rows, to) }
}

/// Rows as panels of [`NR`] rows, each `[width/P, NR]`; rows past the end are zeros.
fn panels<'a, const P: usize>(rows: Mat<'_>, to: &'a mut [f32]) -> &'a [u32] {
    let to = cast_slice_mut(&mut to[..packed_len::<P, NR>(rows.n_rows(), rows.cols())]);
    pack::panels::<P, NR>(rows, 0, to);
    to
}

/// `to = a·panelsᵀ`, with the first `keys` rows of what [`panels`] laid out, in rows `stride` apart.
fn products_with_panels<const P: usize>(a: Mat<'_, u32>, panels: &[u32], keys: usize, stride: usize, to: &mut [f32]) {
    let depth = a.cols();
    for (j, panel) in panels.chunks_exact(NR * depth).take(keys / NR).enumerate() {
        let to = MatMut::strided(&mut to[j * NR..], a.n_rows(), NR, stride);
        strided::matmul::<P>(to, Into::Set, a, Mat::new(panel, depth, NR));
    }
}

#[cfg(test)]
mod tests {
    use super::Precision::{Bf16, F32};
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};

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

        fn run(&self, precision: Precision, qkv: &[f32], dropout: Option<Dropout>) -> (Vec<f32>, Vec<f32>) {
            let mut out = vec![f32::NAN; self.tokens * self.shape.width()];
            let mut lse = vec![f32::NAN; self.shape.n_head * self.tokens];
            let mut scratch = vec![f32::NAN; self.shape.scratch(2)];
            forward(precision, self.shape, &self.spans, qkv, dropout, &mut out, &mut lse, &mut scratch);
            (out, lse)
        }
    }

    fn rows_alone() -> [Case; 4] {
        [
            Case::new(3, 4, &[(5, None), (5, None)]),
            Case::new(1, 3, &[(1, None)]),
            Case::new(2, 5, &[(71, None), (3, None), (40, None)]),
            Case::new(1, 33, &[(129, None)]),
        ]
    }

    #[test]
    fn forward_matches_the_definition() {
        let continued = Case::new(2, 4, &[(3, None), (9, None), (70, Some(1)), (5, Some(1)), (6, None), (1, Some(4))]);
        for case in rows_alone().into_iter().chain([continued]) {
            let Shape { n_head, head_width, .. } = case.shape;
            let width = case.shape.width();
            let qkv = case.qkv();
            let (out, _) = case.run(F32, &qkv, None);
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
                let (out, lse) = case.run(F32, &qkv, dropout);
                let dout = random(out.len(), 2);
                let mut dqkv = vec![f32::NAN; qkv.len()];
                let mut scratch = vec![f32::NAN; case.shape.scratch(2)];
                backward(F32, case.shape, &case.spans, &qkv, &out, &lse, dropout, &dout, &mut dqkv, &mut scratch);
                check_gradient(&qkv, &dqkv, |qkv| dot(&case.run(F32, qkv, dropout).0, &dout));
            }
        }
    }

    #[test]
    fn in_bf16_both_passes_stay_near_f32() {
        for case in rows_alone() {
            for dropout in [None, Dropout::new(0.3, 4, 5)] {
                let qkv = case.qkv();
                let dout = random(qkv.len() / 3, 2);
                let [f32, bf16] = [F32, Bf16].map(|precision| {
                    let (out, lse) = case.run(precision, &qkv, dropout);
                    let mut dqkv = vec![f32::NAN; qkv.len()];
                    let mut scratch = vec![f32::NAN; case.shape.scratch(2)];
                    let Case { shape, spans, .. } = &case;
                    backward(precision, *shape, spans, &qkv, &out, &lse, dropout, &dout, &mut dqkv, &mut scratch);
                    [out, lse, dqkv]
                });
                for (i, (found, expected)) in bf16.iter().zip(&f32).enumerate() {
                    let scale = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                    for (found, expected) in found.iter().zip(expected) {
                        let gap = (found - expected).abs();
                        assert!(gap < 0.02 * scale, "tensor {i} of {:?}: {found}, not {expected}", case.shape);
                    }
                }
            }
        }
    }

    #[test]
    fn one_query_sees_what_the_last_of_many_sees() {
        let case = Case::new(2, 5, &[(90, None)]);
        let qkv = case.qkv();
        let (out, _) = case.run(F32, &qkv, None);
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
