//! The model, forward and backward: nanoGPT's `GPT.forward`, and each of its lines again in reverse.
//!
//! ```text
//! x = wte[token] + wpe[position]
//! for each block: x = x + c_proj(attention(ln_1(x)));  x = x + c_proj(gelu(c_fc(ln_2(x))))
//! loss = cross entropy of ln_f(x)·wteᵀ
//! ```

use std::ops::Range;

use ngen3_model::{BlockRanges, Config, Param, ParamList, Target};
use rayon::prelude::*;

use super::arena::{Arena, Buffers, Keep, Layers, Saved, Walk};
use super::batch_plan::{Pass, Plan};
use crate::gemm::tiles::packed::Packed;
use crate::gemm::{Into, Mat, Precision};
use crate::layers::dropout::Dropout;
use crate::layers::linear::{Learns, Linear, Weight, pair};
use crate::layers::lora::{Adapters, Low};
use crate::layers::loss::Gradients;
use crate::layers::{attention, embedding, gelu, layernorm, loss, matvec};
use ngen3_engine::splitmix;
use ngen3_engine::{Batch, Error, Quant};

/// A model's shape and parameters.
#[derive(Debug)]
pub struct Model {
    pub config: Config,
    pub list: ParamList,
    /// What products round their operands to.
    pub precision: Precision,
    /// What a pass forward keeps of each block, if there is a backward: all, or the inputs.
    pub keep: Keep,
    /// `[total]`
    pub params: Vec<f32>,
    /// If there are any, they learn and nothing else does.
    pub adapters: Option<Adapters>,
    /// Of a model that only goes forward: what its products read, in place of those among `params`.
    pub packed: Option<PackedWeights>,
}

/// Weights as products read them.
#[derive(Debug)]
pub struct PackedWeights {
    /// What they, and what they are multiplied with, are rounded to: to bf16, or further.
    quant: Quant,
    /// Those of each block's linear layers, in the order of [`Target`]; they are not among the model's parameters any more.
    layers: Vec<[Packed; Target::ALL.len()]>,
    /// The embeddings as the final projection reads them, once it has been asked for. They are among the parameters too.
    pub head: Option<Packed>,
}

/// Dropout at every place of one pass.
#[derive(Clone, Copy)]
pub struct Drops {
    /// Probability that an activation is dropped.
    pub p: f32,
    /// Decides which.
    pub seed: u64,
}

/// Places where activations are dropped: after the embedding, and three in each block.
enum Site {
    Embedding,
    Attention(usize),
    AttentionProjection(usize),
    MlpProjection(usize),
}

impl Drops {
    pub const NONE: Self = Self { p: 0.0, seed: 0 };

    fn at(&self, site: Site) -> Option<Dropout> {
        let site = match site {
            Site::Embedding => 0,
            Site::Attention(layer) => 1 + 3 * layer,
            Site::AttentionProjection(layer) => 2 + 3 * layer,
            Site::MlpProjection(layer) => 3 + 3 * layer,
        };
        Dropout::new(self.p, self.seed, site as u64)
    }
}

/// A batch, how it is cut up, and where its activations go.
pub struct Passes<'a> {
    pub batch: &'a Batch,
    pub plan: &'a Plan,
    pub threads: usize,
    pub arena: &'a mut Arena,
}

/// In f64, so that a mean over many tokens is exact.
pub fn sum(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum()
}

impl Model {
    /// What training changes: names, shapes and places; and their values, back to back.
    pub fn learned(&self) -> (std::slice::Iter<'_, Param>, &[f32]) {
        match &self.adapters {
            Some(adapters) => (adapters.list.iter(), &adapters.params),
            None => (self.list.iter(), &self.params),
        }
    }

    /// As [`Model::learned`], to be changed.
    pub fn learned_mut(&mut self) -> (std::slice::Iter<'_, Param>, &mut [f32]) {
        match &mut self.adapters {
            Some(adapters) => (adapters.list.iter(), &mut adapters.params),
            None => (self.list.iter(), &mut self.params),
        }
    }

    /// Of the adapters; 0 without.
    pub fn rank(&self) -> usize {
        self.adapters.as_ref().map_or(0, |adapters| adapters.lora.rank)
    }

