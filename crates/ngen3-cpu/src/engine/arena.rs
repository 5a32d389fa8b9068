//! Arena for the activations of a training step: one allocation, laid out for the shape of a pass.
//!
//! With N tokens and C = width, each transformer block keeps its input and the activations for its backward pass, in GPT-2
//! about 10·C values per token, most of them in bf16 if products are (`kept.rs`). Outputs that are cheap to recompute (of norms and the MLP's activation) live in a workspace shared
//! by all blocks:
//!
//! ```text
//! packed head │ streams: each block's input [N, C], the last one's output │ saved activations of each block │ workspace
//! ```
//!
//! The packed head comes first, so that later passes of the same batch find them whatever their size. [`Checkpointing`] sets how
//! much is kept. With inputs only, all blocks share the memory of one, and the backward pass first recomputes each block. With
//! nothing, two streams also alternate as input and output. The loss and the layers use the same workspace, but never at the
//! same time.
//!
//! A large batch runs in several passes (`batch_plan.rs`) whose gradients add up. The arena is sized for the largest pass.

use bytemuck::cast_slice_mut;
use ngen3_engine::{Error, Options};
use ngen3_model::{Activation, Config};

use super::kept::Kept;
use crate::base::memory::{Buffer, Carver, padded};
use crate::gemm::Precision;
use crate::layers::norm::layernorm;
use crate::layers::{attention, lora, loss};

/// Model, precision and threads that an arena is sized for.
#[derive(Clone, Copy)]
pub struct ArenaSpec<'a> {
    pub config: &'a Config,
    pub precision: Precision,
    /// Rank of the adapters; 0 without.
    pub rank: usize,
    pub threads: usize,
    /// The packed final projection is kept elsewhere.
    pub frozen: bool,
}

impl ArenaSpec<'_> {
    /// Length in f32 of an arena for passes of `tokens` tokens.
    pub fn numbers(&self, tokens: usize, mode: ForwardMode) -> usize {
        Layout::new(self, tokens, mode).total()
    }
}

/// Activations of the blocks that a forward pass keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// None: there is no backward pass.
    #[default]
    Nothing,
    /// The input of each block, from which the backward pass recomputes the rest.
    Inputs,
    /// All activations that the backward pass reads.
    All,
}

impl Checkpointing {
    /// Returns the setting for training with these options.
    pub fn of(options: Options) -> Self {
        if options.recompute { Self::Inputs } else { Self::All }
    }
}

/// Contents of the arena for a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardMode {
    /// Activations kept for the backward pass.
    pub keep: Checkpointing,
    /// Includes the packed head and the workspace of the plain loss.
    pub loss: bool,
}

/// Allocation and current layout.
#[derive(Debug, Default)]
pub struct Arena {
    data: Buffer,
    layout: Layout,
    /// Loss whose packed head is in the arena, if the final projection cannot have changed since.
    packed_head: Option<loss::Shape>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    tokens: usize,
    width: usize,
    /// Number of stream buffers; layers whose distance is a multiple of it share one.
    streams: usize,
    /// Number of buffers of saved activations, shared in the same way.
    blocks: usize,
    backward: bool,
    /// The widest activations are kept in bf16.
    rounded: bool,
    widths: Widths,
    /// Length of the activations that one block's adapters save.
    lora: usize,
    /// Length of the scratch memory of one layer's adapters: see [`lora::LoraActivations`].
    lora_scratch: usize,
    attention: usize,
    partials: usize,
    loss: usize,
    packed_head: usize,
}

/// Widths of a block's activations, in values per token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Widths {
    /// Query, key and value.
    pub qkv: usize,
    /// Output of attention before its projection.
    pub att: usize,
    /// Queries and keys before their norms; 0 without.
    pub before_norms: usize,
    /// Heads of queries and keys that have norms.
    pub normed_heads: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Output of the MLP's input projection.
    pub fc: usize,
    /// Hidden layer of the MLP after its activation.
    pub inner: usize,
    /// Gradient of the hidden layer, if it is not computed in place of that of `fc`.
    pub dinner: usize,
}

impl Widths {
    pub fn of(config: &Config) -> Self {
        let heads = config.n_head + config.kv_heads();
        let normed_heads = if config.qk_norm { heads } else { 0 };
        let inner = config.inner_width();
        Self {
            qkv: config.qkv_width(),
            att: config.q_width(),
            before_norms: normed_heads * config.head_width(),
            normed_heads,
            heads: config.n_head,
            fc: config.fc_width(),
            // Holds the gradient of attention's output as well.
            inner: inner.max(config.q_width()),
            dinner: if config.activation == Activation::Swiglu { inner } else { 0 },
        }
    }
}

