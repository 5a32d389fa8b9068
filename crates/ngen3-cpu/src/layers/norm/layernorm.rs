//! Layer normalisation over the last axis: y = (x − μ)·rstd·γ + β   (Ba et al. 2016).
//!
//! `x`, `y`: [rows, width]; `gamma`: [width]; `beta`: [width], or empty in a model without biases; saved for the backward pass:
//! `mean`, `rstd`: [rows]. The output is not saved: the backward pass recomputes it from `x` with [`apply`], which costs less
//! than the memory.

use rayon::prelude::*;

pub use super::rows::Saved;
use super::rows::{self, ROWS, normalize};
use crate::base::profile::{Part, timed};
use crate::gemm::Accumulate;
use ngen3_simd::{simd, sum};

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
    rows::apply::<true>(Saved { x, mean, rstd, gamma }, beta, y);
}

/// Length in f32 of the scratch memory of [`backward`] for `rows` rows of `width`.
pub fn backward_scratch(rows: usize, width: usize) -> usize {
    rows::backward_scratch::<true>(rows, width)
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
    rows::backward::<true>(saved, dy, dx, accumulate, dparams, scratch);
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
