//! Normalisation of rows by given statistics, y = (x − mean)·rstd·γ + β, and its backward pass.
//!
//! `x`, `y`: [rows, width]; `mean`, `rstd`: [rows]; `gamma`: [width]; `beta`: [width] or empty. `CENTERED` norms subtract each
//! row's mean. In the others the mean is 0, a constant; `mean` is empty, and nothing depends on `beta`.

use rayon::prelude::*;

use crate::gemm::Accumulate;
use ngen3_simd::{simd, sum, sum_zip};

/// Rows per task. Fixed, so that the order of summation over rows does not depend on the number of threads.
pub const ROWS: usize = 32;

/// Inputs of [`apply`] and [`backward`]: the input of the forward pass and the statistics that it saved.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `[rows, width]`
    pub x: &'a [f32],
    /// `[rows]`, or empty if the mean is 0.
    pub mean: &'a [f32],
    /// `[rows]`
    pub rstd: &'a [f32],
    /// `[width]`
    pub gamma: &'a [f32],
}

impl Saved<'_> {
    #[inline(always)]
    fn mean<const CENTERED: bool>(&self, row: usize) -> f32 {
        if CENTERED { self.mean[row] } else { 0.0 }
    }
}

/// Computes `y` from the saved statistics.
pub fn apply<const CENTERED: bool>(saved: Saved<'_>, beta: &[f32], y: &mut [f32]) {
    let Saved { x, rstd, gamma, .. } = saved;
    let width = gamma.len();
    x.par_chunks(width * ROWS).zip(y.par_chunks_mut(width * ROWS)).enumerate().for_each(|(task, (x, y))| {
        simd(
            #[inline(always)]
            || {
                for (i, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
                    let row = task * ROWS + i;
                    normalize(x, saved.mean::<CENTERED>(row), rstd[row], gamma, beta, y);
                }
            },
        );
    });
}

/// Normalises one row.
#[inline(always)]
pub fn normalize(x: &[f32], mean: f32, rstd: f32, gamma: &[f32], beta: &[f32], y: &mut [f32]) {
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

/// Length in f32 of one task's partial sums: of dγ and, if centered, of dβ.
const fn partials<const CENTERED: bool>(width: usize) -> usize {
    if CENTERED { 2 * width } else { width }
}

/// Length in f32 of the scratch memory of [`backward`] for `rows` rows of `width`: partial sums of each task.
pub fn backward_scratch<const CENTERED: bool>(rows: usize, width: usize) -> usize {
    rows.div_ceil(ROWS) * partials::<CENTERED>(width)
}

/// Computes `dx`, and adds to the parameters' gradients: dγ and, if centered, dβ (empty without biases); `None` if frozen.
/// `scratch` is [`backward_scratch`] long.
pub fn backward<const CENTERED: bool>(
    saved: Saved<'_>,
    dy: &[f32],
    dx: &mut [f32],
    accumulate: Accumulate,
    dparams: Option<(&mut [f32], &mut [f32])>,
    scratch: &mut [f32],
) {
    let Saved { x, rstd, gamma, .. } = saved;
    let width = gamma.len();
    let scratch = &mut scratch[..backward_scratch::<CENTERED>(rstd.len(), width)];
    x.par_chunks(width * ROWS)
        .zip(dy.par_chunks(width * ROWS).zip(dx.par_chunks_mut(width * ROWS)))
        .zip(scratch.par_chunks_mut(partials::<CENTERED>(width)))
        .enumerate()
        .for_each(|(task, ((x, (dy, dx)), partial))| {
            simd(
                #[inline(always)]
                || {
                    partial.fill(0.0);
                    let (dgamma, dbeta) = partial.split_at_mut(width);
                    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
                    for (i, ((x, dy), dx)) in rows.enumerate() {
                        let row = task * ROWS + i;
                        let statistics = (saved.mean::<CENTERED>(row), rstd[row]);
                        row_backward::<CENTERED>(x, statistics, gamma, dy, dx, accumulate, (dgamma, dbeta));
                    }
                },
            );
        });
    let Some((dgamma, dbeta)) = dparams else { return };
    for partial in scratch.chunks_exact(partials::<CENTERED>(width)) {
        let (gamma, beta) = partial.split_at(width);
        dgamma.iter_mut().zip(gamma).for_each(|(sum, part)| *sum += part);
        dbeta.iter_mut().zip(beta).for_each(|(sum, part)| *sum += part);
    }
}

/// With x̂ = (x − mean)·rstd and g = dy·γ:  dx += rstd·(g − mean(g) − x̂·mean(g·x̂)),  dγ += dy·x̂,  dβ += dy.  Without a mean, its
/// gradient, mean(g), is absent too.
///
/// `statistics`: mean and rstd; `dparams`: dγ and dβ, the latter empty unless centered.
#[inline(always)]
pub fn row_backward<const CENTERED: bool>(
    x: &[f32],
    statistics: (f32, f32),
    gamma: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    accumulate: Accumulate,
    dparams: (&mut [f32], &mut [f32]),
) {
    let width = gamma.len();
    let ((mu, r), (dgamma, dbeta)) = (statistics, dparams);
    let (x, dy, dx, dgamma) = (&x[..width], &dy[..width], &mut dx[..width], &mut dgamma[..width]);
    let mean_g = if CENTERED { sum_zip(dy, gamma, |dy, g| dy * g) / width as f32 } else { 0.0 };
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
        if CENTERED {
            dbeta[i] += dy[i];
        }
    }
}
