//! Transformer block: `x = x + c_proj(attention(c_attn(ln_1(x))));  x = x + c_proj(gelu(c_fc(ln_2(x))))`, and its backward pass, the
//! same lines in reverse. Training and decoding share the forward pass.

use ngen3_engine::{DropoutSite, PassDropout};
use ngen3_model::Projection;

use super::arena::{Arena, Block, Inputs};
use super::linear::Output;
use super::network::{Gradients, Network};
use crate::device::{Recorder, View};
use crate::kernels::attention::{self, Keys, Operands};
use crate::kernels::column_sums::{Normalised, column_sums};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::norm::{self, Gradient, Rows};
use crate::kernels::{activation, cache, rotary};

/// A pass, and the memory that it runs in.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The pass.
    pub inputs: &'a Inputs,
    /// The memory.
    pub arena: &'a Arena,
    /// Its dropout.
    pub drops: PassDropout,
}

impl Run<'_> {
    /// Returns the mask of a site.
    pub fn mask(&self, site: DropoutSite) -> Mask {
        Mask::new(self.drops.at(site))
    }
}

impl Network {
    /// Runs a block on its input. `kv_cache` is the block's, when decoding. Without `out`, stops before the MLP's output: the
    /// backward pass needs no more.
    pub fn block_forward(
        &self,
        recorder: &mut Recorder<'_>,
        layer: usize,
        run: Run<'_>,
        kv_cache: Option<View<'_>>,
        x: View<'_>,
        out: Option<View<'_>>,
    ) {
        let Run { inputs, arena, .. } = run;
        let (n, config, w) = (inputs.tokens, &self.config, &self.list.blocks[layer]);
        let (rows, width) = (Rows::plain(n, config.n_embd), n * config.n_embd);
        let Block { ln_1, heads, qkv, lse, att, x_mid, ln_2, fc, .. } = arena.block(layer);
        let (ln, x_mid, att) = (arena.ln.first(width), x_mid.first(width), att.first(n * config.q_width()));
        let qkv = qkv.first(n * config.qkv_width());

        norm::forward(recorder, self.norm([&w.ln_1_weight, &w.ln_1_bias]), rows, x, ln, ln_1.first(2 * n));
        let raw = heads.as_ref().map_or(qkv, |heads| heads.before.first(qkv.len));
        self.linear(recorder, layer, Projection::CAttn, n, ln, Output::Plain, raw, arena);
        self.turn(recorder, layer, run);
        let keys = match kv_cache {
            None => Keys::Pass,
            Some(cache) => {
                cache::append(recorder, self.heads(), qkv, inputs.rows(), cache);
                Keys::Pages { cache, pages: inputs.pages() }
            }
        };
        attention::forward(recorder, self.operands(layer, run), keys, att, lse.first(n * config.n_head));
        let output = Output::Branch { residual: x, mask: run.mask(DropoutSite::AttentionProjection(layer)) };
        self.linear(recorder, layer, Projection::AttnCProj, n, att, output, x_mid, arena);

        norm::forward(recorder, self.norm([&w.ln_2_weight, &w.ln_2_bias]), rows, x_mid, ln, ln_2.first(2 * n));
        let fc = fc.first(n * config.fc_width());
        self.linear(recorder, layer, Projection::CFc, n, ln, Output::Plain, fc, arena);
        let adapted = self.adapter(layer, Projection::MlpCProj).is_some();
        if out.is_none() && !adapted {
            return;
        }
        let hidden = arena.inner.first(n * config.inner_width());
        activation::forward(recorder, config.activation, config.inner_width(), fc, hidden);
        // The backward pass of an adapter reads what this leaves in `low`.
        let out = out.unwrap_or_else(|| arena.hidden.first(width));
        let output = Output::Branch { residual: x_mid, mask: run.mask(DropoutSite::MlpProjection(layer)) };
        self.linear(recorder, layer, Projection::MlpCProj, n, hidden, output, out, arena);
    }

