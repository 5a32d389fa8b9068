//! Right operand of a large product, in panels of [`NR`] columns: packed for this product, or kept packed.

use super::kernel::NR;
use super::pack::{pack, packed_len};
use super::turn::turn;
use crate::gemm::view::Mat;

/// Right operand, `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// Packed for each product.
    Plain(Mat<'a>),
    /// Packed already.
    Panels { panels: &'a [u32], k: usize, n: usize },
    /// Packed already for products with the transpose, `[n, k]`, as [`Right::Panels`], in bf16.
    Turned { panels: &'a [u32], k: usize, n: usize },
}

impl<'a> Right<'a> {
    /// Rows, k, and columns, n.
    pub fn shape(self) -> (usize, usize) {
        match self {
            Self::Plain(b) => (b.rows, b.cols),
            Self::Panels { k, n, .. } | Self::Turned { k, n, .. } => (k, n),
        }
    }

    /// Length in cells of the memory that [`Right::lay_out`] needs.
    pub fn workspace<const P: usize>(self) -> usize {
        match self {
            Self::Panels { .. } => 0,
            Self::Plain(_) | Self::Turned { .. } => {
                let (k, n) = self.shape();
                packed_len::<P, NR>(n, k)
            }
        }
    }

    /// Returns the operand's panels, packed into `to` if need be, on all threads.
    ///
    /// # Panics
    /// If `to` is not [`Right::workspace`] long, or panels have another length.
    pub fn lay_out<const P: usize>(self, to: &'a mut [u32]) -> &'a [u32] {
        assert_eq!(to.len(), self.workspace::<P>(), "memory for the panels of a product");
        match self {
            Self::Plain(b) => {
                pack::<P, NR>(b.t(), to);
                to
            }
            Self::Panels { panels, k, n } => {
                assert_eq!(panels.len(), packed_len::<P, NR>(n, k), "cells of the packed right operand");
                panels
            }
            Self::Turned { panels, k, n } => {
                assert_eq!(P, 2, "only bf16 panels are kept packed");
                turn(panels, k, n, to);
                to
            }
        }
    }
}
