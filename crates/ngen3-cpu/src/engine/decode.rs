//! Growing sequences a few tokens at a time, with the keys and values of earlier tokens kept.
//!
//! The same layers as in training, on the new tokens only; attention's queries look into a cache,
//! [n_layer, rows, block_size, 2·width], in which each token has its keys of all heads followed by its values.
//!
//! A prompt goes through in one pass of matrix products. A token or two at a time go through products that only read the
//! weights (`matvec.rs`), from a copy in fewer bytes where there is one.

use std::ops::Range;

use ngen3_model::BlockRanges;
use rayon::ThreadPool;

use super::model::Model;
use crate::base::memory::Buffer;
use crate::gemm::{Canvas, Mat, Precision};
use crate::layers::matvec::Matrix;
use crate::layers::{attention, embedding, gelu, layernorm, linear};
use ngen3_engine::Quant;
use ngen3_engine::check_tokens;
use ngen3_engine::{Decoder, Error};

/// Up to so many tokens in one pass, reading the weights is what takes the time.
const FEW_TOKENS: usize = 8;

/// Numbers of keys that one thread reads sooner than two.
const SMALL_ATTENTION: usize = 1 << 17;

/// The weights that decoding reads for each token.
struct Weights<'a> {
    blocks: Vec<BlockWeights<'a>>,
    wte: Matrix<'a>,
}

struct BlockWeights<'a> {
    c_attn: Matrix<'a>,
    attn_c_proj: Matrix<'a>,
    c_fc: Matrix<'a>,
    mlp_c_proj: Matrix<'a>,
}

impl<'a> Weights<'a> {
    fn new(model: &'a Model, quant: Quant) -> Self {
        let c = model.config.n_embd;
        let matrix = |range: &Range<usize>, inputs: usize| {
            let weight = &model.params[range.clone()];
            match (quant, model.precision) {
                (Quant::Int8, _) => Matrix::int8(weight, inputs),
                (Quant::None, Precision::Bf16) => Matrix::bf16(weight),
                (Quant::None, Precision::F32) => Matrix::F32(weight),
            }
        };
        let block = |w: &BlockRanges| BlockWeights {
            c_attn: matrix(&w.c_attn_weight, c),
            attn_c_proj: matrix(&w.attn_c_proj_weight, c),
            c_fc: matrix(&w.c_fc_weight, c),
            mlp_c_proj: matrix(&w.mlp_c_proj_weight, 4 * c),
        };
        Self { blocks: model.list.blocks.iter().map(block).collect(), wte: matrix(&model.list.wte, c) }
    }
}

/// Sequences of one model, decoded together.
pub struct CpuDecoder<'a> {
    model: &'a Model,
    weights: Weights<'a>,
    pool: &'a ThreadPool,
    rows: usize,
    /// Tokens that every row holds.
    len: usize,
    cache: Buffer,
    positions: Vec<u32>,
    scratch: Vec<f32>,
    /// `[rows, vocab_size]`
    logits: Buffer,
}

impl<'a> CpuDecoder<'a> {
    /// `rows` empty sequences.
    ///
    /// # Errors
    /// [`Error::Memory`] when the cache does not fit; [`Error::Input`] for no rows.
    pub fn new(model: &'a Model, pool: &'a ThreadPool, quant: Quant, rows: usize) -> Result<Self, Error> {
        let config = &model.config;
        if rows == 0 {
            return Err(Error::Input("a decoder needs at least one row".into()));
        }
        let cache = config.n_layer.saturating_mul(rows).saturating_mul(config.block_size * 2 * config.n_embd);
        Ok(Self {
            model,
            weights: pool.install(|| Weights::new(model, quant)),
            pool,
            rows,
            len: 0,
            cache: Buffer::zeros(cache, "the keys and values of the sequences")?,
            positions: Vec::new(),
            scratch: Vec::new(),
            logits: Buffer::zeros(rows.saturating_mul(config.vocab_size), "the logits of the sequences")?,
        })
    }

    /// Runs the layers over `[rows, n]` new tokens and fills `logits`.
    fn forward(&mut self, tokens: &[u32]) {
        let Self { model, weights, rows, len, cache, positions, scratch, logits, .. } = self;
        let (rows, len, n) = (*rows, *len, tokens.len() / *rows);
        let config = &model.config;
        let (c, eps, block) = (config.n_embd, config.layer_norm_epsilon, config.block_size);
        let p = |range: &Range<usize>| &model.params[range.clone()];
        let lengths = [c, c, 3 * c, c, c, 4 * c, 4 * c, 1, 1, config.n_head].map(|width| tokens.len() * width);
        let piece = attention::head_scratch(len + n, config.head_width());
        let pieces = piece * rayon::current_num_threads();
        let wanted = lengths.iter().sum::<usize>() + pieces;
        if scratch.len() < wanted {
            scratch.resize(wanted, 0.0);
        }
        let mut rest = &mut scratch[..];
        let [x, ln, qkv, att, x_mid, fc, gelu, mean, rstd, lse] = lengths.map(|length| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            piece
        });
        let pieces = &mut rest[..pieces];