    /// Replaces the gradient of a block's output, in the arena's `dx`, by that of its input `x`, and adds those of the parameters.
    pub fn block_backward(
        &self,
        recorder: &mut Recorder<'_>,
        layer: usize,
        run: Run<'_>,
        x: View<'_>,
        grads: Gradients<'_>,
    ) {
        let Run { inputs, arena, .. } = run;
        let (n, config, w) = (inputs.tokens, &self.config, &self.list.blocks[layer]);
        let (rows, width) = (Rows::plain(n, config.n_embd), n * config.n_embd);
        let scratch = arena.backward.as_ref().expect("memory for the backward pass");
        let Block { ln_1, heads, lse, att, x_mid, ln_2, fc, .. } = arena.block(layer);
        let (ln, x_mid, att) = (arena.ln.first(width), x_mid.first(width), att.first(n * config.q_width()));
        let [dx, dbranch, dln] = [&scratch.dx, &scratch.dbranch, &scratch.dln].map(|buffer| buffer.first(width));
        let layer_backward = |recorder: &mut Recorder<'_>, projection, x, dy, dx| {
            self.linear_backward(recorder, layer, projection, n, x, dy, dx, grads, arena, scratch);
        };

        // x = x_mid + c_proj(gelu(c_fc(ln_2(x_mid))))
        let fc = fc.first(n * config.fc_width());
        let inner = n * config.inner_width();
        let (hidden, dhidden, dfc) =
            (arena.inner.first(inner), scratch.dinner.first(inner), scratch.dwide.first(fc.len));
        let dy = dropped(recorder, run, DropoutSite::MlpProjection(layer), dx, dbranch);
        activation::forward(recorder, config.activation, config.inner_width(), fc, hidden);
        layer_backward(recorder, Projection::MlpCProj, hidden, dy, dhidden);
        activation::backward(recorder, config.activation, config.inner_width(), fc, dhidden, dfc);
        let ln_2_norm = self.norm([&w.ln_2_weight, &w.ln_2_bias]);
        norm::forward(recorder, ln_2_norm, rows, x_mid, ln, ln_2.first(2 * n));
        layer_backward(recorder, Projection::CFc, ln, dfc, dln);
        self.norm_backward(recorder, [&w.ln_2_weight, &w.ln_2_bias], run, x_mid, ln_2.first(2 * n), dln, true, grads);

