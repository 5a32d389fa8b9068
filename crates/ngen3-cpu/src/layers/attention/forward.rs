//! Forward pass of attention.

use ngen3_engine::Dropout;
use ngen3_simd::{LANES, exp_and_sum, max, simd};

use super::operands::{along, along_or_same, down, joined_rows, panels, products, products_with_panels};
use super::shape::{HeadDropout, Shape, Span, Task, for_each_task, forward_lengths, head_dropout};
use crate::base::memory::Carver;
use crate::base::profile::{Part, timed};
use crate::gemm::tiles::cells;
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::strided::{self, ROWS};
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
    let work = match products(precision) {
        Precision::F32 => Pass::run::<1>,
        Precision::Bf16 => Pass::run::<2>,
    };
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
    fn run<const P: usize>(&self, task: Task, scratch: &mut [f32]) {
        let Self { shape, spans, qkv, dropout, out, lse } = self;
        let Task { sequence, kv_head, heads } = task;
        let Span { start, len, prefix } = spans[sequence].clone();
        let own = start..start + len;
        let [before_k, before_v] = [1, 2].map(|part| {
            let rows = shape.part(qkv, prefix.clone(), kv_head, part);
            (0..prefix.len()).map(move |i| rows.row(i))
        });
        let [k, v] = [1, 2].map(|part| shape.part(qkv, own.clone(), kv_head, part));
        let mut keys = PackedKeys::<P>::new((before_k, k), (before_v, v), scratch);
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
pub struct PackedKeys<'a, const P: usize> {
    /// Tokens before the first query.
    offset: usize,
    /// Panels of keys.
    k: &'a [u32],
    /// `[keys/P, head_width]`
    v: Mat<'a, u32>,
    q_cells: &'a mut [f32],
    scores: &'a mut [f32],
    p_cells: &'a mut [f32],
}

impl<'a, const P: usize> PackedKeys<'a, P> {
    /// Packs keys and values: the rows of the prefix, and those of the sequence, `[n, head_width]`. `scratch` is
    /// [`super::shape::head_scratch`] long.
    pub fn new<'r>(
        (before_k, k): (impl ExactSizeIterator<Item = &'r [f32]>, Mat<'_>),
        (before_v, v): (impl ExactSizeIterator<Item = &'r [f32]>, Mat<'_>),
        scratch: &'a mut [f32],
    ) -> Self {
        let (offset, width) = (before_k.len(), k.cols());
        let mut carver = Carver(scratch);
        let [joined, q_cells, v_cells, k_panels, scores, p_cells] =
            forward_lengths(offset + k.n_rows(), width).map(|n| carver.cut(n));
        let k = panels::<P>(joined_rows(before_k, k, joined), k_panels);
        let v = down::<P>(joined_rows(before_v, v, joined), v_cells);
        Self { offset, k, v, q_cells, scores, p_cells }
    }

    /// Computes one head: queries `q`, `[n, head_width]`, over the keys up to each.
    pub fn attend(&mut self, q: Mat<'_>, dropout: Option<HeadDropout>, mut out: MatMut<'_>, lse: &mut [f32]) {
        let Self { offset, k, v, q_cells, scores, p_cells } = self;
        let (n, offset) = (lse.len(), *offset);
        let scale = 1.0 / (q.cols() as f32).sqrt();
        let q = along::<P>(q, q_cells);
        for first in (0..n).step_by(ROWS) {
            let group = first..(first + ROWS).min(n);
            let seen = offset + group.end;
            let across = seen.next_multiple_of(NR);
            products_with_panels::<P>(q.rows(group.clone()), k, across, across, scores);
            let mut totals = [1.0; ROWS];
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
            let probabilities = along_or_same::<P>(Mat::strided(scores, group.len(), seen, across), p_cells);
            let mut out = out.rows(group.clone());
            strided::matmul::<P>(out.rows(0..group.len()), Accumulate::Set, probabilities, v.rows(0..cells::<P>(seen)));
            for (i, total) in totals.iter().enumerate().take(group.len()) {
                let scale = 1.0 / total;
                out.row_mut(i).iter_mut().for_each(|x| *x *= scale);
            }
        }
    }
}
