//! [`Arena`]: the memory of a pass' activations and of their gradients, allocated once for the largest pass, and [`Inputs`], what the
//! host says about a pass.

use ngen3_engine::{Before, Error, Pass};
use ngen3_model::{Activation, Projection};

use super::network::Network;
use crate::device::{Buffer, Context, View};
use crate::kernels::attention::{Sequence, TILE, tiles};
use crate::kernels::column_sums::partials;
use crate::kernels::embedding::Sorted;

/// Elements of the logits of one chunk of the vocabulary: 64 MiB.
const LOGITS: usize = 1 << 24;

/// Activations that a forward pass keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardMode {
    /// None: for losses and decoding.
    Inference,
    /// Those of every block, for the backward pass.
    Training,
    /// The input of every block, from which the backward pass computes the others again.
    Recompute,
}

/// Activations of one block that its backward pass reads. N tokens, width C.
pub struct Block {
    /// `[N, 2]`: mean and 1/√(variance + ε) of the first norm.
    pub ln_1: Buffer,
    /// `[N, qkv_width]` before the norms of queries and keys, and their statistics; `None` in a model without.
    pub heads: Option<HeadNorms>,
    /// `[N, qkv_width]`, as attention reads it.
    pub qkv: Buffer,
    /// `[N, heads]`
    pub lse: Buffer,
    /// `[N, q_width]`: attention's output.
    pub att: Buffer,
    /// `[N, C]`: the residual stream after attention.
    pub x_mid: Buffer,
    /// `[N, 2]`: of the second norm.
    pub ln_2: Buffer,
    /// `[N, fc_width]`
    pub fc: Buffer,
    /// `[N, parts·rank]` of each projection with adapters, in the order of [`Projection`].
    pub low: [Option<Buffer>; Projection::ALL.len()],
}

/// Activations of the norms of queries and keys.
pub struct HeadNorms {
    /// `[N, qkv_width]`
    pub before: Buffer,
    /// `[N·heads, 2]`
    pub q: Buffer,
    /// `[N·kv_heads, 2]`
    pub k: Buffer,
}

/// Working memory of the backward pass.
pub struct Backward {
    /// `[N, C]`: gradient of the residual stream.
    pub dx: Buffer,
    /// `[N, C]`: of a branch, through its dropout.
    pub dbranch: Buffer,
    /// `[N, C]`: of a norm's output.
    pub dln: Buffer,
    /// `[N, max(fc_width, qkv_width)]`
    pub dwide: Buffer,
    /// `[N, max(inner_width, q_width)]`
    pub dinner: Buffer,
    /// `[N, heads]`
    pub inner: Buffer,
    /// `[N, widest low]`
    pub dlow: Buffer,
    /// Partial sums of gradients of vectors.
    pub partials: Buffer,
}

/// Memory of passes of up to `tokens` tokens.
pub struct Arena {
    tokens: usize,
    mode: ForwardMode,
    /// `[N, C]`: input of each block, and the last one's output; with [`ForwardMode::Inference`] two that take turns.
    pub xs: Vec<Buffer>,
    /// One for each block, or one for all.
    pub blocks: Vec<Block>,
    /// `[N, 2]`: of the last norm.
    pub ln_f: Buffer,
    /// `[N, C]`: output of the last norm.
    pub hidden: Buffer,
    /// `[N, C]`: output of a block's norm.
    pub ln: Buffer,
    /// `[N, C]`: output of an adapted branch.
    pub branch: Buffer,
    /// `[N, inner_width]`: output of the MLP's activation.
    pub inner: Buffer,
    /// One chunk's.
    pub logits: Buffer,
    /// `[N, 3]`: of the loss.
    pub stats: Buffer,
    /// `[N]`
    pub losses: Buffer,
    /// `[1]`: sum of the losses of a batch.
    pub loss_sum: Buffer,
    /// `None` with [`ForwardMode::Inference`].
    pub backward: Option<Backward>,
}

impl Arena {
    /// Returns the index of a block's input in [`Arena::xs`].
    pub fn x_index(&self, layer: usize) -> usize {
        if self.mode == ForwardMode::Inference { layer % 2 } else { layer }
    }

    /// Returns a block's activations.
    pub fn block(&self, layer: usize) -> &Block {
        &self.blocks[if self.mode == ForwardMode::Training { layer } else { 0 }]
    }

    /// True if the backward pass computes activations again.
    pub fn recomputes(&self) -> bool {
        self.mode == ForwardMode::Recompute
    }

    /// Tokens of the vocabulary in a chunk of logits, for a pass of `tokens` tokens.
    pub fn chunk(&self, tokens: usize) -> usize {
        (self.logits.len() / tokens).max(1)
    }

