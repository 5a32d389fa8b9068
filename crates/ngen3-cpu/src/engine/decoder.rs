//! Incremental decoding of several sequences with a key-value cache.
//!
//! New tokens run through the same blocks as in training (`block.rs`). Attention reads a cache, [n_layer, pages, PAGE, 2·kv_width],
//! that holds the keys of all heads, then the values, of each token. Sequences are independent: each has its own length and
//! pages, and any of them can be fed or cleared at any step.
//!
//! A prompt, of two or more tokens, runs through matrix products. Single tokens use products limited by the reading of the
//! weights (`layers/matvec.rs`), from a narrower copy unless the precision is f32, or from the weights as a file stores them.
//! So does the head, whatever the number of its rows. In a pass single tokens come first, then the prompts: every row goes
//! through the same products whatever else is fed, and none of these mixes rows, so the bits of its result are its own.

use std::sync::Arc;

use ngen3_engine::{Decoder, Error, Feed, PAGE, PageTable, PassDropout, Quant};
use ngen3_model::Projection;
use rayon::ThreadPool;

use super::arena::{Saved, SavedHeads, Stats, Widths};
use super::block::ForwardScratch;
use super::kept::Kept;
use super::stored::Part;
use super::weights::Weights;
use crate::base::memory::{Buffer, Carver, padded};
use crate::gemm::Precision;
use crate::gemm::groups::Groups;
use crate::layers::attention::{self, Cache, CachedSequence};
use crate::layers::embedding;
use crate::layers::linear::{Learns, Linear, Weight};
use crate::layers::lora::LoraActivations;
use crate::layers::matvec::Matrix;

/// Weights that decoding reads for each token.
struct DecodeWeights<'a> {
    /// In the order of [`Projection`].
    blocks: Vec<[Matrix<'a>; Projection::ALL.len()]>,
    lm_head: Matrix<'a>,
}

impl<'a> DecodeWeights<'a> {
    fn new(model: &'a Weights, quant: Quant) -> Result<Self, Error> {
        let matrix = |weight: &'a [f32], inputs: usize| match (quant, model.precision) {
            (Quant::Int8, _) => Ok(Matrix::int8(weight, inputs)),
            (Quant::Int4, _) => Ok(Matrix::Groups(Arc::new(Groups::int4(weight, inputs)?))),
            (Quant::None, Precision::Bf16) => Matrix::bf16(weight, inputs),
            (Quant::None, Precision::F32) => Ok(Matrix::F32(weight)),
        };
        let whole = |parts: Option<&[Part]>, weight: &'a [f32], inputs: usize| {
            let Some(parts) = parts else { return matrix(weight, inputs) };
            let (mut matrices, mut rest) = (Vec::new(), weight);
            for part in parts {
                let (weight, after) = rest.split_at(part.outputs * inputs);
                rest = after;
                let matrix = match &part.groups {
                    Some(groups) => Matrix::Groups(Arc::clone(groups)),
                    None => matrix(weight, inputs)?,
                };
                matrices.push((part.outputs, matrix));
            }
            Ok(Matrix::of_parts(matrices))
        };
        let (stored, c) = (model.stored.as_ref(), model.config.n_embd);
        let mut blocks = Vec::new();
        for (layer, w) in model.list.blocks.iter().enumerate() {
            let [a, b, c, d] = Projection::ALL.map(|projection| {
                let parts = stored.map(|stored| &stored.blocks[layer][projection as usize][..]);
                whole(parts, model.p(w.linear(projection).0), projection.shape(&model.config)[1])
            });
            blocks.push([a?, b?, c?, d?]);
        }
        Ok(Self { blocks, lm_head: whole(stored.map(|stored| &stored.lm_head[..]), model.lm_head(), c)? })
    }

    /// Bytes that a step of one token reads.
    fn bytes(&self) -> usize {
        self.blocks.iter().flatten().chain([&self.lm_head]).map(Matrix::bytes).sum()
    }
}

