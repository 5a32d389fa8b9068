//! Where the activations of a training step live: one allocation, laid out for a pass's shape.
//!
//! With N tokens and C = width, each transformer block keeps its input and what its backward needs besides (10·C numbers a
//! token together); what can be made again cheaply (LayerNorm's and GELU's outputs) lives in a workspace that all share:
//!
//! ```text
//! packed embeddings │ streams: each block's input [N, C], the last one's output │ what each block keeps │ workspace
//! ```
//!
//! The embeddings stand first, where the next pass of the same batch finds them whatever its size. How much is kept is the
//! mode's [`Checkpointing`]: with inputs only, one block's room serves all, and backward runs a block again before it goes back through
//! it; with nothing, two streams take turns as input and output too. The workspace is cut up twice: once for the loss (a block of
//! it), once for the layers. Both never hold anything at the same time.
//!
//! A large batch goes through in several passes (`batch_plan.rs`) whose gradients add up; the arena is as large as the largest.

use ngen3_engine::{Error, Options};
use ngen3_model::{Config, Target};

use crate::base::memory::{Buffer, Carver, padded};
use crate::gemm::Precision;
use crate::layers::{attention, layernorm, lora, loss};

/// The model that activations are of, and how it is computed.
#[derive(Clone, Copy)]
pub struct ArenaSpec<'a> {
    pub config: &'a Config,
    pub precision: Precision,
    /// Of the adapters; 0 without.
    pub rank: usize,
    pub threads: usize,
}

impl ArenaSpec<'_> {
    /// Numbers in the arena of passes of so many tokens.
    pub fn numbers(&self, tokens: usize, mode: ForwardMode) -> usize {
        Layout::new(self, tokens, mode).total()
    }
}

/// How much a pass keeps of the blocks that it has gone through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Nothing: there is no backward.
    #[default]
    Nothing,
    /// The input of each, from which backward computes the rest again.
    Inputs,
    /// All that backward reads.
    All,
}

impl Checkpointing {
    /// How much training keeps with these options.
    pub fn of(options: Options) -> Self {
        if options.recompute { Self::Inputs } else { Self::All }
    }
}

/// Activations that a forward pass leaves in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardMode {
    /// How much of each block is kept for its backward.
    pub keep: Checkpointing,
    /// The packed embeddings and the workspace of the plain loss.
    pub loss: bool,
}

/// The allocation and the shape that it is laid out for.
#[derive(Debug, Default)]
pub struct Arena {
    data: Buffer,
    layout: Layout,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    tokens: usize,
    width: usize,
    /// Blocks' inputs and outputs that there is room for; layers that stand as many apart use the same.
    streams: usize,
    /// Blocks that there is room for, in the same way.
    blocks: usize,
    backward: bool,
    heads: usize,
    rank: usize,
    attention: usize,
    layernorm: usize,
    loss: usize,
    packed_wte: usize,
}

impl Layout {
    fn new(spec: &ArenaSpec<'_>, tokens: usize, mode: ForwardMode) -> Self {
        let ArenaSpec { config, precision, rank, threads } = *spec;
        let (streams, blocks) = match mode.keep {
            Checkpointing::Nothing => (2, 1),
            Checkpointing::Inputs => (config.n_layer + 1, 1),
            Checkpointing::All => (config.n_layer + 1, config.n_layer),
        };
        let backward = mode.keep != Checkpointing::Nothing;
        let loss = loss::Shape::new(precision, loss::Sizes::of(config, tokens), backward);
        Self {
            tokens,
            width: config.n_embd,
            streams,
            blocks,
            backward,
            heads: config.n_head,
            rank,
            attention: attention::Shape::new(config).scratch(threads),
            layernorm: if backward { layernorm::backward_scratch(tokens, config.n_embd) } else { 0 },
            loss: if mode.loss { loss.scratch() } else { 0 },
            packed_wte: if mode.loss { loss.packed_wte() } else { 0 },
        }
    }

    /// One stream.
    fn stream(&self) -> usize {
        padded(self.tokens * self.width)
    }

    /// The pieces of [`Saved`], in its order.
    fn block(&self) -> usize {
        let (n, c) = (self.tokens, self.width);
        [n, n, n * 3 * c, n * self.heads, n * c, n * c, n, n, n * 4 * c, self.lora()].map(padded).iter().sum()
    }

