//! Root mean square normalisation over the last axis: y = x·rstd·γ with rstd = 1/√(mean(x²) + ε)   (Zhang & Sennrich 2019).
//!
//! `x`, `y`: [rows, width]; `gamma`: [width]; saved for the backward pass: `rstd`, [rows]. As with LayerNorm, the output is not
//! saved: [`apply`] recomputes it.
//!
//! Qwen3 also normalises each head's queries and keys: [`forward_heads`] and [`backward_heads`] work on heads inside rows of
//! `qkv`, in place.

use rayon::prelude::*;

use super::rows::{self, ROWS, normalize, row_backward};
use crate::base::profile::{Part, timed};
use crate::gemm::Accumulate;
use ngen3_simd::{simd, sum};

/// Computes `rstd` of each row of `x`, and the output `y`.
pub fn forward(x: &[f32], gamma: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let _timed = timed(Part::LayerNorm);
    let width = gamma.len();
    x.par_chunks(width * ROWS).zip(y.par_chunks_mut(width * ROWS)).zip(rstd.par_chunks_mut(ROWS)).for_each(
        |((x, y), rstd)| {
            simd(
                #[inline(always)]
                || {
                    for ((x, y), rstd) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).zip(rstd) {
                        *rstd = inverse_rms(x, eps);
                        normalize(x, 0.0, *rstd, gamma, &[], y);
                    }
                },
            );
        },
    );
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt()
}

/// Recomputes `y` from `x` and the saved `rstd`.
pub fn apply(x: &[f32], rstd: &[f32], gamma: &[f32], y: &mut [f32]) {
    let _timed = timed(Part::LayerNorm);
    rows::apply::<false>(Saved { x, rstd, gamma }.into(), &[], y);
}

/// Inputs of the backward passes: the input of the forward pass and its saved statistics.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `[rows, width]`
    pub x: &'a [f32],
    /// `[rows]`
    pub rstd: &'a [f32],
    /// `[width]`
    pub gamma: &'a [f32],
}

impl<'a> From<Saved<'a>> for rows::Saved<'a> {
    fn from(Saved { x, rstd, gamma }: Saved<'a>) -> Self {
        Self { x, mean: &[], rstd, gamma }
    }
}

/// With x̂ = x·rstd and g = dy·γ:  dx += rstd·(g − x̂·mean(g·x̂)),  dγ += Σ dy·x̂.
///
/// `dx` is overwritten, or accumulated where `x` also feeds the residual connection. `dgamma` is `None` if γ is frozen.
/// `scratch` is as long as LayerNorm's, or half as long: partial sums of dγ per task.
pub fn backward(
    saved: Saved<'_>,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: Accumulate,
    dgamma: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let _timed = timed(Part::LayerNorm);
    let dparams = dgamma.map(|dgamma| (dgamma, &mut [][..]));
    rows::backward::<false>(saved.into(), dy, dx, accumulate, dparams, scratch);
}

/// Heads that are normalised, each by itself, inside the rows of a tensor: all queries or all keys in `qkv`.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// First column of the first head.
    pub first: usize,
    /// Number of heads.
    pub heads: usize,
}

impl Heads {
    /// Views the heads of one row, `[heads, head_width]`.
    #[inline(always)]
    fn of<'a>(&self, row: &'a [f32], head_width: usize) -> &'a [f32] {
        &row[self.first..][..self.heads * head_width]
    }

    #[inline(always)]
    fn of_mut<'a>(&self, row: &'a mut [f32], head_width: usize) -> &'a mut [f32] {
        &mut row[self.first..][..self.heads * head_width]
    }
}

