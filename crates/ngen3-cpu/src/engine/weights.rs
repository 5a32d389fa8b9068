//! Parameters of a model, as its products read them.

use std::ops::Range;

use ngen3_engine::{Error, Quant};
use ngen3_model::{BlockRanges, Config, Param, ParamList, Projection, Role};
use rayon::prelude::*;

use super::arena::{ArenaSpec, Checkpointing};
use super::frozen::FrozenEmbeddings;
use super::stored::StoredWeights;
use crate::gemm::groups::round_to_int4;
use crate::gemm::tiles::packed::Packed;
use crate::gemm::{Mat, Precision};
use crate::layers::embedding::Table;
use crate::layers::linear::{Learns, Linear, Weight, pair};
use crate::layers::lora::Adapters;
use crate::layers::rotary::Rotary;
use crate::layers::{loss, matvec};

/// Shape and parameters of a model.
#[derive(Debug)]
pub struct Weights {
    pub config: Config,
    pub list: ParamList,
    /// Precision of products' operands.
    pub precision: Precision,
    /// Activations of each block that training keeps for the backward pass: all, or the inputs.
    pub keep: Checkpointing,
    /// `[total]`
    pub params: Vec<f32>,
    /// Adapters; if present, only they are trained.
    pub adapters: Option<Adapters>,
    /// Packed weights of a frozen model, which replace those in `params`.
    pub packed: Option<PackedWeights>,
    /// Rotary positions, if the model has them.
    pub rotary: Option<Rotary>,
    /// Embeddings of a frozen model, which replace those in `params`.
    pub frozen: Option<FrozenEmbeddings>,
    /// Weights that decoding reads in place of those in `params`, which have the same values.
    pub stored: Option<StoredWeights>,
}

/// Weights packed for products.
#[derive(Debug)]
pub struct PackedWeights {
    /// Rounding of both operands: none beyond bf16, or int8.
    quant: Quant,
    /// Weights of each block's linear layers, in the order of [`Projection`]. They are removed from the model's parameters.
    layers: Vec<[Packed; Projection::ALL.len()]>,
    /// Packed final projection, once it is needed. It also stays in the parameters.
    pub head: Option<Packed>,
}

/// Returns the number of weights in the blocks' linear layers.
pub fn num_layer_weights(list: &ParamList) -> usize {
    let linear =
        |block: &BlockRanges| Projection::ALL.map(|projection| block.linear(projection).0.len()).iter().sum::<usize>();
    list.blocks.iter().map(linear).sum()
}

impl Weights {
    /// Values of a parameter.
    pub fn p(&self, range: &Range<usize>) -> &[f32] {
        &self.params[range.clone()]
    }

    /// Token embeddings, `[vocab_size, width]`.
    pub fn wte(&self) -> &[f32] {
        self.p(&self.list.wte)
    }

