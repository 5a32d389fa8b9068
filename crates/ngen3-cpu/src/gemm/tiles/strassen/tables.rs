//! Tables that the kernels of every processor share: the weights of the products, and their operands.

use crate::gemm::tiles::shape::NR;

/// Number of products of sums of blocks.
pub const PRODUCTS: usize = 7;

/// Weight of each block of E, block (r, t) at index 2r + t; also the weight of each product in each block of S.
pub const EXPS: [[i8; 4]; PRODUCTS] =
    [[1, 0, 0, 1], [0, 0, 1, -1], [0, 1, 0, 1], [1, 0, 1, 0], [-1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]];

/// One quad of base-2 logits, and the softmax state that it updates.
pub struct Logits<'a> {
    /// One tile of each product, `stride` elements apart.
    pub products: &'a [f32],
    /// Distance of two tiles of `products`, in elements.
    pub stride: usize,
    /// Number of words in each part; rows past it are padding and contribute 0.
    pub words: [usize; 2],
    /// Value subtracted from each token's logits.
    pub shift: &'a [[f32; NR]; 2],
    /// Running Σ e of each token.
    pub sums: &'a mut [[f32; NR]; 2],
}

/// Destination of a tile in a matrix, and its weight. The default is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Place {
    /// Index of its first element.
    pub at: usize,
    /// Rows of the tile that exist in the matrix.
    pub rows: usize,
    /// Columns of the tile that exist in the matrix.
    pub cols: usize,
    /// Factor of the tile.
    pub weight: f32,
}
