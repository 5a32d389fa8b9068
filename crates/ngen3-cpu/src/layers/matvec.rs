//! Products of one or a few vectors with a weight, as decoding computes them for each token.
//!
//! y = x·Wᵀ with `x`: [rows, inputs], `weight`: [outputs, inputs], `y`: [rows, outputs]. Each weight is read once and used for
//! a few operations, so memory bandwidth is the limit and a narrower copy of the weights is faster: [`Matrix`] holds f32, bf16
//! (half the bytes) or int8 with one scale per output (a quarter). Sums are always f32.

use rayon::prelude::*;

use crate::gemm::Canvas;
use crate::gemm::tiles::pack;
use ngen3_simd::{LANES, fold, simd};

/// Weight elements per task: enough to pay for waking another thread.
const TASK: usize = 1 << 16;

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

    /// Adds x·Wᵀ to `y`, with `x`: `[rows, inputs]`, `y`: `[rows, outputs]`.
    pub fn add_product(&self, x: &[f32], inputs: usize, y: &mut [f32]) {
        match self {
            Self::F32(weight) => product(
                weight,
                x,
                inputs,
                y,
                #[inline(always)]
                |w| w,
                |_| 1.0,
            ),
            Self::Bf16(weight) => product(
                weight,
                x,
                inputs,
                y,
                #[inline(always)]
                |w| f32::from_bits(u32::from(w) << 16),
                |_| 1.0,
            ),
            Self::Int8 { q, scales } => product(q, x, inputs, y, f32::from, |output| scales[output]),
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
    x: &[f32],
    inputs: usize,
    y: &mut [f32],
    value: impl Fn(T) -> f32 + Copy + Sync,
    scale: impl Fn(usize) -> f32 + Sync,
) {
    let outputs = weight.len() / inputs;
    let per_task = (TASK / inputs).max(1);
    let y = Canvas::new(y, outputs);
    let task = |(task, weight): (usize, &[T])| {
        let first = task * per_task;
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            // SAFETY: no two tasks share an output, and each takes the rows in turn.
            let y = unsafe { y.row(row, first..first + weight.len() / inputs) };
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
    };
    if weight.len() <= TASK {
        weight.chunks(per_task * inputs).enumerate().for_each(task);
    } else {
        weight.par_chunks(per_task * inputs).enumerate().for_each(task);
    }
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
                matrix.add_product(&x, inputs, &mut y);
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
        Matrix::int8(&[0.0, 0.0, 1.0, -1.0, 1e-38, -1e-40], 2).add_product(&[3.0, 1.0], 2, &mut y);
        assert_eq!(y, [1.0, 3.0, 1.0]);
        let mut row = [1e-38, 0.0];
        round_to_int8(&mut row);
        assert_eq!(row, [0.0, 0.0]);
    }
}
