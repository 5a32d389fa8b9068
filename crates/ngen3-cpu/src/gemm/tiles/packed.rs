//! Weights packed once, for the products x·Wᵀ of a frozen model.

use super::int8;
use super::kernel::NR;
use super::pack::{pack, packed_len};
use super::packed_a::PackedA;
use super::product::multiply;
use super::workspace::with_workspace;
use crate::base::memory::Buffer;
use crate::gemm::operation::Accumulate;
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

    /// Computes `y = start + x·Wᵀ`, with `x`: `[rows, inputs]`, `y`: `[rows, outputs]`. bf16 weights give the same bits as
    /// [`matmul_onto`](super::product::matmul_onto).
    pub fn product_onto(&self, y: MatMut<'_>, x: Mat<'_>, start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync) {
        assert_eq!(x.cols(), self.inputs, "columns of x: the layer's inputs");
        match self.quant {
            Quant::None | Quant::Int4 => with_workspace(PackedA::len::<2>(x), |workspace| {
                let packed_a = PackedA::lay_out::<2>(x, bytemuck::cast_slice_mut(workspace));
                multiply::<2>(y, Accumulate::Add, packed_a, bytemuck::cast_slice(&self.panels), start);
            }),
            Quant::Int8 => with_workspace(int8::PackedA::len(x.n_rows(), self.inputs), |workspace| {
                let packed_a = int8::PackedA::lay_out(x, workspace);
                int8::product_onto(y, packed_a, int8::PackedB::of(self.outputs, self.inputs, &self.panels), start);
            }),
        }
    }
}
