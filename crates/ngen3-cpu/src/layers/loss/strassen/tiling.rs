//! Partition of the loss into blocks, segments and chunks, and its buffers.

use bytemuck::{AnyBitPattern, NoUninit};

use crate::base::memory::{Carver, padded};
use crate::gemm::tiles::kernel::{MR, NR, TILE};
use crate::gemm::tiles::strassen::{CHANNELS, PRODUCTS};
use crate::layers::loss::tiling::{E_NUMBERS, PARTIAL, SEGMENTS, Sizes};

/// Pairs of word panels per chunk.
pub const PAIRS: usize = 4;

/// Words in each of a chunk's two parts.
pub const PART: usize = PAIRS * MR;

/// Words per chunk, whose sums of exponentials stay in the L2 cache for the two products that follow.
pub const CHUNK: usize = 2 * PART;

/// Tokens per pair of tiles.
pub const TOKENS: usize = 2 * NR;

/// Elements of padding after each product's tiles: otherwise all seven would be a multiple of 2 KB apart and share a few sets
/// of the L1 cache.
const GAP: usize = 5 * 16;

/// Partition of one loss.
#[derive(Clone, Copy)]
pub struct StrassenTiling {
    pub width: usize,
    pub vocab_size: usize,
    /// Channels in the first part; the second has the same number or one fewer.
    pub half: usize,
    /// Pairs of tiles per block of tokens.
    pub pairs: usize,
    pub chunks: usize,
    /// Chunks per segment, which is one task.
    pub segment_chunks: usize,
}

impl StrassenTiling {
    /// Creates the partition. Scratch memory never shrinks as tokens grow, so that buffers sized for a pass also fit its
    /// non-ignored targets.
    pub fn new(Sizes { tokens, width, vocab_size }: Sizes) -> Self {
        let chunks = vocab_size.div_ceil(CHUNK);
        let most = (E_NUMBERS / (chunks * CHUNK)).min(PARTIAL / width) / TOKENS;
        Self {
            width,
            vocab_size,
            half: width.div_ceil(2),
            pairs: most.max(1).min(tokens.div_ceil(TOKENS)),
            chunks,
            segment_chunks: chunks.div_ceil(SEGMENTS),
        }
    }

    /// Tokens per block.
    pub fn block(&self) -> usize {
        self.pairs * TOKENS
    }

    pub fn segments(&self) -> usize {
        self.chunks.div_ceil(self.segment_chunks)
    }

    /// Channels of one part, padded to whole tiles of rows of A.
    pub fn channels(&self) -> usize {
        self.half.next_multiple_of(CHANNELS)
    }

    /// Tiles of [`NR`] channels per part.
    pub fn columns(&self) -> usize {
        self.half.div_ceil(NR)
    }

    /// Length of one chunk of the embeddings as A of the logits: for each product, panels of [half, MR].
    pub fn by_word(&self) -> usize {
        PRODUCTS * PART * self.half
    }

    /// Length of one chunk of the embeddings as A of dhidden: for each product, panels of [PART, CHANNELS].
    pub fn by_channel(&self) -> usize {
        PRODUCTS * PART * self.channels()
    }

    /// Length of e of one chunk: [pairs, PAIRS, QUAD].
    pub fn e(&self) -> usize {
        CHUNK * self.block()
    }

    /// Distance of two products' tiles of logits: [PAIRS, TILE] and a gap.
    pub const fn logits() -> usize {
        PAIRS * TILE + GAP
    }

    /// Distance of two products' sums of e: [pairs, PAIRS, TILE] and a gap.
    pub fn mixed_e(&self) -> usize {
        self.pairs * PAIRS * TILE + GAP
    }

    /// Length of one product's share of dhidden: [pairs, channels, NR].
    pub fn dhidden(&self) -> usize {
        self.pairs * self.channels() * NR
    }

    fn lengths(&self) -> [usize; 7] {
        let block = self.block();
        [
            block * self.width,
            PRODUCTS * self.half * block / 2,
            PRODUCTS * self.columns() * NR * block / 2,
            block,
            self.segments() * block,
            self.chunks * self.e(),
            self.segments() * self.width * block,
        ]
    }

    /// Length in f32 of the scratch memory of a loss.
    pub fn scratch(&self) -> usize {
        self.lengths().map(padded).iter().sum()
    }

    pub fn cut<'a>(&self, scratch: &'a mut [f32]) -> Scratch<'a> {
        let mut carver = Carver(scratch);
        let [hidden, by_channel, by_token, shift, sums, e, dhidden] = self.lengths().map(|length| carver.cut(length));
        Scratch { hidden, by_channel, by_token, shift, sums, e, dhidden }
    }
}

/// Buffers of one block. R tokens, width C.
pub struct Scratch<'a> {
    /// `[R, C]`: hidden states times log₂e, so that logits are exponents of 2.
    pub hidden: &'a mut [f32],
    /// Sums of their blocks as B of the logits: for each product and pair of tiles `[half, NR]`.
    pub by_channel: &'a mut [f32],
    /// Sums of their blocks as B of dwte: for each product and [`NR`] channels `[R/2, NR]`.
    pub by_token: &'a mut [f32],
    /// `[R]`: logit of each token's target.
    pub shift: &'a mut [f32],
    /// `[segments, R]`
    pub sums: &'a mut [f32],
    /// A quad of e for each chunk, pair of tiles and pair of panels.
    pub e: &'a mut [f32],
    /// `[segments, R/NR, C, NR]`: each segment's partial sum of dhiddenᵀ.
    pub dhidden: &'a mut [f32],
}

/// Groups values of tokens by pairs of tiles.
pub fn by_pair<T: AnyBitPattern + NoUninit>(of_tokens: &[T]) -> &[[[T; NR]; 2]] {
    of_tokens.as_chunks::<NR>().0.as_chunks::<2>().0
}
