//! Low-rank adapters (Hu et al. 2021): beside a linear layer, y = x·Wᵀ + b + low·Bᵀ with low = s·x·Aᵀ and s = alpha/rank.
//!
//! `x`: [rows, inputs]; `a`: [rank, inputs]; `b`: [outputs, rank]; `y`: [rows, outputs]; saved for backward: `x` and `low`,
//! [rows, rank]. W + s·B·A is formed only for what leaves the engine. Both products that end in something as wide as the
//! layer, low·Bᵀ and dlow·A, are laid under the layer's own, tile by tile: they cost no pass over memory.

use ngen3_model::{AdapterRanges, Config, Lora, LoraList, ParamList, Target};

use crate::Error;
use crate::gemm::tiles::strided;
use crate::gemm::{Into, Mat, MatMut, Precision, Threads, matmul, matmul_f32};

/// All adapters of a model.
#[derive(Debug)]
pub struct Adapters {
    pub lora: Lora,
    pub list: LoraList,
    /// `[total]`
    pub params: Vec<f32>,
}

impl Adapters {
    /// Those of a model of this shape.
    ///
    /// # Errors
    /// [`Error::Input`] when the model cannot have them or `params` has another length.
    pub fn new(config: &Config, lora: &Lora, params: Vec<f32>) -> Result<Self, Error> {
        let list = LoraList::new(config, lora).map_err(|e| Error::Input(e.to_string()))?;
        if params.len() != list.total() {
            return Err(Error::Input(format!("{} parameters for an adapter of {}", params.len(), list.total())));
        }
        Ok(Self { lora: lora.clone(), list, params })
    }

    /// The adapter of one layer, if it has one, and where its parameters stand.
    pub fn at(&self, layer: usize, target: Target) -> Option<(Adapter<'_>, &AdapterRanges)> {
        let at = self.list.adapter(layer, target)?;
        let (rank, scale) = (self.lora.rank, self.lora.scale());
        let (a, b) = (&self.params[at.a.clone()], &self.params[at.b.clone()]);
        Some((Adapter { target, rank, scale, a, b }, at))
    }

    /// W += s·B·A in all of a model's parameters.
    pub fn merge_into(&self, list: &ParamList, params: &mut [f32]) {
        for (layer, block) in list.blocks.iter().enumerate() {
            for target in Target::ALL {
                let Some((Adapter { rank, scale, a, b, .. }, _)) = self.at(layer, target) else { continue };
                let (outputs, inputs) = (b.len() / rank, a.len() / rank);
                let scaled: Vec<f32> = a.iter().map(|a| scale * a).collect();
                let (b, a) = (Mat::new(b, outputs, rank), Mat::new(&scaled, rank, inputs));
                let weight = MatMut::new(&mut params[block.linear(target).0.clone()], outputs, inputs);
                matmul_f32(weight, Into::Add, b, a, Threads::All);
            }
        }
    }
}

/// The adapter of one layer.
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

/// What the adapters of a block work in.
#[derive(Default)]
pub struct Low<'a> {
    /// `[4, rows, rank]`: `low` of each of the block's layers.
    pub saved: &'a mut [f32],
    /// Forward Bᵀ, `[rank, outputs]`; backward the gradient of `low`, `[rows, rank]`.
    pub scratch: &'a mut [f32],
}

/// A product of rank-wide rows, `[rows, rank]`, with `[rank, cols]`.
pub struct Branch<'a> {
    rank: usize,
    low: &'a [f32],
    wide: &'a [f32],
}

impl Branch<'_> {
    /// Puts or adds the part of the product that begins at (row, col) to a part of what is as wide as the layer.
    pub fn onto(&self, part: &mut MatMut<'_>, into: Into, row: usize, col: usize) {
        let (rank, cols) = (self.rank, self.wide.len() / self.rank);
        let (n, width) = (part.n_rows(), part.row_mut(0).len());
        let low = Mat::new(&self.low[row * rank..(row + n) * rank], n, rank);
        strided::matmul(part.rows(0..n), into, low, Mat::strided(&self.wide[col..], rank, width, cols));
    }
}

