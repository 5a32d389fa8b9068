//! Low-rank adapters (LoRA, Hu et al. 2021) beside linear layers: y = x·Wᵀ + b + low·Bᵀ, with low = s·x·Aᵀ and s = alpha/rank.
//!
//! `x`: [rows, inputs]; `a`: [rank, inputs]; `b`: [outputs, rank]; `y`: [rows, outputs]; saved for the backward pass: `x` and
//! `low`, [rows, rank]. W + s·B·A is formed only when parameters leave the engine. The two products with outputs of the layer's
//! width, low·Bᵀ and dlow·A, initialise the tiles of the layer's own product. The others read `x` and `dy` in place, a few rows
//! at a time, which stay in cache: an adapter adds no other pass over memory. Its products are f32, whatever the layer's
//! precision.

use ngen3_model::{AdapterRanges, Config, Lora, LoraList, ParamList, Target};
use rayon::prelude::*;

use crate::gemm::tiles::strided;
use crate::gemm::{Accumulate, Mat, MatMut, Threads, matmul_f32};
use ngen3_engine::Error;

/// Rows per task. Fixed, so that the order of summation over rows does not depend on the number of threads.
const ROWS: usize = 128;

/// Length in f32 of [`LoraActivations::scratch`] for passes of `rows` rows through a layer with inputs + outputs ≤ `width`.
pub fn scratch(rank: usize, width: usize, rows: usize) -> usize {
    rank * (rows + rows.div_ceil(ROWS).max(1) * width)
}

/// All adapters of a model.
#[derive(Debug)]
pub struct Adapters {
    pub lora: Lora,
    pub list: LoraList,
    /// `[total]`
    pub params: Vec<f32>,
}

impl Adapters {
    /// Creates adapters for a model of this shape.
    ///
    /// # Errors
    /// [`Error::Input`] if `lora` does not fit the model or `params` has the wrong length.
    pub fn new(config: &Config, lora: &Lora, params: Vec<f32>) -> Result<Self, Error> {
        let list = LoraList::new(config, lora).map_err(|e| Error::Input(e.to_string()))?;
        if params.len() != list.total() {
            return Err(Error::Input(format!("expected {} adapter parameters, got {}", list.total(), params.len())));
        }
        Ok(Self { lora: lora.clone(), list, params })
    }

    /// Returns the adapter of one linear layer, if it has one, with the ranges of its parameters.
    pub fn at(&self, layer: usize, target: Target) -> Option<(Adapter<'_>, &AdapterRanges)> {
        let at = self.list.adapter(layer, target)?;
        let (rank, scale) = (self.lora.rank, self.lora.scale());
        let (a, b) = (&self.params[at.a.clone()], &self.params[at.b.clone()]);
        Some((Adapter { target, rank, scale, a, b }, at))
    }

    /// Adds s·B·A to every adapted weight of the model's parameters.
    pub fn merge_into(&self, list: &ParamList, params: &mut [f32]) {
        for (layer, block) in list.blocks.iter().enumerate() {
            for target in Target::ALL {
                let Some((Adapter { rank, scale, a, b, .. }, _)) = self.at(layer, target) else { continue };
                let (outputs, inputs) = (b.len() / rank, a.len() / rank);
                let scaled: Vec<f32> = a.iter().map(|a| scale * a).collect();
                let (b, a) = (Mat::new(b, outputs, rank), Mat::new(&scaled, rank, inputs));
                let weight = MatMut::new(&mut params[block.linear(target).0.clone()], outputs, inputs);
                matmul_f32(weight, Accumulate::Add, b, a, Threads::All);
            }
        }
    }
}

/// Adapter of one linear layer.
#[derive(Clone, Copy)]
pub struct Adapter<'a> {
    target: Target,
    rank: usize,
    scale: f32,
    /// `[rank, inputs]`
    a: &'a [f32],
    /// `[outputs, rank]`
    b: &'a [f32],
}

