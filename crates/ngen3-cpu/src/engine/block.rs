//! Transformer block: `x = x + c_proj(attention(c_attn(ln_1(x))));  x = x + c_proj(gelu(c_fc(ln_2(x))))`, and its backward pass.
//! `parts.rs` has what differs between families.
//!
//! Training and decoding share the forward pass. Training attends within a pass and saves activations; decoding attends to a
//! key-value cache and multiplies by other copies of the weights. Both differences are arguments.

use ngen3_engine::{Dropout, DropoutSite, PassDropout};
use ngen3_model::{Activation, Projection};

use super::arena::{Buffers, Layers, Saved};
use super::batch_plan::Pass;
use super::weights::Weights;
use crate::gemm::Accumulate;
use crate::layers::linear::Linear;
use crate::layers::lora::LoraActivations;
use crate::layers::{attention, dropout, gelu, swiglu};

/// Working memory of a block's forward pass. N tokens, width C.
pub struct ForwardScratch<'a> {
    /// `[N, C]`: output of a norm.
    pub ln: &'a mut [f32],
    /// See [`Layers::wide`].
    pub wide: &'a mut [f32],
    /// `[N, inner_width]`: output of the MLP's activation; empty if the pass stops before it.
    pub hidden: &'a mut [f32],
    /// `[N, C]`: branch output before dropout; empty without dropout.
    pub branch: &'a mut [f32],
    /// See [`LoraActivations::scratch`].
    pub lora: &'a mut [f32],
}

