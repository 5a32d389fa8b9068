//! The model's forward pass, as in nanoGPT's `GPT.forward`, and its backward pass, the same lines in reverse order.
//!
//! ```text
//! x = wte[token] + wpe[position]
//! for each block: x = x + c_proj(attention(ln_1(x)));  x = x + c_proj(gelu(c_fc(ln_2(x))))
//! logits = ln_f(x)·wteᵀ
//! ```
//!
//! Training, evaluation and decoding share the forward pass; decoding adds a key-value cache.

use std::ops::Range;

use ngen3_model::{Config, Lora, LoraList, Param, ParamList, Target};

use super::attention::{BlockCache, attention_backward, attention_forward};
use super::layers::{
    Adapter, add, apply_dropout, embedding_backward, embedding_forward, gelu_backward, gelu_forward,
    layernorm_backward, layernorm_forward, linear_backward, linear_forward, lora_backward, lora_forward, lora_merge,
};
use super::pass::{Pass, PassDropout};
use crate::{DropoutSite, Error};

/// A model's shape and parameters.
#[derive(Clone, Debug)]
pub struct Network {
    /// The shape.
    pub config: Config,
    list: ParamList,
    /// `[total]`
    params: Vec<f32>,
    /// If present, they are trained and `params` is frozen.
    adapters: Option<Adapters>,
}

/// All low-rank adapters of a model.
#[derive(Clone, Debug)]
struct Adapters {
    lora: Lora,
    list: LoraList,
    /// `[total]`
    params: Vec<f32>,
}

/// Activations kept for the backward pass.
pub struct Activations {
    blocks: Vec<BlockActivations>,
    /// `[tokens, width]`: output of the last block.
    x: Vec<f32>,
    /// `[tokens, width]`: output of `ln_f`.
    pub hidden: Vec<f32>,
}

/// Activations of one block, `[tokens, width]` unless noted.
struct BlockActivations {
    /// Input of the block.
    x: Vec<f32>,
    ln_1: Vec<f32>,
    /// `[tokens, 3·width]`
    qkv: Vec<f32>,
    /// See `attention.rs`.
    probabilities: Vec<f32>,
    att: Vec<f32>,
    x_mid: Vec<f32>,
    ln_2: Vec<f32>,
    /// `[tokens, 4·width]`
    fc: Vec<f32>,
    /// `[tokens, 4·width]`
    gelu: Vec<f32>,
    /// `[tokens, rank]` for each linear layer, in the order of [`Target`].
    low: [Vec<f32>; Target::ALL.len()],
}

/// Arrays that gradients are added to. One of the two is empty.
struct Gradients<'a> {
    params: &'a mut [f32],
    adapters: &'a mut [f32],
}

impl Network {
    /// Creates a model from its parameters, `[total]`.
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has the wrong length.
    pub fn new(config: Config, params: Vec<f32>) -> Result<Self, Error> {
        config.validate().map_err(|e| Error::Input(e.to_string()))?;
        let list = ParamList::new(&config);
        if params.len() != list.total() {
            return Err(Error::Input(format!("expected {} parameters, got {}", list.total(), params.len())));
        }
        Ok(Self { config, list, params, adapters: None })
    }

    /// Returns the trainable parameters: their layout and their values, `[total]`.
    pub fn learned(&self) -> (std::slice::Iter<'_, Param>, &[f32]) {
        match &self.adapters {
            Some(adapters) => (adapters.list.iter(), &adapters.params),
            None => (self.list.iter(), &self.params),
        }
    }

    /// Returns the trainable parameters, mutably.
    pub fn learned_mut(&mut self) -> (std::slice::Iter<'_, Param>, &mut [f32]) {
        match &mut self.adapters {
            Some(adapters) => (adapters.list.iter(), &mut adapters.params),
            None => (self.list.iter(), &mut self.params),
        }
    }

    /// Returns true if the model has adapters.
    pub fn is_adapted(&self) -> bool {
        self.adapters.is_some()
    }

