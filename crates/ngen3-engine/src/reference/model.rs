//! The model, forward and backward: nanoGPT's `GPT.forward`, and each of its lines again in reverse.
//!
//! ```text
//! x = wte[token] + wpe[position]
//! for each block: x = x + c_proj(attention(ln_1(x)));  x = x + c_proj(gelu(c_fc(ln_2(x))))
//! logits = ln_f(x)·wteᵀ
//! ```
//!
//! The same forward serves training, evaluation and decoding, which only bring other passes, and a cache or none.

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
    /// If there are any, they learn and nothing else does.
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

/// Values that forward leaves for backward.
pub struct Activations {
    blocks: Vec<BlockActivations>,
    /// `[tokens, width]`: the last block's output.
    x: Vec<f32>,
    /// `[tokens, width]`: ln_f's output.
    pub hidden: Vec<f32>,
}

/// One block's; `[tokens, width]` where nothing else is said.
struct BlockActivations {
    /// The block's input.
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
    /// `[tokens, rank]`, of the linear layers in the order of [`Target`].
    low: [Vec<f32>; Target::ALL.len()],
}

/// The places that gradients are added to. One of both is empty.
struct Gradients<'a> {
    params: &'a mut [f32],
    adapters: &'a mut [f32],
}

impl Network {
    /// A model with these parameters, `[total]`.
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has another length.
    pub fn new(config: Config, params: Vec<f32>) -> Result<Self, Error> {
        config.validate().map_err(|e| Error::Input(e.to_string()))?;
        let list = ParamList::new(&config);
        if params.len() != list.total() {
            return Err(Error::Input(format!("{} parameters for a model of {}", params.len(), list.total())));
        }
        Ok(Self { config, list, params, adapters: None })
    }

    /// Shapes and places of what learns, and its values back to back.
    pub fn learned(&self) -> (std::slice::Iter<'_, Param>, &[f32]) {
        match &self.adapters {
            Some(adapters) => (adapters.list.iter(), &adapters.params),
            None => (self.list.iter(), &self.params),
        }
    }

    /// The same, to be changed.
    pub fn learned_mut(&mut self) -> (std::slice::Iter<'_, Param>, &mut [f32]) {
        match &mut self.adapters {
            Some(adapters) => (adapters.list.iter(), &mut adapters.params),
            None => (self.list.iter(), &mut self.params),
        }
    }

    /// True if there are adapters.
    pub fn is_adapted(&self) -> bool {
        self.adapters.is_some()
    }

    /// Puts adapters beside the linear layers.
    ///
    /// # Errors
    /// [`Error::Input`] when the model cannot have them or `params` has another length.
    pub fn adapt(&mut self, lora: &Lora, params: Vec<f32>) -> Result<(), Error> {
        let list = LoraList::new(&self.config, lora).map_err(|e| Error::Input(e.to_string()))?;
        if params.len() != list.total() {
            return Err(Error::Input(format!("{} parameters for an adapter of {}", params.len(), list.total())));
        }
        self.adapters = Some(Adapters { lora: lora.clone(), list, params });
        Ok(())
    }

    /// The model's parameters with its adapters merged into them.
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

    /// Replaces the parameters by the merged ones; there are no adapters then.
    pub fn merge(&mut self) {
        self.params = self.merged();
        self.adapters = None;
    }

    /// Runs the layers over a pass. `cache` holds the keys and values of each block; it is empty where none are kept.
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

    /// The final projection, which shares the token embedding: `[tokens, width]` to `[tokens, vocab_size]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        linear_forward(hidden, self.param(&self.list.wte), &[], self.config.n_embd)
    }

    /// Adds the gradient of all that learns, `[total]`, from that of the logits.
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

    /// Runs one block; returns its output too.
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

    /// Returns the gradient of the block's input from that of its output.
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

    /// One of a block's linear layers with its adapter, if it has one; returns the adapter's `low` too.
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

    /// The adapter of one layer, if it has one, and the places of A and B.
    fn adapter(&self, layer: usize, target: Target) -> Option<(Adapter<'_>, [&Range<usize>; 2])> {
        let Adapters { lora, list, params } = self.adapters.as_ref()?;
        let ranges = list.adapter(layer, target)?;
        let (a, b) = (&params[ranges.a.clone()], &params[ranges.b.clone()]);
        Some((Adapter { a, b, rank: lora.rank, scale: lora.scale() }, [&ranges.a, &ranges.b]))
    }
}

impl Gradients<'_> {
    /// Those of some parameters; empty where only adapters learn.
    fn params<const N: usize>(&mut self, ranges: [&Range<usize>; N]) -> [&mut [f32]; N] {
        if self.params.is_empty() { std::array::from_fn(|_| Default::default()) } else { parts(self.params, ranges) }
    }
}

/// Parts of a flat array.
fn parts<'a, const N: usize>(flat: &'a mut [f32], ranges: [&Range<usize>; N]) -> [&'a mut [f32]; N] {
    flat.get_disjoint_mut(ranges.map(Clone::clone)).expect("each parameter has a place of its own")
}

#[cfg(test)]
mod tests {
    use super::super::loss::{cross_entropy_backward, cross_entropy_forward};
    use super::super::pass::passes;
    use super::*;
    use crate::{Batch, splitmix};

    /// Numbers in ±1/2.
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