    /// One of a block's linear layers.
    fn linear(&self, layer: usize, target: Target) -> Linear<'_> {
        let (weight, bias) = self.list.blocks[layer].linear(target);
        let learns = match &self.adapters {
            None => Learns::Itself { weight, bias },
            Some(adapters) => {
                adapters.at(layer, target).map_or(Learns::Nothing, |(adapter, at)| Learns::Adapter(adapter, at))
            }
        };
        let weight = match &self.packed {
            Some(packed) => Weight::Packed(&packed.layers[layer][target as usize]),
            None => Weight::Plain(&self.params[weight.clone()]),
        };
        let bias = &self.params[bias.clone()];
        Linear { precision: self.precision, weight, bias, learns }
    }

    /// The gradients of two parameters other than a linear layer's; nothing where only adapters learn.
    fn dparams<'a>(
        &self,
        grads: &'a mut [f32],
        first: &Range<usize>,
        second: &Range<usize>,
    ) -> Option<(&'a mut [f32], &'a mut [f32])> {
        self.adapters.is_none().then(|| pair(grads, first, second))
    }

    /// The gradient of the embeddings, for the loss to add to; nothing where only adapters learn.
    pub fn dwte<'a>(&self, grads: &'a mut [f32]) -> Option<&'a mut [f32]> {
        self.adapters.is_none().then(|| &mut grads[self.list.wte.clone()])
    }

    /// The loss at each place that counts, in order.
    pub fn losses(&self, passes: Passes<'_>, mut each: impl FnMut(&[f32])) -> Result<(), Error> {
        self.passes(passes, Walk { keep: Keep::Nothing, loss: true }, |_, pass, arena| {
            self.forward(pass, Drops::NONE, arena);
            self.head(pass, arena, None);
            each(&arena.split().1.losses[..pass.counted.len()]);
            Ok(())
        })
    }

    /// Mean loss of the batch; adds `weight` times its gradient to `grads`, `[total]`.
    pub fn forward_backward(
        &self,
        passes: Passes<'_>,
        weight: f32,
        drops: Drops,
        grads: &mut [f32],
    ) -> Result<f32, Error> {
        let counted = passes.plan.counted() as f64;
        let weight = weight / counted as f32;
        let mut total = 0.0;
        self.passes(passes, Walk { keep: self.keep, loss: true }, |i, pass, arena| {
            let drops = Drops { seed: splitmix(drops.seed.wrapping_add(i)), ..drops };
            self.forward(pass, drops, arena);
            self.head(pass, arena, Some((weight, &mut *grads)));
            self.backward(pass, drops, arena, grads);
            total += sum(&arena.split().1.losses[..pass.counted.len()]);
            Ok(())
        })?;
        Ok((total / counted) as f32)
    }

    /// Takes each pass of a batch through `work`, with the arena laid out for it.
    pub fn passes(
        &self,
        passes: Passes<'_>,
        walk: Walk,
        mut work: impl FnMut(u64, Pass<'_>, &mut Arena) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Passes { batch, plan, threads, arena } = passes;
        arena.reserve(self, plan.most_tokens(), threads, walk)?;
        if walk.loss {
            let shape = self.loss_shape(plan.most_tokens(), walk.keep != Keep::Nothing);
            loss::pack_wte(shape, self.wte(), arena.split().1.packed_wte);
        }
        for (i, pass) in plan.passes(batch).enumerate() {
            arena.lay_out(self, pass.inputs.len(), threads, walk);
            work(i as u64, pass, arena)?;
        }
        Ok(())
    }

    /// The loss of a pass, with gradients or not.
    pub fn loss_shape(&self, tokens: usize, backward: bool) -> loss::Shape {
        loss::Shape::new(self.precision, loss::Sizes::of(&self.config, tokens), backward)
    }

    /// Replaces every weight that decoding reads by what its int8 copy stands for, so that losses and prompts are those of the
    /// quantised model too.
    pub fn round_to_int8(&mut self) {
        let c = self.config.n_embd;
        let linear = |(w, target): (&BlockRanges, Target)| (w.linear(target).0.clone(), target.shape(&self.config)[1]);
        let layers = self.list.blocks.iter().flat_map(|w| Target::ALL.map(|target| (w, target))).map(linear);
        for (range, inputs) in layers.chain([(self.list.wte.clone(), c)]) {
            self.params[range].par_chunks_mut(inputs).for_each(matvec::round_to_int8);
        }
    }

    /// Packs the weights of the blocks' linear layers, in bf16 or in int8, once for all, and lets go of what they were packed
    /// from: the model only goes forward from now on. The last block comes first, so that there is never much more than one copy.
    ///
    /// # Errors
    /// [`Error::Memory`] when the packed weights of a layer do not fit.
    pub fn pack(&mut self, quant: Quant) -> Result<(), Error> {
        let Self { config, list, params, .. } = self;
        let mut layers = Vec::new();
        let mut kept = vec![params[list.ln_f_weight.start..].to_vec()];
        for w in list.blocks.iter().rev() {
            let (mut plain, mut after) = (Vec::new(), w.ln_1_weight.start);
            for target in Target::ALL {
                let weight = w.linear(target).0;
                plain.extend_from_slice(&params[after..weight.start]);
                after = weight.end;
            }
            plain.extend_from_slice(&params[after..w.mlp_c_proj_bias.end]);
            kept.push(plain);
            let pack = |target: Target| {
                let [outputs, inputs] = target.shape(config);
                Packed::new(Mat::new(&params[w.linear(target).0.clone()], outputs, inputs), quant)
            };
            let [a, b, c, d] = Target::ALL.map(pack);
            layers.push([a?, b?, c?, d?]);
            params.truncate(w.ln_1_weight.start);
            params.shrink_to_fit();
        }
        layers.reverse();
        self.packed = Some(PackedWeights { quant, layers, head: None });
        params.reserve_exact(kept.iter().map(Vec::len).sum());
        params.extend(kept.iter().rev().flatten());
        *list = ParamList::without_layer_weights(config);
        Ok(())
    }

    /// Packs the embeddings too, for [`Model::top_k`], if the layers are packed and it has not been done.
    ///
    /// # Errors
    /// [`Error::Memory`] when they do not fit.
    pub fn pack_head(&mut self) -> Result<(), Error> {
        let wte = Mat::new(&self.params[self.list.wte.clone()], self.config.vocab_size, self.config.n_embd);
        if let Some(PackedWeights { quant, head: head @ None, .. }) = &mut self.packed {
            *head = Some(Packed::new(wte, *quant)?);
        }
        Ok(())
    }

    /// What a packed model rounds the operands of its products to, beyond its precision.
    pub fn quant(&self) -> Quant {
        self.packed.as_ref().map_or(Quant::None, |packed| packed.quant)
    }

    /// `[vocab_size, width]`
    pub fn wte(&self) -> &[f32] {
        &self.params[self.list.wte.clone()]
    }

    /// Leaves `ln_f`'s output in the arena's `ln`, and in the blocks what the walk keeps.
    pub fn forward(&self, pass: Pass<'_>, drops: Drops, arena: &mut Arena) {
        let p = |range: &Range<usize>| &self.params[range.clone()];
        let eps = self.config.layer_norm_epsilon;
        let (mut blocks, mut b, mut shared) = arena.split();
        let Layers { gelu, attention: panels, .. } = shared.for_layers();

        let x = blocks.stream(0);
        embedding::forward(pass.inputs, pass.positions, self.wte(), p(&self.list.wpe), x);
        if let Some(dropout) = drops.at(Site::Embedding) {
            dropout.apply(x);
        }
        for layer in 0..self.config.n_layer {
            let (x, mut saved, out) = blocks.block(layer);
            self.block_forward(layer, pass, drops, x, &mut saved, &mut b, panels);
            let Saved { x_mid, fc, low, .. } = saved;
            let low = &mut Low { saved: low, scratch: b.low_scratch };
            gelu::forward(self.config.activation, fc, gelu);
            let drop = drops.at(Site::MlpProjection(layer));
            project(self.linear(layer, Target::MlpCProj), gelu, low, drop, x_mid, b.dbranch, out);
        }
        let x = blocks.stream(self.config.n_layer);
        let (gamma, beta) = (p(&self.list.ln_f_weight), p(&self.list.ln_f_bias));
        layernorm::forward(x, gamma, beta, eps, b.ln, b.ln_f_mean, b.ln_f_rstd);
    }

    /// A block from its input as far as its backward reads it: all but the MLP's second half.
    #[expect(
        clippy::too_many_arguments,
        reason = "where a block stands and what it works in, all at hand in both directions"
    )]
    fn block_forward(
        &self,
        layer: usize,
        pass: Pass<'_>,
        drops: Drops,
        x: &[f32],
        saved: &mut Saved<'_>,
        b: &mut Buffers<'_>,
        panels: &mut [f32],
    ) {
        let p = |range: &Range<usize>| &self.params[range.clone()];
        let eps = self.config.layer_norm_epsilon;
        let shape = attention::Shape::new(&self.config);
        let w = &self.list.blocks[layer];
        let Saved { ln_1_mean, ln_1_rstd, qkv, lse, att, x_mid, ln_2_mean, ln_2_rstd, fc, low } = saved;
        let low = &mut Low { saved: low, scratch: b.low_scratch };
        let linear = |target| self.linear(layer, target);

        layernorm::forward(x, p(&w.ln_1_weight), p(&w.ln_1_bias), eps, b.ln, ln_1_mean, ln_1_rstd);
        linear(Target::CAttn).forward(b.ln, low, qkv);
        attention::forward(self.precision, shape, pass.spans, qkv, drops.at(Site::Attention(layer)), att, lse, panels);
        let drop = drops.at(Site::AttentionProjection(layer));
        project(linear(Target::AttnCProj), att, low, drop, x, b.dbranch, x_mid);

        layernorm::forward(x_mid, p(&w.ln_2_weight), p(&w.ln_2_bias), eps, b.ln, ln_2_mean, ln_2_rstd);
        linear(Target::CFc).forward(b.ln, low, fc);
    }

    /// From `ln_f`'s output in the arena's `ln`, which it overwrites, the losses that count; and with `gradients`, a weight and
    /// where that of each parameter goes, the gradient of `ln_f`'s output in `dbranch`.
    fn head(&self, pass: Pass<'_>, arena: &mut Arena, gradients: Option<(f32, &mut [f32])>) {
        let (_, b, mut shared) = arena.split();
        let (counted, c) = (pass.counted.len(), self.config.n_embd);
        let backward = gradients.is_some();
        if counted > 0 {
            pass.gather_counted(b.ln);
            let gradients = gradients.map(|(weight, grads)| Gradients {
                weight,
                dhidden: &mut b.dbranch[..counted * c],
                dwte: self.dwte(grads),
            });
            let (hidden, losses) = (&b.ln[..counted * c], &mut b.losses[..counted]);
            let wte = (self.wte(), &*b.packed_wte);
            loss::run(
                self.loss_shape(counted, backward),
                hidden,
                wte,
                pass.counted,
                losses,
                gradients,
                shared.for_loss(),
            );
        }
        if backward {
            pass.scatter_counted(b.dbranch);
        }
    }

    /// Reads what [`Model::forward`] and [`Model::head`] left in the arena, last line first.
    pub fn backward(&self, pass: Pass<'_>, drops: Drops, arena: &mut Arena, grads: &mut [f32]) {
        let p = |range: &Range<usize>| &self.params[range.clone()];
        let shape = attention::Shape::new(&self.config);
        let (mut blocks, mut b, mut shared) = arena.split();

        let gamma = p(&self.list.ln_f_weight);
        let saved =
            layernorm::Saved { x: blocks.stream(self.config.n_layer), mean: b.ln_f_mean, rstd: b.ln_f_rstd, gamma };
        let dparams = self.dparams(grads, &self.list.ln_f_weight, &self.list.ln_f_bias);
        layernorm::backward(saved, b.dbranch, b.dx, Into::Set, dparams, b.partials);

        let Layers { gelu, dwide, attention: panels } = shared.for_layers();
        for (layer, w) in self.list.blocks.iter().enumerate().rev() {
            let (x, mut saved, _) = blocks.block(layer);
            // Forward left the last block as it was.
            let again = self.keep == Keep::Inputs && layer + 1 < self.config.n_layer;
            if again {
                self.block_forward(layer, pass, drops, x, &mut saved, &mut b, panels);
            }
            let Saved { ln_1_mean, ln_1_rstd, qkv, lse, att, x_mid, ln_2_mean, ln_2_rstd, fc, low } = saved;
            let low = &mut Low { saved: low, scratch: b.low_scratch };
            let linear = |target| self.linear(layer, target);

            // x = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
            let dy = dropped(drops.at(Site::MlpProjection(layer)), b.dx, b.dbranch);
            let c_proj = linear(Target::MlpCProj);
            if c_proj.learns() {
                gelu::forward(self.config.activation, fc, gelu);
            }
            if again {
                c_proj.save(gelu, low);
            }
            c_proj.backward(gelu, dy, low, grads, Some(dwide));
            gelu::backward(self.config.activation, fc, dwide);
            let (gamma, beta) = (p(&w.ln_2_weight), p(&w.ln_2_bias));
            let c_fc = linear(Target::CFc);
            if c_fc.learns() {
                layernorm::apply(x_mid, ln_2_mean, ln_2_rstd, gamma, beta, b.ln);
            }
            c_fc.backward(b.ln, dwide, low, grads, Some(b.dbranch));
            let saved = layernorm::Saved { x: x_mid, mean: ln_2_mean, rstd: ln_2_rstd, gamma };
            let dparams = self.dparams(grads, &w.ln_2_weight, &w.ln_2_bias);
            layernorm::backward(saved, b.dbranch, b.dx, Into::Add, dparams, b.partials);

            // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
            let dy = dropped(drops.at(Site::AttentionProjection(layer)), b.dx, b.dbranch);
            // `ln` serves as the gradient of attention's output until ln_1's output is made again.
            linear(Target::AttnCProj).backward(att, dy, low, grads, Some(b.ln));
            let dqkv = &mut dwide[..qkv.len()];
            attention::backward(
                self.precision,
                shape,
                pass.spans,
                qkv,
                att,
                lse,
                drops.at(Site::Attention(layer)),
                b.ln,
                dqkv,
                panels,
            );
            let (gamma, beta) = (p(&w.ln_1_weight), p(&w.ln_1_bias));
            let c_attn = linear(Target::CAttn);
            if c_attn.learns() {
                layernorm::apply(x, ln_1_mean, ln_1_rstd, gamma, beta, b.ln);
            }
            if layer == 0 && self.adapters.is_some() {
                // Nothing learns before the first block's adapters.
                return c_attn.backward(b.ln, dqkv, low, grads, None);
            }
            c_attn.backward(b.ln, dqkv, low, grads, Some(b.dbranch));
            let saved = layernorm::Saved { x, mean: ln_1_mean, rstd: ln_1_rstd, gamma };
            let dparams = self.dparams(grads, &w.ln_1_weight, &w.ln_1_bias);
            layernorm::backward(saved, b.dbranch, b.dx, Into::Add, dparams, b.partials);
        }
        if let Some(dropout) = drops.at(Site::Embedding) {
            dropout.apply(b.dx);
        }
        let (dwte, dwpe) = pair(grads, &self.list.wte, &self.list.wpe);
        embedding::backward(pass.inputs, pass.positions, b.dx, dwte, dwpe);
    }
}

/// `out = residual + dropout(x·Wᵀ + b)`; `branch` holds what is dropped from, where anything is.
fn project(
    linear: Linear<'_>,
    x: &[f32],
    low: &mut Low<'_>,
    dropout: Option<Dropout>,
    residual: &[f32],
    branch: &mut [f32],
    out: &mut [f32],
) {
    let Some(dropout) = dropout else {
        return linear.forward_residual(x, low, residual, out);
    };
    linear.forward(x, low, branch);
    dropout.apply(branch);
    for ((out, &r), &b) in out.iter_mut().zip(residual).zip(branch.iter()) {
        *out = r + b;
    }
}

/// The gradient of a branch before its dropout: `dx` itself, or a masked copy in `branch`.
fn dropped<'a>(dropout: Option<Dropout>, dx: &'a [f32], branch: &'a mut [f32]) -> &'a [f32] {
    let Some(dropout) = dropout else { return dx };
    branch.copy_from_slice(dx);
    dropout.apply(branch);
    branch
}