/// Decoder of several sequences of one model.
pub struct CpuDecoder<'a> {
    model: &'a Weights,
    weights: DecodeWeights<'a>,
    pool: &'a ThreadPool,
    table: PageTable,
    /// Number of pages.
    pages: usize,
    /// Key-value cache, `[n_layer, pages, PAGE, 2·kv_width]`.
    cache: Buffer,
    /// The pass of the latest feeds.
    pass: Pass,
    scratch: Buffer,
    /// `[Σ Feed::logits, vocab_size]`
    logits: Buffer,
}

/// Tokens of one pass, of single tokens first, then of prompts.
#[derive(Default)]
struct Pass {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    fed: Vec<CachedSequence>,
    /// Number of feeds of one token.
    steps: usize,
    /// Tokens that need logits, in the order of the feeds.
    last: Vec<usize>,
}

impl Pass {
    /// Lays out feeds that are valid, of sequences that have these lengths before.
    fn lay_out(&mut self, feeds: &[Feed<'_>], table: &PageTable) {
        let Self { tokens, positions, fed, steps, last } = self;
        fed.clear();
        last.clear();
        *steps = feeds.iter().filter(|feed| feed.tokens.len() == 1).count();
        let (mut next_step, mut next) = (0, *steps);
        for feed in feeds {
            let len = feed.tokens.len();
            let place = if len == 1 { &mut next_step } else { &mut next };
            let (start, before) = (*place, table.len(feed.sequence));
            *place += len;
            fed.push(CachedSequence { start, len, before, slot: feed.sequence });
            last.extend(start + len - feed.logits..start + len);
        }
        // Every one is overwritten.
        tokens.resize(next, 0);
        positions.resize(next, 0);
        for (feed, fed) in feeds.iter().zip(fed) {
            tokens[fed.tokens()].copy_from_slice(feed.tokens);
            positions[fed.tokens()].iter_mut().zip(fed.before..).for_each(|(to, position)| *to = position as u32);
        }
    }
}

impl<'a> CpuDecoder<'a> {
    /// Creates a decoder of `sequences` empty sequences, which share `pages`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the cache does not fit in memory; [`Error::Input`] if `sequences` is 0.
    pub fn new(
        model: &'a Weights,
        pool: &'a ThreadPool,
        quant: Quant,
        sequences: usize,
        pages: usize,
    ) -> Result<Self, Error> {
        let (config, table) = (&model.config, PageTable::new(sequences, pages)?);
        let cache = config.n_layer.saturating_mul(pages).saturating_mul(PAGE * 2 * config.kv_width());
        Ok(Self {
            model,
            weights: pool.install(|| DecodeWeights::new(model, quant))?,
            pool,
            table,
            pages,
            cache: Buffer::zeros(cache, "the key-value cache")?,
            pass: Pass::default(),
            scratch: Buffer::default(),
            logits: Buffer::default(),
        })
    }

    /// Returns the lengths of the activations of the pass, and that of attention's working memory; makes room for them and for
    /// the logits.
    fn reserve(&mut self) -> Result<([usize; 14], usize), Error> {
        let (config, Pass { tokens, fed, last, .. }) = (&self.model.config, &self.pass);
        let (n, c) = (tokens.len(), config.n_embd);
        let Widths { qkv, att, normed_heads, heads, fc, inner, .. } = Widths::of(config);
        let lengths = [c, c, c, qkv, normed_heads, att, c, fc, inner, 1, 1, 1, 1, heads].map(|width| n * width);
        let heads = self
            .pool
            .install(|| attention::cached_scratch(attention::Shape::new(config), fed, rayon::current_num_threads()));
        let wanted = lengths.iter().copied().map(padded).sum::<usize>() + heads;
        if self.scratch.len() < wanted {
            self.scratch = Buffer::zeros(wanted, "the activation buffer of the decoder")?;
        }
        let logits = last.len() * config.vocab_size;
        if self.logits.len() < logits {
            self.logits = Buffer::zeros(logits, "the logits buffer of the decoder")?;
        }
        Ok((lengths, heads))
    }

