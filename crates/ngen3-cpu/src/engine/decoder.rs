//! Incremental decoding of several sequences with a key-value cache.
//!
//! New tokens run through the same blocks as in training (`block.rs`). Attention reads a cache, [n_layer, sequences, block_size,
//! 2·kv_width], that holds the keys of all heads, then the values, of each token. Sequences are independent: each has its own
//! length, and any of them can be fed or cleared at any step.
//!
//! A prompt runs as one pass of matrix products. Steps of a few tokens use products limited by the reading of the weights
//! (`layers/matvec.rs`), from a narrower copy unless the precision is f32, or from the weights as a file stores them.

use std::sync::Arc;

use ngen3_engine::{Decoder, Error, Feed, Quant, check_tokens};
use ngen3_model::Projection;
use rayon::ThreadPool;

use super::arena::{Saved, SavedHeads, Stats, Widths};
use super::block::{ForwardScratch, PassDropout};
use super::kept::Kept;
use super::stored::Part;
use super::weights::Weights;
use crate::base::memory::{Buffer, Carver, padded};
use crate::gemm::Precision;
use crate::gemm::groups::Groups;
use crate::layers::attention::{self, CachedSequence};
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
            (Quant::None, Precision::Bf16) => Ok(Matrix::bf16(weight)),
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
    /// Number of tokens in each sequence.
    lens: Vec<usize>,
    /// Key-value cache, `[n_layer, sequences, block_size, 2·kv_width]`.
    cache: Buffer,
    /// Tokens of the latest feeds; then their positions and cache slots.
    tokens: Vec<u32>,
    positions: Vec<u32>,
    fed: Vec<CachedSequence>,
    scratch: Buffer,
    /// `[feeds, vocab_size]`
    logits: Buffer,
}

impl<'a> CpuDecoder<'a> {
    /// Creates a decoder of `sequences` empty sequences.
    ///
    /// # Errors
    /// [`Error::Memory`] if the cache does not fit in memory; [`Error::Input`] if `sequences` is 0.
    pub fn new(model: &'a Weights, pool: &'a ThreadPool, quant: Quant, sequences: usize) -> Result<Self, Error> {
        let config = &model.config;
        if sequences == 0 {
            return Err(Error::Input("decoder: expected at least 1 sequence, got 0".into()));
        }
        let cache = config.n_layer.saturating_mul(sequences).saturating_mul(config.block_size * 2 * config.kv_width());
        Ok(Self {
            model,
            weights: pool.install(|| DecodeWeights::new(model, quant))?,
            pool,
            lens: vec![0; sequences],
            cache: Buffer::zeros(cache, "the key-value cache")?,
            tokens: Vec::new(),
            positions: Vec::new(),
            fed: Vec::new(),
            scratch: Buffer::default(),
            logits: Buffer::zeros(sequences.saturating_mul(config.vocab_size), "the logits buffer of the decoder")?,
        })
    }

