//! Backward pass of attention.
//!
//! With probabilities p:  dv = pᵀ·dout,  dp = dout·vᵀ,  ds = p·(dp − dout·out)/√head_width,  dq = ds·k,  dk = dsᵀ·q. The row-wise
//! dot product dout·out equals the sum of p·dp over the keys. Query heads that share a key head add their dk and dv one after the
//! other, in the order of the heads.

use ngen3_engine::Dropout;
use ngen3_simd::{LANES, exp, simd, sum_zip};

use super::operands::{Form, LeftOperand, RightOperand, in_form};
use super::shape::{HeadDropout, Shape, Span, TILE, Task, backward_lengths, for_each_task, head_dropout};
use super::turns::Turns;
use crate::base::memory::Carver;
use crate::base::profile::{Part, timed};
use crate::gemm::tiles::kernel::NR;
use crate::gemm::{Accumulate, Canvas, Mat, MatMut, Precision};

/// Fills `dqkv`, in the layout of `qkv`, from `dout`, `[tokens, width]`, the gradient of `out`. No sequence may continue another.
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
    let tokens = out.len() / shape.width();
    assert_eq!(qkv.len(), tokens * shape.qkv_width(), "length of qkv");
    let (dqkv, turns) = (Canvas::new(dqkv, shape.qkv_width()), Turns::new(shape.group()));
    let pass = Pass { shape, spans, qkv, out, lse, dropout, dout, dqkv, turns };
    let work = in_form!(precision, F => Pass::run::<F>);
    for_each_task(shape, spans.len(), scratch, shape.scratch(1), |task, scratch| {
        pass.turns.run(|| work(&pass, task, scratch));
    });
}

/// Arguments of [`backward`].
struct Pass<'a> {
    shape: Shape,
    spans: &'a [Span],
    qkv: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    dropout: Option<Dropout>,
    dout: &'a [f32],
    dqkv: Canvas<'a>,
    turns: Turns,
}

impl Pass<'_> {
    fn run<F: Form>(&self, task: Task, scratch: &mut [f32]) {
        let Self { shape, spans, qkv, out, lse, dropout, dout, dqkv, turns } = self;
        let Task { sequence, kv_head, heads } = task;
        let Span { start, len, .. } = spans[sequence].clone();
        let tokens = start..start + len;
        let [k, v] = [1, 2].map(|part| shape.part(qkv, tokens.clone(), kv_head, part));
        let mut keys = PackedKeys::<F>::new(k, v, scratch);
        let whole_group = heads.len() == shape.group();
        for head in heads {
            let operands = Operands {
                q: shape.part(qkv, tokens.clone(), head, 0),
                out: shape.merged(out, tokens.clone(), head),
                dout: shape.merged(dout, tokens.clone(), head),
                lse: &lse[shape.n_head * start + head * len..][..len],
            };
            // SAFETY: each (sequence, head) belongs to one task, and windows of different heads or parts share no column.
            let dq = unsafe { dqkv.window(tokens.clone(), shape.columns(head, 0)) };
            keys.head_backward(operands, head_dropout(*dropout, spans, sequence, head, shape.n_head), dq);
            let member = head % shape.group();
            let add = || {
                // SAFETY: as above; heads that share a key head belong to one task, or take turns.
                let [mut dk, mut dv] =
                    [1, 2].map(|part| unsafe { dqkv.window(tokens.clone(), shape.columns(kv_head, part)) });
                let accumulate = if member == 0 { Accumulate::Set } else { Accumulate::Add };
                write(Mat::new(keys.dk, len, shape.head_width), accumulate, &mut dk);
                write(Mat::new(keys.dv, len, shape.head_width), accumulate, &mut dv);
            };
            if whole_group {
                add();
            } else {
                turns.wait(sequence * shape.n_kv_head + kv_head, member, add);
            }
        }
    }
}

/// Writes or adds `rows` to `to`.
fn write(rows: Mat<'_>, accumulate: Accumulate, to: &mut MatMut<'_>) {
    for i in 0..rows.n_rows() {
        match accumulate {
            Accumulate::Set => to.row_mut(i).copy_from_slice(rows.row(i)),
            Accumulate::Add => to.row_mut(i).iter_mut().zip(rows.row(i)).for_each(|(to, x)| *to += x),
        }
    }
}

/// Operands of one query head of one sequence: queries, output and its gradient, each `[len, head_width]`; `lse`: `[len]`.
struct Operands<'a> {
    q: Mat<'a>,
    out: Mat<'a>,
    dout: Mat<'a>,
    lse: &'a [f32],
}

