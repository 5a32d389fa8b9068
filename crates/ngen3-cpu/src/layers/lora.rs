//! Low-rank adapters (LoRA, Hu et al. 2021) beside linear layers: y = x·Wᵀ + b + low·Bᵀ, with low = s·x·Aᵀ and s = alpha/rank.
//!
//! A layer has one adapter for all its outputs, or several for some of them each, such as queries, keys and values: R is the sum of
//! their ranks. `x`: [rows, inputs]; `a`: [R, inputs]; `b`: [adapted outputs, rank]; `y`: [rows, outputs]; saved for the backward
//! pass: `x` and `low`, [rows, R]. W + s·B·A is formed only when parameters leave the engine. The two products with outputs of the
//! layer's width, low·Bᵀ and dlow·A, are added to the blocks of the layer's own product. In f32 the others read `x` and `dy` a
//! few rows at a time, which stay in cache. In bf16, `low` and `dlow` share the packed operand of the layer's product
//! (`gemm/tiles/low_rank.rs`), and the gradients of A and B read `x` and `dy` once more (`gemm/tiles/thin.rs`).

use std::ops::Range;

use ngen3_model::{AdapterPart, AdapterRanges, Config, Family, Lora, LoraList, ParamList, Projection};
use rayon::prelude::*;

use crate::gemm::tiles::low_rank::{LowRank, matmul_low_rank};
use crate::gemm::tiles::right::Right;
use crate::gemm::tiles::strided;
use crate::gemm::tiles::thin::{add_thin, add_thin_turned};
use crate::gemm::{Accumulate, Mat, MatMut, Precision, Threads, matmul_f32};
use ngen3_engine::Error;

/// Rows per task. Fixed, so that the order of summation over rows does not depend on the number of threads.
const ROWS: usize = 128;

/// Length in f32 of [`LoraActivations::scratch`] for passes of `rows` rows.
pub fn scratch(config: &Config, precision: Precision, rank: usize, rows: usize) -> usize {
    let tasks = rows.div_ceil(ROWS).max(1);
    let of = |projection: Projection| {
        let ([outputs, inputs], parts) = (projection.shape(config), projection.parts(config.family));
        rank * match precision {
            Precision::F32 => parts * rows + tasks * (parts * inputs + outputs),
            Precision::Bf16 => parts * (rows + outputs),
        }
    };
    Projection::ALL.map(of).into_iter().max().unwrap_or(0)
}

/// Length in f32 of [`LoraActivations::saved`] for passes of `rows` rows.
pub fn saved(config: &Config, rank: usize, rows: usize) -> usize {
    rank * rows * parts(config.family, &Projection::ALL)
}

/// Returns the number of adapters that these projections can have.
fn parts(family: Family, projections: &[Projection]) -> usize {
    projections.iter().map(|projection| projection.parts(family)).sum()
}

/// All adapters of a model.
#[derive(Debug)]
pub struct Adapters {
    pub lora: Lora,
    pub list: LoraList,
    /// `[total]`
    pub params: Vec<f32>,
    family: Family,
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
        Ok(Self { lora: lora.clone(), list, params, family: config.family })
    }

    /// Returns the adapters of one projection, if it has any, with the ranges of their parameters.
    pub fn at(&self, layer: usize, projection: Projection) -> Option<(Adapter<'_>, &AdapterRanges)> {
        let at = self.list.adapter(layer, projection)?;
        let adapter = Adapter {
            before: parts(self.family, &Projection::ALL[..projection as usize]),
            rank: self.lora.rank,
            scale: self.lora.scale(),
            a: &self.params[at.a.clone()],
            b: &self.params[at.b()],
            parts: &at.parts,
        };
        Some((adapter, at))
    }

    /// Adds s·B·A to every adapted weight of the model's parameters.
    pub fn merge_into(&self, list: &ParamList, params: &mut [f32]) {
        for (layer, block) in list.blocks.iter().enumerate() {
            for projection in Projection::ALL {
                let Some((adapter, _)) = self.at(layer, projection) else { continue };
                let Adapter { rank, scale, a, .. } = adapter;
                let inputs = a.len() / adapter.total_rank();
                let scaled: Vec<f32> = a.iter().map(|a| scale * a).collect();
                let weight = &mut params[block.linear(projection).0.clone()];
                for ((part, b), a) in adapter.matrices().zip(scaled.chunks_exact(rank * inputs)) {
                    let rows = part.outputs.start * inputs..part.outputs.end * inputs;
                    let (b, a) = (Mat::new(b, part.outputs.len(), rank), Mat::new(a, rank, inputs));
                    let weight = MatMut::new(&mut weight[rows], part.outputs.len(), inputs);
                    matmul_f32(weight, Accumulate::Add, b, a, Threads::All);
                }
            }
        }
    }
}