impl Weights {
    /// Runs a block on its input `x`, `[N, C]`, and saves the activations for its backward pass. With `out`, `[N, C]`, also
    /// runs the rest of the MLP. `positions` are those of the tokens; `linear` returns the block's layers; `attend` fills
    /// attention's output and `lse` from `qkv`.
    #[expect(
        clippy::too_many_arguments,
        reason = "a block's input and output, and all that differs between training and decoding"
    )]
    pub fn block_forward<'w>(
        &'w self,
        layer: usize,
        positions: &[u32],
        linear: impl Fn(Projection) -> Linear<'w>,
        attend: impl FnOnce(&[f32], &mut [f32], &mut [f32]),
        drops: PassDropout,
        x: &[f32],
        saved: &mut Saved<'_>,
        scratch: &mut ForwardScratch<'_>,
        out: Option<&mut [f32]>,
    ) {
        let w = &self.list.blocks[layer];
        let Saved { ln_1, qkv, heads, lse, att, x_mid, ln_2, fc, lora } = saved;
        let ForwardScratch { ln, wide, hidden, branch, lora: lora_scratch } = scratch;
        let lora = &mut LoraActivations { saved: lora, scratch: lora_scratch };

        self.norm([&w.ln_1_weight, &w.ln_1_bias], x, ln, ln_1);
        let [wide_qkv, wide_att] = self.wide(positions.len(), wide);
        let (qkv_now, att_now) = (qkv.place(wide_qkv), att.place(wide_att));
        linear(Projection::CAttn).forward(ln, lora, qkv_now);
        self.turn(layer, positions, qkv_now, heads);
        attend(qkv_now, att_now, lse);
        let drop = drops.at(DropoutSite::AttentionProjection(layer));
        project(linear(Projection::AttnCProj), att_now, lora, drop, x, branch, x_mid);
        qkv.keep(wide_qkv);
        att.keep(wide_att);

        self.norm([&w.ln_2_weight, &w.ln_2_bias], x_mid, ln, ln_2);
        let wide_fc = first(wide, positions.len() * self.config.fc_width());
        linear(Projection::CFc).forward(ln, lora, fc.place(wide_fc));
        fc.keep(wide_fc);
        let Some(out) = out else { return };
        let hidden = &mut hidden[..x.len() / self.config.n_embd * self.config.inner_width()];
        self.activate(fc.place(wide_fc), hidden);
        let drop = drops.at(DropoutSite::MlpProjection(layer));
        project(linear(Projection::MlpCProj), hidden, lora, drop, x_mid, branch, out);
    }

    /// Cuts [`Layers::wide`] for `qkv` and for `att`.
    fn wide<'w>(&self, tokens: usize, wide: &'w mut [f32]) -> [&'w mut [f32]; 2] {
        let (qkv, rest) = wide.split_at_mut(wide.len().min(tokens * self.config.qkv_width()));
        [qkv, first(rest, tokens * self.config.q_width())]
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
        let linear = |projection| self.linear(layer, projection);
        self.block_forward(layer, pass.positions, linear, attend, drops, x, saved, scratch, out);
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
        let tokens = pass.inputs.len();
        let Layers { wide, hidden, dhidden, dwide, attention: panels } = layers;
        if again {
            let (ln, branch, lora) = (&mut *b.ln, &mut *b.dbranch, &mut *b.lora_scratch);
            let mut scratch = ForwardScratch { ln, wide, hidden: &mut [], branch, lora };
            self.block_forward_in_pass(layer, pass, drops, x, &mut saved, &mut scratch, panels, None);
        }
        let Saved { ln_1, qkv, heads, lse, att, x_mid, ln_2, mut fc, lora } = saved;
        let lora = &mut LoraActivations { saved: lora, scratch: b.lora_scratch };
        let linear = |projection| self.linear(layer, projection);

        // x = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
        let dy = dropped(drops.at(DropoutSite::MlpProjection(layer)), b.dx, b.dbranch);
        let c_proj = linear(Projection::MlpCProj);
        let fc_width = tokens * self.config.fc_width();
        let output = &mut hidden[..tokens * self.config.inner_width()];
        if again && self.adapters.is_some() && c_proj.learns() {
            // From what the forward pass computed, before it was rounded to be kept.
            self.activate(fc.place(first(wide, fc_width)), output);
            c_proj.save(output, lora);
        }
        let fc = fc.read(first(wide, fc_width));
        if c_proj.learns() {
            self.activate(fc, output);
        }
        let dfc = &mut dwide[..fc_width];
        match self.config.activation {
            Activation::Swiglu => {
                c_proj.backward(output, dy, lora, grads, Some(dhidden));
                swiglu::backward(self.config.inner_width(), fc, dhidden, dfc);
            }
            activation => {
                c_proj.backward(output, dy, lora, grads, Some(dfc));
                gelu::backward(activation, fc, dfc);
            }
        }
        let ranges = [&w.ln_2_weight, &w.ln_2_bias];
        let c_fc = linear(Projection::CFc);
        if c_fc.learns() {
            self.norm_again(ranges, x_mid, b.ln, &ln_2);
        }
        c_fc.backward(b.ln, dfc, lora, grads, Some(b.dbranch));
        self.norm_backward(ranges, x_mid, &ln_2, b.dbranch, b.dx, Accumulate::Add, grads, b.partials);

        // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
        let dy = dropped(drops.at(DropoutSite::AttentionProjection(layer)), b.dx, b.dbranch);
        let [wide_qkv, wide_att] = self.wide(tokens, wide);
        let (qkv, att) = (qkv.read(wide_qkv), att.read(wide_att));
        let datt = &mut hidden[..att.len()];
        linear(Projection::AttnCProj).backward(att, dy, lora, grads, Some(datt));
        let dqkv = &mut dwide[..qkv.len()];
        let drop = drops.at(DropoutSite::Attention(layer));
        attention::backward(self.precision, shape, pass.spans, qkv, att, lse, drop, datt, dqkv, panels);
        self.turn_backward(layer, pass.positions, &heads, dqkv, grads, b.partials);
        let ranges = [&w.ln_1_weight, &w.ln_1_bias];
        let c_attn = linear(Projection::CAttn);
        if c_attn.learns() {
            self.norm_again(ranges, x, b.ln, &ln_1);
        }
        if layer == 0 && self.adapters.is_some() {
            // Nothing before the first block's adapters is trainable.
            return c_attn.backward(b.ln, dqkv, lora, grads, None);
        }
        c_attn.backward(b.ln, dqkv, lora, grads, Some(b.dbranch));
        self.norm_backward(ranges, x, &ln_1, b.dbranch, b.dx, Accumulate::Add, grads, b.partials);
    }
}

/// Returns the first `n` elements, or nothing of an empty slice.
fn first(wide: &mut [f32], n: usize) -> &mut [f32] {
    let n = n.min(wide.len());
    &mut wide[..n]
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
