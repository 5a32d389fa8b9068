//! Buffers of one block of tokens, and their layout.

use bytemuck::cast_slice_mut;

use super::head::Head;
use crate::base::memory::{Carver, padded};
use crate::gemm::tiles::kernel::NR;
use crate::gemm::tiles::softmax::e_tile;
use crate::gemm::tiles::{packed_len, panels_a};
use crate::layers::loss::tiling::{Sizes, chunk_words};

/// Indices into [`Scratch::sums`]: sums over the words for each token.
pub mod sum {
    /// exp(z)
    pub const STUDENT: usize = 0;
    /// exp(z/T)
    pub const TEMPERED: usize = 1;
    /// exp(u/T)
    pub const TEACHER: usize = 2;
    /// exp(u/T)·(u − z)/T, or for the reverse divergence exp(z/T)·(z − u)/T.
    pub const CROSS: usize = 3;
    /// p·ln(p/m), with m = (p + q)/2.
    pub const TEACHER_TO_MEAN: usize = 4;
    /// q·ln(q/m)
    pub const STUDENT_TO_MEAN: usize = 5;
    pub const COUNT: usize = 6;
}

/// Indices into [`Scratch::factors`]: factors of each token's gradient.
pub mod factor {
    /// (1 − α)·weight / Σ exp(z)
    pub const CROSS: usize = 0;
    /// α·T·weight
    pub const SOFT: usize = 1;
    /// ln Σ exp(z/T)
    pub const TEMPERED: usize = 2;
    /// ln Σ exp(u/T)
    pub const TEACHER: usize = 3;
    /// Value that the gradients of the reverse and Jensen-Shannon divergences subtract.
    pub const INNER: usize = 4;
    /// 1 / Σ exp(z/T)
    pub const OVER_TEMPERED: usize = 5;
    /// 1 / Σ exp(u/T)
    pub const OVER_TEACHER: usize = 6;
    pub const COUNT: usize = 7;
}

/// Logits of one model per block of tokens, 26 MB. Half as many would stay in cache better, but the embeddings of both models
/// would be read twice as often (4 % slower, measured).
const LOGITS: usize = 13 << 19;

/// Partition of the distillation loss into blocks of tokens.
#[derive(Clone, Copy)]
pub struct DistillTiling {
    pub sizes: Sizes,
    /// Tokens per block, a multiple of [`NR`].
    pub block: usize,
    /// The teacher's final projection, if any.
    pub head: Option<Head>,
}

/// Buffers of one block. R tokens, width C.
pub struct Scratch<'a> {
    /// The student's embeddings in both layouts: see `tiling::pack_wte`.
    pub wte: &'a mut [f32],
    /// The teacher's operands: see [`Head`].
    pub teacher_wte: &'a mut [f32],
    pub teacher_hidden: &'a mut [f32],
    /// Hidden states as B of the logits: panels of [C/P, NR].
    pub hidden: &'a mut [u32],
    /// Hidden states as B of dwte: panels of [R/P, NR].
    pub by_token: &'a mut [u32],
    /// `[R, C]`, zeros past the last token.
    pub padded_hidden: &'a mut [f32],
    /// `[R]`
    pub shift: &'a mut [f32],
    pub teacher_shift: &'a mut [f32],
    /// `[factor::COUNT, R]`
    pub factors: &'a mut [f32],
    /// `[segments, sum::COUNT, R]`
    pub sums: &'a mut [f32],
    /// `[panels, R/NR, height, NR]`: z. A panel has `height` words.
    pub student: &'a mut [f32],
    /// Same shape: u/T, or exp(u/T) for the forward divergence, whose gradient needs no more.
    pub teacher: &'a mut [f32],
    /// `[panels, R/NR, height, NR/P]`: g with cells along the tokens.
    pub g: &'a mut [u32],
    /// `[segments, R/NR, CHUNK·height/P, NR]`: g of one chunk per segment, with cells along the words.
    pub by_word: &'a mut [u32],
    /// `[segments, R/NR, C, NR]`: each segment's partial sum of dhiddenᵀ.
    pub dhidden: &'a mut [f32],
}

impl DistillTiling {
    pub fn new(sizes: Sizes, tokens: usize, head: Option<Head>) -> Self {
        let block = ((LOGITS / sizes.vocab_size) / NR * NR).clamp(NR, tokens.next_multiple_of(NR));
        Self { sizes, block, head }
    }

    /// Tiles per segment.
    pub fn segment_tiles<const P: usize>(&self) -> usize {
        self.sizes.segment_panels::<P>() * self.block / NR
    }

    /// Length in f32 of all buffers.
    pub fn total<const P: usize>(&self) -> usize {
        self.lengths::<P>().map(padded).iter().sum()
    }

    fn lengths<const P: usize>(&self) -> [usize; 15] {
        let Self { sizes, block, head } = *self;
        let (segments, tile) = (sizes.segments::<P>(), panels_a::height::<P>() * NR);
        let tiles = segments * self.segment_tiles::<P>();
        [
            sizes.packed_wte::<P>(),
            head.map_or(0, Head::wte_len::<P>),
            head.map_or(0, |head| head.hidden_len::<P>(block)),
            packed_len::<P, NR>(block, sizes.width),
            packed_len::<P, NR>(sizes.width, block),
            block * sizes.width,
            block,
            block,
            factor::COUNT * block,
            segments * sum::COUNT * block,
            tiles * tile,
            if head.is_some() { tiles * tile } else { 0 },
            tiles * e_tile::<P>(),
            segments * chunk_words::<P>() / P * block,
            segments * sizes.width * block,
        ]
    }

    pub fn cut<'a, const P: usize>(&self, memory: &'a mut [f32]) -> Scratch<'a> {
        let mut carver = Carver(memory);
        let pieces = self.lengths::<P>().map(|length| carver.cut(length));
        let [wte, teacher_wte, teacher_hidden, hidden, by_token, padded_hidden, shift, teacher_shift, pieces @ ..] =
            pieces;
        let [factors, sums, student, teacher, g, by_word, dhidden] = pieces;
        let [hidden, by_token, g, by_word] = [hidden, by_token, g, by_word].map(cast_slice_mut);
        Scratch {
            wte,
            teacher_wte,
            teacher_hidden,
            hidden,
            by_token,
            padded_hidden,
            shift,
            teacher_shift,
            factors,
            sums,
            student,
            teacher,
            g,
            by_word,
            dhidden,
        }
    }
}
