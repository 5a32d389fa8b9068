//! The model's forward pass, as in nanoGPT's `GPT.forward`, and its backward pass, the same lines in reverse order.
//!
//! ```text
//! x = wte[token] + wpe[position]
//! for each block: x = x + c_proj(attention(ln_1(x)));  x = x + c_proj(gelu(c_fc(ln_2(x))))
//! logits = ln_f(x)·wteᵀ
//! ```
//!
//! The Llama family runs the same lines with other parts: RMSNorm for the norms, queries and keys that are rotated instead of `wpe`,
//! SwiGLU for GELU, and perhaps a head of its own.
//!
//! Training, evaluation and decoding share the forward pass; decoding adds a key-value cache.

use std::ops::Range;

use ngen3_model::{Activation, AdapterRanges, BlockRanges, Config, Lora, LoraList, Norm, Param, ParamList, Projection};

use super::attention::{BlockCache, Heads, attention_backward, attention_forward};
use super::layers::{
    Adapter, add, apply_dropout, embedding_backward, embedding_forward, gelu_backward, gelu_forward,
    layernorm_backward, layernorm_forward, linear_backward, linear_forward, lora_backward, lora_forward, lora_merge,
    rmsnorm_backward, rmsnorm_forward, rotate, swiglu_backward, swiglu_forward,
};
use crate::{DropoutSite, Error, Pass, PassDropout};

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
    /// `[tokens, qkv_width]`: before the norms of queries and keys; empty in a model without.
    raw_qkv: Vec<f32>,
    /// `[tokens, qkv_width]`: as attention reads it.
    qkv: Vec<f32>,
    /// See `attention.rs`.
    probabilities: Vec<f32>,
    /// `[tokens, q_width]`
    att: Vec<f32>,
    x_mid: Vec<f32>,
    ln_2: Vec<f32>,
    /// `[tokens, fc_width]`
    fc: Vec<f32>,
    /// `[tokens, inner_width]`: output of GELU, or of SwiGLU.
    gelu: Vec<f32>,
    /// `[tokens, rank]` for each adapter of each projection, in the order of [`Projection`].
    low: [Vec<Vec<f32>>; Projection::ALL.len()],
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
            for projection in Projection::ALL {
                for (adapter, _) in self.adapters(layer, projection) {
                    lora_merge(&adapter, &mut params[block.linear(projection).0.clone()]);
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
        let hidden = self.norm_forward(&x, [&self.list.ln_f_weight, &self.list.ln_f_bias]);
        Activations { blocks, x, hidden }
    }

    /// Applies the final projection: `[tokens, width]` to `[tokens, vocab_size]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        linear_forward(hidden, self.param(&self.list.lm_head), &[], self.config.n_embd)
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
        let [dlm_head] = grads.params([&list.lm_head]);
        let dhidden = linear_backward(hidden, self.param(&list.lm_head), config.n_embd, dlogits, dlm_head, &mut []);
        let mut dx = self.norm_backward(x, [&list.ln_f_weight, &list.ln_f_bias], &dhidden, &mut grads);
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
        let w = &self.list.blocks[layer];
        let linear = |projection, x: &[f32]| self.linear_forward(layer, projection, x);

        // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
        let ln_1 = self.norm_forward(&x, [&w.ln_1_weight, &w.ln_1_bias]);
        let (raw_qkv, low_qkv) = linear(Projection::CAttn, &ln_1);
        let mut qkv = raw_qkv.clone();
        let raw_qkv = if self.config.qk_norm { raw_qkv } else { Vec::new() };
        self.turn(w, pass, &mut qkv);
        let mask = drops.at(DropoutSite::Attention(layer));
        let (att, probabilities) = attention_forward(Heads::new(&self.config), &qkv, &pass.spans, cache, mask);
        let (mut x_mid, low_att) = linear(Projection::AttnCProj, &att);
        apply_dropout(drops.at(DropoutSite::AttentionProjection(layer)), &mut x_mid);
        add(&mut x_mid, &x);

        // out = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
        let ln_2 = self.norm_forward(&x_mid, [&w.ln_2_weight, &w.ln_2_bias]);
        let (fc, low_fc) = linear(Projection::CFc, &ln_2);
        let gelu = match self.config.activation {
            Activation::Swiglu => swiglu_forward(&fc, self.config.inner_width()),
            activation => gelu_forward(activation, &fc),
        };
        let (mut out, low_mlp) = linear(Projection::MlpCProj, &gelu);
        apply_dropout(drops.at(DropoutSite::MlpProjection(layer)), &mut out);
        add(&mut out, &x_mid);

        let low = [low_qkv, low_att, low_fc, low_mlp];
        (BlockActivations { x, ln_1, raw_qkv, qkv, probabilities, att, x_mid, ln_2, fc, gelu, low }, out)
    }

    /// Normalises the queries and keys of each head, if the model does so, and rotates them.
    fn turn(&self, w: &BlockRanges, pass: &Pass, qkv: &mut [f32]) {
        let Some(rope) = self.config.rope else { return };
        let (frequencies, scale) = rope.frequencies(self.config.head_width());
        for (qkv, &position) in qkv.chunks_exact_mut(self.config.qkv_width()).zip(&pass.positions) {
            for (columns, is_key) in Heads::new(&self.config).queries_and_keys() {
                let x = &mut qkv[columns];
                if self.config.qk_norm {
                    let gamma = self.param(if is_key { &w.k_norm_weight } else { &w.q_norm_weight });
                    x.copy_from_slice(&rmsnorm_forward(x, gamma, self.config.layer_norm_epsilon));
                }
                rotate(x, position, &frequencies, scale, 1.0);
            }
        }
    }

    /// Replaces the gradient of turned queries and keys by that of `raw_qkv`.
    fn turn_backward(
        &self,
        w: &BlockRanges,
        pass: &Pass,
        raw_qkv: &[f32],
        dqkv: &mut [f32],
        grads: &mut Gradients<'_>,
    ) {
        let Some(rope) = self.config.rope else { return };
        let (frequencies, scale) = rope.frequencies(self.config.head_width());
        let row = self.config.qkv_width();
        for (token, &position) in pass.positions.iter().enumerate() {
            for (columns, is_key) in Heads::new(&self.config).queries_and_keys() {
                let columns = token * row + columns.start..token * row + columns.end;
                let dx = &mut dqkv[columns.clone()];
                rotate(dx, position, &frequencies, scale, -1.0);
                if self.config.qk_norm {
                    let weight = if is_key { &w.k_norm_weight } else { &w.q_norm_weight };
                    let [dgamma] = grads.params([weight]);
                    let (x, eps) = (&raw_qkv[columns], self.config.layer_norm_epsilon);
                    let found = rmsnorm_backward(x, self.param(weight), eps, dx, dgamma);
                    dx.copy_from_slice(&found);
                }
            }
        }
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
        let w = &self.list.blocks[layer];
        let BlockActivations { x, ln_1, raw_qkv, qkv, probabilities, att, x_mid, ln_2, fc, gelu, low } = block;
        let linear = |projection, x: &[f32], dy: &[f32], grads: &mut Gradients<'_>| {
            self.linear_backward(layer, projection, x, &low[projection as usize], dy, grads)
        };

        // out = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
        let mut dbranch = dout.clone();
        apply_dropout(drops.at(DropoutSite::MlpProjection(layer)), &mut dbranch);
        let dgelu = linear(Projection::MlpCProj, gelu, &dbranch, grads);
        let dfc = match self.config.activation {
            Activation::Swiglu => swiglu_backward(fc, self.config.inner_width(), &dgelu),
            activation => gelu_backward(activation, fc, &dgelu),
        };
        let dln_2 = linear(Projection::CFc, ln_2, &dfc, grads);
        let mut dx_mid = self.norm_backward(x_mid, [&w.ln_2_weight, &w.ln_2_bias], &dln_2, grads);
        add(&mut dx_mid, &dout);

        // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
        let mut dbranch = dx_mid.clone();
        apply_dropout(drops.at(DropoutSite::AttentionProjection(layer)), &mut dbranch);
        let datt = linear(Projection::AttnCProj, att, &dbranch, grads);
        let mask = drops.at(DropoutSite::Attention(layer));
        let heads = Heads::new(&self.config);
        let mut dqkv = attention_backward(heads, qkv, &pass.spans, probabilities, mask, &datt);
        self.turn_backward(w, pass, raw_qkv, &mut dqkv, grads);
        let dln_1 = linear(Projection::CAttn, ln_1, &dqkv, grads);
        let mut dx = self.norm_backward(x, [&w.ln_1_weight, &w.ln_1_bias], &dln_1, grads);
        add(&mut dx, &dx_mid);
        dx
    }

    /// Applies one of a block's linear layers, with its adapters. Returns the output and `low` of each adapter.
    fn linear_forward(&self, layer: usize, projection: Projection, x: &[f32]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (weight, bias) = self.list.blocks[layer].linear(projection);
        let [outputs, inputs] = projection.shape(&self.config);
        let mut y = linear_forward(x, self.param(weight), self.param(bias), inputs);
        let adapters = self.adapters(layer, projection);
        let low = adapters.map(|(adapter, _)| lora_forward(&adapter, x, &mut y, outputs)).collect();
        (y, low)
    }

    fn linear_backward(
        &self,
        layer: usize,
        projection: Projection,
        x: &[f32],
        low: &[Vec<f32>],
        dy: &[f32],
        grads: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let (weight, bias) = self.list.blocks[layer].linear(projection);
        let [outputs, inputs] = projection.shape(&self.config);
        let [dweight, dbias] = grads.params([weight, bias]);
        let mut dx = linear_backward(x, self.param(weight), inputs, dy, dweight, dbias);
        for ((adapter, ranges), low) in self.adapters(layer, projection).zip(low) {
            let [a, b] = &ranges;
            lora_backward(&adapter, x, low, dy, outputs, parts(grads.adapters, [a, b]), &mut dx);
        }
        dx
    }

    fn norm_forward(&self, x: &[f32], [gamma, beta]: [&Range<usize>; 2]) -> Vec<f32> {
        let (gamma, eps) = (self.param(gamma), self.config.layer_norm_epsilon);
        match self.config.norm {
            Norm::LayerNorm => layernorm_forward(x, gamma, self.param(beta), eps),
            Norm::RmsNorm => rmsnorm_forward(x, gamma, eps),
        }
    }

    fn norm_backward(
        &self,
        x: &[f32],
        [gamma, beta]: [&Range<usize>; 2],
        dy: &[f32],
        grads: &mut Gradients<'_>,
    ) -> Vec<f32> {
        let [dgamma, dbeta] = grads.params([gamma, beta]);
        let (gamma, eps) = (self.param(gamma), self.config.layer_norm_epsilon);
        match self.config.norm {
            Norm::LayerNorm => layernorm_backward(x, gamma, eps, dy, dgamma, dbeta),
            Norm::RmsNorm => rmsnorm_backward(x, gamma, eps, dy, dgamma),
        }
    }

    fn param(&self, range: &Range<usize>) -> &[f32] {
        &self.params[range.clone()]
    }

    /// Returns the adapters of a projection, each with the ranges of A and B.
    fn adapters(&self, layer: usize, projection: Projection) -> impl Iterator<Item = (Adapter<'_>, [Range<usize>; 2])> {
        let all = self.adapters.as_ref();
        let ranges = all.and_then(|all| Some((all, all.list.adapter(layer, projection)?)));
        ranges.into_iter().flat_map(|(Adapters { lora, params, .. }, AdapterRanges { a, parts })| {
            let each = a.len() / parts.len();
            parts.iter().enumerate().map(move |(index, part)| {
                let a = a.start + index * each..a.start + (index + 1) * each;
                let adapter = Adapter {
                    a: &params[a.clone()],
                    b: &params[part.b.clone()],
                    rank: lora.rank,
                    scale: lora.scale(),
                    outputs: part.outputs.clone(),
                };
                (adapter, [a, part.b.clone()])
            })
        })
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
    use super::*;
    use crate::passes;
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
