//! Layer normalisation over the last axis: y = (x − μ)·rstd·γ + β   (Ba et al. 2016).
//!
//! `x`, `y`: [rows, width]; `gamma`: [width]; `beta`: [width], or empty in a model without biases; saved for the backward pass:
//! `mean`, `rstd`: [rows]. The output is not saved: the backward pass recomputes it from `x` with [`apply`], which costs less
//! than the memory.

use rayon::prelude::*;

use crate::base::profile::{Part, timed};
use crate::gemm::Accumulate;
use ngen3_simd::{simd, sum, sum_zip};

/// Rows per task. Fixed, so that the order of summation over rows does not depend on the number of threads.
const ROWS: usize = 32;

/// Computes `mean` and `rstd` of each row of `x`, and the output `y`.
pub fn forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32, y: &mut [f32], mean: &mut [f32], rstd: &mut [f32]) {
    let _timed = timed(Part::LayerNorm);
    let width = gamma.len();
    x.par_chunks(width * ROWS)
        .zip(y.par_chunks_mut(width * ROWS))
        .zip(mean.par_chunks_mut(ROWS).zip(rstd.par_chunks_mut(ROWS)))
        .for_each(|((x, y), (mean, rstd))| {
            simd(
                #[inline(always)]
                || {
                    for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
                        let mu = sum(x, |x| x) / width as f32;
                        let variance = sum(x, |x| (x - mu) * (x - mu)) / width as f32;
                        let r = 1.0 / (variance + eps).sqrt();
                        normalize(x, mu, r, gamma, beta, y);
                        mean[row] = mu;
                        rstd[row] = r;
                    }
                },
            );
        });
}

/// Recomputes `y` from `x` and the saved `mean` and `rstd`.
pub fn apply(x: &[f32], mean: &[f32], rstd: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
    let _timed = timed(Part::LayerNorm);
    let width = gamma.len();
    x.par_chunks(width * ROWS)
        .zip(y.par_chunks_mut(width * ROWS))
        .zip(mean.par_chunks(ROWS).zip(rstd.par_chunks(ROWS)))
        .for_each(|((x, y), (mean, rstd))| {
            simd(
                #[inline(always)]
                || {
                    for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
                        normalize(x, mean[row], rstd[row], gamma, beta, y);
                    }
                },
            );
        });
}

#[inline(always)]
fn normalize(x: &[f32], mean: f32, rstd: f32, gamma: &[f32], beta: &[f32], y: &mut [f32]) {
    if beta.is_empty() {
        for ((y, &x), &g) in y.iter_mut().zip(x).zip(gamma) {
            *y = (x - mean) * rstd * g;
        }
        return;
    }
    for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
        *y = (x - mean) * rstd * g + b;
    }
}

/// Length in f32 of the scratch memory of [`backward`] for `rows` rows of `width`: partial sums of dγ and dβ per task.
pub fn backward_scratch(rows: usize, width: usize) -> usize {
    rows.div_ceil(ROWS) * 2 * width
}

/// Inputs of [`backward`]: the input of the forward pass and its saved statistics.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `[rows, width]`
    pub x: &'a [f32],
    /// `[rows]`
    pub mean: &'a [f32],
    /// `[rows]`
    pub rstd: &'a [f32],
    /// `[width]`
    pub gamma: &'a [f32],
}

