//! Linear layer, y = x·Wᵀ + b, optionally with an adapter (`lora.rs`).
//!
//! `x`: [rows, inputs]; `weight`: [outputs, inputs]; `bias`: [outputs], or empty in a model without biases; `y`: [rows, outputs];
//! saved for the backward pass: `x`.

use std::ops::Range;

use ngen3_model::AdapterRanges;
use rayon::prelude::*;

use super::lora::{Adapter, LoraActivations};
use super::matvec::Matrix;
use crate::base::profile::{Part, timed};
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::packed::Packed;
use crate::gemm::tiles::right::Right;
use crate::gemm::{Accumulate, Mat, MatMut, Precision, matmul, matmul_onto, tiles};
use ngen3_simd::simd;

/// Smallest number of columns per task of a bias gradient.
const COLUMNS: usize = 64;

/// Weight of a layer, `[outputs, inputs]`.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    Plain(&'a [f32]),
    /// Weight that does not learn, packed once.
    Packed(&'a Packed),
    /// Weight of a model that decodes, and the [`Matrix`] that decoding reads, row by row for the first `steps` rows.
    Decoding {
        weight: &'a [f32],
        matrix: &'a Matrix<'a>,
        steps: usize,
    },
}

/// One linear layer.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub precision: Precision,
    pub outputs: usize,
    pub inputs: usize,
    pub weight: Weight<'a>,
    /// `[outputs]`, or empty.
    pub bias: &'a [f32],
    pub learns: Learns<'a>,
}

/// Trainable parameters of a layer, with the ranges of their gradients among all trainable parameters.
#[derive(Clone, Copy)]
pub enum Learns<'a> {
    /// The weight and the bias.
    Itself { weight: &'a Range<usize>, bias: &'a Range<usize> },
    /// The adapter only.
    Adapter(Adapter<'a>, &'a AdapterRanges),
    /// None: only other layers have adapters.
    Nothing,
}