        positions.clear();
        positions.extend((0..tokens.len()).map(|i| (len + i % n) as u32));
        embedding::forward(tokens, positions, p(&model.list.wte), p(&model.list.wpe), x);
        // y += x·Wᵀ, in the way that suits the number of tokens.
        let add_product = |x: &[f32], matrix: &Matrix<'_>, weight: &[f32], outputs: usize, y: &mut [f32]| {
            if y.len() <= FEW_TOKENS * outputs {
                matrix.add_product(x, weight.len() / outputs, y);
            } else {
                linear::add_product(model.precision, x, weight, outputs, y);
            }
        };
        let blocks = model.list.blocks.iter().zip(&weights.blocks);
        for ((w, matrices), cache) in blocks.zip(cache.chunks_exact_mut(rows * block * 2 * c)) {
            layernorm::forward(x, p(&w.ln_1_weight), p(&w.ln_1_bias), eps, ln, mean, rstd);
            linear::fill_bias(p(&w.c_attn_bias), qkv);
            add_product(ln, &matrices.c_attn, p(&w.c_attn_weight), 3 * c, qkv);
            for (cache, qkv) in cache.chunks_exact_mut(block * 2 * c).zip(qkv.chunks_exact(n * 3 * c)) {
                for (slot, token) in cache[len * 2 * c..].chunks_exact_mut(2 * c).zip(qkv.chunks_exact(3 * c)) {
                    slot.copy_from_slice(&token[c..]);
                }
            }
            attend(config.n_head, rows, len, qkv, cache, att, lse, pieces, piece);
            linear::fill_residual(x, p(&w.attn_c_proj_bias), x_mid);
            add_product(att, &matrices.attn_c_proj, p(&w.attn_c_proj_weight), c, x_mid);
            layernorm::forward(x_mid, p(&w.ln_2_weight), p(&w.ln_2_bias), eps, ln, mean, rstd);
            linear::fill_bias(p(&w.c_fc_bias), fc);
            add_product(ln, &matrices.c_fc, p(&w.c_fc_weight), 4 * c, fc);
            gelu::forward(config.activation, fc, gelu);
            linear::fill_residual(x_mid, p(&w.mlp_c_proj_bias), x);
            add_product(gelu, &matrices.mlp_c_proj, p(&w.mlp_c_proj_weight), c, x);
        }
        // Only the last token of each row is asked what follows it.
        for (last, row) in x_mid.chunks_exact_mut(c).zip(x.chunks_exact(n * c)) {
            last.copy_from_slice(&row[(n - 1) * c..]);
        }
        let (last, ln, mean, rstd) = (&x_mid[..rows * c], &mut ln[..rows * c], &mut mean[..rows], &mut rstd[..rows]);
        layernorm::forward(last, p(&model.list.ln_f_weight), p(&model.list.ln_f_bias), eps, ln, mean, rstd);
        logits.fill(0.0);
        add_product(ln, &weights.wte, p(&model.list.wte), config.vocab_size, logits);
    }
}

/// Attention of `[rows, n]` new queries over `len + n` cached keys and values of one block.
#[expect(clippy::too_many_arguments, reason = "the operands of attention, each of which the caller has at hand")]
fn attend(
    n_head: usize,
    rows: usize,
    len: usize,
    qkv: &[f32],
    cache: &[f32],
    att: &mut [f32],
    lse: &mut [f32],
    scratch: &mut [f32],
    piece: usize,
) {
    let n = lse.len() / rows / n_head;
    let c = att.len() / rows / n;
    let head_width = c / n_head;
    let (att, lse) = (Canvas::new(att, c), Canvas::new(lse, n));
    // Waking another thread costs more than a few short dot products.
    let scratch = if n * rows * (len + n) * c <= SMALL_ATTENTION { &mut scratch[..piece] } else { scratch };
    attention::for_each_head(rows * n_head, scratch, piece, |task, scratch| {
        let (row, head) = (task / n_head, task % n_head);
        let columns = head * head_width..(head + 1) * head_width;
        let cache = &cache[row * (cache.len() / rows)..];
        let q = Mat::strided(&qkv[row * n * 3 * c + columns.start..], n, head_width, 3 * c);
        let [k, v] = [0, c].map(|first| Mat::strided(&cache[first + columns.start..], len + n, head_width, 2 * c));
        // SAFETY: each (row, head) is one task's alone, and windows of different heads share no column.
        let (mut out, lse) = unsafe { (att.window(row * n..(row + 1) * n, columns), lse.row(task, 0..n)) };
        if n == 1 {
            attention::one_query(q.row(0), k, v, out.row_mut(0), &mut scratch[..len + 1]);
        } else {
            let [k, v] = [k, v].map(|all| [all.rows(0..len), all.rows(len..len + n)]);
            attention::head_forward::<1>(q, k, v, None, out, lse, scratch);
        }
    });
}

impl Decoder for CpuDecoder<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<&[f32], Error> {
        let config = &self.model.config;
        let n = tokens.len() / self.rows;
        if n == 0 || n * self.rows != tokens.len() {
            let (tokens, rows) = (tokens.len(), self.rows);
            return Err(Error::Input(format!("{tokens} tokens cannot be fed to {rows} rows")));
        }
        if self.len + n > config.block_size {
            let (len, block) = (self.len, config.block_size);
            return Err(Error::Input(format!("{n} tokens after {len} do not fit in a block of {block}")));
        }
        check_tokens(tokens, config)?;
        let pool = self.pool;
        pool.install(|| self.forward(tokens));
        self.len += n;
        Ok(&self.logits)
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}