/// Keys and values of one head of one sequence, packed once for the queries of all heads that share them.
struct PackedKeys<'a, F: Form> {
    /// `[len, head_width]`
    k: F::Right<'a>,
    /// `[head_width, len]`, as is `v_turned`.
    k_turned: F::Right<'a>,
    v_turned: F::Right<'a>,
    /// `[len, head_width]`: gradient of the keys, of the last query head's.
    dk: &'a mut [f32],
    /// `[len, head_width]`: gradient of the values, likewise.
    dv: &'a mut [f32],
    /// Packed queries and output gradients, each as left and right operands.
    packed: [&'a mut [f32]; 4],
    /// Scores and their gradients, each in f32 and packed; and `[TILE]`: products dout·out.
    tile: [&'a mut [f32]; 5],
}

impl<'a, F: Form> PackedKeys<'a, F> {
    /// Packs keys and values, `[len, head_width]`.
    fn new(k: Mat<'_>, v: Mat<'_>, scratch: &'a mut [f32]) -> Self {
        let mut carver = Carver(scratch);
        let [q_left, q_right, dout_left, dout_right, k_right, k_turned, v_turned, dk, dv, scores, dscores, a, b, inner] =
            backward_lengths(k.n_rows(), k.cols()).map(|n| carver.cut(n));
        Self {
            k: F::right(k, k_right),
            k_turned: F::right_turned(k, k_turned),
            v_turned: F::right_turned(v, v_turned),
            dk,
            dv,
            packed: [q_left, q_right, dout_left, dout_right],
            tile: [scores, dscores, a, b, inner],
        }
    }

    /// Computes the gradients of one head's queries, in `dq`, and of the keys and values as far as these queries see them.
    fn head_backward(&mut self, operands: Operands<'_>, dropout: Option<HeadDropout>, mut dq: MatMut<'_>) {
        let Operands { q, out, dout, lse } = operands;
        let Self { k, k_turned, v_turned, dk, dv, packed: [q_left, q_right, dout_left, dout_right], tile } = self;
        let [scores, dscores, packed_a, packed_b, inner] = tile.each_mut().map(|piece| &mut **piece);
        let (len, width) = (lse.len(), q.cols());
        let scale = 1.0 / (width as f32).sqrt();
        let [(q_left, q_right), (dout_left, dout_right)] =
            [(q, q_left, q_right), (dout, dout_left, dout_right)].map(|(x, l, r)| (F::left(x, l), F::right(x, r)));
        dk.fill(0.0);
        dv.fill(0.0);
        for first in (0..len).step_by(TILE) {
            let tile = first..(first + TILE).min(len);
            let across = tile.end.next_multiple_of(NR);
            for from in tile.clone().step_by(F::ROWS) {
                let group = from..(from + F::ROWS).min(tile.end);
                let place = (from - first) * across..(group.end - first) * across;
                let (scores, dscores) = (&mut scores[place.clone()], &mut dscores[place]);
                let seen = group.end.next_multiple_of(NR);
                for (scores, left, right) in [(&mut *scores, q_left, *k_turned), (&mut *dscores, dout_left, *v_turned)]
                {
                    let scores = MatMut::strided(scores, group.len(), seen, across);
                    F::product(scores, Accumulate::Set, left.cut(group.clone(), 0..width), right);
                }
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
                let ds = F::left_or_same(Mat::strided(dscores, group.len(), group.end, across), packed_a);
                F::product(dq.rows(group.clone()), Accumulate::Set, ds, k.cut(0..group.end));
            }
            let [p, ds] = [(&*scores, &mut *packed_a), (&*dscores, &mut *packed_b)]
                .map(|(x, to)| F::turned_or_same(Mat::strided(x, tile.len(), across, across), to));
            // Causal mask: queries before a key have no part in its gradient.
            for from in (0..tile.end).step_by(F::ROWS) {
                let keys = from..(from + F::ROWS).min(tile.end);
                let queries = from.max(first)..tile.end;
                let own = queries.start - first..tile.len();
                let part = keys.start * width..keys.end * width;
                for (grad, left, right) in [(&mut *dv, p, dout_right), (&mut *dk, ds, q_right)] {
                    let grad = MatMut::new(&mut grad[part.clone()], keys.len(), width);
                    let (left, right) = (left.cut(keys.clone(), own.clone()), right.cut(queries.clone()));
                    F::product(grad, Accumulate::Add, left, right);
                }
            }
        }
    }
}