/// Memory that the adapters of a block use.
#[derive(Default)]
pub struct LoraActivations<'a> {
    /// `[4, rows, rank]`: `low` of each of the block's layers.
    pub saved: &'a mut [f32],
    /// Forward: Aᵀ, `[inputs, rank]`, and Bᵀ, `[rank, outputs]`. Backward: the gradient of `low`, `[rows, rank]`, and each task's
    /// partial gradients of A and Bᵀ, `[rank, inputs]` and `[rank, outputs]`. See [`scratch`] for the length.
    pub scratch: &'a mut [f32],
}

/// Pending product `[rows, rank]` × `[rank, cols]`, computed tile by tile.
pub struct Branch<'a> {
    rank: usize,
    low: &'a [f32],
    wide: &'a [f32],
}

impl Branch<'_> {
    /// Writes or adds the part of the product at `(row, col)` to `part` of a `[rows, cols]` matrix.
    pub fn onto(&self, part: &mut MatMut<'_>, accumulate: Accumulate, row: usize, col: usize) {
        let (rank, cols) = (self.rank, self.wide.len() / self.rank);
        let (n, width) = (part.n_rows(), part.row_mut(0).len());
        let low = Mat::new(&self.low[row * rank..(row + n) * rank], n, rank);
        strided::matmul_f32(part.rows(0..n), accumulate, low, Mat::strided(&self.wide[col..], rank, width, cols));
    }
}

impl Adapter<'_> {
    /// This layer's slice of the block's saved activations.
    fn saved<'a>(&self, rows: usize, saved: &'a mut [f32]) -> &'a mut [f32] {
        &mut saved[self.target as usize * rows * self.rank..][..rows * self.rank]
    }

    /// Computes low = s·x·Aᵀ and returns low·Bᵀ, to be added to y.
    pub fn forward<'a>(&self, x: Mat<'_>, low: &'a mut LoraActivations<'_>) -> Branch<'a> {
        let Self { rank, scale, a, b, .. } = *self;
        let (rows, inputs) = (x.n_rows(), x.cols());
        let (turned_a, rest) = low.scratch.split_at_mut(a.len());
        let turned_b = &mut rest[..b.len()];
        turn(a, inputs, turned_a);
        turn(b, rank, turned_b);
        let low = self.saved(rows, low.saved);
        let turned_a = Mat::new(turned_a, inputs, rank);
        low.par_chunks_mut(ROWS * rank).enumerate().for_each(|(task, low)| {
            let n = low.len() / rank;
            let x = x.rows(task * ROWS..task * ROWS + n);
            strided::matmul_f32(MatMut::new(low, n, rank), Accumulate::Set, x, turned_a);
            low.iter_mut().for_each(|low| *low *= scale);
        });
        Branch { rank, low, wide: turned_b }
    }

    /// With dlow = s·dy·B:  dB += dyᵀ·low,  dA += dlowᵀ·x.  Returns dlow·A, the initial value of dx.
    pub fn backward<'a>(
        &'a self,
        x: Mat<'_>,
        dy: Mat<'_>,
        low: &'a mut LoraActivations<'_>,
        da: &mut [f32],
        db: &mut [f32],
    ) -> Branch<'a> {
        let Self { rank, scale, a, b, .. } = *self;
        let (rows, inputs, outputs) = (x.n_rows(), x.cols(), dy.cols());
        let (dlow, parts) = low.scratch.split_at_mut(rows * rank);
        let (low, b) = (&*self.saved(rows, low.saved), Mat::new(b, outputs, rank));
        let part = rank * (inputs + outputs);
        let parts = &mut parts[..rows.div_ceil(ROWS) * part];
        let tasks = dlow.par_chunks_mut(ROWS * rank).zip(low.par_chunks(ROWS * rank)).zip(parts.par_chunks_mut(part));
        tasks.enumerate().for_each(|(task, ((dlow, low), part))| {
            let n = low.len() / rank;
            let rows = task * ROWS..task * ROWS + n;
            let (x, dy) = (x.rows(rows.clone()), dy.rows(rows));
            strided::matmul_f32(MatMut::new(dlow, n, rank), Accumulate::Set, dy, b);
            dlow.iter_mut().for_each(|dlow| *dlow *= scale);
            let (da, db) = part.split_at_mut(a.len());
            strided::matmul_f32(MatMut::new(da, rank, inputs), Accumulate::Set, Mat::new(dlow, n, rank).t(), x);
            strided::matmul_f32(MatMut::new(db, rank, outputs), Accumulate::Set, Mat::new(low, n, rank).t(), dy);
        });
        let (total, others) = parts.split_at_mut(part);
        for others in others.chunks_exact(part) {
            total.iter_mut().zip(others).for_each(|(total, other)| *total += other);
        }
        da.iter_mut().zip(&*total).for_each(|(da, part)| *da += part);
        for (r, part) in total[a.len()..].chunks_exact(outputs).enumerate() {
            db.chunks_exact_mut(rank).zip(part).for_each(|(db, part)| db[r] += part);
        }
        Branch { rank, low: dlow, wide: a }
    }
}