    /// Adds adapters to the linear layers.
    ///
    /// # Errors
    /// [`Error::Input`] when the adapters do not fit the model or `params` has the wrong length.
    pub fn adapt(&mut self, lora: &Lora, params: Vec<f32>) -> Result<(), Error> {
        let list = LoraList::new(&self.config, lora).map_err(|e| Error::Input(e.to_string()))?;
        if params.len() != list.total() {
            return Err(Error::Input(format!("expected {} adapter parameters, got {}", list.total(), params.len())));
        }
        self.adapters = Some(Adapters { lora: lora.clone(), list, params });
        Ok(())
    }

    /// Returns the model's parameters with its adapters merged in.
    pub fn merged(&self) -> Vec<f32> {
        let mut params = self.params.clone();
        for (layer, block) in self.list.blocks.iter().enumerate() {
            for target in Target::ALL {
                if let Some((adapter, _)) = self.adapter(layer, target) {
                    lora_merge(adapter, &mut params[block.linear(target).0.clone()]);
                }
            }
        }
        params
    }

    /// Merges the adapters into the parameters and removes them.
    pub fn merge(&mut self) {
        self.params = self.merged();
        self.adapters = None;
    }

    /// Runs the forward pass up to `ln_f`. `cache` is the key-value cache of each block, empty if there is none.
    pub fn forward(&self, pass: &Pass, drops: PassDropout, cache: &mut [Vec<Vec<f32>>]) -> Activations {
        let (wte, wpe) = (self.param(&self.list.wte), self.param(&self.list.wpe));
        let mut x = embedding_forward(&pass.inputs, &pass.positions, wte, wpe, self.config.n_embd);
        apply_dropout(drops.at(DropoutSite::Embedding), &mut x);
        let mut blocks = Vec::new();
        for layer in 0..self.config.n_layer {
            let cache = cache.get_mut(layer).map(Vec::as_mut_slice).unwrap_or_default();
            let (block, out) = self.block_forward(layer, pass, drops, cache, x);
            blocks.push(block);
            x = out;
        }
        let hidden = self.layernorm_forward(&x, [&self.list.ln_f_weight, &self.list.ln_f_bias]);
        Activations { blocks, x, hidden }
    }

