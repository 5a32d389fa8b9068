//! Products of vectors with a weight, as decoding computes them for each token.
//!
//! y = x·Wᵀ with `x`: [rows, inputs], `weight`: [outputs, inputs], `y`: [rows, outputs]. For one or a few vectors memory bandwidth is
//! the limit, and a narrower copy of the weights is faster: [`Matrix`] holds f32, bf16 (half the bytes), int8 with one scale per
//! output (a quarter) or groups of 32 (`gemm/groups`). Sums are always f32.
//!
//! The bits of a row of `y` do not depend on the other rows, nor on their number. bf16 and groups have kernels for any number of
//! rows. f32 and int8 have two kinds, and the caller says which rows take which: row by row, with each weight read once for a
//! few rows, or the kernels for large products, as a prompt needs them.

use std::sync::Arc;

use ngen3_engine::{Error, Quant};
use rayon::prelude::*;

use crate::gemm::groups::Groups;
use crate::gemm::tiles::packed::Packed;
use crate::gemm::tiles::prefetch::prefetch;
use crate::gemm::{Mat, MatMut, Precision, matmul_onto, matmul_rows_onto};
use ngen3_simd::{LANES, fold, simd};

/// Products of elements per task: enough to pay for waking another thread.
const TASK: usize = 1 << 16;

/// Rows of x computed side by side.
const ROWS: usize = 4;

/// Outputs computed side by side if rows are short.
const GROUP: usize = 8;

/// Bytes from a weight that is multiplied to one that is asked for.
const AHEAD: usize = 4 << 10;

/// Longest row, in inputs, that is computed in groups: reducing a short row's lanes is a large part of its work. Longer rows
/// are read one after the other, since sequential reads are fastest.
const SHORT: usize = 256;

