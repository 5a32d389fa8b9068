//! Products of one or a few vectors with a weight, as decoding computes them for each token.
//!
//! y = x·Wᵀ with `x`: [rows, inputs], `weight`: [outputs, inputs], `y`: [rows, outputs]. Each weight is read once and used for
//! a few operations, so memory bandwidth is the limit and a narrower copy of the weights is faster: [`Matrix`] holds f32, bf16
//! (half the bytes), int8 with one scale per output (a quarter) or groups of 32 (`gemm/groups`). Sums are always f32. Many
//! vectors, as in a prompt, go through the kernels for large products.

use std::sync::Arc;

use rayon::prelude::*;

use crate::gemm::groups::Groups;
use crate::gemm::tiles::pack;
use crate::gemm::{Mat, MatMut, Precision, matmul_onto};
use ngen3_simd::{LANES, fold, simd};

/// Weight elements per task: enough to pay for waking another thread.
const TASK: usize = 1 << 16;

/// Largest number of rows for which reading the weights dominates the time.
const FEW_ROWS: usize = 8;

/// Outputs computed side by side if rows are short.
const GROUP: usize = 8;

/// Longest row, in inputs, that is computed in groups: reducing a short row's lanes is a large part of its work. Longer rows
/// are read one after the other, since sequential reads are fastest.
const SHORT: usize = 256;

