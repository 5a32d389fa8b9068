//! Forward pass of attention.

use ngen3_engine::Dropout;
use ngen3_simd::{LANES, exp_and_sum, max, simd};

use super::operands::{Form, LeftOperand, RightOperand, in_form, joined_rows};
use super::shape::{HeadDropout, MOST_ROWS, Shape, Span, Task, for_each_task, forward_lengths, head_dropout};
use crate::base::memory::Carver;
use crate::base::profile::{Part, timed};
use crate::gemm::tiles::kernel::NR;
use crate::gemm::{Accumulate, Canvas, Mat, MatMut, Precision};

/// Fills `out`, `[tokens, width]`, and `lse`, `[heads, len]` per sequence. `scratch` is [`Shape::scratch`] long.
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
    let tokens = out.len() / shape.width();
    assert_eq!(qkv.len(), tokens * shape.qkv_width(), "length of qkv");
    let (out, lse) = (Canvas::new(out, shape.width()), Canvas::new(lse, shape.n_head * tokens));
    let pass = Pass { shape, spans, qkv, dropout, out, lse };
    let work = in_form!(precision, F => Pass::run::<F>);
    for_each_task(shape, spans.len(), scratch, shape.scratch(1), |task, scratch| {
        work(&pass, task, scratch);
    });
}

/// Arguments of [`forward`].
struct Pass<'a> {
    shape: Shape,
    spans: &'a [Span],
    qkv: &'a [f32],
    dropout: Option<Dropout>,
    out: Canvas<'a>,
    lse: Canvas<'a>,
}

impl Pass<'_> {
    fn run<F: Form>(&self, task: Task, scratch: &mut [f32]) {
        let Self { shape, spans, qkv, dropout, out, lse } = self;
        let Task { sequence, kv_head, heads } = task;
        let Span { start, len, prefix } = spans[sequence].clone();
        let own = start..start + len;
        let [before_k, before_v] = [1, 2].map(|part| {
            let rows = shape.part(qkv, prefix.clone(), kv_head, part);
            (0..prefix.len()).map(move |i| rows.row(i))
        });
        let [k, v] = [1, 2].map(|part| shape.part(qkv, own.clone(), kv_head, part));
        let mut keys = PackedKeys::<F>::new((before_k, k), (before_v, v), scratch);
        for head in heads {
            let first = shape.n_head * start + head * len;
            // SAFETY: each (sequence, head) belongs to one task, and windows of different heads share no column.
            let (out, lse) =
                unsafe { (out.window(own.clone(), shape.columns(head, 0)), lse.row(0, first..first + len)) };
            let q = shape.part(qkv, own.clone(), head, 0);
            keys.attend(q, head_dropout(*dropout, spans, sequence, head, shape.n_head), out, lse);
        }
    }
}

/// Keys and values of one head of one sequence, packed once for the queries of all heads that share them.
pub struct PackedKeys<'a, F: Form> {
    /// Tokens before the first query.
    offset: usize,
    /// `[head_width, keys]`
    k: F::Right<'a>,
    /// `[keys, head_width]`
    v: F::Right<'a>,
    packed_q: &'a mut [f32],
    scores: &'a mut [f32],
    packed_p: &'a mut [f32],
}

impl<'a, F: Form> PackedKeys<'a, F> {
    /// Packs keys and values: the rows of the prefix, and those of the sequence, `[n, head_width]`. `scratch` is
    /// [`super::shape::head_scratch`] long.
    pub fn new<'r>(
        (before_k, k): (impl ExactSizeIterator<Item = &'r [f32]>, Mat<'_>),
        (before_v, v): (impl ExactSizeIterator<Item = &'r [f32]>, Mat<'_>),
        scratch: &'a mut [f32],
    ) -> Self {
        let (offset, width) = (before_k.len(), k.cols());
        let mut carver = Carver(scratch);
        let [joined, packed_q, packed_v, packed_k, scores, packed_p] =
            forward_lengths(offset + k.n_rows(), width).map(|n| carver.cut(n));
        let k = F::right_turned(joined_rows(before_k, k, joined), packed_k);
        let v = F::right(joined_rows(before_v, v, joined), packed_v);
        Self { offset, k, v, packed_q, scores, packed_p }
    }

    /// Computes one head: queries `q`, `[n, head_width]`, over the keys up to each.
    pub fn attend(&mut self, q: Mat<'_>, dropout: Option<HeadDropout>, mut out: MatMut<'_>, lse: &mut [f32]) {
        let Self { offset, k, v, packed_q, scores, packed_p } = self;
        let (n, width, offset) = (lse.len(), q.cols(), *offset);
        let scale = 1.0 / (width as f32).sqrt();
        let q = F::left(q, packed_q);
        for first in (0..n).step_by(F::ROWS) {
            let group = first..(first + F::ROWS).min(n);
            let seen = offset + group.end;
            let across = seen.next_multiple_of(NR);
            let all = MatMut::new(&mut scores[..group.len() * across], group.len(), across);
            F::product(all, Accumulate::Set, q.cut(group.clone(), 0..width), *k);
            let mut totals = [1.0; MOST_ROWS];
            simd(
                #[inline(always)]
                || {
                    for ((query, row), total) in group.clone().zip(scores.chunks_exact_mut(across)).zip(&mut totals) {
                        let last = offset + query + 1;
                        // Whole vectors are faster than a remainder loop; exp(−∞) adds next to nothing to the sum.
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
            let probabilities = F::left_or_same(Mat::strided(scores, group.len(), seen, across), packed_p);
            let mut out = out.rows(group.clone());
            F::product(out.rows(0..group.len()), Accumulate::Set, probabilities, v.cut(0..seen));
            for (i, total) in totals.iter().enumerate().take(group.len()) {
                let scale = 1.0 / total;
                out.row_mut(i).iter_mut().for_each(|x| *x *= scale);
            }
        }
    }
}
