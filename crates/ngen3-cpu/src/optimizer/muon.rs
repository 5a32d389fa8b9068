//! Muon (Jordan et al. 2024, <https://kellerjordan.github.io/posts/muon/>): moves a matrix by its orthogonalised average gradient.
//!
//! m = μ·m + (1 − μ)·g,  X = (μ·m + (1 − μ)·g) / ‖…‖   (Nesterov's momentum),
//! X ← aX + b(XXᵀ)X + c(XXᵀ)²X   ([`Muon::STEPS`] times),
//! p = p·(1 − lr·decay) − lr·0.2·√max(rows, columns)·X.
//!
//! A Newton–Schulz step multiplies X by the symmetric P = a·1 + bG + cG² of the Gram matrix G = XXᵀ. Several steps need X only
//! once: the next Gram matrix is PGP, and X is multiplied by the product of all P in the end. All these are symmetric, `[n, n]`
//! for the smaller side n, so half of each is computed. But they grow with each step, and with them the effect of their
//! rounding on X: X is multiplied after every [`steps_per_pass`].

use rayon::prelude::*;

use super::adamw::square_sum;
use super::arrays::Arrays;
use crate::base::memory::{Carver, padded};
use crate::gemm::tiles::with_workspace;
use crate::gemm::{Accumulate, Mat, MatMut, Precision, matmul, matmul_symmetric};
use ngen3_engine::Muon;
use ngen3_simd::simd;

/// Newton–Schulz steps between two products with X, of a matrix whose smaller side is `n`. In small matrices rounding to bf16 does
/// not average out over a pass (up to 33 % of an update of 12 x 12, measured), and speed does not count.
fn steps_per_pass(n: usize) -> usize {
    if n < 64 { 1 } else { 3 }
}

/// Elements per task.
const CHUNK: usize = 1 << 14;

/// Updates stacked matrices of one shape in place with gradients scaled by `clip`, then zeroes the gradients. `exp_avg` is the
/// average of gradients.
pub fn update(muon: &Muon, precision: Precision, clip: f32, shape: [usize; 2], arrays: Arrays<'_>) {
    let len = shape[0] * shape[1];
    let Arrays { params, grads, exp_avg, .. } = arrays;
    params
        .par_chunks_mut(len)
        .zip(grads.par_chunks_mut(len))
        .zip(exp_avg.par_chunks_mut(len))
        .for_each(|((params, grads), average)| update_matrix(muon, precision, clip, shape, params, grads, average));
}

fn update_matrix(
    muon: &Muon,
    precision: Precision,
    clip: f32,
    [rows, columns]: [usize; 2],
    params: &mut [f32],
    grads: &mut [f32],
    average: &mut [f32],
) {
    let momentum = muon.momentum;
    grads.par_chunks_mut(CHUNK).zip(average.par_chunks_mut(CHUNK)).for_each(|(grads, average)| {
        simd(
            #[inline(always)]
            || {
                for (g, m) in grads.iter_mut().zip(average) {
                    let grad = *g * clip;
                    *m = momentum * *m + (1.0 - momentum) * grad;
                    *g = momentum * *m + (1.0 - momentum) * grad;
                }
            },
        );
    });
    orthogonalise(precision, grads, rows, columns);
    let (keep, step_size) = (1.0 - muon.lr * muon.weight_decay, muon.step_size(rows, columns));
    params.par_chunks_mut(CHUNK).zip(grads.par_chunks_mut(CHUNK)).for_each(|(params, grads)| {
        simd(
            #[inline(always)]
            || {
                for (p, x) in params.iter_mut().zip(grads) {
                    *p = *p * keep - step_size * *x;
                    *x = 0.0;
                }
            },
        );
    });
}