        // x_mid = x + c_proj(attention(c_attn(ln_1(x))))
        let dy = dropped(recorder, run, DropoutSite::AttentionProjection(layer), dx, dbranch);
        let datt = scratch.dinner.first(att.len);
        layer_backward(recorder, Projection::AttnCProj, att, dy, datt);
        let dqkv = scratch.dwide.first(n * config.qkv_width());
        let sums = [lse, &scratch.inner].map(|buffer| buffer.first(n * config.n_head));
        attention::backward(recorder, self.operands(layer, run), [att, datt], sums, dqkv);
        self.turn_backward(recorder, layer, run, heads.is_some(), dqkv, grads);
        norm::forward(recorder, self.norm([&w.ln_1_weight, &w.ln_1_bias]), rows, x, ln, ln_1.first(2 * n));
        layer_backward(recorder, Projection::CAttn, ln, dqkv, dln);
        self.norm_backward(recorder, [&w.ln_1_weight, &w.ln_1_bias], run, x, ln_1.first(2 * n), dln, true, grads);
    }

    /// Adds the gradient of a norm's input to the arena's `dx`, or sets it, and adds those of γ and β.
    #[expect(clippy::too_many_arguments, reason = "a norm, its input, its statistics and the gradients")]
    pub fn norm_backward(
        &self,
        recorder: &mut Recorder<'_>,
        ranges: [&std::ops::Range<usize>; 2],
        run: Run<'_>,
        x: View<'_>,
        stats: View<'_>,
        dy: View<'_>,
        adds: bool,
        grads: Gradients<'_>,
    ) {
        let scratch = run.arena.backward.as_ref().expect("memory for the backward pass");
        let rows = Rows::plain(run.inputs.tokens, self.config.n_embd);
        let [dgamma, dbeta] = ranges.map(|range| self.g(grads, range));
        let gamma = dgamma.map(|dgamma| (Normalised { x, stats }, dgamma));
        column_sums(recorder, rows, dy, gamma, dbeta, scratch.partials.all());
        let gradient = if adds { Gradient::Add { dy } } else { Gradient::Set { dy } };
        norm::backward(recorder, self.norm(ranges), rows, x, stats, gradient, scratch.dx.first(x.len));
    }

    /// Operands of a block's attention.
    fn operands<'a>(&self, layer: usize, run: Run<'a>) -> Operands<'a> {
        Operands {
            shape: self.heads(),
            qkv: run.arena.block(layer).qkv.first(run.inputs.tokens * self.config.qkv_width()),
            tiles: run.inputs.tiles(),
            mask: run.mask(DropoutSite::Attention(layer)),
        }
    }

    /// Rows of the queries' heads and of the keys'.
    fn head_rows(&self, tokens: usize) -> [Rows; 2] {
        let config = &self.config;
        let (width, stride) = (config.head_width(), config.qkv_width());
        [(config.n_head, 0), (config.kv_heads(), config.q_width())].map(|(heads, first)| Rows {
            tokens,
            heads,
            width,
            stride,
            first,
        })
    }

    /// Heads that are rotated: those of queries and of keys.
    fn turned(&self) -> rotary::Heads {
        let config = &self.config;
        let count = config.n_head + config.kv_heads();
        rotary::Heads { count, width: config.head_width(), stride: config.qkv_width() }
    }

    /// Normalises each head's queries and keys, if the model does so, and rotates them.
    fn turn(&self, recorder: &mut Recorder<'_>, layer: usize, run: Run<'_>) {
        let Some(table) = &self.rotary else { return };
        let (w, n) = (&self.list.blocks[layer], run.inputs.tokens);
        let Block { heads, qkv, .. } = run.arena.block(layer);
        let qkv = qkv.first(n * self.config.qkv_width());
        if let Some(heads) = heads {
            let before = heads.before.first(qkv.len);
            recorder.copy(before, qkv);
            let each = [(&w.q_norm_weight, &heads.q), (&w.k_norm_weight, &heads.k)];
            for (rows, (gamma, stats)) in self.head_rows(n).into_iter().zip(each) {
                let norm = self.norm([gamma, &(0..0)]);
                norm::forward(recorder, norm, rows, before, qkv, stats.first(2 * rows.count()));
            }
        }
        rotary::rotate(recorder, self.turned(), false, run.inputs.positions(), table.all(), qkv);
    }

    /// Replaces the gradient of turned queries and keys by that of the projection's output.
    fn turn_backward(
        &self,
        recorder: &mut Recorder<'_>,
        layer: usize,
        run: Run<'_>,
        normalised: bool,
        dqkv: View<'_>,
        grads: Gradients<'_>,
    ) {
        let Some(table) = &self.rotary else { return };
        rotary::rotate(recorder, self.turned(), true, run.inputs.positions(), table.all(), dqkv);
        let (w, n) = (&self.list.blocks[layer], run.inputs.tokens);
        let (Some(heads), true) = (&run.arena.block(layer).heads, normalised) else { return };
        let scratch = run.arena.backward.as_ref().expect("memory for the backward pass");
        let x = heads.before.first(dqkv.len);
        let each = [(&w.q_norm_weight, &heads.q), (&w.k_norm_weight, &heads.k)];
        for (rows, (gamma, stats)) in self.head_rows(n).into_iter().zip(each) {
            let stats = stats.first(2 * rows.count());
            let dgamma = self.g(grads, gamma).map(|dgamma| (Normalised { x, stats }, dgamma));
            column_sums(recorder, rows, dqkv, dgamma, None, scratch.partials.all());
            norm::backward(recorder, self.norm([gamma, &(0..0)]), rows, x, stats, Gradient::InPlace, dqkv);
        }
    }
}

/// Applies a branch's dropout to the gradient of its output; without dropout, that is the gradient itself.
fn dropped<'a>(
    recorder: &mut Recorder<'_>,
    run: Run<'_>,
    site: DropoutSite,
    dx: View<'a>,
    dbranch: View<'a>,
) -> View<'a> {
    if run.drops.at(site).is_none() {
        return dx;
    }
    dropout::apply(recorder, dx, run.mask(site), None, dbranch);
    dbranch
}
