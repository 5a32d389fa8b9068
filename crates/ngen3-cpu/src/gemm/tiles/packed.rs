//! Weights packed once, for the products of a frozen model.

use rayon::prelude::*;

use super::int8;
use super::kernel::NR;
use super::pack::{cells, pack, packed_len};
use super::product::matmul_onto;
use super::right::Right;
use super::workspace::with_workspace;
use crate::base::memory::Buffer;
use crate::gemm::view::{Mat, MatMut};
use ngen3_engine::{Error, Quant};

/// Weight `[outputs, inputs]`, rounded and laid out as the kernel reads it.
#[derive(Debug)]
pub struct Packed {
    outputs: usize,
    inputs: usize,
    /// Rounding of the weight and of `x`: none beyond bf16, also for weights that were rounded to int4 before, or int8.
    quant: Quant,
    /// Panels of [`NR`] outputs.
    panels: Buffer,
}

impl Packed {
    /// Packs a weight.
    ///
    /// # Errors
    /// [`Error::Memory`] if the packed copy does not fit in memory beside the original.
    pub fn new(weight: Mat<'_>, quant: Quant) -> Result<Self, Error> {
        let (outputs, inputs) = (weight.n_rows(), weight.cols());
        let length = match quant {
            Quant::None | Quant::Int4 => packed_len::<2, NR>(outputs, inputs),
            Quant::Int8 => int8::PackedB::len(outputs, inputs),
        };
        let mut panels = Buffer::zeros(length, "the packed weight of a layer")?;
        match quant {
            Quant::None | Quant::Int4 => pack::<2, NR>(weight, bytemuck::cast_slice_mut(&mut panels)),
            Quant::Int8 => {
                int8::PackedB::lay_out(weight, &mut panels);
            }
        }
        Ok(Self { outputs, inputs, quant, panels })
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }

    /// Returns Wᵀ, `[inputs, outputs]`, as a right operand.
    ///
    /// # Panics
    /// If the weight is not bf16.
    pub fn for_outputs(&self) -> Right<'_> {
        Right::Panels { panels: self.bf16(), k: self.inputs, n: self.outputs }
    }

    /// Returns W, `[outputs, inputs]`, as a right operand.
    ///
    /// # Panics
    /// If the weight is not bf16.
    pub fn for_inputs(&self) -> Right<'_> {
        Right::Turned { panels: self.bf16(), k: self.outputs, n: self.inputs }
    }

    fn bf16(&self) -> &[u32] {
        assert_ne!(self.quant, Quant::Int8, "int8 weights have forward products only");
        bytemuck::cast_slice(&self.panels)
    }

    /// Writes the weight's values to `to`, `[outputs, inputs]`.
    ///
    /// # Panics
    /// If the weight is not bf16.
    pub fn unpack(&self, to: &mut [f32]) {
        let depth = cells::<2>(self.inputs);
        let panels = self.bf16().par_chunks(depth * NR).zip(to.par_chunks_mut(NR * self.inputs));
        panels.for_each(|(panel, rows)| {
            for (output, row) in rows.chunks_exact_mut(self.inputs).enumerate() {
                for (input, to) in row.iter_mut().enumerate() {
                    let cell = panel[input / 2 * NR + output];
                    *to = f32::from_bits(if input % 2 == 0 { cell << 16 } else { cell & 0xFFFF_0000 });
                }
            }
        });
    }

    /// Computes `y = start + x·Wᵀ`, with `x`: `[rows, inputs]`, `y`: `[rows, outputs]`. bf16 weights give the same bits as
    /// [`matmul_onto`](super::product::matmul_onto).
    pub fn product_onto(&self, y: MatMut<'_>, x: Mat<'_>, start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync) {
        assert_eq!(x.cols(), self.inputs, "columns of x: the layer's inputs");
        match self.quant {
            Quant::None | Quant::Int4 => matmul_onto::<2>(y, x, self.for_outputs(), start),
            Quant::Int8 => with_workspace(int8::PackedA::len(x.n_rows(), self.inputs), |workspace| {
                let packed_a = int8::PackedA::lay_out(x, workspace);
                int8::product_onto(y, packed_a, int8::PackedB::of(self.outputs, self.inputs, &self.panels), start);
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::random;
    use crate::gemm::tiles::pack::rounded;

    #[test]
    fn unpacked_weights_are_the_rounded_ones() {
        for (outputs, inputs) in [(1, 1), (33, 7), (64, 32), (70, 130)] {
            let w = random(outputs * inputs, 1);
            let packed = Packed::new(Mat::new(&w, outputs, inputs), Quant::None).expect("memory");
            let mut found = vec![f32::NAN; w.len()];
            packed.unpack(&mut found);
            assert!(w.iter().map(|&w| rounded::<2>(w)).eq(found), "{outputs} x {inputs}");
        }
    }
}
