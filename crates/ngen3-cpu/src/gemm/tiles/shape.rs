//! Sizes of the tiles and panels of all kernels, and the order of A's rows in them.

/// Rows of a tile on AVX-512, AVX2 and NEON: with two vectors of columns, the sums take 24 of AVX-512's 32 vector registers.
pub const MR: usize = 12;

/// Columns of a tile: two vectors of 16 f32.
pub const NR: usize = 32;

/// Columns that vectors narrower than those of AVX-512 compute at a time.
pub const COLUMNS: usize = 16;

/// Elements of a tile.
pub const TILE: usize = MR * NR;

/// Rows of a tile on AMX.
pub const ROWS: usize = 16;

/// Cells of a row of A in a block, on AMX.
pub const BLOCK: usize = 16;

/// Cells of a block of A.
pub const BLOCK_CELLS: usize = ROWS * BLOCK;

/// Memory order of the rows of A in a tile.
///
/// Not a [`Mat`](crate::gemm::Mat), because this description must be passed in registers. Loading it from memory would wait
/// behind the stores of the previous tile's sums (1.6 % of a step, measured).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Interleaved, `[depth, MR]`: a panel.
    Together,
    /// Separate rows, this many cells apart.
    Apart(usize),
    /// In blocks along k, `[depth/BLOCK, ROWS, BLOCK]`: a panel for AMX.
    Blocks,
}

impl Rows {
    /// Returns the index of cell `k` of row `i`.
    #[inline(always)]
    pub fn at(self, i: usize, k: usize) -> usize {
        match self {
            Self::Together => k * MR + i,
            Self::Apart(stride) => i * stride + k,
            Self::Blocks => k / BLOCK * BLOCK_CELLS + i * BLOCK + k % BLOCK,
        }
    }

    /// Number of rows of a tile, and of a panel.
    #[inline(always)]
    pub fn count(self) -> usize {
        if self == Self::Blocks { ROWS } else { MR }
    }

    /// Number of tiles below one another that are computed faster together: on AMX they share the loads of B.
    pub fn at_once(self) -> usize {
        if self == Self::Blocks { 2 } else { 1 }
    }

    /// Returns the last cell along k, up to `k`, at which a product may begin.
    pub fn start(self, k: usize) -> usize {
        if self == Self::Blocks { k / BLOCK * BLOCK } else { k }
    }
}