    /// What the adapters of one block save.
    fn lora(&self) -> usize {
        Target::ALL.len() * self.tokens * self.rank
    }

    /// Memory that one adapter needs besides: see [`lora::LoraActivations`].
    fn lora_scratch(&self) -> usize {
        lora::scratch(self.rank, 5 * self.width, self.tokens)
    }

    /// The pieces of [`Layers`].
    fn layers_workspace(&self) -> usize {
        padded(self.wide()) + padded(self.dwide()) + padded(self.attention)
    }

    /// Of what is four times as wide as the stream.
    fn wide(&self) -> usize {
        self.tokens * 4 * self.width
    }

    fn dwide(&self) -> usize {
        if self.backward { self.wide() } else { 0 }
    }

    /// Of a gradient of the stream.
    fn dstream(&self) -> usize {
        if self.backward { self.tokens * self.width } else { 0 }
    }

    /// What stands in the arena, in its order.
    fn total(&self) -> usize {
        let (tokens, stream) = (self.tokens, self.tokens * self.width);
        let blocks = self.streams * self.stream() + self.blocks * self.block();
        let (dx, dbranch) = (self.dstream(), self.dstream());
        let buffers = [stream, dx, dbranch, tokens, tokens, tokens, self.layernorm, self.lora_scratch()];
        let buffers: usize = buffers.map(padded).iter().sum();
        padded(self.packed_wte) + blocks + buffers + self.layers_workspace().max(self.loss)
    }
}

/// What one transformer block keeps for its backward besides its input. N tokens, width C.
pub struct Saved<'a> {
    /// `[N]`
    pub ln_1_mean: &'a mut [f32],
    /// `[N]`
    pub ln_1_rstd: &'a mut [f32],
    /// `[N, 3·C]`
    pub qkv: &'a mut [f32],
    /// `[heads, tokens]` of each sequence, one after the other.
    pub lse: &'a mut [f32],
    /// `[N, C]`: attention's output before its projection.
    pub att: &'a mut [f32],
    /// `[N, C]`: the stream between attention and MLP.
    pub x_mid: &'a mut [f32],
    /// `[N]`
    pub ln_2_mean: &'a mut [f32],
    /// `[N]`
    pub ln_2_rstd: &'a mut [f32],
    /// `[N, 4·C]`: the MLP's hidden layer before GELU.
    pub fc: &'a mut [f32],
    /// `[4, N, rank]`: what the adapters of the block's linear layers save; empty without.
    pub lora: &'a mut [f32],
}

/// What a step needs besides the saved activations; gradients are empty without a backward. N tokens, width C.
pub struct Buffers<'a> {
    /// `[N, C]`: a LayerNorm's output.
    pub ln: &'a mut [f32],
    /// `[N, C]`: the gradient of the residual stream.
    pub dx: &'a mut [f32],
    /// `[N, C]`: the gradient of a branch's `width`-wide tensors; in forward, a branch before dropout.
    pub dbranch: &'a mut [f32],
    /// `[N]`
    pub ln_f_mean: &'a mut [f32],
    /// `[N]`
    pub ln_f_rstd: &'a mut [f32],
    /// `[N]`
    pub losses: &'a mut [f32],
    /// Partial sums of LayerNorm's backward.
    pub partials: &'a mut [f32],
    /// What an adapter needs besides; empty without.
    pub lora_scratch: &'a mut [f32],
    /// The embeddings as the loss reads them.
    pub packed_wte: &'a mut [f32],
}

/// The part of the workspace that the loss and the layers use in turn.
pub struct Shared<'a> {
    data: &'a mut [f32],
    layout: Layout,
}

/// The shared workspace while blocks run.
pub struct Layers<'a> {
    /// `[N, 4·C]`: GELU's output.
    pub gelu: &'a mut [f32],
    /// `[N, 4·C]`: the gradient of `fc`, or in its first 3/4 that of `qkv`.
    pub dwide: &'a mut [f32],
    /// What attention's tasks copy their operands to.
    pub attention: &'a mut [f32],
}

