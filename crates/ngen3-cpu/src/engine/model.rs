//! Forward and backward pass of the model: `GPT.forward` of nanoGPT, and its lines in reverse.
//!
//! ```text
//! x = wte[token] + wpe[position]
//! for each block (block.rs): x = x + c_proj(attention(ln_1(x)));  x = x + c_proj(gelu(c_fc(ln_2(x))))
//! loss = cross-entropy of ln_f(x)·wteᵀ
//! ```
//!
//! The Llama family has no `wpe`, and perhaps a head of its own.

use ngen3_engine::{Batch, DropoutSite, Error, PassDropout, pass_seed};

use super::arena::{Arena, Checkpointing, ForwardMode, Layers};
use super::batch_plan::{BatchPlan, Pass};
use super::block::ForwardScratch;
use super::grads::Grads;
use super::weights::Weights;
use crate::gemm::Accumulate;
use crate::layers::embedding::Table;
use crate::layers::linear::pair;
use crate::layers::loss::{self, Gradients};
use crate::layers::{dropout, embedding};

/// A batch, its split into passes, and the arena for its activations.
pub struct Passes<'a> {
    pub batch: &'a Batch,
    pub plan: &'a BatchPlan,
    pub threads: usize,
    pub arena: &'a mut Arena,
}

/// Sums losses in f64, so that a mean over many tokens stays precise.
pub fn sum(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum()
}

impl Weights {
    /// Calls `each` with the losses of each pass, in order, without those of ignored targets.
    pub fn losses(&self, passes: Passes<'_>, mut each: impl FnMut(&[f32])) -> Result<(), Error> {
        self.passes(passes, ForwardMode { keep: Checkpointing::Nothing, loss: true }, |_, pass, arena| {
            self.forward(pass, PassDropout::NONE, arena);
            self.head(pass, arena, None);
            each(&arena.split().1.losses[..pass.kept_targets.len()]);
            Ok(())
        })
    }

    /// Returns the mean loss of the batch, and adds `weight` times its gradient to `grads`.
    pub fn forward_backward(
        &self,
        passes: Passes<'_>,
        weight: f32,
        drops: PassDropout,
        mut grads: Grads<'_>,
    ) -> Result<f32, Error> {
        let targets = passes.plan.num_target_tokens() as f64;
        let (weight, last) = (weight / targets as f32, passes.plan.last());
        let mut total = 0.0;
        self.passes(passes, ForwardMode { keep: self.keep, loss: true }, |i, pass, arena| {
            let drops = PassDropout { seed: pass_seed(drops.seed, i), ..drops };
            self.forward(pass, drops, arena);
            self.head(pass, arena, Some((weight, &mut *grads.values)));
            self.backward(pass, drops, arena, &mut grads, i == last);
            total += sum(&arena.split().1.losses[..pass.kept_targets.len()]);
            Ok(())
        })?;
        grads.finish();
        Ok((total / targets) as f32)
    }