/// Normalises heads inside the rows of `qkv` in place and computes `rstd`, `[tokens, heads]`. `gamma`, `[head_width]`, is shared
/// by the heads.
///
/// Copies the input into the same columns of `before`, which has rows of any width that holds them, for [`backward_heads`];
/// `before` is empty if there is no backward pass.
pub fn forward_heads(heads: Heads, qkv: &mut [f32], gamma: &[f32], eps: f32, before: &mut [f32], rstd: &mut [f32]) {
    let _timed = timed(Part::LayerNorm);
    let width = gamma.len();
    let tokens = rstd.len() / heads.heads;
    let (row, before_row) = (qkv.len() / tokens, before.len() / tokens);
    let work = |(qkv, rstd): (&mut [f32], &mut [f32]), before: &mut [f32]| {
        simd(
            #[inline(always)]
            || {
                let mut before = before.chunks_exact_mut(before_row.max(1));
                for (qkv, rstd) in qkv.chunks_exact_mut(row).zip(rstd.chunks_exact_mut(heads.heads)) {
                    let qkv = heads.of_mut(qkv, width);
                    if let Some(before) = before.next() {
                        heads.of_mut(before, width).copy_from_slice(qkv);
                    }
                    for (x, rstd) in qkv.chunks_exact_mut(width).zip(rstd) {
                        let r = inverse_rms(x, eps);
                        x.iter_mut().zip(gamma).for_each(|(x, &g)| *x = *x * r * g);
                        *rstd = r;
                    }
                }
            },
        );
    };
    let blocks = qkv.par_chunks_mut(ROWS * row).zip(rstd.par_chunks_mut(ROWS * heads.heads));
    if before.is_empty() {
        blocks.for_each(|block| work(block, &mut []));
    } else {
        blocks.zip(before.par_chunks_mut(ROWS * before_row)).for_each(|(block, before)| work(block, before));
    }
}

/// Length in f32 of the scratch memory of [`backward_heads`]: each task's partial sum of dγ, and a head's gradient.
pub fn backward_heads_scratch(tokens: usize, head_width: usize) -> usize {
    tokens.div_ceil(ROWS) * 2 * head_width
}

