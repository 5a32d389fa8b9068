//! Forward pass of attention.

use ngen3_engine::Dropout;
use ngen3_simd::{LANES, exp_and_sum, max, simd};

use super::operands::{along, along_or_same, down, joined_rows, panels, products_with_panels};
use super::shape::{HeadDropout, Shape, Span, for_each_head, forward_lengths, head_dropout};
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
    let n_head = shape.n_head;
    let tokens = out.len() / shape.width();
    assert_eq!(qkv.len(), 3 * tokens * shape.width(), "length of qkv");
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
        // SAFETY: each (sequence, head) belongs to one task, and windows of different heads share no column.
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

/// Computes one head of one sequence: queries `q`, `[n, head_width]`, over keys and values in two parts: those of the prefix,
/// `[before, head_width]`, and of the sequence, `[n, head_width]`. `scratch` is [`super::shape::head_scratch`] long.
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
    let mut carver = Carver(scratch);
    let [joined, q_cells, v_cells, k_panels, scores, p_cells] = forward_lengths(keys, width).map(|n| carver.cut(n));
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
