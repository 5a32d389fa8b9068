//! Transformer block: `x = x + c_proj(attention(c_attn(ln_1(x))));  x = x + c_proj(gelu(c_fc(ln_2(x))))`, and its backward pass.
//!
//! Training and decoding share the forward pass. Training attends within a pass and saves activations; decoding attends to a
//! key-value cache and multiplies by other copies of the weights. Both differences are arguments.

use ngen3_engine::{Dropout, DropoutSite};
use ngen3_model::Target;

use super::arena::{Buffers, Layers, Saved};
use super::batch_plan::Pass;
use super::weights::Weights;
use crate::gemm::Accumulate;
use crate::layers::linear::Linear;
use crate::layers::lora::LoraActivations;
use crate::layers::{attention, dropout, gelu, layernorm};

/// Dropout at all sites of one pass.
#[derive(Clone, Copy)]
pub struct PassDropout {
    /// Probability that an activation is dropped.
    pub p: f32,
    /// Seed of the masks: see [`ngen3_engine::pass_seed`].
    pub seed: u64,
}

impl PassDropout {
    pub const NONE: Self = Self { p: 0.0, seed: 0 };

    pub fn at(&self, site: DropoutSite) -> Option<Dropout> {
        Dropout::new(self.p, self.seed, site)
    }
}

/// Working memory of a block's forward pass. N tokens, width C.
pub struct ForwardScratch<'a> {
    /// `[N, C]`: output of a LayerNorm.
    pub ln: &'a mut [f32],
    /// `[N, 4·C]`: output of GELU; empty if the pass stops before it.
    pub gelu: &'a mut [f32],
    /// `[N, C]`: branch output before dropout; empty without dropout.
    pub branch: &'a mut [f32],
    /// See [`LoraActivations::scratch`].
    pub lora: &'a mut [f32],
}