    /// Returns memory for passes of `tokens` tokens: `arena` if it is large enough, else a new one.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn reserve<'a>(
        arena: &'a mut Option<Self>,
        network: &Network,
        mode: ForwardMode,
        tokens: usize,
    ) -> Result<&'a mut Self, Error> {
        // Training memory serves for inference too.
        let serves = |arena: &Self| arena.tokens >= tokens && (arena.mode == mode || mode == ForwardMode::Inference);
        if !arena.as_ref().is_some_and(serves) {
            // The old memory is freed first.
            *arena = None;
            *arena = Some(Self::new(network, mode, tokens)?);
        }
        Ok(arena.as_mut().expect("just set"))
    }

    fn new(network: &Network, mode: ForwardMode, tokens: usize) -> Result<Self, Error> {
        let Network { config, context, .. } = network;
        let width = config.n_embd;
        let rows = |what, width: usize| context.buffer(what, tokens * width);
        let (layers, training) = (config.n_layer, mode != ForwardMode::Inference);
        let blocks = if mode == ForwardMode::Training { layers } else { 1 };
        let low = |layer| -> [usize; 4] { Projection::ALL.map(|projection| network.low_width(layer, projection)) };
        let block = |layer: usize| -> Result<Block, Error> {
            let heads = if config.qk_norm {
                Some(HeadNorms {
                    before: rows("activations: queries and keys before their norms", config.qkv_width())?,
                    q: rows("activations: statistics", 2 * config.n_head)?,
                    k: rows("activations: statistics", 2 * config.kv_heads())?,
                })
            } else {
                None
            };
            let mut lows = [const { None }; Projection::ALL.len()];
            for (buffer, width) in lows.iter_mut().zip(low(layer)).filter(|(_, width)| *width > 0) {
                *buffer = Some(rows("activations: adapters", width)?);
            }
            Ok(Block {
                ln_1: rows("activations: statistics", 2)?,
                heads,
                qkv: rows("activations: queries, keys and values", config.qkv_width())?,
                lse: rows("activations: sums of probabilities", config.n_head)?,
                att: rows("activations: attention", config.q_width())?,
                x_mid: rows("activations: residual stream", width)?,
                ln_2: rows("activations: statistics", 2)?,
                fc: rows("activations: the MLP's hidden layer", config.fc_width())?,
                low: lows,
            })
        };
        let heads = tokens * (config.n_head + 2 * config.kv_heads());
        let sums = [
            partials(tokens, config.fc_width().max(config.qkv_width()).max(width)),
            if config.qk_norm { partials(heads, config.head_width()) } else { 0 },
        ];
        let backward = if training {
            Some(Backward {
                dx: rows("gradients: residual stream", width)?,
                dbranch: rows("gradients: a branch", width)?,
                dln: rows("gradients: a norm", width)?,
                dwide: rows("gradients: a hidden layer", config.fc_width().max(config.qkv_width()))?,
                dinner: rows("gradients: an activation", config.inner_width().max(config.q_width()))?,
                inner: rows("gradients: attention", config.n_head)?,
                dlow: rows("gradients: adapters", low(0).into_iter().max().unwrap_or(0).max(1))?,
                partials: context.buffer("gradients: partial sums", sums[0].max(sums[1]))?,
            })
        } else {
            None
        };
        let logits = LOGITS.min(context.binding_len()).min(tokens * config.vocab_size).max(tokens);
        Ok(Self {
            tokens,
            mode,
            xs: (0..if training { layers + 1 } else { 2 })
                .map(|_| rows("activations: residual stream", width))
                .collect::<Result<_, _>>()?,
            blocks: (0..blocks).map(block).collect::<Result<_, _>>()?,
            ln_f: rows("activations: statistics", 2)?,
            hidden: rows("activations: output", width)?,
            ln: rows("activations: a norm", width)?,
            branch: rows("activations: a branch", if network.adapters.is_some() { width } else { 1 })?,
            inner: rows("activations: the MLP's activation", config.inner_width())?,
            logits: context.buffer("logits", logits)?,
            stats: rows("statistics of the loss", 3)?,
            losses: rows("losses", 1)?,
            loss_sum: context.buffer("loss", 1)?,
            backward,
        })
    }
}

/// Elements of an arena and of its working memory, as [`Arena::reserve`] allocates them.
pub fn arena_len(config: &ngen3_model::Config, rank: usize, mode: ForwardMode, tokens: usize) -> usize {
    let (width, qkv, fc) = (config.n_embd, config.qkv_width(), config.fc_width());
    let (q, inner, heads) = (config.q_width(), config.inner_width(), config.n_head);
    let norms = if config.qk_norm { qkv + 2 * (heads + config.kv_heads()) } else { 0 };
    // Seven targets, each with `rank` columns.
    let parts = if config.activation == Activation::Swiglu { 7 } else { 4 };
    let block = 4 + norms + qkv + heads + q + width + fc + parts * rank;
    let training = mode != ForwardMode::Inference;
    let blocks = if mode == ForwardMode::Training { config.n_layer } else { 1 };
    let streams = if training { config.n_layer + 1 } else { 2 };
    let backward = if training { 3 * width + fc.max(qkv) + inner.max(q) + heads + 3 * rank + 1 } else { 0 };
    let logits = LOGITS.min(tokens * config.vocab_size).max(tokens);
    let all = streams * width + blocks * block + 2 + 3 * width + inner + 4 + backward;
    tokens.saturating_mul(all).saturating_add(logits)
}

