//! Parts of a block that differ between families: norms, positions, and the MLP's activation.

use std::ops::Range;

use ngen3_model::{Activation, Norm};

use super::arena::{SavedHeads, Stats};
use super::weights::Weights;
use crate::gemm::Accumulate;
use crate::layers::norm::rmsnorm::Heads;
use crate::layers::norm::{layernorm, rmsnorm};
use crate::layers::{gelu, swiglu};

/// Ranges of a norm's γ and β; β is empty in a model without biases.
type NormRanges<'a> = [&'a Range<usize>; 2];

impl Weights {
    /// Computes the norm `y` of `x`, `[rows, width]`, and its statistics.
    pub fn norm(&self, [gamma, beta]: NormRanges<'_>, x: &[f32], y: &mut [f32], stats: &mut Stats<'_>) {
        let (gamma, eps) = (self.p(gamma), self.config.layer_norm_epsilon);
        match self.config.norm {
            Norm::LayerNorm => layernorm::forward(x, gamma, self.p(beta), eps, y, stats.mean, stats.rstd),
            Norm::RmsNorm => rmsnorm::forward(x, gamma, eps, y, stats.rstd),
        }
    }

    /// Recomputes `y` from `x` and the statistics.
    pub fn norm_again(&self, [gamma, beta]: NormRanges<'_>, x: &[f32], y: &mut [f32], stats: &Stats<'_>) {
        let gamma = self.p(gamma);
        match self.config.norm {
            Norm::LayerNorm => layernorm::apply(x, stats.mean, stats.rstd, gamma, self.p(beta), y),
            Norm::RmsNorm => rmsnorm::apply(x, stats.rstd, gamma, y),
        }
    }

    /// Sets `dx`, or adds to it, and adds the gradients of γ and β to `grads`. `partials`: working memory of the arena.
    #[expect(
        clippy::too_many_arguments,
        reason = "a layer's backward pass: saved tensors, gradients and working memory"
    )]
    pub fn norm_backward(
        &self,
        ranges: NormRanges<'_>,
        x: &[f32],
        stats: &Stats<'_>,
        dy: &[f32],
        dx: &mut [f32],
        accumulate: Accumulate,
        grads: &mut [f32],
        partials: &mut [f32],
    ) {
        let [gamma, beta] = ranges;
        let dparams = self.dparams(grads, gamma, beta);
        let gamma = self.p(gamma);
        match self.config.norm {
            Norm::LayerNorm => {
                let saved = layernorm::Saved { x, mean: stats.mean, rstd: stats.rstd, gamma };
                layernorm::backward(saved, dy, dx, accumulate, dparams, partials);
            }
            Norm::RmsNorm => {
                let saved = rmsnorm::Saved { x, rstd: stats.rstd, gamma };
                rmsnorm::backward(saved, dy, dx, accumulate, dparams.map(|(dgamma, _)| dgamma), partials);
            }
        }
    }

    /// Norms of queries and of keys: their γ and their heads in a row of `qkv`.
    fn head_norms(&self, layer: usize) -> [(&Range<usize>, Heads); 2] {
        let (w, config) = (&self.list.blocks[layer], &self.config);
        let keys = Heads { first: config.q_width(), heads: config.kv_heads() };
        [(&w.q_norm_weight, Heads { first: 0, heads: config.n_head }), (&w.k_norm_weight, keys)]
    }

    /// Normalises each head's queries and keys, if the model does so, and rotates them, in place.
    pub fn turn(&self, layer: usize, positions: &[u32], qkv: &mut [f32], saved: &mut SavedHeads<'_>) {
        let Some(rotary) = &self.rotary else { return };
        if self.config.qk_norm {
            let (queries, keys) = saved.rstd.split_at_mut(positions.len() * self.config.n_head);
            for ((gamma, heads), rstd) in self.head_norms(layer).into_iter().zip([queries, keys]) {
                rmsnorm::forward_heads(heads, qkv, self.p(gamma), self.config.layer_norm_epsilon, saved.before, rstd);
            }
        }
        rotary.forward(positions, self.config.n_head + self.config.kv_heads(), qkv);
    }

    /// Replaces the gradient of turned queries and keys by that of the projection's output.
    pub fn turn_backward(
        &self,
        layer: usize,
        positions: &[u32],
        saved: &SavedHeads<'_>,
        dqkv: &mut [f32],
        grads: &mut [f32],
        partials: &mut [f32],
    ) {
        let Some(rotary) = &self.rotary else { return };
        rotary.backward(positions, self.config.n_head + self.config.kv_heads(), dqkv);
        if self.config.qk_norm {
            let (queries, keys) = saved.rstd.split_at(positions.len() * self.config.n_head);
            for ((gamma, heads), rstd) in self.head_norms(layer).into_iter().zip([queries, keys]) {
                let dgamma = self.adapters.is_none().then(|| &mut grads[gamma.clone()]);
                let saved = rmsnorm::Saved { x: saved.before, rstd, gamma: self.p(gamma) };
                rmsnorm::backward_heads(heads, saved, dqkv, dgamma, partials);
            }
        }
    }

    /// Computes the MLP's hidden layer, `[rows, inner_width]`, from its input projection's output, `[rows, fc_width]`.
    pub fn activate(&self, fc: &[f32], hidden: &mut [f32]) {
        match self.config.activation {
            Activation::Swiglu => swiglu::forward(self.config.inner_width(), fc, hidden),
            activation => gelu::forward(activation, fc, hidden),
        }
    }
}