/// Brings the singular values of `x`, `[rows, columns]`, near 1.
fn orthogonalise(precision: Precision, x: &mut [f32], rows: usize, columns: usize) {
    let scale = 1.0 / norm(x).max(Muon::EPS);
    x.iter_mut().for_each(|x| *x *= scale);
    let n = rows.min(columns);
    let lengths = [x.len(), n * n, n * n, n * n, n * n];
    with_workspace(lengths.map(padded).iter().sum(), |workspace| {
        let mut carver = Carver(workspace);
        let [mut next, gram, p, total, scratch] = lengths.map(|length| carver.cut(length));
        let mut x = x;
        let mut in_place = true;
        for pass in [Muon::COEFFICIENTS; Muon::STEPS].chunks(steps_per_pass(n)) {
            let wide = Mat::new(x, rows, columns);
            let (a, b) = if rows <= columns { (wide, wide.t()) } else { (wide.t(), wide) };
            matmul_symmetric(precision, gram, a, b);
            for (i, &coefficients) in pass.iter().enumerate() {
                matmul_symmetric(precision, p, square(gram, n), square(gram, n));
                polynomial(p, gram, n, coefficients);
                if i == 0 {
                    total.copy_from_slice(p);
                } else {
                    matmul_symmetric(precision, scratch, square(p, n), square(total, n));
                    total.copy_from_slice(scratch);
                }
                if i + 1 < pass.len() {
                    matmul_symmetric(precision, scratch, square(p, n), square(gram, n));
                    matmul_symmetric(precision, gram, square(scratch, n), square(p, n));
                }
            }
            let (a, b) = if rows <= columns { (square(total, n), wide) } else { (wide, square(total, n)) };
            matmul(precision, MatMut::new(next, rows, columns), Accumulate::Set, a, b);
            std::mem::swap(&mut x, &mut next);
            in_place = !in_place;
        }
        if !in_place {
            next.copy_from_slice(x);
        }
    });
}

fn norm(x: &[f32]) -> f32 {
    square_sum(x).sqrt() as f32
}

fn square(x: &[f32], n: usize) -> Mat<'_> {
    Mat::new(x, n, n)
}

/// Computes `square = a·1 + b·gram + c·square`, of `[n, n]` matrices.
fn polynomial(square: &mut [f32], gram: &[f32], n: usize, [a, b, c]: [f32; 3]) {
    for (square, &gram) in square.iter_mut().zip(gram) {
        *square = b * gram + c * *square;
    }
    square.iter_mut().step_by(n + 1).for_each(|diagonal| *diagonal += a);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;

    #[test]
    fn passes_of_several_steps_in_bf16_stay_near_single_steps_in_f32() {
        for [rows, columns] in [[64, 64], [70, 130], [257, 96], [128, 512]] {
            let x = random(rows * columns, 1);
            let [mut found, mut expected] = [x.clone(), x];
            orthogonalise(Precision::Bf16, &mut found, rows, columns);
            single_steps(&mut expected, rows, columns);
            let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>();
            let error = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let error = (error / square(&mut expected.iter().copied())).sqrt();
            assert!(error < 0.06, "{rows} x {columns}: {error}");
        }
    }

    /// [`orthogonalise`] in f32, with a product with X in each step.
    fn single_steps(x: &mut [f32], rows: usize, columns: usize) {
        let scale = 1.0 / norm(x).max(Muon::EPS);
        x.iter_mut().for_each(|x| *x *= scale);
        let (mut gram, mut p, mut next) = (vec![0.0; rows * rows], vec![0.0; rows * rows], vec![0.0; x.len()]);
        for _ in 0..Muon::STEPS {
            let wide = Mat::new(x, rows, columns);
            matmul_symmetric(Precision::F32, &mut gram, wide, wide.t());
            matmul_symmetric(Precision::F32, &mut p, square(&gram, rows), square(&gram, rows));
            polynomial(&mut p, &gram, rows, Muon::COEFFICIENTS);
            matmul(Precision::F32, MatMut::new(&mut next, rows, columns), Accumulate::Set, square(&p, rows), wide);
            x.copy_from_slice(&next);
        }
    }
}
