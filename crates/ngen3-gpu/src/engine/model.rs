//! The model's forward pass, as in nanoGPT's `GPT.forward`, its loss, and its backward pass.
//!
//! The loss takes the vocabulary in chunks: logits of a chunk, statistics of each token, and the next chunk. The backward pass computes
//! each chunk's logits again.

use ngen3_engine::DropoutSite;

use super::block::Run;
use super::layout::Array;
use super::network::{Gradients, Network};
use crate::device::{Recorder, View};
use crate::kernels::dropout::Mask;
use crate::kernels::embedding;
use crate::kernels::loss::{self, Chunk};
use crate::kernels::norm::{self, Rows};
use crate::kernels::product::{Epilogue, Form, Matrix, product};

/// Tokens of the vocabulary that follow one another in a piece of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadChunk {
    /// Index of the piece.
    pub piece: usize,
    /// First row in the piece.
    pub row: usize,
    /// First token.
    pub first: usize,
    /// Number of tokens.
    pub width: usize,
}

impl Network {
    /// Runs the model up to the last norm, whose output is in the arena's `hidden`. `kv_cache` is each block's, when decoding.
    pub fn forward(&self, recorder: &mut Recorder<'_>, run: Run<'_>, kv_cache: &[crate::device::Buffer]) {
        let Run { inputs, arena, .. } = run;
        let (n, list, layers) = (inputs.tokens, &self.list, self.config.n_layer);
        let x = |layer: usize| arena.xs[arena.x_index(layer)].first(n * self.config.n_embd);
        let wte = self.parts(&self.params, &list.wte);
        let mask = run.mask(DropoutSite::Embedding);
        embedding::forward(recorder, inputs.ids(), inputs.positions(), &wte, self.p(&list.wpe), mask, x(0));
        for layer in 0..layers {
            let cache = kv_cache.get(layer).map(crate::device::Buffer::all);
            self.block_forward(recorder, layer, run, cache, x(layer), Some(x(layer + 1)));
        }
        let norm = self.norm([&list.ln_f_weight, &list.ln_f_bias]);
        let (rows, hidden) = (Rows::plain(n, self.config.n_embd), arena.hidden.first(n * self.config.n_embd));
        norm::forward(recorder, norm, rows, x(layers), hidden, arena.ln_f.first(2 * n));
    }

    /// Returns the chunks of the vocabulary of at most `most` tokens.
    pub fn head_chunks(&self, most: usize) -> Vec<HeadChunk> {
        let pieces = &self.layout.tensor(&self.list.lm_head).pieces;
        let chunks = |(piece, rows): (usize, std::ops::Range<usize>)| {
            let (start, end) = (rows.start, rows.end);
            rows.step_by(most).map(move |first| HeadChunk {
                piece,
                row: first - start,
                first,
                width: most.min(end - first),
            })
        };
        pieces.iter().enumerate().flat_map(|(index, piece)| chunks((index, piece.rows.clone()))).collect()
    }

