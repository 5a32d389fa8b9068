//! A linear layer: y = x·Wᵀ + b.
//!
//! `x`: [rows, inputs]; `weight`: [outputs, inputs]; `bias`: [outputs]; `y`: [rows, outputs]; saved for backward: `x`.

use rayon::prelude::*;

use super::simd::simd;
use crate::gemm::{Into, Mat, MatMut, Precision, matmul, matmul_onto};
use crate::profile::{Part, timed};

/// Columns in one task of a bias gradient.
const COLUMNS: usize = 64;

/// `y = x·Wᵀ + b`
pub fn forward(precision: Precision, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
    let _timed = timed(Part::Linear);
    onto(precision, x, weight, bias.len(), y, |y, _, col| {
        for i in 0..y.n_rows() {
            let row = y.row_mut(i);
            row.copy_from_slice(&bias[col..][..row.len()]);
        }
    });
}

/// `y = residual + x·Wᵀ + b`: a projection back into the residual stream, `[rows, outputs]`.
pub fn forward_residual(
    precision: Precision,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    residual: &[f32],
    y: &mut [f32],
) {
    let _timed = timed(Part::Linear);
    let outputs = bias.len();
    onto(precision, x, weight, outputs, y, |y, row, col| {
        for i in 0..y.n_rows() {
            let residual = &residual[(row + i) * outputs + col..];
            for ((y, &r), &b) in y.row_mut(i).iter_mut().zip(residual).zip(&bias[col..]) {
                *y = r + b;
            }
        }
    });
}

/// `y = start + x·Wᵀ`
fn onto(
    precision: Precision,
    x: &[f32],
    weight: &[f32],
    outputs: usize,
    y: &mut [f32],
    start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
) {
    let inputs = weight.len() / outputs;
    let rows = y.len() / outputs;
    let (x, weight) = (Mat::new(x, rows, inputs), Mat::new(weight, outputs, inputs));
    matmul_onto(precision, MatMut::new(y, rows, outputs), x, weight.t(), start);
}

/// Every row of `y` becomes the bias, for a product to be added to.
pub fn fill_bias(bias: &[f32], y: &mut [f32]) {
    y.chunks_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
}

/// `y` becomes the residual and the bias, for a product to be added to.
pub fn fill_residual(residual: &[f32], bias: &[f32], y: &mut [f32]) {
    let outputs = bias.len();
    for (y, residual) in y.chunks_mut(outputs).zip(residual.chunks(outputs)) {
        for ((y, &r), &b) in y.iter_mut().zip(residual).zip(bias) {
            *y = r + b;
        }
    }
}

/// `y += x·Wᵀ`
pub fn add_product(precision: Precision, x: &[f32], weight: &[f32], outputs: usize, y: &mut [f32]) {
    let inputs = weight.len() / outputs;
    let rows = y.len() / outputs;
    let (x, weight) = (Mat::new(x, rows, inputs), Mat::new(weight, outputs, inputs));
    matmul(precision, MatMut::new(y, rows, outputs), Into::Add, x, weight.t());
}

/// `dx = dy·W`
pub fn backward_input(precision: Precision, dy: &[f32], weight: &[f32], outputs: usize, dx: &mut [f32]) {
    let _timed = timed(Part::Linear);
    let inputs = weight.len() / outputs;
    let rows = dy.len() / outputs;
    let (dy, weight) = (Mat::new(dy, rows, outputs), Mat::new(weight, outputs, inputs));
    matmul(precision, MatMut::new(dx, rows, inputs), Into::Set, dy, weight);
}

/// `dW += dyᵀ·x`, `db += Σ dy` over rows.
pub fn backward_params(precision: Precision, x: &[f32], dy: &[f32], dweight: &mut [f32], dbias: &mut [f32]) {
    let _timed = timed(Part::Linear);
    let outputs = dbias.len();
    let inputs = dweight.len() / outputs;
    let rows = dy.len() / outputs;
    let (x, dy_t) = (Mat::new(x, rows, inputs), Mat::new(dy, rows, outputs).t());
    matmul(precision, MatMut::new(dweight, outputs, inputs), Into::Add, dy_t, x);

    dbias.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, dbias)| {
        simd(
            #[inline(always)]
            || {
                for row in dy.chunks_exact(outputs) {
                    for (db, &dy) in dbias.iter_mut().zip(&row[chunk * COLUMNS..]) {
                        *db += dy;
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::{check_gradient, dot, random};

    #[test]
    fn backward_matches_finite_differences() {
        for (rows, inputs, outputs) in [(5, 12, 36), (1, 7, 3), (33, 16, 97)] {
            let (x, weight, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            let (dy, residual) = (random(rows * outputs, 4), random(rows * outputs, 5));
            let loss = |x: &[f32], weight: &[f32], bias: &[f32]| {
                let mut y = vec![f32::NAN; rows * outputs];
                forward(Precision::F32, x, weight, bias, &mut y);
                dot(&y, &dy)
            };
            let mut with_residual = vec![f32::NAN; rows * outputs];
            forward_residual(Precision::F32, &x, &weight, &bias, &residual, &mut with_residual);
            let expected = loss(&x, &weight, &bias) + dot(&residual, &dy);
            assert!((dot(&with_residual, &dy) - expected).abs() < 1e-3);

            let (mut dweight, mut dbias) = (vec![0.0; weight.len()], vec![0.0; outputs]);
            let mut dx = vec![f32::NAN; x.len()];
            backward_input(Precision::F32, &dy, &weight, outputs, &mut dx);
            backward_params(Precision::F32, &x, &dy, &mut dweight, &mut dbias);
            check_gradient(&x, &dx, |x| loss(x, &weight, &bias));
            check_gradient(&weight, &dweight, |weight| loss(&x, weight, &bias));
            check_gradient(&bias, &dbias, |bias| loss(&x, &weight, bias));
        }
    }
}