/// Buffer that grows with what is written to it.
#[derive(Default)]
struct Growing(Option<Buffer>);

impl Growing {
    fn write(&mut self, context: &Context, what: &'static str, values: &[u32]) -> Result<(), Error> {
        let len = values.len().max(1);
        if self.0.as_ref().is_none_or(|buffer| buffer.len() < len) {
            self.0 = None;
            self.0 = Some(context.buffer(what, len.next_power_of_two())?);
        }
        if let Some(buffer) = &self.0 {
            context.write(buffer.first(len), values);
        }
        Ok(())
    }

    /// Returns the first elements, at least one.
    fn view(&self, len: usize) -> View<'_> {
        self.0.as_ref().expect("written before it is read").first(len.max(1))
    }
}

/// A pass as the device reads it.
#[derive(Default)]
pub struct Inputs {
    /// Number of tokens.
    pub tokens: usize,
    tiles: usize,
    buffers: [Growing; 10],
    /// Tokens by id.
    pub by_token: Sorted,
    /// Tokens by position.
    pub by_position: Sorted,
}

/// Pages of the sequences of a pass that is decoded.
pub struct Paged<'a> {
    /// Pages of each sequence.
    pub pages: Vec<&'a [usize]>,
}

impl Inputs {
    /// Moves a pass to the device. With `gradient`, also the order in which the embeddings' gradients are summed.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn write(
        &mut self,
        network: &Network,
        pass: &Pass,
        paged: Option<&Paged<'_>>,
        gradient: bool,
    ) -> Result<(), Error> {
        let context = &network.context;
        let (mut mask, mut first_page, mut pages, mut rows) = (0u32, 0, Vec::new(), Vec::new());
        let mut sequences = Vec::with_capacity(pass.spans.len());
        for (index, span) in pass.spans.iter().enumerate() {
            let (row, len) = (span.tokens.start, span.tokens.len());
            let start = pass.positions[row] as usize;
            let prefix_row = if let Before::Tokens(prefix) = &span.before { prefix.start } else { 0 };
            sequences.push(Sequence { row, len, prefix_row, prefix_len: start, mask, pages: first_page });
            mask = mask.wrapping_add((network.config.n_head as u32).wrapping_mul((len * len) as u32));
            if let Some(paged) = paged {
                let own = paged.pages[index];
                rows.extend((start..start + len).map(|token| (own[token / TILE] * TILE + token % TILE) as u32));
                pages.extend(own.iter().map(|&page| page as u32));
                first_page = pages.len();
            }
        }
        let tiles = tiles(&sequences);
        (self.tokens, self.tiles) = (pass.inputs.len(), tiles.len());
        if gradient {
            self.by_token = Sorted::new(&pass.inputs);
            self.by_position = Sorted::new(&pass.positions);
        } else {
            (self.by_token, self.by_position) = (Sorted::default(), Sorted::default());
        }
        let content: [&[u32]; 10] = [
            &pass.inputs,
            &pass.positions,
            &pass.targets,
            tiles.as_flattened(),
            &pages,
            &rows,
            &self.by_token.order,
            self.by_token.ids.as_flattened(),
            &self.by_position.order,
            self.by_position.ids.as_flattened(),
        ];
        for (buffer, values) in self.buffers.iter_mut().zip(content) {
            buffer.write(context, "a batch", values)?;
        }
        Ok(())
    }

    /// `[tokens]`
    pub fn ids(&self) -> View<'_> {
        self.buffers[0].view(self.tokens)
    }

    /// `[tokens]`
    pub fn positions(&self) -> View<'_> {
        self.buffers[1].view(self.tokens)
    }

    /// `[tokens]`
    pub fn targets(&self) -> View<'_> {
        self.buffers[2].view(self.tokens)
    }

    /// Tiles of attention.
    pub fn tiles(&self) -> View<'_> {
        self.buffers[3].view(9 * self.tiles)
    }

    /// Pages of the sequences.
    pub fn pages(&self) -> View<'_> {
        let buffer = self.buffers[4].0.as_ref().expect("written before it is read");
        buffer.all()
    }

    /// `[tokens]`: row of each token in a cache.
    pub fn rows(&self) -> View<'_> {
        self.buffers[5].view(self.tokens)
    }

    /// Order of the tokens by id, and the ids.
    pub fn token_order(&self) -> [View<'_>; 2] {
        [self.buffers[6].view(self.by_token.order.len()), self.buffers[7].view(3 * self.by_token.ids.len())]
    }

    /// Order of the tokens by position, and the positions.
    pub fn position_order(&self) -> [View<'_>; 2] {
        [self.buffers[8].view(self.by_position.order.len()), self.buffers[9].view(3 * self.by_position.ids.len())]
    }
}
