//! A model's parameters, as its products read them.

use std::ops::Range;

use ngen3_engine::{Error, Quant};
use ngen3_model::{BlockRanges, Config, Param, ParamList, Target};
use rayon::prelude::*;

use super::arena::{ArenaSpec, Checkpointing};
use crate::base::memory::Buffer;
use crate::gemm::tiles::packed::Packed;
use crate::gemm::{Mat, Precision};
use crate::layers::linear::{Learns, Linear, Weight, pair};
use crate::layers::lora::Adapters;
use crate::layers::{loss, matvec};

/// A model's shape and parameters.
#[derive(Debug)]
pub struct Weights {
    pub config: Config,
    pub list: ParamList,
    /// Precision that products round their operands to.
    pub precision: Precision,
    /// The part of each block that a pass forward keeps, if there is a backward: all, or the inputs.
    pub keep: Checkpointing,
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
    /// Precision that they, and what they are multiplied with, are rounded to: to bf16, or further.
    quant: Quant,
    /// Those of each block's linear layers, in the order of [`Target`]; they are not among the model's parameters any more.
    layers: Vec<[Packed; Target::ALL.len()]>,
    /// The embeddings as the final projection reads them, once it has been asked for. They are among the parameters too.
    pub head: Option<Packed>,
}

/// Number of weights in the blocks' linear layers.
pub fn num_layer_weights(list: &ParamList) -> usize {
    let linear = |block: &BlockRanges| Target::ALL.map(|target| block.linear(target).0.len()).iter().sum::<usize>();
    list.blocks.iter().map(linear).sum()
}

impl Weights {
    /// The values of a parameter.
    pub fn p(&self, range: &Range<usize>) -> &[f32] {
        &self.params[range.clone()]
    }

    /// `[vocab_size, width]`
    pub fn wte(&self) -> &[f32] {
        self.p(&self.list.wte)
    }

    /// Names, shapes and places of what training changes; and their values, back to back.
    pub fn learned(&self) -> (std::slice::Iter<'_, Param>, &[f32]) {
        match &self.adapters {
            Some(adapters) => (adapters.list.iter(), &adapters.params),
            None => (self.list.iter(), &self.params),
        }
    }

    /// As [`Weights::learned`], to be changed.
    pub fn learned_mut(&mut self) -> (std::slice::Iter<'_, Param>, &mut [f32]) {
        match &mut self.adapters {
            Some(adapters) => (adapters.list.iter(), &mut adapters.params),
            None => (self.list.iter(), &mut self.params),
        }
    }

    /// The model and threads that the arena has to hold activations of.
    pub fn spec(&self, threads: usize) -> ArenaSpec<'_> {
        let rank = self.adapters.as_ref().map_or(0, |adapters| adapters.lora.rank);
        ArenaSpec { config: &self.config, precision: self.precision, rank, threads }
    }

    /// One of a block's linear layers.
    pub fn linear(&self, layer: usize, target: Target) -> Linear<'_> {
        let (weight, bias) = self.list.blocks[layer].linear(target);
        let [outputs, inputs] = target.shape(&self.config);
        let learns = match &self.adapters {
            None => Learns::Itself { weight, bias },
            Some(adapters) => {
                adapters.at(layer, target).map_or(Learns::Nothing, |(adapter, at)| Learns::Adapter(adapter, at))
            }
        };
        let weight = match &self.packed {
            Some(packed) => Weight::Packed(&packed.layers[layer][target as usize]),
            None => Weight::Plain(self.p(weight)),
        };
        Linear { precision: self.precision, outputs, inputs, weight, bias: self.p(bias), learns }
    }

    /// The gradients of a LayerNorm's parameters; nothing where only adapters learn.
    pub fn dparams<'a>(
        &self,
        grads: &'a mut [f32],
        weight: &Range<usize>,
        bias: &Range<usize>,
    ) -> Option<(&'a mut [f32], &'a mut [f32])> {
        self.adapters.is_none().then(|| pair(grads, weight, bias))
    }

    /// The gradient of the embeddings, for the loss to add to; nothing where only adapters learn.
    pub fn dwte<'a>(&self, grads: &'a mut [f32]) -> Option<&'a mut [f32]> {
        self.adapters.is_none().then(|| &mut grads[self.list.wte.clone()])
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

    /// Packs the embeddings too, for the most likely tokens, if the layers are packed and it has not been done.
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

    /// Precision that a packed model rounds the operands of its products to, beyond its precision.
    pub fn quant(&self) -> Quant {
        self.packed.as_ref().map_or(Quant::None, |packed| packed.quant)
    }
}

/// Gradients and moments, each as long as what learns; empty until training needs them.
#[derive(Debug, Default)]
pub struct OptimizerState {
    pub grads: Buffer,
    pub exp_avg: Buffer,
    pub exp_avg_sq: Buffer,
}

impl OptimizerState {
    /// Makes sure that the gradients and, for an update, the moments are there, zeros at first.
    ///
    /// # Errors
    /// [`Error::Memory`] when they do not fit.
    pub fn reserve(&mut self, total: usize, moments: bool) -> Result<(), Error> {
        let slots = [(&mut self.grads, true), (&mut self.exp_avg, moments), (&mut self.exp_avg_sq, moments)];
        for (slot, wanted) in slots {
            if wanted && slot.is_empty() {
                *slot = Buffer::zeros(total, "gradients and moments as long as the parameters")?;
            }
        }
        Ok(())
    }
}