    /// Runs the layers over the pass and fills `logits`.
    fn forward(&mut self, lengths: [usize; 14], heads: usize) {
        let Self { model, weights, table, pages, cache, pass, scratch, logits, .. } = self;
        let Pass { tokens, positions, fed, steps, last } = pass;
        let (config, c) = (&model.config, model.config.n_embd);
        let shape = attention::Shape::new(config);
        let mut carver = Carver(scratch);
        let [mut x, mut out, ln, qkv, head_rstd, att, x_mid, fc, hidden, mean, rstd, ln_2_mean, ln_2_rstd, lse] =
            lengths.map(|length| carver.cut(length));
        let heads = &mut carver.0[..heads];

        embedding::forward(tokens, positions, model.wte_table(), model.p(&model.list.wpe), x);
        let block_cache = *pages * PAGE * 2 * config.kv_width();
        for (layer, cache) in cache.chunks_exact_mut(block_cache).enumerate() {
            let linear = |projection: Projection| {
                let mut linear = model.linear(layer, projection);
                let weight = model.p(model.list.blocks[layer].linear(projection).0);
                let matrix = &weights.blocks[layer][projection as usize];
                linear.weight = Weight::Decoding { weight, matrix, steps: *steps };
                linear
            };
            let attend = |qkv: &[f32], att: &mut [f32], lse: &mut [f32]| {
                let mut cache = Cache { rows: cache, table };
                attention::cached(model.precision, shape, fed, qkv, &mut cache, att, lse, heads);
            };
            let mut saved = Saved {
                ln_1: Stats { mean, rstd },
                qkv: Kept::Whole(qkv),
                heads: SavedHeads { before: &mut [], rstd: head_rstd },
                lse,
                att: Kept::Whole(att),
                x_mid,
                ln_2: Stats { mean: ln_2_mean, rstd: ln_2_rstd },
                fc: Kept::Whole(fc),
                lora: &mut [],
            };
            let mut scratch = ForwardScratch { ln, wide: &mut [], hidden, branch: &mut [], lora: &mut [] };
            let drops = PassDropout::NONE;
            model.block_forward(layer, positions, linear, attend, drops, x, &mut saved, &mut scratch, Some(out));
            std::mem::swap(&mut x, &mut out);
        }
        for (to, &token) in x_mid.chunks_exact_mut(c).zip(last.iter()) {
            to.copy_from_slice(&x[token * c..][..c]);
        }
        let rows = last.len();
        let ln = &mut ln[..rows * c];
        let mut stats = Stats { mean: &mut mean[..rows], rstd: &mut rstd[..rows] };
        model.norm(model.ln_f(), &x_mid[..rows * c], ln, &mut stats);
        let head = Linear {
            precision: model.precision,
            outputs: config.vocab_size,
            inputs: c,
            weight: Weight::Decoding { weight: model.lm_head(), matrix: &weights.lm_head, steps: rows },
            bias: &[],
            learns: Learns::Nothing,
        };
        head.forward(ln, &mut LoraActivations::default(), &mut logits[..rows * config.vocab_size]);
    }
}

impl Decoder for CpuDecoder<'_> {
    fn sequences(&self) -> usize {
        self.table.sequences()
    }

    fn len(&self, sequence: usize) -> usize {
        self.table.len(sequence)
    }

    fn free_pages(&self) -> usize {
        self.table.free()
    }

    fn feed(&mut self, feeds: &[Feed<'_>]) -> Result<&[f32], Error> {
        self.table.check(feeds, &self.model.config)?;
        self.pass.lay_out(feeds, &self.table);
        let (lengths, heads) = self.reserve()?;
        self.table.grow(feeds);
        let pool = self.pool;
        pool.install(|| self.forward(lengths, heads));
        Ok(&self.logits[..self.pass.last.len() * self.model.config.vocab_size])
    }

    fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    fn share(&mut self, from: usize, to: usize, pages: usize) -> Result<(), Error> {
        self.table.share(from, to, pages)
    }

    fn clear(&mut self, sequence: usize) {
        self.table.clear(sequence);
    }
}