impl Layout {
    fn new(spec: &ArenaSpec<'_>, tokens: usize, mode: ForwardMode) -> Self {
        let ArenaSpec { config, precision, rank, threads, frozen } = *spec;
        let (streams, blocks) = match mode.keep {
            Checkpointing::Nothing => (2, 1),
            Checkpointing::Inputs => (config.n_layer + 1, 1),
            Checkpointing::All => (config.n_layer + 1, config.n_layer),
        };
        let backward = mode.keep != Checkpointing::Nothing;
        let loss = loss::Shape::new(precision, loss::Sizes::of(config, tokens), loss::Wanted::of(backward, rank > 0));
        Self {
            tokens,
            width: config.n_embd,
            streams,
            blocks,
            backward,
            // Only where the products that read them round them in any case.
            rounded: backward && attention::rounds(precision),
            widths: Widths::of(config),
            lora: lora::saved(config, rank, tokens),
            lora_scratch: if rank > 0 { lora::scratch(config, precision, rank, tokens) } else { 0 },
            attention: attention::Shape::new(config).scratch(threads),
            partials: if backward {
                layernorm::backward_scratch(tokens, config.n_embd.max(config.head_width()))
            } else {
                0
            },
            loss: if mode.loss { loss.scratch() } else { 0 },
            packed_head: if mode.loss && !frozen { loss.packed_wte() } else { 0 },
        }
    }

    /// Length of one stream.
    fn stream(&self) -> usize {
        padded(self.tokens * self.width)
    }

    /// Length of the pieces of [`Saved`], in its order.
    fn block(&self) -> usize {
        let (n, c) = (self.tokens, self.width);
        let Widths { qkv, att, before_norms, normed_heads, heads, fc, .. } = self.widths;
        let per_token = [1, 1, before_norms, normed_heads, heads, c, 1, 1].map(|width| padded(n * width));
        let kept = [qkv, att, fc].map(|width| padded(self.kept(width)));
        per_token.iter().chain(&kept).sum::<usize>() + padded(self.lora)
    }

    /// Length in f32 of a kept activation of this width.
    fn kept(&self, width: usize) -> usize {
        if self.rounded { (self.tokens * width).div_ceil(2) } else { self.tokens * width }
    }

    /// Length of the pieces of [`Layers`].
    fn layers_workspace(&self) -> usize {
        [self.wide(), self.hidden(), self.dhidden(), self.dwide(), self.attention].map(padded).iter().sum()
    }

    /// Length of the buffer of kept activations that are in use: `qkv` and `att`, or `fc`.
    fn wide(&self) -> usize {
        let Widths { qkv, att, fc, .. } = self.widths;
        if self.rounded { self.tokens * fc.max(qkv + att) } else { 0 }
    }

    /// Length of the MLP's hidden layer.
    fn hidden(&self) -> usize {
        self.tokens * self.widths.inner
    }

    fn dhidden(&self) -> usize {
        if self.backward { self.tokens * self.widths.dinner } else { 0 }
    }

    /// Length of the gradient of `fc` or `qkv`.
    fn dwide(&self) -> usize {
        if self.backward { self.tokens * self.widths.fc.max(self.widths.qkv) } else { 0 }
    }

    /// Length of a gradient of the stream.
    fn dstream(&self) -> usize {
        if self.backward { self.tokens * self.width } else { 0 }
    }

    /// Length of the whole arena.
    fn total(&self) -> usize {
        let (tokens, stream) = (self.tokens, self.tokens * self.width);
        let blocks = self.streams * self.stream() + self.blocks * self.block();
        let (dx, dbranch) = (self.dstream(), self.dstream());
        let buffers = [stream, dx, dbranch, tokens, tokens, tokens, self.partials, self.lora_scratch];
        let buffers: usize = buffers.map(padded).iter().sum();
        padded(self.packed_head) + blocks + buffers + self.layers_workspace().max(self.loss)
    }
}

/// Statistics of a norm, `[rows]`. RMSNorm leaves the means alone.
pub struct Stats<'a> {
    pub mean: &'a mut [f32],
    pub rstd: &'a mut [f32],
}

