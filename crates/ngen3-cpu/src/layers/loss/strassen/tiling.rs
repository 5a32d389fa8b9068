//! Blocks, segments and chunks of the loss, and its buffers.

use bytemuck::{AnyBitPattern, NoUninit};

use crate::base::memory::{Carver, padded};
use crate::gemm::tiles::kernel::{MR, NR, TILE};
use crate::gemm::tiles::strassen::{CHANNELS, PRODUCTS};
use crate::layers::loss::tiling::{E_NUMBERS, PARTIAL, SEGMENTS, Sizes};

/// Pairs of panels of words in a chunk.
pub const PAIRS: usize = 4;

/// Words in each of the two parts of a chunk.
pub const PART: usize = PAIRS * MR;

/// Words whose exponentials' sums are kept in the second-level cache for the two products that follow.
pub const CHUNK: usize = 2 * PART;

/// Tokens of a pair of tiles.
pub const TOKENS: usize = 2 * NR;

/// Numbers left free after each product's tiles: without them all seven would stand a multiple of 2 KB apart and share a few sets of
/// the first-level cache.
const GAP: usize = 5 * 16;

/// The sizes of one loss.
#[derive(Clone, Copy)]
pub struct StrassenTiling {
    pub width: usize,
    pub vocab_size: usize,
    /// Channels in the first part; as many in the second, or one fewer.
    pub half: usize,
    /// Pairs of tiles in a block of tokens.
    pub pairs: usize,
    pub chunks: usize,
    /// Chunks in a segment, which is one task.
    pub segment_chunks: usize,
}

impl StrassenTiling {
    /// More tokens never need less room: the buffers for a pass serve for the tokens of it that count.
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

    /// Tokens in a block.
    pub fn block(&self) -> usize {
        self.pairs * TOKENS
    }

    pub fn segments(&self) -> usize {
        self.chunks.div_ceil(self.segment_chunks)
    }

    /// Channels of a part as rows of A.
    pub fn channels(&self) -> usize {
        self.half.next_multiple_of(CHANNELS)
    }

    /// Tiles of [`NR`] channels in a part.
    pub fn columns(&self) -> usize {
        self.half.div_ceil(NR)
    }

    /// Numbers of one chunk of the embeddings as A of the logits: for each product, panels of [half, MR].
    pub fn by_word(&self) -> usize {
        PRODUCTS * PART * self.half
    }

    /// The same as A of dhidden: for each product, panels of [PART, CHANNELS].
    pub fn by_channel(&self) -> usize {
        PRODUCTS * PART * self.channels()
    }

    /// Numbers of e in one chunk: [pairs, PAIRS, QUAD].
    pub fn e(&self) -> usize {
        CHUNK * self.block()
    }

    /// Numbers from one product's tiles of logits to the next's: [PAIRS, TILE], and a gap.
    pub const fn logits() -> usize {
        PAIRS * TILE + GAP
    }

    /// The same of sums of e: [pairs, PAIRS, TILE], and a gap.
    pub fn mixed_e(&self) -> usize {
        self.pairs * PAIRS * TILE + GAP
    }

    /// Numbers of one product's part of dhidden: [pairs, channels, NR].
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

    /// f32s that a loss needs.
    pub fn scratch(&self) -> usize {
        self.lengths().map(padded).iter().sum()
    }

    pub fn cut<'a>(&self, scratch: &'a mut [f32]) -> Scratch<'a> {
        let mut carver = Carver(scratch);
        let [hidden, by_channel, by_token, shift, sums, e, dhidden] = self.lengths().map(|length| carver.cut(length));
        Scratch { hidden, by_channel, by_token, shift, sums, e, dhidden }
    }
}

/// One block's buffers. R tokens, width C.
pub struct Scratch<'a> {
    /// `[R, C]`: hidden states times log₂e, so that logits are powers of two.
    pub hidden: &'a mut [f32],
    /// Their sums as B of the logits: for each product and pair of tiles `[half, NR]`.
    pub by_channel: &'a mut [f32],
    /// Their sums as B of dwte: for each product and [`NR`] channels `[R/2, NR]`.
    pub by_token: &'a mut [f32],
    /// `[R]`: each token's target's logit.
    pub shift: &'a mut [f32],
    /// `[segments, R]`
    pub sums: &'a mut [f32],
    /// For each chunk, pair of tiles and pair of panels a quad of e.
    pub e: &'a mut [f32],
    /// `[segments, R/NR, C, NR]`: each segment's part of dhiddenᵀ.
    pub dhidden: &'a mut [f32],
}

/// Tokens' numbers by pairs of tiles.
pub fn by_pair<T: AnyBitPattern + NoUninit>(of_tokens: &[T]) -> &[[[T; NR]; 2]] {
    of_tokens.as_chunks::<NR>().0.as_chunks::<2>().0
}
