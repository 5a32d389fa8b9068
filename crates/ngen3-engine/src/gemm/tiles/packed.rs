//! A weight that is packed once, for the products x·Wᵀ of a model that does not change.

use super::kernel::NR;
use super::left::Left;
use super::{multiply, pack, packed_len, with_workspace};
use crate::Error;
use crate::cpu::memory::Buffer;
use crate::gemm::{Into, Mat, MatMut};

/// A weight, `[outputs, inputs]`, rounded to bf16 and laid out as the kernel reads it.
#[derive(Debug)]
pub struct Packed {
    inputs: usize,
    /// Panels of [`NR`] outputs.
    panels: Buffer,
}

impl Packed {
    /// Packs a weight.
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit beside what it is packed from.
    pub fn new(weight: Mat<'_>) -> Result<Self, Error> {
        let length = packed_len::<2, NR>(weight.n_rows(), weight.cols());
        let mut panels = Buffer::zeros(length, "packed weights")?;
        pack::<2, NR>(weight, bytemuck::cast_slice_mut(&mut panels));
        Ok(Self { inputs: weight.cols(), panels })
    }

    /// Inputs of the layer.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// `y = start + x·Wᵀ`, the same bits as those of [`super::matmul_onto`].
    pub fn product_onto(&self, y: MatMut<'_>, x: Mat<'_>, start: impl Fn(&mut MatMut<'_>, usize, usize) + Sync) {
        assert_eq!(x.cols(), self.inputs, "rows of as many as the layer has inputs");
        let length = Left::len::<2>(x);
        with_workspace(length, |workspace| {
            let left = Left::lay_out::<2>(x, bytemuck::cast_slice_mut(&mut workspace[..length]));
            multiply::<2>(y, Into::Add, left, bytemuck::cast_slice(&self.panels), start);
        });
    }
}