/// Queries and keys before the norms of their heads; empty in a model without these norms.
#[derive(Default)]
pub struct SavedHeads<'a> {
    /// `[N, q_width + kv_width]`
    pub before: &'a mut [f32],
    /// `[N, n_head]` of the queries, then `[N, n_kv_head]` of the keys.
    pub rstd: &'a mut [f32],
}

/// Activations that one transformer block saves for its backward pass, besides its input. N tokens, width C.
pub struct Saved<'a> {
    pub ln_1: Stats<'a>,
    /// `[N, qkv_width]`: as attention reads it.
    pub qkv: Kept<'a>,
    pub heads: SavedHeads<'a>,
    /// `[heads, tokens]` per sequence: log of the softmax denominators.
    pub lse: &'a mut [f32],
    /// `[N, q_width]`: output of attention before its projection.
    pub att: Kept<'a>,
    /// `[N, C]`: residual stream between attention and MLP.
    pub x_mid: &'a mut [f32],
    pub ln_2: Stats<'a>,
    /// `[N, fc_width]`: output of the MLP's input projection.
    pub fc: Kept<'a>,
    /// `low` of the adapters of the block's linear layers; empty without adapters.
    pub lora: &'a mut [f32],
}

/// Buffers of a step besides the saved activations. Gradients are empty without a backward pass. N tokens, width C.
pub struct Buffers<'a> {
    /// `[N, C]`: output of a norm.
    pub ln: &'a mut [f32],
    /// `[N, C]`: gradient of the residual stream.
    pub dx: &'a mut [f32],
    /// `[N, C]`: gradient of a branch's `width`-wide tensors; in the forward pass, a branch before dropout.
    pub dbranch: &'a mut [f32],
    pub ln_f: Stats<'a>,
    /// `[N]`
    pub losses: &'a mut [f32],
    /// Partial sums of a norm's backward pass.
    pub partials: &'a mut [f32],
    /// Scratch memory of an adapter; empty without adapters.
    pub lora_scratch: &'a mut [f32],
    /// Final projection packed for the loss.
    pub packed_head: &'a mut [f32],
}

/// Workspace that the loss and the layers use in turn.
pub struct Shared<'a> {
    data: &'a mut [f32],
    layout: Layout,
}

/// Shared workspace, laid out for the layers.
pub struct Layers<'a> {
    /// Kept activations in f32 while a block uses them: see [`Kept`]. Empty if they are not rounded.
    pub wide: &'a mut [f32],
    /// `[N, inner_width]`: output of the MLP's activation; later the gradient of attention's output.
    pub hidden: &'a mut [f32],
    /// `[N, inner_width]`: gradient of `hidden`, if it is not in `dwide`.
    pub dhidden: &'a mut [f32],
    /// Gradient of `fc`, and then of `qkv`.
    pub dwide: &'a mut [f32],
    /// Scratch memory of attention's tasks.
    pub attention: &'a mut [f32],
}

impl Arena {
    /// Lays out the arena for passes of up to `tokens` tokens. Allocates only if it has never been as large.
    ///
    /// # Errors
    /// [`Error::Memory`] if the activations do not fit in memory.
    pub fn reserve(&mut self, spec: &ArenaSpec<'_>, tokens: usize, mode: ForwardMode) -> Result<(), Error> {
        let layout = Layout::new(spec, tokens, mode);
        if self.data.len() < layout.total() {
            self.data = Buffer::default();
            let what = match mode.keep {
                Checkpointing::All => "the activation arena of a batch (--recompute shrinks it)",
                Checkpointing::Inputs | Checkpointing::Nothing => "the activation arena of a batch",
            };
            self.data = Buffer::zeros(layout.total(), what)?;
            self.packed_head = None;
        }
        self.set(layout);
        Ok(())
    }

    fn set(&mut self, layout: Layout) {
        if layout.packed_head != self.layout.packed_head {
            self.packed_head = None;
        }
        self.layout = layout;
    }

    /// Packs the final projection for a loss of this shape. If it is frozen, the packed copy serves later batches too.
    pub fn pack_head(&mut self, shape: loss::Shape, lm_head: &[f32], frozen: bool) {
        let wanted = Some(shape.for_any_tokens());
        if !frozen || self.packed_head != wanted {
            loss::pack_wte(shape, lm_head, self.split().1.packed_head);
        }
        self.packed_head = wanted.filter(|_| frozen);
    }