    /// Applies the final projection, tied to the token embedding: `[tokens, width]` to `[tokens, vocab_size]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        linear_forward(hidden, self.param(&self.list.wte), &[], self.config.n_embd)
    }

    /// Runs the backward pass from `dlogits`; adds the gradients of the trainable parameters to `grads`, `[total]`.
    pub fn backward(
        &self,
        pass: &Pass,
        drops: PassDropout,
        activations: &Activations,
        dlogits: &[f32],
        grads: &mut [f32],
    ) {
        let Self { config, list, .. } = self;
        let mut grads = match self.adapters {
            Some(_) => Gradients { params: &mut [], adapters: grads },
            None => Gradients { params: grads, adapters: &mut [] },
        };
        let Activations { blocks, x, hidden } = activations;
        let [dwte] = grads.params([&list.wte]);
        let dhidden = linear_backward(hidden, self.param(&list.wte), config.n_embd, dlogits, dwte, &mut []);
        let mut dx = self.layernorm_backward(x, [&list.ln_f_weight, &list.ln_f_bias], &dhidden, &mut grads);
        for (layer, block) in blocks.iter().enumerate().rev() {
            dx = self.block_backward(layer, pass, drops, block, dx, &mut grads);
        }
        apply_dropout(drops.at(DropoutSite::Embedding), &mut dx);
        let [dwte, dwpe] = grads.params([&list.wte, &list.wpe]);
        embedding_backward(&pass.inputs, &dx, config.n_embd, dwte);
        embedding_backward(&pass.positions, &dx, config.n_embd, dwpe);
    }

    /// Runs one block. Returns its activations and its output.
    fn block_forward(
        &self,
        layer: usize,
        pass: &Pass,
        drops: PassDropout,
        cache: &mut BlockCache,
        x: Vec<f32>,
    ) -> (BlockActivations, Vec<f32>) {
        let (Config { n_head, n_embd, activation, .. }, w) = (&self.config, &self.list.blocks[layer]);
        let linear = |target, x: &[f32]| self.linear_forward(layer, target, x);

        // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
        let ln_1 = self.layernorm_forward(&x, [&w.ln_1_weight, &w.ln_1_bias]);
        let (qkv, low_qkv) = linear(Target::CAttn, &ln_1);
        let mask = drops.at(DropoutSite::Attention(layer));
        let (att, probabilities) = attention_forward(*n_head, *n_embd, &qkv, &pass.spans, cache, mask);
        let (mut x_mid, low_att) = linear(Target::AttnCProj, &att);
        apply_dropout(drops.at(DropoutSite::AttentionProjection(layer)), &mut x_mid);
        add(&mut x_mid, &x);

        // out = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
        let ln_2 = self.layernorm_forward(&x_mid, [&w.ln_2_weight, &w.ln_2_bias]);
        let (fc, low_fc) = linear(Target::CFc, &ln_2);
        let gelu = gelu_forward(*activation, &fc);
        let (mut out, low_mlp) = linear(Target::MlpCProj, &gelu);
        apply_dropout(drops.at(DropoutSite::MlpProjection(layer)), &mut out);
        add(&mut out, &x_mid);

        let low = [low_qkv, low_att, low_fc, low_mlp];
        (BlockActivations { x, ln_1, qkv, probabilities, att, x_mid, ln_2, fc, gelu, low }, out)
    }

    /// Returns the gradient of the block's input, given that of its output.
    fn block_backward(
        &self,
        layer: usize,
        pass: &Pass,
        drops: PassDropout,
        block: &BlockActivations,
        dout: Vec<f32>,
        grads: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let (Config { n_head, n_embd, activation, .. }, w) = (&self.config, &self.list.blocks[layer]);
        let BlockActivations { x, ln_1, qkv, probabilities, att, x_mid, ln_2, fc, gelu, low } = block;
        let linear = |target, x: &[f32], dy: &[f32], grads: &mut Gradients<'_>| {
            self.linear_backward(layer, target, x, &low[target as usize], dy, grads)
        };

        // out = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
        let mut dbranch = dout.clone();
        apply_dropout(drops.at(DropoutSite::MlpProjection(layer)), &mut dbranch);
        let dgelu = linear(Target::MlpCProj, gelu, &dbranch, grads);
        let dfc = gelu_backward(*activation, fc, &dgelu);
        let dln_2 = linear(Target::CFc, ln_2, &dfc, grads);
        let mut dx_mid = self.layernorm_backward(x_mid, [&w.ln_2_weight, &w.ln_2_bias], &dln_2, grads);
        add(&mut dx_mid, &dout);

        // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
        let mut dbranch = dx_mid.clone();
        apply_dropout(drops.at(DropoutSite::AttentionProjection(layer)), &mut dbranch);
        let datt = linear(Target::AttnCProj, att, &dbranch, grads);
        let mask = drops.at(DropoutSite::Attention(layer));
        let dqkv = attention_backward(*n_head, *n_embd, qkv, &pass.spans, probabilities, mask, &datt);
        let dln_1 = linear(Target::CAttn, ln_1, &dqkv, grads);
        let mut dx = self.layernorm_backward(x, [&w.ln_1_weight, &w.ln_1_bias], &dln_1, grads);
        add(&mut dx, &dx_mid);
        dx
    }

    /// Applies one of a block's linear layers, with its adapter if it has one. Returns the output and the adapter's `low`.
    fn linear_forward(&self, layer: usize, target: Target, x: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (weight, bias) = self.list.blocks[layer].linear(target);
        let [_, inputs] = target.shape(&self.config);
        let mut y = linear_forward(x, self.param(weight), self.param(bias), inputs);
        let low = self.adapter(layer, target).map(|(adapter, _)| lora_forward(adapter, x, &mut y));
        (y, low.unwrap_or_default())
    }

    fn linear_backward(
        &self,
        layer: usize,
        target: Target,
        x: &[f32],
        low: &[f32],
        dy: &[f32],
        grads: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let (weight, bias) = self.list.blocks[layer].linear(target);
        let [_, inputs] = target.shape(&self.config);
        let [dweight, dbias] = grads.params([weight, bias]);
        let mut dx = linear_backward(x, self.param(weight), inputs, dy, dweight, dbias);
        if let Some((adapter, ranges)) = self.adapter(layer, target) {
            lora_backward(adapter, x, low, dy, parts(grads.adapters, ranges), &mut dx);
        }
        dx
    }

    fn layernorm_forward(&self, x: &[f32], [gamma, beta]: [&Range<usize>; 2]) -> Vec<f32> {
        layernorm_forward(x, self.param(gamma), self.param(beta), self.config.layer_norm_epsilon)
    }

    fn layernorm_backward(
        &self,
        x: &[f32],
        [gamma, beta]: [&Range<usize>; 2],
        dy: &[f32],
        grads: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let [dgamma, dbeta] = grads.params([gamma, beta]);
        layernorm_backward(x, self.param(gamma), self.config.layer_norm_epsilon, dy, dgamma, dbeta)
    }

    fn param(&self, range: &Range<usize>) -> &[f32] {
        &self.params[range.clone()]
    }

    /// Returns the adapter of a layer, if it has one, and the ranges of A and B.
    fn adapter(&self, layer: usize, target: Target) -> Option<(Adapter<'_>, [&Range<usize>; 2])> {
        let Adapters { lora, list, params } = self.adapters.as_ref()?;
        let ranges = list.adapter(layer, target)?;
        let (a, b) = (&params[ranges.a.clone()], &params[ranges.b.clone()]);
        Some((Adapter { a, b, rank: lora.rank, scale: lora.scale() }, [&ranges.a, &ranges.b]))
    }
}