/// Weight `[outputs, inputs]` in the format that decoding reads.
#[derive(Debug)]
pub enum Matrix<'a> {
    /// The parameters themselves.
    F32(&'a [f32]),
    /// bf16: the rounded high halves of the f32.
    Bf16(Vec<u16>),
    /// w ≈ scale·q, with |q| ≤ 127 and one scale per output.
    Int8 {
        /// `[outputs, inputs]`
        q: Vec<i8>,
        /// `[outputs]`
        scales: Vec<f32>,
    },
    /// Groups of 32 inputs, which share a scale.
    Groups(Arc<Groups>),
    /// Parts in different formats, with the number of outputs of each.
    Parts(Vec<(usize, Matrix<'a>)>),
}

impl<'a> Matrix<'a> {
    /// Rounds a weight to bf16.
    pub fn bf16(weight: &[f32]) -> Self {
        let mut rounded = vec![0; weight.len()];
        rounded.par_chunks_mut(TASK).zip(weight.par_chunks(TASK)).for_each(|(rounded, weight)| {
            simd(
                #[inline(always)]
                || rounded.iter_mut().zip(weight).for_each(|(r, &w)| *r = pack::pair(w, 0.0) as u16),
            );
        });
        Self::Bf16(rounded)
    }

    /// Quantises each output's weights to 255 levels, symmetric about 0, scaled by their largest magnitude.
    pub fn int8(weight: &[f32], inputs: usize) -> Self {
        let (mut q, mut scales) = (vec![0; weight.len()], vec![0.0; weight.len() / inputs]);
        q.par_chunks_mut(inputs).zip(weight.par_chunks(inputs)).zip(scales.par_iter_mut()).for_each(
            |((q, w), scale)| {
                let (step, inverse) = int8_step(w);
                *scale = step;
                q.iter_mut().zip(w).for_each(|(q, w)| *q = (w * inverse).round() as i8);
            },
        );
        Self::Int8 { q, scales }
    }

    /// Joins parts of a weight, one after the other, each with its number of outputs.
    pub fn of_parts(mut parts: Vec<(usize, Self)>) -> Self {
        if parts.len() == 1 { parts.remove(0).1 } else { Self::Parts(parts) }
    }

    /// Computes `y = start + x·Wᵀ`, with `x`: `[rows, inputs]`, `y`: `[rows, outputs]`. `start(part, row, col)` fills a part of `y`
    /// whose top-left element is `(row, col)`. `weight` are the parameters, in whose `precision` long prompts are multiplied
    /// unless the weight is in groups.
    pub fn product_onto(
        &self,
        precision: Precision,
        weight: Mat<'_>,
        mut y: MatMut<'_>,
        x: Mat<'_>,
        start: &(impl Fn(&mut MatMut<'_>, usize, usize) + Sync),
    ) {
        let Self::Parts(parts) = self else {
            return self.part_onto(precision, weight, y, x, start);
        };
        let mut first = 0;
        for (outputs, part) in parts {
            let columns = first..first + outputs;
            let weight = weight.rows(columns.clone());
            let start = |y: &mut MatMut<'_>, row: usize, col: usize| start(y, row, columns.start + col);
            part.part_onto(precision, weight, y.columns(columns.clone()), x, &start);
            first = columns.end;
        }
    }

    /// As [`Matrix::product_onto`], for a matrix of one part.
    fn part_onto(
        &self,
        precision: Precision,
        weight: Mat<'_>,
        mut y: MatMut<'_>,
        x: Mat<'_>,
        start: &(impl Fn(&mut MatMut<'_>, usize, usize) + Sync),
    ) {
        match self {
            Self::Groups(groups) => groups.product_onto(y, x, start),
            _ if x.n_rows() > FEW_ROWS => matmul_onto(precision, y, x, weight.t(), start),
            _ => {
                start(&mut y, 0, 0);
                self.add_product(x, &y);
            }
        }
    }

    /// Adds x·Wᵀ to `y` for a few rows.
    fn add_product(&self, x: Mat<'_>, y: &MatMut<'_>) {
        match self {
            Self::F32(weight) => product(
                weight,
                x,
                y,
                #[inline(always)]
                |w| w,
                |_| 1.0,
            ),
            Self::Bf16(weight) => product(
                weight,
                x,
                y,
                #[inline(always)]
                |w| f32::from_bits(u32::from(w) << 16),
                |_| 1.0,
            ),
            Self::Int8 { q, scales } => product(q, x, y, f32::from, |output| scales[output]),
            Self::Groups(_) | Self::Parts(_) => unreachable!("multiplied by their own kernels"),
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(weight) => size_of_val(*weight),
            Self::Bf16(weight) => size_of_val(&weight[..]),
            Self::Int8 { q, scales } => q.len() + size_of_val(&scales[..]),
            Self::Groups(groups) => groups.bytes(),
            Self::Parts(parts) => parts.iter().map(|(_, part)| part.bytes()).sum(),
        }
    }
}

/// Returns the scale of a row's int8 values, and its inverse.
fn int8_step(row: &[f32]) -> (f32, f32) {
    let largest = row.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
    // The inverse of a smaller scale would be infinite.
    (largest / 127.0, if largest > 127.0 * f32::MIN_POSITIVE { 127.0 / largest } else { 0.0 })
}

/// Replaces one output's weights by their dequantised int8 values.
pub fn round_to_int8(row: &mut [f32]) {
    let (step, inverse) = int8_step(row);
    row.iter_mut().for_each(|w| *w = (*w * inverse).round() * step);
}

/// `y[row, output] += scale(output)·Σ value(w)·x`
fn product<T: Copy + Sync>(
    weight: &[T],
    x: Mat<'_>,
    y: &MatMut<'_>,
    value: impl Fn(T) -> f32 + Copy + Sync,
    scale: impl Fn(usize) -> f32 + Sync,
) {
    let (rows, inputs) = (x.n_rows(), x.cols());
    let outputs = weight.len() / inputs;
    let per_task = (TASK / inputs).max(1);
    (0..outputs.div_ceil(per_task)).into_par_iter().with_max_len(1).for_each(|task| {
        let first = task * per_task;
        let last = (first + per_task).min(outputs);
        let weight = &weight[first * inputs..last * inputs];
        for row in 0..rows {
            let x = x.row(row);
            // SAFETY: no two tasks share an output, and each takes the rows in turn.
            let mut y = unsafe { y.part(row..row + 1, first..last) };
            let y = y.row_mut(0);
            simd(
                #[inline(always)]
                || {
                    let side_by_side = if inputs <= SHORT { y.len() / GROUP * GROUP } else { 0 };
                    let (groups, rest) = y.split_at_mut(side_by_side);
                    let groups = groups.as_chunks_mut::<GROUP>().0;
                    for (i, (y, weight)) in groups.iter_mut().zip(weight.chunks_exact(GROUP * inputs)).enumerate() {
                        for (j, (y, dot)) in y.iter_mut().zip(dots::<T, GROUP>(weight, x, value)).enumerate() {
                            *y += scale(first + i * GROUP + j) * dot;
                        }
                    }
                    let weight = weight[side_by_side * inputs..].chunks_exact(inputs);
                    for (i, (y, weight)) in rest.iter_mut().zip(weight).enumerate() {
                        *y += scale(first + side_by_side + i) * dot(weight, x, value);
                    }
                },
            );
        }
    });
}

/// Returns `Σ value(w)·x`, in partial sums that fill four vectors, which hides the latency of addition.
#[inline(always)]
fn dot<T: Copy>(w: &[T], x: &[f32], value: impl Fn(T) -> f32) -> f32 {
    const SUMS: usize = 4 * LANES;
    let mut sums = [0.0f32; SUMS];
    let (w_blocks, w_rest) = w.as_chunks::<SUMS>();
    let (x_blocks, x_rest) = x.as_chunks::<SUMS>();
    for (w, x) in w_blocks.iter().zip(x_blocks) {
        for i in 0..SUMS {
            sums[i] += value(w[i]) * x[i];
        }
    }
    for ((sum, &w), &x) in sums.iter_mut().zip(w_rest).zip(x_rest) {
        *sum += value(w) * x;
    }
    let mut lanes = [0.0f32; LANES];
    for (i, sum) in sums.into_iter().enumerate() {
        lanes[i % LANES] += sum;
    }
    fold(lanes)
}

/// Returns `Σ value(w)·x` for each of N rows of the weight, side by side: this hides the latency of addition, and loads each
/// vector of x once for all rows.
#[inline(always)]
fn dots<T: Copy, const N: usize>(weight: &[T], x: &[f32], value: impl Fn(T) -> f32) -> [f32; N] {
    let inputs = x.len();
    let (x_blocks, x_rest) = x.as_chunks::<LANES>();
    let rows: [&[T]; N] = std::array::from_fn(|n| &weight[n * inputs..][..inputs]);
    let blocks = rows.map(|row| &row.as_chunks::<LANES>().0[..x_blocks.len()]);
    let mut sums = [[0.0f32; LANES]; N];
    for (b, x) in x_blocks.iter().enumerate() {
        for (sums, blocks) in sums.iter_mut().zip(&blocks) {
            let w = blocks[b];
            for i in 0..LANES {
                sums[i] += value(w[i]) * x[i];
            }
        }
    }
    for (sums, row) in sums.iter_mut().zip(&rows) {
        for ((sum, &w), &x) in sums.iter_mut().zip(&row[inputs - x_rest.len()..]).zip(x_rest) {
            *sum += value(w) * x;
        }
    }
    sums.map(fold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;

    #[test]
    fn each_kind_of_weight_multiplies_within_its_rounding() {
        for (rows, inputs, outputs) in [(1, 12, 97), (3, 129, 5), (2, 700, 210)] {
            let (x, weight, start) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(rows * outputs, 3));
            let kinds = [
                (Matrix::F32(&weight), 1e-6),
                (Matrix::bf16(&weight), 1.0 / 512.0),
                (Matrix::int8(&weight, inputs), 0.51 / 127.0),
            ];
            for (matrix, rounding) in kinds {
                let mut y = start.clone();
                matrix.add_product(Mat::new(&x, rows, inputs), &MatMut::new(&mut y, rows, outputs));
                for (at, (&found, &start)) in y.iter().zip(&start).enumerate() {
                    let (x, w) = (&x[at / outputs * inputs..][..inputs], &weight[at % outputs * inputs..][..inputs]);
                    let expected: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let bound = rounding * x.iter().map(|x| f64::from(x.abs())).sum::<f64>() + 1e-5;
                    let error = (f64::from(found - start) - expected).abs();
                    assert!(error < bound, "{rows}x{inputs}x{outputs}: {error} of {bound} with {matrix:?}");
                }
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_of_the_smallest_numbers_quantise_to_zeros() {
        let mut y = [1.0, 1.0, 1.0];
        let matrix = Matrix::int8(&[0.0, 0.0, 1.0, -1.0, 1e-38, -1e-40], 2);
        matrix.add_product(Mat::new(&[3.0, 1.0], 1, 2), &MatMut::new(&mut y, 1, 3));
        assert_eq!(y, [1.0, 3.0, 1.0]);
        let mut row = [1e-38, 0.0];
        round_to_int8(&mut row);
        assert_eq!(row, [0.0, 0.0]);
    }
}