impl Linear<'_> {
    fn plain<'w>(&self, weight: &'w [f32]) -> Mat<'w> {
        Mat::new(weight, self.outputs, self.inputs)
    }

    /// Computes `y = start + x·Wᵀ`.
    fn product_onto(&self, y: MatMut<'_>, x: Mat<'_>, start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync) {
        match self.weight {
            Weight::Plain(weight) => {
                matmul_onto(self.precision, y, x, self.plain(weight).t(), start);
            }
            Weight::Decoding { weight, matrix, steps } => {
                matrix.product_onto(self.precision, self.plain(weight), y, x, steps, &start);
            }
            Weight::Packed(weight) => weight.product_onto(y, x, start),
        }
    }

    /// Returns true if the layer has trainable parameters, so that [`Linear::backward`] reads `x`.
    pub fn learns(&self) -> bool {
        !matches!(self.learns, Learns::Nothing)
    }

    /// Computes `y = x·Wᵀ + b`.
    pub fn forward(&self, x: &[f32], low: &mut LoraActivations<'_>, y: &mut [f32]) {
        self.onto(x, low, y, |y, _, col| {
            for i in 0..y.n_rows() {
                let row = y.row_mut(i);
                match self.bias {
                    [] => copy_row(row, &[0.0; NR]),
                    bias => copy_row(row, &bias[col..]),
                }
            }
        });
    }

    /// Computes `y = residual + x·Wᵀ + b`: a projection back into the residual stream, `[rows, outputs]`.
    pub fn forward_residual(&self, x: &[f32], low: &mut LoraActivations<'_>, residual: &[f32], y: &mut [f32]) {
        self.onto(x, low, y, |y, row, col| {
            for i in 0..y.n_rows() {
                let residual = &residual[(row + i) * self.outputs + col..];
                let row = y.row_mut(i);
                if self.bias.is_empty() {
                    copy_row(row, residual);
                    continue;
                }
                for ((y, &r), &b) in row.iter_mut().zip(residual).zip(&self.bias[col..]) {
                    *y = r + b;
                }
            }
        });
    }

    /// Recomputes the adapter activations that forward saves in `low`, without computing `y`.
    pub fn save(&self, x: &[f32], low: &mut LoraActivations<'_>) {
        let _timed = timed(Part::Linear);
        let Learns::Adapter(adapter, _) = self.learns else { return };
        let x = Mat::new(x, x.len() / self.inputs, self.inputs);
        match self.precision {
            Precision::F32 => drop(adapter.forward(x, low)),
            Precision::Bf16 => adapter.forward_bf16(self.outputs, x, None, low, |_, _, _| {}),
        }
    }

    /// Computes `y = start + x·Wᵀ`, plus the adapter's output.
    fn onto(
        &self,
        x: &[f32],
        low: &mut LoraActivations<'_>,
        y: &mut [f32],
        start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
    ) {
        let _timed = timed(Part::Linear);
        let rows = y.len() / self.outputs;
        let (x, y) = (Mat::new(x, rows, self.inputs), MatMut::new(y, rows, self.outputs));
        let Learns::Adapter(adapter, _) = self.learns else {
            return self.product_onto(y, x, start);
        };
        if self.precision == Precision::Bf16 {
            let weight = match self.weight {
                Weight::Plain(weight) | Weight::Decoding { weight, .. } => Right::Plain(self.plain(weight).t()),
                Weight::Packed(weight) => weight.for_outputs(),
            };
            return adapter.forward_bf16(self.outputs, x, Some((y, weight)), low, start);
        }
        let branch = adapter.forward(x, low);
        self.product_onto(y, x, |y, row, col| {
            start(y, row, col);
            branch.onto(y, Accumulate::Add, row, col);
        });
    }

    /// Computes `dx = dy·W`, if requested, and adds the gradients of the trainable parameters to `grads`:  dW += dyᵀ·x,  db +=
    /// Σ dy over rows.
    pub fn backward(
        &self,
        x: &[f32],
        dy: &[f32],
        low: &mut LoraActivations<'_>,
        grads: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let _timed = timed(Part::Linear);
        let rows = dy.len() / self.outputs;
        let dy = Mat::new(dy, rows, self.outputs);
        let dx = dx.map(|dx| MatMut::new(dx, rows, self.inputs));
        if let Learns::Itself { weight, bias } = self.learns {
            let (dweight, dbias) = pair(grads, weight, bias);
            backward_params(self.precision, x, dy, dweight, dbias);
        }
        let weight = match self.weight {
            Weight::Plain(weight) => Right::Plain(self.plain(weight)),
            Weight::Packed(weight) => weight.for_inputs(),
            Weight::Decoding { .. } => unreachable!("decoders have no backward pass"),
        };
        let (Learns::Adapter(adapter, at), x) = (self.learns, Mat::new(x, rows, self.inputs)) else {
            return self.input_gradient(dx, dy, weight);
        };
        let (da, db) = pair(grads, &at.a, &at.b());
        match (self.precision, weight) {
            (Precision::F32, Right::Plain(weight)) => {
                let branch = adapter.backward(x, dy, low, da, db);
                let Some(dx) = dx else { return };
                matmul_onto(Precision::F32, dx, dy, weight, |dx, row, col| branch.onto(dx, Accumulate::Set, row, col));
            }
            _ => adapter.backward_bf16(x, dy, dx.map(|dx| (dx, weight)), low, da, db),
        }
    }

    /// Computes `dx = dy·W`, if requested.
    fn input_gradient(&self, dx: Option<MatMut<'_>>, dy: Mat<'_>, weight: Right<'_>) {
        let Some(dx) = dx else { return };
        match (self.precision, weight) {
            (Precision::F32, Right::Plain(weight)) => matmul(Precision::F32, dx, Accumulate::Set, dy, weight),
            _ => tiles::matmul::<2>(dx, Accumulate::Set, dy, weight),
        }
    }
}