    /// Checks the feeds and concatenates their tokens.
    fn plan(&mut self, feeds: &[Feed<'_>]) -> Result<(), Error> {
        let config = &self.model.config;
        let Self { tokens, positions, fed, lens, .. } = self;
        tokens.clear();
        positions.clear();
        fed.clear();
        if feeds.is_empty() {
            return Err(Error::Input("decoder: expected at least 1 sequence to feed, got 0".into()));
        }
        for &Feed { sequence, tokens: new } in feeds {
            let Some(&before) = lens.get(sequence) else {
                let sequences = lens.len();
                return Err(Error::Input(format!("sequence {sequence} is out of range: the decoder has {sequences}")));
            };
            if new.is_empty() || fed.iter().any(|other| other.slot == sequence) {
                return Err(Error::Input(format!("sequence {sequence} has no tokens, or is fed twice in one step")));
            }
            if before + new.len() > config.block_size {
                let (n, block) = (new.len(), config.block_size);
                return Err(Error::Input(format!("{before} + {n} tokens exceed the context length of {block}")));
            }
            check_tokens(new, config)?;
            fed.push(CachedSequence { start: tokens.len(), len: new.len(), before, slot: sequence });
            positions.extend((before..before + new.len()).map(|position| position as u32));
            tokens.extend_from_slice(new);
        }
        Ok(())
    }

    /// Runs the layers over the planned tokens and fills `logits`.
    fn forward(&mut self) -> Result<(), Error> {
        let Self { model, weights, lens, cache, tokens, positions, fed, scratch, logits, .. } = self;
        let config = &model.config;
        let (n, c) = (tokens.len(), config.n_embd);
        let Widths { qkv, att, normed_heads, heads, fc, inner, .. } = Widths::of(config);
        let shape = attention::Shape::new(config);
        let lengths = [c, c, c, qkv, normed_heads, att, c, fc, inner, 1, 1, 1, 1, heads].map(|width| n * width);
        let heads = attention::cached_scratch(shape, fed, rayon::current_num_threads());
        let wanted = lengths.iter().copied().map(padded).sum::<usize>() + heads;
        if scratch.len() < wanted {
            *scratch = Buffer::zeros(wanted, "the activation buffer of the decoder")?;
        }
        let mut carver = Carver(scratch);
        let [mut x, mut out, ln, qkv, head_rstd, att, x_mid, fc, hidden, mean, rstd, ln_2_mean, ln_2_rstd, lse] =
            lengths.map(|length| carver.cut(length));
        let heads = &mut carver.0[..heads];

        embedding::forward(tokens, positions, model.wte(), model.p(&model.list.wpe), x);
        let block_cache = lens.len() * config.block_size * 2 * config.kv_width();
        for (layer, cache) in cache.chunks_exact_mut(block_cache).enumerate() {
            let linear = |projection: Projection| {
                let mut linear = model.linear(layer, projection);
                let weight = model.p(model.list.blocks[layer].linear(projection).0);
                linear.weight = Weight::Decoding(weight, &weights.blocks[layer][projection as usize]);
                linear
            };
            let attend = |qkv: &[f32], att: &mut [f32], lse: &mut [f32]| {
                attention::cached(model.precision, shape, fed, qkv, cache, att, lse, heads);
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
        // Only the last token of each feed needs logits.
        let feeds = fed.len();
        for (last, fed) in x_mid.chunks_exact_mut(c).zip(fed.iter()) {
            last.copy_from_slice(&x[(fed.start + fed.len - 1) * c..][..c]);
        }
        let ln = &mut ln[..feeds * c];
        let mut stats = Stats { mean: &mut mean[..feeds], rstd: &mut rstd[..feeds] };
        model.norm(model.ln_f(), &x_mid[..feeds * c], ln, &mut stats);
        let head = Linear {
            precision: model.precision,
            outputs: config.vocab_size,
            inputs: c,
            weight: Weight::Decoding(model.lm_head(), &weights.lm_head),
            bias: &[],
            learns: Learns::Nothing,
        };
        head.forward(ln, &mut LoraActivations::default(), &mut logits[..feeds * config.vocab_size]);
        Ok(())
    }
}

impl Decoder for CpuDecoder<'_> {
    fn sequences(&self) -> usize {
        self.lens.len()
    }

    fn len(&self, sequence: usize) -> usize {
        self.lens[sequence]
    }

    fn feed(&mut self, feeds: &[Feed<'_>]) -> Result<&[f32], Error> {
        self.plan(feeds)?;
        let pool = self.pool;
        pool.install(|| self.forward())?;
        for fed in &self.fed {
            self.lens[fed.slot] += fed.len;
        }
        Ok(&self.logits[..feeds.len() * self.model.config.vocab_size])
    }

    fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    fn clear(&mut self, sequence: usize) {
        self.lens[sequence] = 0;
    }
}