/// Weight `[outputs, inputs]` in the format that decoding reads.
#[derive(Debug)]
pub enum Matrix<'a> {
    /// The parameters themselves.
    F32(&'a [f32]),
    /// bf16, as x is rounded too.
    Bf16(Packed),
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
    ///
    /// # Errors
    /// [`Error::Memory`] if the copy does not fit in memory.
    pub fn bf16(weight: &[f32], inputs: usize) -> Result<Self, Error> {
        Ok(Self::Bf16(Packed::new(Mat::new(weight, weight.len() / inputs, inputs), Quant::None)?))
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
    /// whose top-left element is `(row, col)`. Of f32 and int8 the first `steps` rows are multiplied row by row, the others, not
    /// exactly one, in `precision` by `weight`, the parameters.
    pub fn product_onto(
        &self,
        precision: Precision,
        weight: Mat<'_>,
        mut y: MatMut<'_>,
        x: Mat<'_>,
        steps: usize,
        start: &(impl Fn(&mut MatMut<'_>, usize, usize) + Sync),
    ) {
        let Self::Parts(parts) = self else {
            return self.part_onto(precision, weight, y, x, steps, start);
        };
        let mut first = 0;
        for (outputs, part) in parts {
            let columns = first..first + outputs;
            let weight = weight.rows(columns.clone());
            let start = |y: &mut MatMut<'_>, row: usize, col: usize| start(y, row, columns.start + col);
            part.part_onto(precision, weight, y.columns(columns.clone()), x, steps, &start);
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
        steps: usize,
        start: &(impl Fn(&mut MatMut<'_>, usize, usize) + Sync),
    ) {
        match self {
            Self::Groups(groups) => return groups.product_onto(y, x, start),
            Self::Bf16(packed) => return packed.product_onto(y, x, start),
            _ => {}
        }
        if steps > 0 {
            self.step_onto(y.rows(0..steps), x.rows(0..steps), start);
        }
        let rows = x.n_rows();
        if rows > steps {
            let (y, x) = (y.rows(steps..rows), x.rows(steps..rows));
            let start = |y: &mut MatMut<'_>, row: usize, col: usize| start(y, steps + row, col);
            match precision {
                Precision::F32 => matmul_rows_onto(y, x, weight.t(), start),
                Precision::Bf16 => matmul_onto(precision, y, x, weight.t(), start),
            }
        }
    }

    /// Computes `y = start + x·Wᵀ` row by row.
    fn step_onto(&self, y: MatMut<'_>, x: Mat<'_>, start: &(impl Fn(&mut MatMut<'_>, usize, usize) + Sync)) {
        match self {
            Self::F32(weight) => product(
                weight,
                x,
                y,
                #[inline(always)]
                |w| w,
                |_| 1.0,
                start,
            ),
            Self::Int8 { q, scales } => product(q, x, y, f32::from, |output| scales[output], start),
            Self::Bf16(_) | Self::Groups(_) | Self::Parts(_) => unreachable!("multiplied by their own kernels"),
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(weight) => size_of_val(*weight),
            Self::Bf16(packed) => packed.bytes(),
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

/// `y[row, output] = start + scale(output)·Σ value(w)·x`
fn product<T: Copy + Sync>(
    weight: &[T],
    x: Mat<'_>,
    y: MatMut<'_>,
    value: impl Fn(T) -> f32 + Copy + Sync,
    scale: impl Fn(usize) -> f32 + Sync,
    start: &(impl Fn(&mut MatMut<'_>, usize, usize) + Sync),
) {
    let (rows, inputs) = (x.n_rows(), x.cols());
    let outputs = weight.len() / inputs;
    let per_task = (TASK / (inputs * rows)).next_multiple_of(GROUP).max(GROUP);
    (0..outputs.div_ceil(per_task)).into_par_iter().with_max_len(1).for_each(|task| {
        let first = task * per_task;
        let last = (first + per_task).min(outputs);
        // SAFETY: no two tasks share an output.
        let mut y = unsafe { y.part(0..rows, first..last) };
        start(&mut y, 0, first);
        simd(
            #[inline(always)]
            || {
                for output in (first..last).step_by(GROUP) {
                    let group = output..(output + GROUP).min(last);
                    let weight = &weight[group.start * inputs..group.end * inputs];
                    let mut row = 0;
                    while row < rows {
                        let several = rows - row >= ROWS;
                        let mut put = |i: usize, j: usize, dots: &[f32]| {
                            let y = &mut y.row_mut(row + i)[output + j - first..][..dots.len()];
                            for ((y, dot), output) in y.iter_mut().zip(dots).zip(output + j..) {
                                *y += scale(output) * dot;
                            }
                        };
                        if several {
                            group_of::<T, ROWS>(weight, x.rows(row..row + ROWS), value, &mut put);
                        } else {
                            group_of::<T, 1>(weight, x.rows(row..row + 1), value, &mut put);
                        }
                        row += if several { ROWS } else { 1 };
                    }
                }
            },
        );
    });
}

/// Computes the products of `R` rows of x and up to [`GROUP`] rows of the weight, and passes them to `put(row, first output, dots)`.
#[inline(always)]
fn group_of<T: Copy, const R: usize>(
    weight: &[T],
    x: Mat<'_>,
    value: impl Fn(T) -> f32 + Copy,
    put: &mut impl FnMut(usize, usize, &[f32]),
) {
    let inputs = x.cols();
    let x: [&[f32]; R] = std::array::from_fn(|i| x.row(i));
    if inputs > SHORT || weight.len() < GROUP * inputs {
        for (j, weight) in weight.chunks_exact(inputs).enumerate() {
            long_dots(weight, x, value).iter().enumerate().for_each(|(i, dot)| put(i, j, &[*dot]));
        }
    } else if R == 1 {
        put(0, 0, &dots::<T, 1, GROUP>(weight, [x[0]], value)[0]);
    } else {
        // Half of a group at a time, so that the sums of all rows fit the registers.
        for (half, weight) in weight.chunks_exact(GROUP / 2 * inputs).enumerate() {
            let dots = dots::<T, R, { GROUP / 2 }>(weight, x, value);
            dots.iter().enumerate().for_each(|(i, dots)| put(i, half * GROUP / 2, dots));
        }
    }
}

/// Returns `Σ value(w)·x` of one row of the weight and `R` rows of x, in partial sums that fill four vectors, which hides the
/// latency of addition.
#[inline(always)]
fn long_dots<T: Copy, const R: usize>(w: &[T], x: [&[f32]; R], value: impl Fn(T) -> f32) -> [f32; R] {
    const VECTORS: usize = 4;
    let (blocks, rest) = w.as_chunks::<LANES>();
    let (whole, _) = blocks.as_chunks::<VECTORS>();
    let x_blocks = x.map(|x| &x.as_chunks::<LANES>().0[..blocks.len()]);
    let mut sums = [[[0.0f32; LANES]; VECTORS]; R];
    for (b, w) in whole.iter().enumerate() {
        // Rows follow one another in memory, and the processor's own prefetching ends at every page.
        for line in (0..size_of_val(w)).step_by(64) {
            prefetch(w.as_ptr().cast::<f32>().wrapping_byte_add(AHEAD + line));
        }
        for v in 0..VECTORS {
            for r in 0..R {
                let x = &x_blocks[r][b * VECTORS + v];
                for i in 0..LANES {
                    sums[r][v][i] += value(w[v][i]) * x[i];
                }
            }
        }
    }
    // A copy, so that the sums above have no address and stay in registers.
    let mut all = sums;
    let done = whole.len() * VECTORS;
    for (r, sums) in all.iter_mut().enumerate() {
        for ((sums, w), x) in sums.iter_mut().zip(&blocks[done..]).zip(&x_blocks[r][done..]) {
            for i in 0..LANES {
                sums[i] += value(w[i]) * x[i];
            }
        }
        let last = rest.iter().zip(&x[r][w.len() - rest.len()..]);
        sums[blocks.len() - done].iter_mut().zip(last).for_each(|(sum, (&w, &x))| *sum += value(w) * x);
    }
    // Loops, not `map`, whose closures would be compiled for the baseline.
    let mut dots = [0.0f32; R];
    for (dot, vectors) in dots.iter_mut().zip(&all) {
        let mut lanes = [0.0f32; LANES];
        for vector in vectors {
            for i in 0..LANES {
                lanes[i] += vector[i];
            }
        }
        *dot = fold(lanes);
    }
    dots
}

/// Returns `Σ value(w)·x` for `R` rows of x and `N` rows of the weight, side by side: this hides the latency of addition, and
/// loads each vector once for all.
#[inline(always)]
fn dots<T: Copy, const R: usize, const N: usize>(
    weight: &[T],
    x: [&[f32]; R],
    value: impl Fn(T) -> f32,
) -> [[f32; N]; R] {
    let inputs = x[0].len();
    let count = inputs / LANES;
    let rows: [&[T]; N] = std::array::from_fn(|n| &weight[n * inputs..][..inputs]);
    let blocks = rows.map(|row| &row.as_chunks::<LANES>().0[..count]);
    let x_blocks = x.map(|x| &x.as_chunks::<LANES>().0[..count]);
    let mut sums = [[[0.0f32; LANES]; N]; R];
    for b in 0..count {
        for n in 0..N {
            let w = blocks[n][b];
            for r in 0..R {
                let x = &x_blocks[r][b];
                for i in 0..LANES {
                    sums[r][n][i] += value(w[i]) * x[i];
                }
            }
        }
    }
    // A copy, as in `long_dots`.
    let mut all = sums;
    for (sums, x) in all.iter_mut().zip(x) {
        for (sums, row) in sums.iter_mut().zip(rows) {
            let last = row[count * LANES..].iter().zip(&x[count * LANES..]);
            sums.iter_mut().zip(last).for_each(|(sum, (&w, &x))| *sum += value(w) * x);
        }
    }
    // Loops, as in `long_dots`.
    let mut dots = [[0.0f32; N]; R];
    for (dots, sums) in dots.iter_mut().zip(&all) {
        for (dot, sums) in dots.iter_mut().zip(sums) {
            *dot = fold(*sums);
        }
    }
    dots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;

    #[test]
    fn each_kind_of_weight_multiplies_within_its_rounding() {
        for (rows, inputs, outputs) in [(1, 12, 97), (3, 129, 5), (2, 700, 210), (6, 64, 41), (9, 300, 33)] {
            let (x, weight, start) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(rows * outputs, 3));
            let kinds = [
                (Matrix::F32(&weight), 1e-6),
                (Matrix::bf16(&weight, inputs).expect("memory"), 1.0 / 250.0),
                (Matrix::int8(&weight, inputs), 0.51 / 127.0),
            ];
            for (matrix, rounding) in kinds {
                let multiply = |rows: std::ops::Range<usize>| {
                    let (first, n) = (rows.start, rows.len());
                    let mut y = vec![f32::NAN; n * outputs];
                    let from = |y: &mut MatMut<'_>, row: usize, col: usize| {
                        for i in 0..y.n_rows() {
                            let columns = y.n_cols();
                            y.row_mut(i).copy_from_slice(&start[(first + row + i) * outputs + col..][..columns]);
                        }
                    };
                    let (x, w) =
                        (Mat::new(&x, x.len() / inputs, inputs).rows(rows), Mat::new(&weight, outputs, inputs));
                    matrix.product_onto(Precision::F32, w, MatMut::new(&mut y, n, outputs), x, n, &from);
                    y
                };
                let y = multiply(0..rows);
                for (at, (&found, &start)) in y.iter().zip(&start).enumerate() {
                    let (x, w) = (&x[at / outputs * inputs..][..inputs], &weight[at % outputs * inputs..][..inputs]);
                    let expected: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                    let bound = rounding * x.iter().map(|x| f64::from(x.abs())).sum::<f64>() + 1e-5;
                    let error = (f64::from(found - start) - expected).abs();
                    assert!(error < bound, "{rows}x{inputs}x{outputs}: {error} of {bound} with {matrix:?}");
                }
                let alone: Vec<f32> = (0..rows).flat_map(|row| multiply(row..row + 1)).collect();
                assert!(y == alone, "{rows}x{inputs}x{outputs}: a row depends on the others, with {matrix:?}");
            }
        }
    }

    /// Rows 3 and 4 of a prompt's product, among any number of others.
    #[test]
    fn rows_of_a_prompt_do_not_depend_on_their_number() {
        for (inputs, outputs) in [(12, 7), (600, 40), (31, 130), (129, 64)] {
            let (x, weight) = (random(90 * inputs, 1), random(outputs * inputs, 2));
            let multiply = |first: usize, rows: usize| {
                let mut y = vec![f32::NAN; rows * outputs];
                let (x, w) = (Mat::new(&x, 90, inputs).rows(first..first + rows), Mat::new(&weight, outputs, inputs));
                let start = |y: &mut MatMut<'_>, _: usize, _: usize| y.fill(1.0);
                Matrix::F32(&weight).product_onto(Precision::F32, w, MatMut::new(&mut y, rows, outputs), x, 0, &start);
                y[(3 - first) * outputs..(5 - first) * outputs].to_vec()
            };
            let whole = multiply(0, 90);
            for (first, rows) in [(3, 2), (2, 3), (0, 30), (1, 64), (0, 65), (0, 66)] {
                assert!(multiply(first, rows) == whole, "{inputs}x{outputs}: {rows} rows from row {first}");
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_of_the_smallest_numbers_quantise_to_zeros() {
        let mut y = [1.0, 1.0, 1.0];
        let matrix = Matrix::int8(&[0.0, 0.0, 1.0, -1.0, 1e-38, -1e-40], 2);
        let (x, to) = (Mat::new(&[3.0, 1.0], 1, 2), MatMut::new(&mut y, 1, 3));
        matrix.step_onto(to, x, &|_: &mut MatMut<'_>, _: usize, _: usize| {});
        assert_eq!(y, [1.0, 3.0, 1.0]);
        let mut row = [1e-38, 0.0];
        round_to_int8(&mut row);
        assert_eq!(row, [0.0, 0.0]);
    }
}