/// Replaces the gradients of [`forward_heads`]' outputs inside the rows of `dqkv` by those of its inputs, and adds to `dgamma`,
/// `None` if γ is frozen.
///
/// `saved`: `before` as x, rstd `[tokens, heads]`, and γ `[head_width]`. `scratch` is [`backward_heads_scratch`] long.
pub fn backward_heads(
    heads: Heads,
    saved: Saved<'_>,
    dqkv: &mut [f32],
    dgamma: Option<&mut [f32]>,
    scratch: &mut [f32],
) {
    let _timed = timed(Part::LayerNorm);
    let Saved { x, rstd, gamma } = saved;
    let width = gamma.len();
    let tokens = rstd.len() / heads.heads;
    let (x_row, row) = (x.len() / tokens, dqkv.len() / tokens);
    let scratch = &mut scratch[..backward_heads_scratch(tokens, width)];
    dqkv.par_chunks_mut(ROWS * row)
        .zip(x.par_chunks(ROWS * x_row).zip(rstd.par_chunks(ROWS * heads.heads)))
        .zip(scratch.par_chunks_mut(2 * width))
        .for_each(|((dqkv, (x, rstd)), scratch)| {
            simd(
                #[inline(always)]
                || {
                    let (dgamma, dy) = scratch.split_at_mut(width);
                    dgamma.fill(0.0);
                    let rows = dqkv.chunks_exact_mut(row).zip(x.chunks_exact(x_row));
                    for ((dqkv, x), rstd) in rows.zip(rstd.chunks_exact(heads.heads)) {
                        let dqkv = heads.of_mut(dqkv, width).chunks_exact_mut(width);
                        for ((dx, x), &rstd) in dqkv.zip(heads.of(x, width).chunks_exact(width)).zip(rstd) {
                            dy.copy_from_slice(dx);
                            row_backward::<false>(x, (0.0, rstd), gamma, dy, dx, Accumulate::Set, (dgamma, &mut []));
                        }
                    }
                },
            );
        });
    let Some(dgamma) = dgamma else { return };
    for partial in scratch.chunks_exact(2 * width) {
        dgamma.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};

    const EPS: f32 = 1e-6;

    /// The norm of one row in f64.
    fn definition(x: &[f32], gamma: &[f32]) -> Vec<f64> {
        let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        let rstd = 1.0 / (square + f64::from(EPS)).sqrt();
        x.iter().zip(gamma).map(|(&x, &g)| f64::from(x) * rstd * f64::from(g)).collect()
    }

    fn assert_near(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (&found, &expected) in found.iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() < 2e-6, "expected {expected}, got {found}");
        }
    }

    #[test]
    fn forward_matches_the_definition_and_backward_finite_differences() {
        for (rows, width) in [(5, 12), (1, 3), (67, 128), (33, 259)] {
            let (x, gamma, dy) = (random(rows * width, 1), random(width, 2), random(rows * width, 3));
            let run = |x: &[f32], gamma: &[f32]| {
                let (mut y, mut rstd) = (vec![f32::NAN; rows * width], vec![f32::NAN; rows]);
                forward(x, gamma, EPS, &mut y, &mut rstd);
                (y, rstd)
            };
            let (y, rstd) = run(&x, &gamma);
            for (y, x) in y.chunks_exact(width).zip(x.chunks_exact(width)) {
                assert_near(y, &definition(x, &gamma));
            }
            let mut again = vec![f32::NAN; rows * width];
            apply(&x, &rstd, &gamma, &mut again);
            assert_eq!(y, again);

            let (start, start_gamma) = (random(rows * width, 5), random(width, 6));
            let (mut dx, mut dgamma) = (start.clone(), start_gamma.clone());
            let saved = Saved { x: &x, rstd: &rstd, gamma: &gamma };
            let mut scratch = vec![f32::NAN; rows::backward_scratch::<false>(rows, width)];
            backward(saved, &dy, &mut dx, Accumulate::Add, Some(&mut dgamma), &mut scratch);
            let mut only = vec![f32::NAN; rows * width];
            backward(saved, &dy, &mut only, Accumulate::Set, None, &mut scratch);
            for ((dx, start), only) in dx.iter().zip(&start).zip(&only) {
                assert!((dx - (start + only)).abs() < 1e-5);
            }
            dgamma.iter_mut().zip(&start_gamma).for_each(|(d, start)| *d -= start);
            check_gradient(&x, &only, |x| dot(&run(x, &gamma).0, &dy));
            check_gradient(&gamma, &dgamma, |gamma| dot(&run(&x, gamma).0, &dy));
        }
    }

    #[test]
    fn heads_inside_rows_are_normalised_in_place_and_nothing_else_changes() {
        // Tokens, row, columns kept for the backward pass, heads, head width.
        for (tokens, row, kept, first, heads, width) in
            [(5, 40, 30, 6, 3, 8), (1, 7, 7, 0, 1, 7), (70, 90, 80, 35, 9, 5), (33, 300, 260, 1, 1, 259)]
        {
            let at = Heads { first, heads };
            let (qkv, gamma, dy) = (random(tokens * row, 1), random(width, 2), random(tokens * row, 3));
            let run = |qkv: &[f32], gamma: &[f32], before: &mut [f32]| {
                let (mut y, mut rstd) = (qkv.to_vec(), vec![f32::NAN; tokens * heads]);
                forward_heads(at, &mut y, gamma, EPS, before, &mut rstd);
                (y, rstd)
            };
            let mut before = vec![f32::NAN; tokens * kept];
            let (y, rstd) = run(&qkv, &gamma, &mut before);
            assert_eq!((&y, &rstd), (&run(&qkv, &gamma, &mut []).0, &rstd));
            let own = first..first + heads * width;
            for ((y, x), before) in y.chunks_exact(row).zip(qkv.chunks_exact(row)).zip(before.chunks_exact(kept)) {
                for head in own.clone().step_by(width) {
                    assert_near(&y[head..head + width], &definition(&x[head..head + width], &gamma));
                }
                assert_eq!((&y[..first], &y[own.end..]), (&x[..first], &x[own.end..]));
                assert_eq!(before[own.clone()], x[own.clone()]);
                assert!(before[..first].iter().chain(&before[own.end..]).all(|x| x.is_nan()));
            }

            let saved = Saved { x: &before, rstd: &rstd, gamma: &gamma };
            let (mut dx, mut frozen, mut dgamma) = (dy.clone(), dy.clone(), vec![0.0; width]);
            let mut scratch = vec![f32::NAN; backward_heads_scratch(tokens, width)];
            backward_heads(at, saved, &mut dx, Some(&mut dgamma), &mut scratch);
            backward_heads(at, saved, &mut frozen, None, &mut scratch);
            assert_eq!(dx, frozen);
            // Columns beside the heads are passed on, so their gradient is `dy` itself.
            check_gradient(&qkv, &dx, |qkv| dot(&run(qkv, &gamma, &mut []).0, &dy));
            check_gradient(&gamma, &dgamma, |gamma| dot(&run(&qkv, gamma, &mut []).0, &dy));
        }
    }
}