impl Weights {
    /// Runs a block on its input `x`, `[N, C]`, and saves the activations for its backward pass. With `out`, `[N, C]`, also
    /// runs the rest of the MLP. `linear` returns the block's layers; `attend` fills attention's output and `lse` from `qkv`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a block's input and output, and all that differs between training and decoding"
    )]
    pub fn block_forward<'w>(
        &'w self,
        layer: usize,
        linear: impl Fn(Target) -> Linear<'w>,
        attend: impl FnOnce(&[f32], &mut [f32], &mut [f32]),
        drops: PassDropout,
        x: &[f32],
        saved: &mut Saved<'_>,
        scratch: &mut ForwardScratch<'_>,
        out: Option<&mut [f32]>,
    ) {
        let eps = self.config.layer_norm_epsilon;
        let w = &self.list.blocks[layer];
        let Saved { ln_1_mean, ln_1_rstd, qkv, lse, att, x_mid, ln_2_mean, ln_2_rstd, fc, lora } = saved;
        let ForwardScratch { ln, gelu, branch, lora: lora_scratch } = scratch;
        let lora = &mut LoraActivations { saved: lora, scratch: lora_scratch };

        layernorm::forward(x, self.p(&w.ln_1_weight), self.p(&w.ln_1_bias), eps, ln, ln_1_mean, ln_1_rstd);
        linear(Target::CAttn).forward(ln, lora, qkv);
        attend(qkv, att, lse);
        let drop = drops.at(DropoutSite::AttentionProjection(layer));
        project(linear(Target::AttnCProj), att, lora, drop, x, branch, x_mid);

        layernorm::forward(x_mid, self.p(&w.ln_2_weight), self.p(&w.ln_2_bias), eps, ln, ln_2_mean, ln_2_rstd);
        linear(Target::CFc).forward(ln, lora, fc);
        let Some(out) = out else { return };
        gelu::forward(self.config.activation, fc, gelu);
        let drop = drops.at(DropoutSite::MlpProjection(layer));
        project(linear(Target::MlpCProj), gelu, lora, drop, x_mid, branch, out);
    }

    /// Runs [`Weights::block_forward`] with attention within the pass.
    #[expect(clippy::too_many_arguments, reason = "a block's position, activations and working memory")]
    pub fn block_forward_in_pass(
        &self,
        layer: usize,
        pass: Pass<'_>,
        drops: PassDropout,
        x: &[f32],
        saved: &mut Saved<'_>,
        scratch: &mut ForwardScratch<'_>,
        panels: &mut [f32],
        out: Option<&mut [f32]>,
    ) {
        let shape = attention::Shape::new(&self.config);
        let attend = |qkv: &[f32], att: &mut [f32], lse: &mut [f32]| {
            let drop = drops.at(DropoutSite::Attention(layer));
            attention::forward(self.precision, shape, pass.spans, qkv, drop, att, lse, panels);
        };
        self.block_forward(layer, |target| self.linear(layer, target), attend, drops, x, saved, scratch, out);
    }

    /// Replaces the gradient of a block's output, in `b.dx`, by that of its input, and adds the parameters' gradients to
    /// `grads`. With `again`, first recomputes the activations from the block's input.
    #[expect(clippy::too_many_arguments, reason = "a block's position, activations and working memory")]
    pub fn block_backward(
        &self,
        layer: usize,
        again: bool,
        pass: Pass<'_>,
        drops: PassDropout,
        x: &[f32],
        mut saved: Saved<'_>,
        b: &mut Buffers<'_>,
        layers: &mut Layers<'_>,
        grads: &mut [f32],
    ) {
        let shape = attention::Shape::new(&self.config);
        let w = &self.list.blocks[layer];
        let Layers { gelu, dwide, attention: panels } = layers;
        if again {
            let mut scratch = ForwardScratch { ln: b.ln, gelu: &mut [], branch: b.dbranch, lora: b.lora_scratch };
            self.block_forward_in_pass(layer, pass, drops, x, &mut saved, &mut scratch, panels, None);
        }
        let Saved { ln_1_mean, ln_1_rstd, qkv, lse, att, x_mid, ln_2_mean, ln_2_rstd, fc, lora } = saved;
        let lora = &mut LoraActivations { saved: lora, scratch: b.lora_scratch };
        let linear = |target| self.linear(layer, target);

        // x = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
        let dy = dropped(drops.at(DropoutSite::MlpProjection(layer)), b.dx, b.dbranch);
        let c_proj = linear(Target::MlpCProj);
        if c_proj.learns() {
            gelu::forward(self.config.activation, fc, gelu);
        }
        if again {
            c_proj.save(gelu, lora);
        }
        c_proj.backward(gelu, dy, lora, grads, Some(dwide));
        gelu::backward(self.config.activation, fc, dwide);
        let (gamma, beta) = (self.p(&w.ln_2_weight), self.p(&w.ln_2_bias));
        let c_fc = linear(Target::CFc);
        if c_fc.learns() {
            layernorm::apply(x_mid, ln_2_mean, ln_2_rstd, gamma, beta, b.ln);
        }
        c_fc.backward(b.ln, dwide, lora, grads, Some(b.dbranch));
        let saved = layernorm::Saved { x: x_mid, mean: ln_2_mean, rstd: ln_2_rstd, gamma };
        let dparams = self.dparams(grads, &w.ln_2_weight, &w.ln_2_bias);
        layernorm::backward(saved, b.dbranch, b.dx, Accumulate::Add, dparams, b.partials);

        // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
        let dy = dropped(drops.at(DropoutSite::AttentionProjection(layer)), b.dx, b.dbranch);
        // `ln` holds the gradient of attention's output until ln_1's output is recomputed.
        linear(Target::AttnCProj).backward(att, dy, lora, grads, Some(b.ln));
        let dqkv = &mut dwide[..qkv.len()];
        let drop = drops.at(DropoutSite::Attention(layer));
        attention::backward(self.precision, shape, pass.spans, qkv, att, lse, drop, b.ln, dqkv, panels);
        let (gamma, beta) = (self.p(&w.ln_1_weight), self.p(&w.ln_1_bias));
        let c_attn = linear(Target::CAttn);
        if c_attn.learns() {
            layernorm::apply(x, ln_1_mean, ln_1_rstd, gamma, beta, b.ln);
        }
        if layer == 0 && self.adapters.is_some() {
            // Nothing before the first block's adapters is trainable.
            return c_attn.backward(b.ln, dqkv, lora, grads, None);
        }
        c_attn.backward(b.ln, dqkv, lora, grads, Some(b.dbranch));
        let saved = layernorm::Saved { x, mean: ln_1_mean, rstd: ln_1_rstd, gamma };
        let dparams = self.dparams(grads, &w.ln_1_weight, &w.ln_1_bias);
        layernorm::backward(saved, b.dbranch, b.dx, Accumulate::Add, dparams, b.partials);
    }
}

/// Computes `out = residual + dropout(x·Wᵀ + b)`. With dropout, `branch` holds the projection's output.
fn project(
    linear: Linear<'_>,
    x: &[f32],
    lora: &mut LoraActivations<'_>,
    dropout: Option<Dropout>,
    residual: &[f32],
    branch: &mut [f32],
    out: &mut [f32],
) {
    let Some(dropout) = dropout else {
        return linear.forward_residual(x, lora, residual, out);
    };
    linear.forward(x, lora, branch);
    dropout::apply(dropout, branch);
    for ((out, &r), &b) in out.iter_mut().zip(residual).zip(branch.iter()) {
        *out = r + b;
    }
}

/// Returns the gradient of a branch before its dropout: `dx` itself, or a masked copy in `branch`.
fn dropped<'a>(dropout: Option<Dropout>, dx: &'a [f32], branch: &'a mut [f32]) -> &'a [f32] {
    let Some(dropout) = dropout else { return dx };
    branch.copy_from_slice(dx);
    dropout::apply(dropout, branch);
    branch
}