impl Adapter<'_> {
    /// This layer's part of what the block saves.
    fn saved<'a>(&self, rows: usize, saved: &'a mut [f32]) -> &'a mut [f32] {
        &mut saved[self.target as usize * rows * self.rank..][..rows * self.rank]
    }

    /// `low = s·x·Aᵀ`; returns low·Bᵀ, to be added to y.
    pub fn forward<'a>(&self, precision: Precision, x: Mat<'_>, low: &'a mut Low<'_>) -> Branch<'a> {
        let Self { rank, scale, a, b, .. } = *self;
        let (rows, outputs) = (x.n_rows(), b.len() / rank);
        let turned = &mut low.scratch[..b.len()];
        for (r, turned) in turned.chunks_exact_mut(outputs).enumerate() {
            turned.iter_mut().zip(b.chunks_exact(rank)).for_each(|(turned, b)| *turned = b[r]);
        }
        let low = self.saved(rows, low.saved);
        matmul(precision, MatMut::new(low, rows, rank), Into::Set, x, Mat::new(a, rank, x.cols()).t());
        low.iter_mut().for_each(|low| *low *= scale);
        Branch { rank, low, wide: turned }
    }

    /// With dlow = s·dy·B:  dB += dyᵀ·low,  dA += dlowᵀ·x;  returns dlow·A, for dx to begin with.
    pub fn backward<'a>(
        &'a self,
        precision: Precision,
        x: Mat<'_>,
        dy: Mat<'_>,
        low: &'a mut Low<'_>,
        da: &mut [f32],
        db: &mut [f32],
    ) -> Branch<'a> {
        let Self { rank, scale, a, b, .. } = *self;
        let (rows, inputs, outputs) = (x.n_rows(), x.cols(), dy.cols());
        let dlow = &mut low.scratch[..rows * rank];
        matmul(precision, MatMut::new(dlow, rows, rank), Into::Set, dy, Mat::new(b, outputs, rank));
        dlow.iter_mut().for_each(|dlow| *dlow *= scale);
        let low = Mat::new(self.saved(rows, low.saved), rows, rank);
        matmul(precision, MatMut::new(db, outputs, rank), Into::Add, dy.t(), low);
        matmul(precision, MatMut::new(da, rank, inputs), Into::Add, Mat::new(dlow, rows, rank).t(), x);
        Branch { rank, low: dlow, wide: a }
    }
}

#[cfg(test)]
mod tests {
    use super::super::linear::{Learns, Linear};
    use super::*;
    use crate::cpu::testing::{check_gradient, dot, random};

    #[test]
    fn backward_matches_finite_differences() {
        for (rows, inputs, outputs, rank) in [(5, 12, 36, 3), (1, 7, 3, 1), (33, 16, 97, 16), (70, 40, 20, 5)] {
            let (x, weight, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            let (a, b, dy) = (random(rank * inputs, 4), random(outputs * rank, 5), random(rows * outputs, 6));
            let target = Target::AttnCProj;
            let at = AdapterRanges { a: 2..2 + a.len(), b: 2 + a.len()..2 + a.len() + b.len() };
            let (mut saved, mut scratch) = (vec![0.0; 4 * rows * rank], vec![0.0; rank * rows.max(outputs)]);
            let run = |x: &[f32], a: &[f32], b: &[f32], saved: &mut [f32], scratch: &mut [f32]| {
                let adapter = Adapter { target, rank, scale: 0.7, a, b };
                let layer = Linear {
                    precision: Precision::F32,
                    weight: &weight,
                    bias: &bias,
                    learns: Learns::Adapter(adapter, &at),
                };
                let mut y = vec![f32::NAN; rows * outputs];
                layer.forward(x, &mut Low { saved, scratch }, &mut y);
                let (mut grads, mut dx) = (vec![0.0; at.b.end], vec![f32::NAN; x.len()]);
                layer.backward(x, &dy, &mut Low { saved, scratch }, &mut grads, Some(&mut dx));
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