/// With x̂ = (x − μ)·rstd and g = dy·γ:  dx += rstd·(g − mean(g) − x̂·mean(g·x̂)),  dγ += Σ dy·x̂,  dβ += Σ dy.
///
/// `dx` is overwritten, or accumulated where `x` also feeds the residual connection. `dparams` is dγ and dβ (empty without
/// biases), or `None` if they are frozen. `scratch` is [`backward_scratch`] long.
pub fn backward(
    saved: Saved<'_>,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: Accumulate,
    dparams: Option<(&mut [f32], &mut [f32])>,
    scratch: &mut [f32],
) {
    let _timed = timed(Part::LayerNorm);
    let Saved { x, mean, rstd, gamma } = saved;
    let width = gamma.len();
    let scratch = &mut scratch[..backward_scratch(mean.len(), width)];
    x.par_chunks(width * ROWS)
        .zip(dy.par_chunks(width * ROWS).zip(dx.par_chunks_mut(width * ROWS)))
        .zip(mean.par_chunks(ROWS).zip(rstd.par_chunks(ROWS)))
        .zip(scratch.par_chunks_mut(2 * width))
        .for_each(|(((x, (dy, dx)), (mean, rstd)), partial)| {
            simd(
                #[inline(always)]
                || {
                    partial.fill(0.0);
                    let (dgamma, dbeta) = partial.split_at_mut(width);
                    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
                    for (row, ((x, dy), dx)) in rows.enumerate() {
                        let (mu, r) = (mean[row], rstd[row]);
                        let mean_g = sum_zip(dy, gamma, |dy, g| dy * g) / width as f32;
                        let mut mean_gx = 0.0;
                        // `sum_zip` takes two slices, so g·x̂ is computed in blocks that stay in registers.
                        for ((x, dy), g) in x.chunks(256).zip(dy.chunks(256)).zip(gamma.chunks(256)) {
                            let mut gx = [0.0f32; 256];
                            for (((gx, &x), &dy), &g) in gx.iter_mut().zip(x).zip(dy).zip(g) {
                                *gx = dy * g * (x - mu) * r;
                            }
                            mean_gx += sum(&gx[..x.len()], |gx| gx);
                        }
                        mean_gx /= width as f32;
                        for i in 0..width {
                            let x_hat = (x[i] - mu) * r;
                            let d = r * (dy[i] * gamma[i] - mean_g - x_hat * mean_gx);
                            dx[i] = if accumulate == Accumulate::Add { dx[i] + d } else { d };
                            dgamma[i] += dy[i] * x_hat;
                            dbeta[i] += dy[i];
                        }
                    }
                },
            );
        });
    let Some((dgamma, dbeta)) = dparams else { return };
    for partial in scratch.chunks_exact(2 * width) {
        let (gamma, beta) = partial.split_at(width);
        dgamma.iter_mut().zip(gamma).for_each(|(sum, part)| *sum += part);
        dbeta.iter_mut().zip(beta).for_each(|(sum, part)| *sum += part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};

    #[test]
    fn backward_matches_finite_differences() {
        for (rows, width) in [(5, 12), (1, 3), (67, 128)] {
            let (x, gamma, beta) = (random(rows * width, 1), random(width, 2), random(width, 3));
            let dy = random(rows * width, 4);
            let loss = |x: &[f32], gamma: &[f32], beta: &[f32]| {
                let mut y = vec![0.0; rows * width];
                forward(x, gamma, beta, 1e-5, &mut y, &mut vec![0.0; rows], &mut vec![0.0; rows]);
                dot(&y, &dy)
            };
            let (mut y, mut mean, mut rstd) = (vec![0.0; rows * width], vec![0.0; rows], vec![0.0; rows]);
            forward(&x, &gamma, &beta, 1e-5, &mut y, &mut mean, &mut rstd);
            let mut again = vec![0.0; rows * width];
            apply(&x, &mean, &rstd, &gamma, &beta, &mut again);
            assert_eq!(y, again);

            let start = random(rows * width, 5);
            let (mut dx, mut dgamma, mut dbeta) = (start.clone(), vec![0.0; width], vec![0.0; width]);
            let saved = Saved { x: &x, mean: &mean, rstd: &rstd, gamma: &gamma };
            let mut scratch = vec![f32::NAN; backward_scratch(rows, width)];
            backward(saved, &dy, &mut dx, Accumulate::Add, Some((&mut dgamma, &mut dbeta)), &mut scratch);
            let mut only = vec![f32::NAN; rows * width];
            backward(saved, &dy, &mut only, Accumulate::Set, None, &mut scratch);
            for ((dx, start), only) in dx.iter().zip(&start).zip(&only) {
                assert!((dx - (start + only)).abs() < 1e-5);
            }
            check_gradient(&x, &only, |x| loss(x, &gamma, &beta));
            check_gradient(&gamma, &dgamma, |gamma| loss(&x, gamma, &beta));
            check_gradient(&beta, &dbeta, |beta| loss(&x, &gamma, beta));
        }
    }
}