/// Adapters of one linear layer.
#[derive(Clone, Copy)]
pub struct Adapter<'a> {
    /// Adapters that the projections before this one in a block can have.
    before: usize,
    rank: usize,
    scale: f32,
    /// `[R, inputs]`
    a: &'a [f32],
    /// `[adapted outputs, rank]`
    b: &'a [f32],
    parts: &'a [AdapterPart],
}

/// Memory that the adapters of a block use.
#[derive(Default)]
pub struct LoraActivations<'a> {
    /// `low` of each of the block's adapters. See [`saved`] for the length.
    pub saved: &'a mut [f32],
    /// Forward: Aᵀ, `[inputs, R]`, and each Bᵀ, `[rank, outputs]`; in bf16, all B as one matrix. Backward: the gradient of
    /// `low`, `[rows, R]`, and each task's partial gradients of A and of each Bᵀ; in bf16, all B as one matrix. See [`scratch`] for
    /// the length.
    pub scratch: &'a mut [f32],
}

/// Pending products `[rows, rank]` × `[rank, columns]`, one for each stretch of columns, computed tile by tile.
pub struct Branch<'a> {
    rank: usize,
    /// `[rows, stride]`: columns of each product's first operand, side by side.
    low: &'a [f32],
    stride: usize,
    /// Second operands, one after the other.
    wide: &'a [f32],
    columns: Columns<'a>,
}

/// Columns of the products of a [`Branch`].
enum Columns<'a> {
    /// One product has all columns.
    All,
    /// The outputs of each adapter.
    Parts(&'a [AdapterPart]),
}

impl Branch<'_> {
    /// Writes or adds the part of the products at `(row, col)` to `part` of a `[rows, cols]` matrix.
    pub fn onto(&self, part: &mut MatMut<'_>, accumulate: Accumulate, row: usize, col: usize) {
        let Columns::Parts(parts) = self.columns else {
            return self.product(part, accumulate, row, col, self.wide.len() / self.rank, 0, 0);
        };
        let (window, mut wide) = (col..col + part.n_cols(), 0);
        for (index, AdapterPart { outputs, .. }) in parts.iter().enumerate() {
            let (start, end) = (outputs.start.max(window.start), outputs.end.min(window.end));
            if start < end {
                let mut here = part.columns(start - col..end - col);
                let first = start - outputs.start;
                self.product(&mut here, accumulate, row, first, outputs.len(), wide, index * self.rank);
            }
            wide += self.rank * outputs.len();
        }
    }

    /// Adds the columns from `col` of the product whose second operand, `cols` wide, starts at `wide`.
    #[expect(clippy::too_many_arguments, reason = "the place in each of three matrices")]
    fn product(
        &self,
        part: &mut MatMut<'_>,
        accumulate: Accumulate,
        row: usize,
        col: usize,
        cols: usize,
        wide: usize,
        low: usize,
    ) {
        let (n, width) = (part.n_rows(), part.n_cols());
        let low = Mat::strided(&self.low[row * self.stride + low..], n, self.rank, self.stride);
        let wide = Mat::strided(&self.wide[wide + col..], self.rank, width, cols);
        strided::matmul_f32(part.rows(0..n), accumulate, low, wide);
    }
}

impl<'a> Adapter<'a> {
    /// R, the sum of the ranks.
    fn total_rank(&self) -> usize {
        self.rank * self.parts.len()
    }

    /// Each adapter's outputs and its B, `[outputs, rank]`.
    fn matrices(self) -> impl Iterator<Item = (&'a AdapterPart, &'a [f32])> {
        self.parts.iter().scan(self.b, move |rest, part| {
            let (b, after) = rest.split_at(part.outputs.len() * self.rank);
            *rest = after;
            Some((part, b))
        })
    }