impl Arena {
    /// Lays the arena out for passes of up to `tokens` tokens; allocates when it has never been as large.
    ///
    /// # Errors
    /// [`Error::Memory`] when the activations do not fit.
    pub fn reserve(&mut self, spec: &ArenaSpec<'_>, tokens: usize, mode: ForwardMode) -> Result<(), Error> {
        let layout = Layout::new(spec, tokens, mode);
        if self.data.len() < layout.total() {
            self.data = Buffer::default();
            let what = match mode.keep {
                Checkpointing::All => "the activations of a batch (--recompute keeps fewer)",
                Checkpointing::Inputs | Checkpointing::Nothing => "the activations of a batch",
            };
            self.data = Buffer::zeros(layout.total(), what)?;
        }
        self.layout = layout;
        Ok(())
    }

    /// Lays it out anew for a pass of `tokens` tokens, no more than it was reserved for. The packed embeddings stay.
    ///
    /// # Panics
    /// If there is no room.
    pub fn lay_out(&mut self, spec: &ArenaSpec<'_>, tokens: usize, mode: ForwardMode) {
        self.layout = Layout::new(spec, tokens, mode);
        assert!(self.layout.total() <= self.data.len(), "a pass of {tokens} tokens needs more room than a larger one");
    }

    /// The three parts of the arena.
    pub fn split(&mut self) -> (Blocks<'_>, Buffers<'_>, Shared<'_>) {
        let layout = self.layout;
        let (tokens, stream) = (layout.tokens, layout.tokens * layout.width);
        let mut carver = Carver(&mut self.data[..layout.total()]);
        let packed_wte = carver.cut(layout.packed_wte);
        let streams = carver.cut(layout.streams * layout.stream());
        let blocks = Blocks { streams, saved: carver.cut(layout.blocks * layout.block()), layout };
        let buffers = Buffers {
            ln: carver.cut(stream),
            dx: carver.cut(layout.dstream()),
            dbranch: carver.cut(layout.dstream()),
            ln_f_mean: carver.cut(tokens),
            ln_f_rstd: carver.cut(tokens),
            losses: carver.cut(tokens),
            partials: carver.cut(layout.layernorm),
            lora_scratch: carver.cut(layout.lora_scratch()),
            packed_wte,
        };
        (blocks, buffers, Shared { data: carver.0, layout })
    }
}

/// The inputs and outputs of all blocks, and what else is saved of them.
pub struct Blocks<'a> {
    streams: &'a mut [f32],
    saved: &'a mut [f32],
    layout: Layout,
}

impl Blocks<'_> {
    /// The input of block `layer`, `[N, C]`, what else it keeps, and where its output goes, `[N, C]`.
    pub fn block(&mut self, layer: usize) -> (&mut [f32], Saved<'_>, &mut [f32]) {
        let Layout { tokens, width, heads, streams, blocks, .. } = self.layout;
        let stream = |layer: usize| {
            let start = layer % streams * self.layout.stream();
            start..start + tokens * width
        };
        let [x, out] = self
            .streams
            .get_disjoint_mut([stream(layer), stream(layer + 1)])
            .expect("there are at least two streams, and neighbours are two");
        let mut carver = Carver(&mut self.saved[layer % blocks * self.layout.block()..]);
        let saved = Saved {
            ln_1_mean: carver.cut(tokens),
            ln_1_rstd: carver.cut(tokens),
            qkv: carver.cut(tokens * 3 * width),
            lse: carver.cut(tokens * heads),
            att: carver.cut(tokens * width),
            x_mid: carver.cut(tokens * width),
            ln_2_mean: carver.cut(tokens),
            ln_2_rstd: carver.cut(tokens),
            fc: carver.cut(tokens * 4 * width),
            lora: carver.cut(self.layout.lora()),
        };
        (x, saved, out)
    }

    /// The input of block `layer`, or after the last the output of all, `[N, C]`.
    pub fn stream(&mut self, layer: usize) -> &mut [f32] {
        let Layout { tokens, width, streams, .. } = self.layout;
        &mut self.streams[layer % streams * self.layout.stream()..][..tokens * width]
    }
}

impl Shared<'_> {
    /// As what the loss needs.
    pub fn for_loss(&mut self) -> &mut [f32] {
        &mut self.data[..self.layout.loss]
    }

    /// As what the layers need beside the other buffers.
    pub fn for_layers(&mut self) -> Layers<'_> {
        let Layout { attention, .. } = self.layout;
        let mut carver = Carver(&mut *self.data);
        Layers {
            gelu: carver.cut(self.layout.wide()),
            dwide: carver.cut(self.layout.dwide()),
            attention: carver.cut(attention),
        }
    }
}