    /// Drops what the arena holds of the parameters, which may have changed.
    pub fn forget(&mut self) {
        self.packed_head = None;
    }

    /// Lays out the arena for a pass of `tokens` tokens, at most as many as reserved. Keeps the packed head.
    ///
    /// # Panics
    /// If the arena is too small.
    pub fn lay_out(&mut self, spec: &ArenaSpec<'_>, tokens: usize, mode: ForwardMode) {
        self.set(Layout::new(spec, tokens, mode));
        assert!(self.layout.total() <= self.data.len(), "the arena is too small for a pass of {tokens} tokens");
    }

    /// Splits the arena into its three parts.
    pub fn split(&mut self) -> (Blocks<'_>, Buffers<'_>, Shared<'_>) {
        let layout = self.layout;
        let (tokens, stream) = (layout.tokens, layout.tokens * layout.width);
        let mut carver = Carver(&mut self.data[..layout.total()]);
        let packed_head = carver.cut(layout.packed_head);
        let streams = carver.cut(layout.streams * layout.stream());
        let blocks = Blocks { streams, saved: carver.cut(layout.blocks * layout.block()), layout };
        let buffers = Buffers {
            ln: carver.cut(stream),
            dx: carver.cut(layout.dstream()),
            dbranch: carver.cut(layout.dstream()),
            ln_f: Stats { mean: carver.cut(tokens), rstd: carver.cut(tokens) },
            losses: carver.cut(tokens),
            partials: carver.cut(layout.partials),
            lora_scratch: carver.cut(layout.lora_scratch),
            packed_head,
        };
        (blocks, buffers, Shared { data: carver.0, layout })
    }
}

/// Inputs, outputs and saved activations of all blocks.
pub struct Blocks<'a> {
    streams: &'a mut [f32],
    saved: &'a mut [f32],
    layout: Layout,
}

impl Blocks<'_> {
    /// Returns the input of block `layer`, `[N, C]`, its saved activations, and its output, `[N, C]`.
    pub fn block(&mut self, layer: usize) -> (&mut [f32], Saved<'_>, &mut [f32]) {
        let Layout { tokens, width, widths, streams, blocks, .. } = self.layout;
        let stream = |layer: usize| {
            let start = layer % streams * self.layout.stream();
            start..start + tokens * width
        };
        let [x, out] = self
            .streams
            .get_disjoint_mut([stream(layer), stream(layer + 1)])
            .expect("at least two streams, so that neighbours are distinct");
        let mut carver = Carver(&mut self.saved[layer % blocks * self.layout.block()..]);
        let [qkv, att, fc] = [widths.qkv, widths.att, widths.fc].map(|width| {
            let own = carver.cut(self.layout.kept(width));
            if self.layout.rounded { Kept::Rounded(cast_slice_mut(own)) } else { Kept::Whole(own) }
        });
        let mut cut = |width: usize| carver.cut(tokens * width);
        let saved = Saved {
            ln_1: Stats { mean: cut(1), rstd: cut(1) },
            qkv,
            heads: SavedHeads { before: cut(widths.before_norms), rstd: cut(widths.normed_heads) },
            lse: cut(widths.heads),
            att,
            x_mid: cut(width),
            ln_2: Stats { mean: cut(1), rstd: cut(1) },
            fc,
            lora: carver.cut(self.layout.lora),
        };
        (x, saved, out)
    }

    /// Returns the input of block `layer`, `[N, C]`; for `layer` = number of layers, the output of the last block.
    pub fn stream(&mut self, layer: usize) -> &mut [f32] {
        let Layout { tokens, width, streams, .. } = self.layout;
        &mut self.streams[layer % streams * self.layout.stream()..][..tokens * width]
    }
}

impl Shared<'_> {
    /// Lays out the workspace for the loss.
    pub fn for_loss(&mut self) -> &mut [f32] {
        &mut self.data[..self.layout.loss]
    }

    /// Lays out the workspace for the layers.
    pub fn for_layers(&mut self) -> Layers<'_> {
        let Layout { attention, .. } = self.layout;
        let mut carver = Carver(&mut *self.data);
        Layers {
            wide: carver.cut(self.layout.wide()),
            hidden: carver.cut(self.layout.hidden()),
            dhidden: carver.cut(self.layout.dhidden()),
            dwide: carver.cut(self.layout.dwide()),
            attention: carver.cut(attention),
        }
    }
}