/// Transposes `rows`, `[n, width]`, into `turned`, `[width, n]`.
fn turn(rows: &[f32], width: usize, turned: &mut [f32]) {
    let n = rows.len() / width;
    for (i, row) in rows.chunks_exact(width).enumerate() {
        turned[i..].iter_mut().step_by(n).zip(row).for_each(|(turned, &x)| *turned = x);
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::{Learns, Linear, Weight};
    use super::*;
    use crate::base::testing::{check_gradient, dot, random};
    use crate::gemm::Precision;

    #[test]
    fn backward_matches_finite_differences() {
        for (rows, inputs, outputs, rank) in [(5, 12, 36, 3), (1, 7, 3, 1), (33, 16, 97, 16), (270, 40, 20, 5)] {
            let (x, weight, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            let (a, b, dy) = (random(rank * inputs, 4), random(outputs * rank, 5), random(rows * outputs, 6));
            let target = Target::AttnCProj;
            let at = AdapterRanges { a: 2..2 + a.len(), b: 2 + a.len()..2 + a.len() + b.len() };
            let (mut saved, mut scratch) =
                (vec![0.0; 4 * rows * rank], vec![0.0; super::scratch(rank, inputs + outputs, rows)]);
            let run = |x: &[f32], a: &[f32], b: &[f32], saved: &mut [f32], scratch: &mut [f32]| {
                let adapter = Adapter { target, rank, scale: 0.7, a, b };
                let layer = Linear {
                    precision: Precision::F32,
                    outputs,
                    inputs,
                    weight: Weight::Plain(&weight),
                    bias: &bias,
                    learns: Learns::Adapter(adapter, &at),
                };
                let mut y = vec![f32::NAN; rows * outputs];
                layer.forward(x, &mut LoraActivations { saved, scratch }, &mut y);
                let (mut grads, mut dx) = (vec![0.0; at.b.end], vec![f32::NAN; x.len()]);
                layer.backward(x, &dy, &mut LoraActivations { saved, scratch }, &mut grads, Some(&mut dx));
                (dot(&y, &dy), grads, dx)
            };
            let (_, grads, dx) = run(&x, &a, &b, &mut saved, &mut scratch);
            let loss = |x: &[f32], a: &[f32], b: &[f32]| run(x, a, b, &mut saved.clone(), &mut scratch.clone()).0;
            check_gradient(&x, &dx, |x| loss(x, &a, &b));
            check_gradient(&a, &grads[at.a.clone()], |a| loss(&x, a, &b));
            check_gradient(&b, &grads[at.b.clone()], |b| loss(&x, &a, b));
            assert_eq!(grads[..2], [0.0; 2]);
        }
    }
}