    /// Returns a chunk's rows of an array of the head's shape.
    pub fn head_rows_of<'a>(&self, array: &'a Array, chunk: HeadChunk) -> Matrix<'a> {
        let piece = &self.layout.tensor(&self.list.lm_head).pieces[chunk.piece];
        Matrix { view: array.piece(piece), first: chunk.row * self.config.n_embd, stride: self.config.n_embd }
    }

    /// Records the logits of a chunk for rows of `hidden`, `[rows, C]`.
    pub fn logits(&self, recorder: &mut Recorder<'_>, chunk: HeadChunk, hidden: View<'_>, to: Matrix<'_>) {
        let width = self.config.n_embd;
        let shape = [hidden.len / width, chunk.width, width];
        let head = self.head_rows_of(&self.params, chunk);
        product(recorder, Form::Nt, shape, 1.0, Matrix::new(hidden, width), head, to, Epilogue::Set(None));
    }

    /// Records the losses of a pass, in the arena's `losses`, after [`Network::forward`].
    pub fn losses(&self, recorder: &mut Recorder<'_>, run: Run<'_>) {
        let Run { inputs, arena, .. } = run;
        let n = inputs.tokens;
        let (hidden, stats) = (arena.hidden.first(n * self.config.n_embd), arena.stats.first(3 * n));
        for chunk in self.head_chunks(arena.chunk(n)) {
            let logits = self.loss_chunk(recorder, chunk, hidden, run);
            loss::statistics(recorder, logits, 1.0, inputs.targets(), stats);
        }
        loss::losses(recorder, inputs.targets(), stats, arena.losses.first(n));
    }

    /// Records the logits of a chunk, in the arena.
    fn loss_chunk<'a>(
        &self,
        recorder: &mut Recorder<'_>,
        chunk: HeadChunk,
        hidden: View<'_>,
        run: Run<'a>,
    ) -> Chunk<'a> {
        let logits = run.arena.logits.first(run.inputs.tokens * chunk.width);
        self.logits(recorder, chunk, hidden, Matrix::new(logits, chunk.width));
        Chunk { logits, width: chunk.width, first: chunk.first }
    }

    /// Records a training pass: the forward pass, the loss, which is added to the arena's `loss_sum`, and the gradient of `weight`
    /// times the sum of the pass' losses, which is added to `grads`.
    pub fn forward_backward(&self, recorder: &mut Recorder<'_>, run: Run<'_>, weight: f32, grads: Gradients<'_>) {
        let Run { inputs, arena, .. } = run;
        self.forward(recorder, run, &[]);
        self.losses(recorder, run);
        let n = inputs.tokens;
        loss::add_sum(recorder, arena.losses.first(n), inputs.targets(), arena.loss_sum.all());
        let scratch = arena.backward.as_ref().expect("memory for the backward pass");
        let (width, targets) = (self.config.n_embd, inputs.targets());
        let [hidden, dhidden] = [&arena.hidden, &scratch.dln].map(|buffer| buffer.first(n * width));
        let chunks = self.head_chunks(arena.chunk(n));
        for &chunk in &chunks {
            // Those of the only chunk are there still.
            let logits = match chunks.len() {
                1 => Chunk { logits: arena.logits.first(n * chunk.width), width: chunk.width, first: chunk.first },
                _ => self.loss_chunk(recorder, chunk, hidden, run),
            };
            loss::gradient(recorder, logits, weight, targets, arena.stats.first(3 * n));
            self.head_backward(recorder, chunk, logits.logits, hidden, dhidden, grads);
        }
        self.backward(recorder, run, grads);
    }

    /// Records the gradients of the head's input and of its rows, given that of a chunk's logits.
    pub fn head_backward(
        &self,
        recorder: &mut Recorder<'_>,
        chunk: HeadChunk,
        dlogits: View<'_>,
        hidden: View<'_>,
        dhidden: View<'_>,
        grads: Gradients<'_>,
    ) {
        let width = self.config.n_embd;
        let n = hidden.len / width;
        let dlogits = Matrix::new(dlogits, chunk.width);
        if self.adapters.is_none() {
            let to = self.head_rows_of(grads, chunk);
            let hidden = Matrix::new(hidden, width);
            product(recorder, Form::Tn, [chunk.width, width, n], 1.0, dlogits, hidden, to, Epilogue::Add);
        }
        let epilogue = if chunk.first == 0 { Epilogue::Set(None) } else { Epilogue::Add };
        let head = self.head_rows_of(&self.params, chunk);
        let shape = [n, width, chunk.width];
        product(recorder, Form::Nn, shape, 1.0, dlogits, head, Matrix::new(dhidden, width), epilogue);
    }

    /// Records the backward pass from the gradient of the last norm's output, in the arena's `dln`.
    pub fn backward(&self, recorder: &mut Recorder<'_>, run: Run<'_>, grads: Gradients<'_>) {
        let Run { inputs, arena, .. } = run;
        let (n, list, layers) = (inputs.tokens, &self.list, self.config.n_layer);
        let width = self.config.n_embd;
        let scratch = arena.backward.as_ref().expect("memory for the backward pass");
        let x = |layer: usize| arena.xs[arena.x_index(layer)].first(n * width);
        let (dln, stats) = (scratch.dln.first(n * width), arena.ln_f.first(2 * n));
        self.norm_backward(recorder, [&list.ln_f_weight, &list.ln_f_bias], run, x(layers), stats, dln, false, grads);
        for layer in (0..layers).rev() {
            // The last block's activations are there still.
            if arena.recomputes() && layer + 1 < layers {
                self.block_forward(recorder, layer, run, None, x(layer), None);
            }
            self.block_backward(recorder, layer, run, x(layer), grads);
        }
        if self.adapters.is_some() {
            return;
        }
        let (dx, mask) = (scratch.dx.first(n * width), run.mask(DropoutSite::Embedding));
        let dwte = self.parts(grads, &list.wte);
        self.embedding_backward(recorder, run, true, dx, mask, &dwte);
        if let Some(dwpe) = self.g(grads, &list.wpe) {
            let part = embedding::Part { ids: 0..self.config.block_size, view: dwpe };
            self.embedding_backward(recorder, run, false, dx, mask, &[part]);
        }
    }

    fn embedding_backward(
        &self,
        recorder: &mut Recorder<'_>,
        run: Run<'_>,
        tokens: bool,
        dx: View<'_>,
        mask: Mask,
        dtable: &[embedding::Part<'_>],
    ) {
        let inputs = run.inputs;
        let (sorted, [order, ids]) = match tokens {
            true => (&inputs.by_token, inputs.token_order()),
            false => (&inputs.by_position, inputs.position_order()),
        };
        embedding::backward(recorder, sorted, order, ids, dx, mask, self.config.n_embd, dtable);
    }
}