    /// Token embeddings, frozen or not.
    pub fn wte_table(&self) -> Table<'_> {
        self.frozen.as_ref().map_or_else(|| Table::Plain(self.wte()), FrozenEmbeddings::wte)
    }

    /// Final projection, `[vocab_size, width]`: the token embeddings if it is tied to them.
    pub fn lm_head(&self) -> &[f32] {
        self.p(&self.list.lm_head)
    }

    /// Ranges of the last norm's γ and β.
    pub fn ln_f(&self) -> [&Range<usize>; 2] {
        [&self.list.ln_f_weight, &self.list.ln_f_bias]
    }

    /// Returns the trainable parameters (names, shapes, ranges) and their concatenated values.
    pub fn learned(&self) -> (std::slice::Iter<'_, Param>, &[f32]) {
        match &self.adapters {
            Some(adapters) => (adapters.list.iter(), &adapters.params),
            None => (self.list.iter(), &self.params),
        }
    }

    /// As [`Weights::learned`], with mutable values.
    pub fn learned_mut(&mut self) -> (std::slice::Iter<'_, Param>, &mut [f32]) {
        match &mut self.adapters {
            Some(adapters) => (adapters.list.iter(), &mut adapters.params),
            None => (self.list.iter(), &mut self.params),
        }
    }

    /// Returns the specification of an arena for this model on `threads` threads.
    pub fn spec(&self, threads: usize) -> ArenaSpec<'_> {
        let rank = self.adapters.as_ref().map_or(0, |adapters| adapters.lora.rank);
        ArenaSpec { config: &self.config, precision: self.precision, rank, threads, frozen: self.frozen.is_some() }
    }

    /// Returns one of a block's linear layers.
    pub fn linear(&self, layer: usize, projection: Projection) -> Linear<'_> {
        let (weight, bias) = self.list.blocks[layer].linear(projection);
        let [outputs, inputs] = projection.shape(&self.config);
        let learns = match &self.adapters {
            None => Learns::Itself { weight, bias },
            Some(adapters) => {
                adapters.at(layer, projection).map_or(Learns::Nothing, |(adapter, at)| Learns::Adapter(adapter, at))
            }
        };
        let weight = match &self.packed {
            Some(packed) => Weight::Packed(&packed.layers[layer][projection as usize]),
            None => Weight::Plain(self.p(weight)),
        };
        Linear { precision: self.precision, outputs, inputs, weight, bias: self.p(bias), learns }
    }

    /// Borrows the gradients of a norm's parameters; `None` if only adapters are trained.
    pub fn dparams<'a>(
        &self,
        grads: &'a mut [f32],
        weight: &Range<usize>,
        bias: &Range<usize>,
    ) -> Option<(&'a mut [f32], &'a mut [f32])> {
        self.adapters.is_none().then(|| pair(grads, weight, bias))
    }

    /// Borrows the gradient of the final projection, to which the loss adds; `None` if only adapters are trained.
    pub fn dlm_head<'a>(&self, grads: &'a mut [f32]) -> Option<&'a mut [f32]> {
        self.adapters.is_none().then(|| &mut grads[self.list.lm_head.clone()])
    }

    /// Returns the shape of the loss of a pass, with or without gradients.
    pub fn loss_shape(&self, tokens: usize, backward: bool) -> loss::Shape {
        loss::Shape::new(
            self.precision,
            loss::Sizes::of(&self.config, tokens),
            loss::Wanted::of(backward, self.adapters.is_some()),
        )
    }

    /// Replaces every weight that decoding reads by its dequantised value, so that losses and prompts also use the quantised
    /// model.
    pub fn round(&mut self, quant: Quant) {
        let round = match quant {
            Quant::None => return,
            Quant::Int8 => matvec::round_to_int8,
            Quant::Int4 => round_to_int4,
        };
        let c = self.config.n_embd;
        let linear = |(w, projection): (&BlockRanges, Projection)| {
            (w.linear(projection).0.clone(), projection.shape(&self.config)[1])
        };
        let layers =
            self.list.blocks.iter().flat_map(|w| Projection::ALL.map(|projection| (w, projection))).map(linear);
        for (range, inputs) in layers.chain([(self.list.lm_head.clone(), c)]) {
            self.params[range].par_chunks_mut(inputs).for_each(round);
        }
    }

    /// Packs the weights of the blocks' linear layers in bf16 or int8 and frees the originals: they do not learn afterwards.
    /// Starts with the last block, so that memory never holds much more than one copy.
    ///
    /// # Errors
    /// [`Error::Memory`] if the packed weights of a layer do not fit in memory.
    pub fn pack(&mut self, quant: Quant) -> Result<(), Error> {
        let Self { config, list, params, .. } = self;
        let mut layers = Vec::new();
        let mut kept = vec![params[list.ln_f_weight.start..].to_vec()];
        for w in list.blocks.iter().rev() {
            let (mut plain, mut after) = (Vec::new(), w.ln_1_weight.start);
            for projection in Projection::ALL {
                let weight = w.linear(projection).0;
                plain.extend_from_slice(&params[after..weight.start]);
                after = weight.end;
            }
            plain.extend_from_slice(&params[after..w.mlp_c_proj_bias.end]);
            kept.push(plain);
            let pack = |projection: Projection| {
                let [outputs, inputs] = projection.shape(config);
                Packed::new(Mat::new(&params[w.linear(projection).0.clone()], outputs, inputs), quant)
            };
            let [a, b, c, d] = Projection::ALL.map(pack);
            layers.push([a?, b?, c?, d?]);
            params.truncate(w.ln_1_weight.start);
            params.shrink_to_fit();
        }
        layers.reverse();
        self.packed = Some(PackedWeights { quant, layers, head: None });
        params.reserve_exact(kept.iter().map(Vec::len).sum());
        params.extend(kept.iter().rev().flatten());
        *list = ParamList::without(config, Role::is_layer_weight);
        Ok(())
    }

    /// Packs the embeddings of a model whose layers are packed in bf16, and frees the originals: they do not learn afterwards.
    ///
    /// # Errors
    /// [`Error::Memory`] if they do not fit in memory.
    pub fn freeze_embeddings(&mut self) -> Result<(), Error> {
        self.frozen = Some(FrozenEmbeddings::new(&self.config, self.wte(), self.lm_head())?);
        let elsewhere = |role: Role| role.is_layer_weight() || matches!(role, Role::Wte | Role::LmHeadWeight);
        self.move_to(ParamList::without(&self.config, elsewhere));
        Ok(())
    }

    /// Replaces frozen embeddings by plain ones, which other losses read.
    pub fn thaw_embeddings(&mut self) {
        let Some(frozen) = self.frozen.take() else { return };
        self.move_to(ParamList::without(&self.config, Role::is_layer_weight));
        let Self { list, params, .. } = self;
        frozen.unpack(list, params);
    }

    /// Moves the parameters to another layout. Those of other shapes are zeros afterwards.
    fn move_to(&mut self, list: ParamList) {
        self.params = self.laid_out(&list);
        self.list = list;
    }

    /// Returns the parameters in another layout, with zeros for those of other shapes.
    fn laid_out(&self, list: &ParamList) -> Vec<f32> {
        let mut params = vec![0.0; list.total()];
        for (to, from) in list.iter().zip(self.list.iter()).filter(|(to, from)| to.shape == from.shape) {
            params[to.range()].copy_from_slice(self.p(&from.range()));
        }
        params
    }

    /// Returns true if rounding to bf16 would not change the weights of the blocks' linear layers.
    pub fn layers_exact_in_bf16(&self) -> bool {
        let layers = |w: &BlockRanges| Projection::ALL.iter().all(|&projection| self.exact(w.linear(projection).0));
        self.list.blocks.iter().all(layers)
    }

    /// Returns true if rounding to bf16 would not change the token embeddings and the final projection.
    pub fn embeddings_exact_in_bf16(&self) -> bool {
        self.exact(&self.list.wte) && self.exact(&self.list.lm_head)
    }

    fn exact(&self, values: &Range<usize>) -> bool {
        self.p(values).par_iter().all(|w| w.to_bits() << 16 == 0)
    }

    /// Returns all parameters, `[total]`, with those that are packed in bf16.
    pub fn all_params(&self) -> Vec<f32> {
        let Some(packed) = &self.packed else { return self.params.clone() };
        let list = ParamList::new(&self.config);
        let mut params = self.laid_out(&list);
        if let Some(frozen) = &self.frozen {
            frozen.unpack(&list, &mut params);
        }
        for (block, layers) in list.blocks.iter().zip(&packed.layers) {
            for (projection, weight) in Projection::ALL.into_iter().zip(layers) {
                weight.unpack(&mut params[block.linear(projection).0.clone()]);
            }
        }
        params
    }

    /// Replaces packed weights by plain ones, so that they can learn.
    pub fn unpack(&mut self) {
        if self.packed.is_some() {
            self.params = self.all_params();
            self.list = ParamList::new(&self.config);
            (self.packed, self.frozen) = (None, None);
        }
    }

    /// Packs the final projection for top-k, if the layers are packed and it is not yet.
    ///
    /// # Errors
    /// [`Error::Memory`] if they do not fit in memory.
    pub fn pack_head(&mut self) -> Result<(), Error> {
        let weight = Mat::new(&self.params[self.list.lm_head.clone()], self.config.vocab_size, self.config.n_embd);
        if let Some(PackedWeights { quant, head: head @ None, .. }) = &mut self.packed {
            *head = Some(Packed::new(weight, *quant)?);
        }
        Ok(())
    }

    /// Returns the quantisation of a packed model's products.
    pub fn quant(&self) -> Quant {
        self.packed.as_ref().map_or(Quant::None, |packed| packed.quant)
    }
}