impl Gradients<'_> {
    /// Returns the gradients of some parameters; empty if they are frozen.
    fn params<const N: usize>(&mut self, ranges: [&Range<usize>; N]) -> [&mut [f32]; N] {
        if self.params.is_empty() { std::array::from_fn(|_| Default::default()) } else { parts(self.params, ranges) }
    }
}

/// Borrows disjoint parts of a flat array.
fn parts<'a, const N: usize>(flat: &'a mut [f32], ranges: [&Range<usize>; N]) -> [&'a mut [f32]; N] {
    flat.get_disjoint_mut(ranges.map(Clone::clone)).expect("parameters do not overlap")
}

#[cfg(test)]
mod tests {
    use super::super::loss::{cross_entropy_backward, cross_entropy_forward};
    use super::super::pass::passes;
    use super::*;
    use crate::{Batch, splitmix};

    /// Returns values in ±1/2.
    fn numbers(n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| (splitmix(i) >> 40) as f32 / (1 << 24) as f32 - 0.5).collect()
    }

    #[test]
    fn a_model_without_biases_computes_what_one_with_zeros_does() {
        let config = Config::new(2, 3, 12, 7, 31);
        let list = ParamList::new(&config);
        let mut params = numbers(list.total());
        for param in list.iter().filter(|param| param.name().ends_with(".bias")) {
            params[param.range()].fill(0.0);
        }
        let with = Network::new(config, params).expect("a valid shape");
        let mut without = with.clone();
        let empty = |range: &mut Range<usize>| range.end = range.start;
        for w in &mut without.list.blocks {
            [&mut w.ln_1_bias, &mut w.c_attn_bias, &mut w.attn_c_proj_bias].into_iter().for_each(empty);
            [&mut w.ln_2_bias, &mut w.c_fc_bias, &mut w.mlp_c_proj_bias].into_iter().for_each(empty);
        }
        empty(&mut without.list.ln_f_bias);

        let ids: Vec<u32> = (0..14).map(|i| i * i % 31).collect();
        let batch = Batch::even(7, ids.clone(), ids);
        let pass = &passes(&batch)[0];
        let run = |network: &Network| {
            let activations = network.forward(pass, PassDropout { p: 0.1, seed: 3 }, &mut []);
            let logits = network.logits(&activations.hidden);
            let mut grads = vec![0.0; list.total()];
            let dlogits = cross_entropy_backward(&logits, &pass.targets, 1.0);
            network.backward(pass, PassDropout { p: 0.1, seed: 3 }, &activations, &dlogits, &mut grads);
            (cross_entropy_forward(&logits, &pass.targets), grads)
        };
        let ((losses, grads), (found_losses, found)) = (run(&with), run(&without));
        assert_eq!(losses, found_losses);
        for param in &list {
            let (grads, found) = (&grads[param.range()], &found[param.range()]);
            match param.name().ends_with(".bias") {
                true => assert!(grads.iter().any(|&g| g != 0.0) && found.iter().all(|&g| g == 0.0), "{}", param.name()),
                false => assert_eq!(grads, found, "{}", param.name()),
            }
        }
    }
}