    /// This layer's slice of the block's saved activations.
    fn saved<'s>(&self, rows: usize, saved: &'s mut [f32]) -> &'s mut [f32] {
        &mut saved[self.before * rows * self.rank..][..rows * self.total_rank()]
    }

    /// Computes low = s·x·Aᵀ and returns low·Bᵀ, to be added to y.
    pub fn forward<'s>(&self, x: Mat<'_>, low: &'s mut LoraActivations<'_>) -> Branch<'s>
    where
        'a: 's,
    {
        let Self { rank, scale, a, b, parts, .. } = *self;
        let (rows, inputs, total) = (x.n_rows(), x.cols(), self.total_rank());
        let (turned_a, rest) = low.scratch.split_at_mut(a.len());
        let turned_b = &mut rest[..b.len()];
        turn(a, inputs, turned_a);
        let mut turned = &mut *turned_b;
        for (_, b) in self.matrices() {
            let (here, after) = turned.split_at_mut(b.len());
            turn(b, rank, here);
            turned = after;
        }
        let low = self.saved(rows, low.saved);
        let turned_a = Mat::new(turned_a, inputs, total);
        low.par_chunks_mut(ROWS * total).enumerate().for_each(|(task, low)| {
            let n = low.len() / total;
            let x = x.rows(task * ROWS..task * ROWS + n);
            strided::matmul_f32(MatMut::new(low, n, total), Accumulate::Set, x, turned_a);
            low.iter_mut().for_each(|low| *low *= scale);
        });
        Branch { rank, low, stride: total, wide: turned_b, columns: Columns::Parts(parts) }
    }

    /// Computes low = s·x·Aᵀ and, if requested, adds x·Wᵀ + low·Bᵀ to what `start` puts into y. Operands are rounded to bf16.
    pub fn forward_bf16(
        &self,
        outputs: usize,
        x: Mat<'_>,
        y: Option<(MatMut<'_>, Right<'_>)>,
        low: &mut LoraActivations<'_>,
        start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync,
    ) {
        let Self { rank, scale, a, parts, .. } = *self;
        let (rows, inputs, total) = (x.n_rows(), x.cols(), self.total_rank());
        let up = self.dense_b(outputs, low.scratch);
        let ranks = |columns: Range<usize>| {
            let used = |part: &AdapterPart| part.outputs.start < columns.end && columns.start < part.outputs.end;
            let first = parts.iter().position(used).unwrap_or(0);
            let end = parts.iter().rposition(used).map_or(first, |last| last + 1);
            first * rank..end * rank
        };
        let down = Mat::new(a, total, inputs).t();
        let branch = LowRank { scale, down, up: Mat::new(up, outputs, total).t(), ranks: &ranks };
        let y = y.map(|(y, weight)| (y, Accumulate::Add, weight));
        matmul_low_rank::<2>(y, x, branch, self.saved(rows, low.saved), start);
    }

    /// With dlow = s·dy·B:  dB += dyᵀ·low,  dA += dlowᵀ·x  and, if requested, dx = dy·W + dlow·A. Rounds the operands of
    /// all products to bf16.
    pub fn backward_bf16(
        &self,
        x: Mat<'_>,
        dy: Mat<'_>,
        dx: Option<(MatMut<'_>, Right<'_>)>,
        low: &mut LoraActivations<'_>,
        da: &mut [f32],
        db: &mut [f32],
    ) {
        let (rows, total) = (x.n_rows(), self.total_rank());
        let (dlow, rest) = low.scratch.split_at_mut(rows * total);
        let down = self.dense_b(dy.cols(), rest);
        let (down, up) = (Mat::new(down, dy.cols(), total), Mat::new(self.a, total, x.cols()));
        let branch = LowRank { scale: self.scale, down, up, ranks: &|_| 0..total };
        let dx = dx.map(|(dx, weight)| (dx, Accumulate::Set, weight));
        matmul_low_rank::<2>(dx, dy, branch, dlow, |_, _, _| {});
        add_thin::<2>(MatMut::new(da, total, x.cols()), Mat::new(dlow, rows, total).t(), x);
        let (low, mut db) = (&*self.saved(rows, low.saved), db);
        for (index, (part, b)) in self.matrices().enumerate() {
            let (here, after) = db.split_at_mut(b.len());
            let low = Mat::strided(&low[index * self.rank..], rows, self.rank, total);
            let db_part = MatMut::new(here, part.outputs.len(), self.rank);
            add_thin_turned::<2>(db_part, low.t(), dy.columns(part.outputs.clone()));
            db = after;
        }
    }

    /// Returns the adapters' B as one matrix `[outputs, R]`, zero where an adapter has no output: a copy in `to`, or B itself.
    fn dense_b<'s>(&self, outputs: usize, to: &'s mut [f32]) -> &'s [f32]
    where
        'a: 's,
    {
        let (rank, total) = (self.rank, self.total_rank());
        if self.b.len() == outputs * total {
            return self.b;
        }
        let to = &mut to[..outputs * total];
        to.fill(0.0);
        for (index, (part, b)) in self.matrices().enumerate() {
            let rows = to[part.outputs.start * total..].chunks_exact_mut(total);
            rows.zip(b.chunks_exact(rank)).for_each(|(to, b)| to[index * rank..][..rank].copy_from_slice(b));
        }
        to
    }

    /// With dlow = s·dy·B:  dB += dyᵀ·low,  dA += dlowᵀ·x.  Returns dlow·A, the initial value of dx.
    pub fn backward<'s>(
        &self,
        x: Mat<'_>,
        dy: Mat<'_>,
        low: &'s mut LoraActivations<'_>,
        da: &mut [f32],
        db: &mut [f32],
    ) -> Branch<'s>
    where
        'a: 's,
    {
        let Self { rank, scale, a, b, .. } = *self;
        let (rows, inputs, total) = (x.n_rows(), x.cols(), self.total_rank());
        let (dlow, partial) = low.scratch.split_at_mut(rows * total);
        let low = &*self.saved(rows, low.saved);
        let partial = &mut partial[..rows.div_ceil(ROWS) * (a.len() + b.len())];
        let tasks = dlow.par_chunks_mut(ROWS * total).zip(low.par_chunks(ROWS * total));
        let tasks = tasks.zip(partial.par_chunks_mut(a.len() + b.len()));
        tasks.enumerate().for_each(|(task, ((dlow, low), partial))| {
            let n = low.len() / total;
            let rows = task * ROWS..task * ROWS + n;
            let (x, dy) = (x.rows(rows.clone()), dy.rows(rows));
            let (da, mut db) = partial.split_at_mut(a.len());
            for (index, (part, b)) in self.matrices().enumerate() {
                let outputs = part.outputs.len();
                let dy = dy.columns(part.outputs.clone());
                let dlow = MatMut::strided(&mut dlow[index * rank..], n, rank, total);
                strided::matmul_f32(dlow, Accumulate::Set, dy, Mat::new(b, outputs, rank));
                let (here, after) = db.split_at_mut(b.len());
                let low = Mat::strided(&low[index * rank..], n, rank, total);
                strided::matmul_f32(MatMut::new(here, rank, outputs), Accumulate::Set, low.t(), dy);
                db = after;
            }
            dlow.iter_mut().for_each(|dlow| *dlow *= scale);
            strided::matmul_f32(MatMut::new(da, total, inputs), Accumulate::Set, Mat::new(dlow, n, total).t(), x);
        });
        let (sum, others) = partial.split_at_mut(a.len() + b.len());
        for others in others.chunks_exact(sum.len()) {
            sum.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
        let (sum_a, mut sum_b) = sum.split_at(a.len());
        da.iter_mut().zip(sum_a).for_each(|(da, sum)| *da += sum);
        let mut db = db;
        for (part, b) in self.matrices() {
            let (sum, after) = sum_b.split_at(b.len());
            let (here, rest) = db.split_at_mut(b.len());
            for (r, sum) in sum.chunks_exact(part.outputs.len()).enumerate() {
                here.chunks_exact_mut(rank).zip(sum).for_each(|(db, sum)| db[r] += sum);
            }
            (sum_b, db) = (after, rest);
        }
        Branch { rank: total, low: dlow, stride: total, wide: a, columns: Columns::All }
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

    #[test]
    fn backward_matches_finite_differences() {
        for (rows, inputs, outputs, rank, parts) in [
            (5, 12, 36, 3, vec![(0, 36)]),
            (1, 7, 3, 1, vec![(0, 3)]),
            (33, 16, 97, 16, vec![(0, 97)]),
            (270, 40, 20, 5, vec![(0, 20)]),
            (5, 12, 36, 3, vec![(0, 20), (20, 29), (29, 36)]),
            (140, 9, 50, 4, vec![(3, 19), (40, 50)]),
        ] {
            let (x, weight, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
            let (total, adapted) = (rank * parts.len(), parts.iter().map(|(start, end)| end - start).sum::<usize>());
            let (a, b, dy) = (random(total * inputs, 4), random(adapted * rank, 5), random(rows * outputs, 6));
            let mut end = 2 + a.len();
            let part = |(start, end_output): (usize, usize)| {
                let outputs = start..end_output;
                let b = end..end + outputs.len() * rank;
                end = b.end;
                AdapterPart { outputs, b }
            };
            let at = AdapterRanges { a: 2..2 + a.len(), parts: parts.into_iter().map(part).collect() };
            let tasks = rows.div_ceil(ROWS);
            let (mut saved, mut scratch) =
                (vec![0.0; 4 * rows * total], vec![0.0; total * rows + tasks * (a.len() + b.len())]);
            let run = |x: &[f32], a: &[f32], b: &[f32], saved: &mut [f32], scratch: &mut [f32]| {
                let adapter = Adapter { before: 1, rank, scale: 0.7, a, b, parts: &at.parts };
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
                let (mut grads, mut dx) = (vec![0.0; at.b().end], vec![f32::NAN; x.len()]);
                layer.backward(x, &dy, &mut LoraActivations { saved, scratch }, &mut grads, Some(&mut dx));
                (dot(&y, &dy), grads, dx)
            };
            let (_, grads, dx) = run(&x, &a, &b, &mut saved, &mut scratch);
            let loss = |x: &[f32], a: &[f32], b: &[f32]| run(x, a, b, &mut saved.clone(), &mut scratch.clone()).0;
            check_gradient(&x, &dx, |x| loss(x, &a, &b));
            check_gradient(&a, &grads[at.a.clone()], |a| loss(&x, a, &b));
            check_gradient(&b, &grads[at.b()], |b| loss(&x, &a, b));
            assert_eq!(grads[..2], [0.0; 2]);
        }
    }

    #[test]
    fn in_bf16_outputs_and_gradients_are_near_those_in_f32() {
        for (rows, inputs, outputs, rank, parts) in [
            (5, 12, 36, 3, vec![(0, 36)]),
            (1, 7, 3, 1, vec![(0, 3)]),
            (270, 40, 97, 5, vec![(0, 97)]),
            (205, 33, 300, 7, vec![(0, 200), (200, 231), (231, 300)]),
            (140, 600, 50, 4, vec![(3, 19), (40, 50)]),
        ] {
            let spread = |n: usize, seed: u64, fan_in: usize| -> Vec<f32> {
                random(n, seed).iter().map(|x| x / (fan_in as f32).sqrt()).collect()
            };
            let (total, adapted) = (rank * parts.len(), parts.iter().map(|(start, end)| end - start).sum::<usize>());
            let (x, dy) = (random(rows * inputs, 1), spread(rows * outputs, 2, outputs));
            let (weight, bias) = (spread(outputs * inputs, 3, inputs), random(outputs, 4));
            let (a, b) = (spread(total * inputs, 5, inputs), spread(adapted * rank, 6, rank));
            let mut end = a.len();
            let part = |(start, end_output): (usize, usize)| {
                let outputs = start..end_output;
                let b = end..end + outputs.len() * rank;
                end = b.end;
                AdapterPart { outputs, b }
            };
            let at = AdapterRanges { a: 0..a.len(), parts: parts.into_iter().map(part).collect() };
            let run = |precision: Precision, with_dx: bool| {
                let adapter = Adapter { before: 0, rank, scale: 0.7, a: &a, b: &b, parts: &at.parts };
                let layer = Linear {
                    precision,
                    outputs,
                    inputs,
                    weight: Weight::Plain(&weight),
                    bias: &bias,
                    learns: Learns::Adapter(adapter, &at),
                };
                let length = total * rows + (rows.div_ceil(ROWS) * (a.len() + b.len())).max(outputs * total);
                let (mut saved, mut scratch) = (vec![f32::NAN; rows * total], vec![f32::NAN; length]);
                let mut low = LoraActivations { saved: &mut saved, scratch: &mut scratch };
                let (mut y, mut dx) = (vec![f32::NAN; rows * outputs], vec![f32::NAN; x.len()]);
                layer.forward(&x, &mut low, &mut y);
                let mut grads = vec![0.0; at.b().end];
                layer.backward(&x, &dy, &mut low, &mut grads, with_dx.then_some(&mut dx[..]));
                [y, grads, dx]
            };
            let (expected, found) = (run(Precision::F32, true), run(Precision::Bf16, true));
            assert_eq!(run(Precision::Bf16, false)[..2], found[..2], "the gradients do not need dx");
            for (expected, found) in expected.iter().zip(&found) {
                let error = expected.iter().zip(found).map(|(e, f)| (e - f).powi(2)).sum::<f32>().sqrt();
                let size = dot(expected, expected).sqrt() as f32;
                assert!(error < 0.01 * size, "{rows}x{inputs}x{outputs} rank {rank}: error {error} of {size}");
            }
        }
    }
}
