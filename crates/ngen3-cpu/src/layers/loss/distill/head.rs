//! Final projection of a teacher: logits in tiles of one panel of words by [`NR`] tokens, from operands in the student's precision or
//! in int8.

use bytemuck::{cast_slice, cast_slice_mut};

use crate::gemm::tiles::int8;
use crate::gemm::tiles::kernel::{self, MR, NR};
use crate::gemm::tiles::{cells, pack, packed_len, panels_a};
use crate::gemm::{Accumulate, Mat, MatMut};
use ngen3_engine::Quant;

/// Sizes of the projection, and the rounding of its operands: the student's precision, or int8.
#[derive(Clone, Copy)]
pub struct Head {
    pub width: usize,
    pub vocab_size: usize,
    pub quant: Quant,
}

impl Head {
    /// Length in f32 of the packed embeddings.
    pub fn wte_len<const P: usize>(self) -> usize {
        match self.quant {
            Quant::None | Quant::Int4 => panels_a::packed_len::<P>(self.vocab_size, self.width),
            Quant::Int8 => int8::PackedA::len(self.vocab_size, self.width),
        }
    }

    /// Length in f32 of the packed hidden states of `tokens` tokens.
    pub fn hidden_len<const P: usize>(self, tokens: usize) -> usize {
        match self.quant {
            Quant::None | Quant::Int4 => packed_len::<P, NR>(tokens, self.width),
            Quant::Int8 => int8::PackedB::len(tokens, self.width),
        }
    }

    /// Packs the embeddings, `[vocab_size, width]`.
    pub fn lay_out_wte<const P: usize>(self, wte: &[f32], to: &mut [f32]) {
        let wte = Mat::new(wte, self.vocab_size, self.width);
        match self.quant {
            Quant::None | Quant::Int4 => panels_a::pack::<P>(wte, cast_slice_mut(to)),
            Quant::Int8 => {
                int8::PackedA::lay_out(wte, to);
            }
        }
    }

    /// Packs the hidden states of some tokens, `[tokens, width]`, at the front of `to`.
    pub fn lay_out_hidden<const P: usize>(self, hidden: &[f32], to: &mut [f32]) {
        let hidden = Mat::new(hidden, hidden.len() / self.width, self.width);
        let to = &mut to[..self.hidden_len::<P>(hidden.n_rows())];
        match self.quant {
            Quant::None | Quant::Int4 => pack::<P, NR>(hidden, cast_slice_mut(to)),
            Quant::Int8 => {
                int8::PackedB::lay_out(hidden, to);
            }
        }
    }

    /// Views both packed operands, with `tiles` panels of tokens.
    pub fn operands<'a, const P: usize>(self, wte: &'a [f32], hidden: &'a [f32], tiles: usize) -> Operands<'a> {
        let Self { width, vocab_size, quant } = self;
        match quant {
            Quant::None | Quant::Int4 => Operands::Cells { words: cast_slice(wte), hidden: cast_slice(hidden), width },
            Quant::Int8 => Operands::Int8 {
                words: int8::PackedA::of(vocab_size, width, wte),
                hidden: int8::PackedB::of(tiles * NR, width, hidden),
            },
        }
    }
}

/// Packed operands of the projection.
#[derive(Clone, Copy)]
pub enum Operands<'a> {
    /// Panels of words and of tokens.
    Cells {
        words: &'a [u32],
        hidden: &'a [u32],
        width: usize,
    },
    Int8 {
        words: int8::PackedA<'a>,
        hidden: int8::PackedB<'a>,
    },
}

impl Operands<'_> {
    /// Computes the tile, `[height, NR]`, of logits of one panel of words and one panel of tokens.
    pub fn tile<const P: usize>(self, panel: usize, tokens: usize, logits: &mut [f32]) {
        let height = panels_a::height::<P>();
        let logits = &mut MatMut::new(logits, height, NR);
        match self {
            Self::Cells { words, hidden, width } => {
                let (of_words, of_tokens) = (height * panels_a::depth::<P>(width), NR * cells::<P>(width));
                let (a, b) = (&words[panel * of_words..][..of_words], &hidden[tokens * of_tokens..][..of_tokens]);
                kernel::tile::<P>(a, panels_a::rows::<P>(), b, logits, Accumulate::Set);
            }
            Self::Int8 { words, hidden } => {
                for row in (0..height.min(words.n_rows() - panel * height)).step_by(MR) {
                    let logits = &mut logits.rows(row..(row + MR).min(height));
                    int8::tile((words, panel * height + row), (hidden, tokens), logits, Accumulate::Set);
                }
            }
        }
    }
}
