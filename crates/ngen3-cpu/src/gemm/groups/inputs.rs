//! Inputs of a product, rounded to int8 in groups.

use rayon::prelude::*;

use super::format::GROUP;
use crate::base::memory::padded;
use crate::gemm::view::Mat;
use ngen3_simd::simd;

/// Numbers per group: 8 cells of four elements, and three factors.
const NUMBERS: usize = GROUP / 4 + 3;

/// Elements that one thread rounds faster than several.
const FEW: usize = 1 << 15;

/// Inputs `[rows, groups·32]`: x = s·q with s = max|x|/127 of each group. s is not finite if an element is not.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    numbers: &'a [f32],
    groups: usize,
}

impl<'a> Inputs<'a> {
    /// Length in f32.
    pub fn len(rows: usize, groups: usize) -> usize {
        rows * stride(groups)
    }

    /// Rounds `x`, `[rows, inputs]`, into `to`, for weights whose u − `zero` is multiplied.
    pub fn round(x: Mat<'_>, zero: i32, to: &'a mut [f32]) -> Self {
        let groups = x.cols().div_ceil(GROUP);
        let row = |(i, to): (usize, &mut [f32])| round_row(x.row(i), zero, groups, to);
        if x.n_rows() * x.cols() <= FEW {
            to.chunks_mut(stride(groups)).enumerate().for_each(row);
        } else {
            to.par_chunks_mut(stride(groups)).enumerate().with_min_len(4).for_each(row);
        }
        Self { numbers: to, groups }
    }

    /// The inputs from row `row`.
    pub fn after(self, row: usize) -> Self {
        Self { numbers: &self.numbers[row * stride(self.groups)..], ..self }
    }

    /// Groups per row.
    pub fn groups(self) -> usize {
        self.groups
    }

    /// Distance between the cells of rows, and between their factors.
    pub fn stride(self) -> usize {
        stride(self.groups)
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.numbers.len() / stride(self.groups)
    }

    /// Cells of four consecutive q of the first row, `[groups, 8]`; those of the next rows are strides apart.
    pub fn cells(self) -> &'a [i32] {
        bytemuck::cast_slice(self.numbers)
    }

    /// s of the first row, `[groups]`.
    pub fn scales(self) -> &'a [f32] {
        &self.numbers[self.groups * (GROUP / 4)..]
    }

    /// −zero·Σ q of the first row, `[groups]`.
    pub fn starts(self) -> &'a [i32] {
        bytemuck::cast_slice(&self.numbers[self.groups * (GROUP / 4 + 1)..])
    }

    /// s·Σ q of the first row, `[groups]`.
    pub fn sums(self) -> &'a [f32] {
        &self.numbers[self.groups * (GROUP / 4 + 2)..]
    }
}

/// Length in f32 of a row.
fn stride(groups: usize) -> usize {
    padded(groups * NUMBERS)
}

fn round_row(x: &[f32], zero: i32, groups: usize, to: &mut [f32]) {
    /// Adding 1.5·2²³ rounds to an integer, ties to even, whose lowest byte is the lowest byte of the sum.
    const ROUND: f32 = 12_582_912.0;
    let (cells, factors) = to.split_at_mut(groups * (GROUP / 4));
    let cells: &mut [u8] = bytemuck::cast_slice_mut(cells);
    let (scales, factors) = factors.split_at_mut(groups);
    let (starts, factors) = factors.split_at_mut(groups);
    let starts: &mut [i32] = bytemuck::cast_slice_mut(starts);
    simd(
        #[inline(always)]
        || {
            for (group, cells) in cells.chunks_exact_mut(GROUP).enumerate() {
                let x = &x[group * GROUP..];
                let mut values = [0.0f32; GROUP];
                match x.first_chunk::<GROUP>() {
                    Some(x) => values = *x,
                    None => values[..x.len()].copy_from_slice(x),
                }
                // Without the sign, bit patterns order like the values, with infinity and NaN largest.
                let mut largest = 0;
                for x in values {
                    largest = largest.max(x.to_bits() & 0x7FFF_FFFF);
                }
                let largest = f32::from_bits(largest);
                let inverse = if largest > f32::MIN_POSITIVE * 127.0 { 127.0 / largest } else { 0.0 };
                let mut sum = 0;
                for (q, x) in cells.iter_mut().zip(values) {
                    *q = (x * inverse + ROUND).to_bits() as u8;
                    sum += i32::from(*q as i8);
                }
                scales[group] = largest / 127.0;
                starts[group] = -zero * sum;
                factors[group] = largest / 127.0 * sum as f32;
            }
        },
    );
}
