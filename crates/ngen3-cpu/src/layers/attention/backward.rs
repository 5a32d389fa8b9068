//! Backward pass of attention.
//!
//! With probabilities p:  dv = pᵀ·dout,  dp = dout·vᵀ,  ds = p·(dp − dout·out)/√head_width,  dq = ds·k,  dk = dsᵀ·q. The row-wise
//! dot product dout·out equals the sum of p·dp over the keys.

use ngen3_engine::Dropout;
use ngen3_simd::{LANES, exp, simd, sum_zip};

use super::operands::{along, along_or_same, down, down_or_same, panels, products_with_panels};
use super::shape::{HeadDropout, Shape, Span, TILE, backward_lengths, for_each_head, head_dropout};
use crate::base::memory::Carver;
use crate::base::profile::{Part, timed};
use crate::gemm::tiles::cells;
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::strided::{self, ROWS};
use crate::gemm::{Accumulate, Canvas, Mat, MatMut, Precision};

/// Fills `dqkv`, `[tokens, 3·width]`, from `dout`, `[tokens, width]`, the gradient of `out`. No sequence may continue another.
#[expect(clippy::too_many_arguments, reason = "the operands of attention, each of which the caller has at hand")]
pub fn backward(
    precision: Precision,
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
    let n_head = shape.n_head;
    assert_eq!(qkv.len(), 3 * out.len(), "length of qkv");
    let dqkv = Canvas::new(dqkv, 3 * shape.width());
    let head = match precision {
        Precision::F32 => head_backward::<1>,
        Precision::Bf16 => head_backward::<2>,
    };
    for_each_head(spans.len() * n_head, scratch, shape.scratch(1), |task, scratch| {
        let (span, i) = (task / n_head, task % n_head);
        let Span { start, len, .. } = spans[span].clone();
        let tokens = start..start + len;
        let operands = Operands {
            q: shape.part(qkv, tokens.clone(), i, 0),
            k: shape.part(qkv, tokens.clone(), i, 1),
            v: shape.part(qkv, tokens.clone(), i, 2),
            out: shape.merged(out, tokens.clone(), i),
            dout: shape.merged(dout, tokens.clone(), i),
            lse: &lse[n_head * start + i * len..][..len],
        };
        // SAFETY: each (sequence, head) belongs to one task, and windows of different heads or parts share no column.
        let gradients = [0, 1, 2].map(|part| unsafe { dqkv.window(tokens.clone(), shape.columns(i, part)) });
        head(operands, head_dropout(dropout, spans, span, i, n_head), gradients, scratch);
    });
}

/// Operands of one head of one sequence: inputs, output and output gradient, each `[len, head_width]`; `lse`: `[len]`.
struct Operands<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    out: Mat<'a>,
    dout: Mat<'a>,
    lse: &'a [f32],
}

/// Computes the gradients of one head's queries, keys and values.
fn head_backward<const P: usize>(
    operands: Operands<'_>,
    dropout: Option<HeadDropout>,
    gradients: [MatMut<'_>; 3],
    scratch: &mut [f32],
) {
    let Operands { q, k, v, out, dout, lse } = operands;
    let [mut dq, mut to_dk, mut to_dv] = gradients;
    let (len, width) = (lse.len(), q.cols());
    let scale = 1.0 / (width as f32).sqrt();
    let mut carver = Carver(scratch);
    let [
        q_along,
        q_down,
        dout_along,
        dout_down,
        k_down,
        k_panels,
        v_panels,
        dk,
        dv,
        scores,
        dscores,
        cells_a,
        cells_b,
        inner,
    ] = backward_lengths(len, width).map(|n| carver.cut(n));
    let (k_panels, v_panels) = (panels::<P>(k, k_panels), panels::<P>(v, v_panels));
    let [(q_along, q_down), (dout_along, dout_down)] =
        [(q, q_along, q_down), (dout, dout_along, dout_down)].map(|(x, a, d)| (along::<P>(x, a), down::<P>(x, d)));
    let k_down = down::<P>(k, k_down);
    dk.fill(0.0);
    dv.fill(0.0);
    for first in (0..len).step_by(TILE) {
        let tile = first..(first + TILE).min(len);
        let across = tile.end.next_multiple_of(NR);
        for from in tile.clone().step_by(ROWS) {
            let group = from..(from + ROWS).min(tile.end);
            let place = (from - first) * across..(group.end - first) * across;
            let (scores, dscores) = (&mut scores[place.clone()], &mut dscores[place]);
            let seen = group.end.next_multiple_of(NR);
            products_with_panels::<P>(q_along.rows(group.clone()), k_panels, seen, across, scores);
            products_with_panels::<P>(dout_along.rows(group.clone()), v_panels, seen, across, dscores);
            simd(
                #[inline(always)]
                || {
                    for query in group.clone() {
                        inner[query - first] = sum_zip(
                            dout.row(query),
                            out.row(query),
                            #[inline(always)]
                            |a, b| a * b,
                        );
                    }
                    let both = scores.chunks_exact_mut(across).zip(dscores.chunks_exact_mut(across));
                    for (query, (p, dp)) in group.clone().zip(both) {
                        let (last, inner) = (query + 1, inner[query - first]);
                        // Whole vectors; elements past the last key are zeroed below.
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
            let ds = along_or_same::<P>(Mat::strided(dscores, group.len(), group.end, across), cells_a);
            strided::matmul::<P>(dq.rows(group.clone()), Accumulate::Set, ds, k_down.rows(0..cells::<P>(group.end)));
        }
        let [p, ds] = [(&*scores, &mut *cells_a), (&*dscores, &mut *cells_b)]
            .map(|(x, to)| down_or_same::<P>(Mat::strided(x, tile.len(), across, across), to));
        // Causal mask: queries before a key have no part in its gradient.
        for from in (0..tile.end).step_by(ROWS) {
            let keys = from..(from + ROWS).min(tile.end);
            let queries = from.max(first) / P..tile.end.div_ceil(P);
            let own = queries.start - first / P..queries.end - first / P;
            let [p, ds] = [p, ds].map(|x| x.rows(own.clone()).columns(keys.clone()).t());
            let part = keys.start * width..keys.end * width;
            let dv = MatMut::new(&mut dv[part.clone()], keys.len(), width);
            strided::matmul::<P>(dv, Accumulate::Add, p, dout_down.rows(queries.clone()));
            let dk = MatMut::new(&mut dk[part], keys.len(), width);
            strided::matmul::<P>(dk, Accumulate::Add, ds, q_down.rows(queries));
        }
    }
    for (i, (dk, dv)) in dk.chunks_exact(width).zip(dv.chunks_exact(width)).enumerate() {
        to_dk.row_mut(i).copy_from_slice(dk);
        to_dv.row_mut(i).copy_from_slice(dv);
    }
}