    /// Calls `work` for each pass of a batch, with the arena laid out for it.
    pub fn passes(
        &self,
        passes: Passes<'_>,
        mode: ForwardMode,
        mut work: impl FnMut(u64, Pass<'_>, &mut Arena) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Passes { batch, plan, threads, arena } = passes;
        let spec = self.spec(threads);
        arena.reserve(&spec, plan.most_tokens(), mode)?;
        if mode.loss && self.frozen.is_none() {
            let shape = self.loss_shape(plan.most_tokens(), mode.keep != Checkpointing::Nothing);
            arena.pack_head(shape, self.lm_head(), self.adapters.is_some());
        }
        for (i, pass) in plan.passes(batch).enumerate() {
            arena.lay_out(&spec, pass.inputs.len(), mode);
            work(i as u64, pass, arena)?;
        }
        Ok(())
    }

    /// Runs the model up to `ln_f`, whose output goes to the arena's `ln`. The blocks save what the arena's mode keeps.
    pub fn forward(&self, pass: Pass<'_>, drops: PassDropout, arena: &mut Arena) {
        let (mut blocks, mut b, mut shared) = arena.split();
        let Layers { wide, hidden, attention: panels, .. } = shared.for_layers();

        let x = blocks.stream(0);
        embedding::forward(pass.inputs, pass.positions, self.wte_table(), self.p(&self.list.wpe), x);
        if let Some(dropout) = drops.at(DropoutSite::Embedding) {
            dropout::apply(dropout, x);
        }
        let mut scratch = ForwardScratch { ln: b.ln, wide, hidden, branch: b.dbranch, lora: b.lora_scratch };
        for layer in 0..self.config.n_layer {
            let (x, mut saved, out) = blocks.block(layer);
            self.block_forward_in_pass(layer, pass, drops, x, &mut saved, &mut scratch, panels, Some(out));
        }
        let x = blocks.stream(self.config.n_layer);
        self.norm(self.ln_f(), x, scratch.ln, &mut b.ln_f);
    }

    /// Computes the losses of the targets that are not ignored from `ln_f`'s output in the arena's `ln`, which it overwrites.
    /// With `gradients`, a weight and the gradients of all parameters, also computes the gradient of `ln_f`'s output, in
    /// `dbranch`.
    fn head(&self, pass: Pass<'_>, arena: &mut Arena, gradients: Option<(f32, &mut [f32])>) {
        let (_, b, mut shared) = arena.split();
        let (n, c) = (pass.kept_targets.len(), self.config.n_embd);
        let backward = gradients.is_some();
        if n > 0 {
            pass.gather_targets(b.ln);
            let gradients = gradients.map(|(weight, grads)| Gradients {
                weight,
                dhidden: &mut b.dbranch[..n * c],
                dwte: self.dlm_head(grads),
            });
            let (hidden, losses) = (&b.ln[..n * c], &mut b.losses[..n]);
            let head = match &self.frozen {
                Some(frozen) => frozen.lm_head(),
                None => (Table::Plain(self.lm_head()), &*b.packed_head),
            };
            loss::run(
                self.loss_shape(n, backward),
                hidden,
                head,
                pass.kept_targets,
                losses,
                gradients,
                shared.for_loss(),
            );
        }
        if backward {
            pass.scatter_targets(b.dbranch);
        }
    }

    /// Runs the backward pass from the activations and the loss gradient in the arena, and adds the parameters' gradients to
    /// `grads`. In the `last` pass of a batch those of the blocks, and of what follows them, are final once they are computed.
    pub fn backward(&self, pass: Pass<'_>, drops: PassDropout, arena: &mut Arena, grads: &mut Grads<'_>, last: bool) {
        let (mut blocks, mut b, mut shared) = arena.split();
        let n_layer = self.config.n_layer;

        let x = blocks.stream(n_layer);
        self.norm_backward(self.ln_f(), x, &b.ln_f, b.dbranch, b.dx, Accumulate::Set, grads.values, b.partials);

        let mut layers = shared.for_layers();
        for layer in (0..n_layer).rev() {
            let (x, saved, _) = blocks.block(layer);
            // The last block's activations are still there.
            let again = self.keep == Checkpointing::Inputs && layer + 1 < n_layer;
            self.block_backward(layer, again, pass, drops, x, saved, &mut b, &mut layers, grads.values);
            if last && self.adapters.is_none() {
                grads.finish_from(self.list.blocks[layer].ln_1_weight.start, layer == 0);
            }
        }
        if self.adapters.is_some() {
            return;
        }
        if let Some(dropout) = drops.at(DropoutSite::Embedding) {
            dropout::apply(dropout, b.dx);
        }
        let (dwte, dwpe) = pair(grads.values, &self.list.wte, &self.list.wpe);
        embedding::backward(pass.inputs, pass.positions, b.dx, dwte, dwpe);
    }
}