/// Starts a row of y with the first values of `from`, or zeros past its end.
fn copy_row(row: &mut [f32], from: &[f32]) {
    // Rows of a tile have a fixed length: their copy is a few instructions, not a call.
    if let (Ok(row), Some(from)) = (<&mut [f32; NR]>::try_from(&mut *row), from.first_chunk::<NR>()) {
        *row = *from;
        return;
    }
    let n = row.len().min(from.len());
    row[..n].copy_from_slice(&from[..n]);
    row[n..].fill(0.0);
}

/// Borrows the gradients of two parameters. `first` must lie before `second`.
pub fn pair<'a>(grads: &'a mut [f32], first: &Range<usize>, second: &Range<usize>) -> (&'a mut [f32], &'a mut [f32]) {
    let (low, high) = grads.split_at_mut(second.start);
    (&mut low[first.clone()], &mut high[..second.len()])
}

/// Accumulates `dW += dyᵀ·x` and `db += Σ dy` over rows.
fn backward_params(precision: Precision, x: &[f32], dy: Mat<'_>, dweight: &mut [f32], dbias: &mut [f32]) {
    let (rows, outputs) = (dy.n_rows(), dy.cols());
    let inputs = dweight.len() / outputs;
    matmul(precision, MatMut::new(dweight, outputs, inputs), Accumulate::Add, dy.t(), Mat::new(x, rows, inputs));
    if dbias.is_empty() {
        return;
    }
    // Two tasks per thread: long pieces of each row stream faster from memory.
    let columns = outputs.div_ceil(2 * rayon::current_num_threads()).max(COLUMNS);
    dbias.par_chunks_mut(columns).enumerate().for_each(|(chunk, dbias)| {
        simd(
            #[inline(always)]
            || {
                for row in 0..rows {
                    for (db, &dy) in dbias.iter_mut().zip(&dy.row(row)[chunk * columns..]) {
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
    use crate::base::testing::{check_gradient, dot, random};

    #[test]
    fn backward_matches_finite_differences() {
        for (rows, inputs, outputs) in [(5, 12, 36), (1, 7, 3), (33, 16, 97)] {
            let (x, weight, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            let (dy, residual) = (random(rows * outputs, 4), random(rows * outputs, 5));
            let at = [0..weight.len(), weight.len()..weight.len() + outputs];
            let learns = Learns::Itself { weight: &at[0], bias: &at[1] };
            fn layer<'a>(weight: &'a [f32], bias: &'a [f32], learns: Learns<'a>) -> Linear<'a> {
                Linear {
                    precision: Precision::F32,
                    outputs: bias.len(),
                    inputs: weight.len() / bias.len(),
                    weight: Weight::Plain(weight),
                    bias,
                    learns,
                }
            }
            let loss = |x: &[f32], weight: &[f32], bias: &[f32]| {
                let mut y = vec![f32::NAN; rows * outputs];
                layer(weight, bias, learns).forward(x, &mut LoraActivations::default(), &mut y);
                dot(&y, &dy)
            };
            let mut with_residual = vec![f32::NAN; rows * outputs];
            layer(&weight, &bias, learns).forward_residual(
                &x,
                &mut LoraActivations::default(),
                &residual,
                &mut with_residual,
            );
            let expected = loss(&x, &weight, &bias) + dot(&residual, &dy);
            assert!((dot(&with_residual, &dy) - expected).abs() < 1e-3);

            let (mut grads, mut dx) = (vec![0.0; at[1].end], vec![f32::NAN; x.len()]);
            layer(&weight, &bias, learns).backward(&x, &dy, &mut LoraActivations::default(), &mut grads, Some(&mut dx));
            check_gradient(&x, &dx, |x| loss(x, &weight, &bias));
            check_gradient(&weight, &grads[at[0].clone()], |weight| loss(&x, weight, &bias));
            check_gradient(&bias, &grads[at[1].clone()], |bias| loss(&x, &weight, bias));
        }
    }
}
