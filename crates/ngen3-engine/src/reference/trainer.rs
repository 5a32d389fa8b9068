//! [`Reference`]: a trainer, which is a model with its gradients and AdamW's moments.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;

use ngen3_model::{Config, Lora};

use super::adamw::{adamw_update, clip_factor, square_sum};
use super::decoder::ReferenceDecoder;
use super::layers::add;
use super::loss::{Guide, cross_entropy_backward, cross_entropy_forward, divergence_backward, divergence_forward};
use super::model::Network;
use super::muon::muon_update;
use super::teacher::ReferenceTeacher;
use crate::{
    AdamW, Backward, Batch, ComputeInfo, Decoder, DistillConfig, DistillLoss, Distiller, Dtype, Error, Model, Muon,
    Pass, PassDropout, Slot, TeacherSource, TopK, Trainer, pass_seed, passes,
};

/// Trainer in the reference engine.
#[derive(Debug)]
pub struct Reference {
    network: Network,
    /// `[total]` of the trainable parameters, as are the moments.
    grads: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    /// Range of the parameters that is updated.
    share: Range<usize>,
}

impl Reference {
    /// Creates a trainer from the model's parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has the wrong length.
    pub fn new(config: Config, params: Vec<f32>) -> Result<Self, Error> {
        let network = Network::new(config, params)?;
        let mut reference =
            Self { network, grads: Vec::new(), exp_avg: Vec::new(), exp_avg_sq: Vec::new(), share: 0..0 };
        reference.start_optimizer();
        Ok(reference)
    }

    /// Resets gradients and moments to zeros, one for each trainable parameter.
    fn start_optimizer(&mut self) {
        let total = self.network.learned().1.len();
        let Self { grads, exp_avg, exp_avg_sq, .. } = self;
        [grads, exp_avg, exp_avg_sq].into_iter().for_each(|array| *array = vec![0.0; total]);
        self.share = 0..total;
    }

    /// Distils on a batch. `guide` returns the teacher's output for a pass, given the range of its tokens in the batch.
    fn distill_with(
        &mut self,
        batch: &Batch,
        distill: &DistillConfig,
        backward: Option<Backward>,
        guide: impl Fn(&Pass, Range<usize>) -> Guide,
    ) -> Result<DistillLoss, Error> {
        let Self { network, grads, .. } = self;
        let targets = batch.check_targets()?;
        let (mut cross_entropy, mut divergence, mut start) = (0.0, 0.0, 0);
        for (i, pass) in passes(batch).iter().enumerate() {
            let drops = backward.map_or(PassDropout::NONE, |backward| drops(&backward, i));
            let activations = network.forward(pass, drops, &mut []);
            let logits = network.logits(&activations.hidden);
            cross_entropy += sum(&cross_entropy_forward(&logits, &pass.targets));
            let guide = guide(pass, start..start + pass.inputs.len());
            start += pass.inputs.len();
            // At α = 0 the divergence does not count, and is not computed.
            if distill.alpha > 0.0 {
                divergence += sum(&divergence_forward(&logits, &pass.targets, &guide, distill));
            }
            if let Some(Backward { weight, .. }) = backward {
                let weight = weight / targets as f32;
                let mut dlogits = cross_entropy_backward(&logits, &pass.targets, (1.0 - distill.alpha) * weight);
                let soft = divergence_backward(&logits, &pass.targets, &guide, distill, distill.alpha * weight);
                add(&mut dlogits, &soft);
                network.backward(pass, drops, &activations, &dlogits, grads);
            }
        }
        let [cross_entropy, divergence] = [cross_entropy, divergence].map(|total| (total / targets as f64) as f32);
        Ok(DistillLoss { cross_entropy, divergence })
    }
}

/// Returns the dropout of one pass of a batch.
fn drops(backward: &Backward, pass: usize) -> PassDropout {
    PassDropout { p: backward.dropout, seed: pass_seed(backward.seed, pass as u64) }
}

fn sum(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum()
}

/// Checks that a batch can have a backward pass.
fn check_backward(batch: &Batch, backward: &Backward) -> Result<(), Error> {
    let Backward { dropout, .. } = *backward;
    if !(0.0..1.0).contains(&dropout) {
        return Err(Error::Input(format!("dropout is {dropout}; it must be at least 0 and below 1")));
    }
    if batch.sequences.iter().any(|sequence| sequence.continues) {
        return Err(Error::Input("sequences that continue another have no gradient".into()));
    }
    Ok(())
}

impl Model for Reference {
    fn config(&self) -> &Config {
        &self.network.config
    }

    fn info(&self) -> ComputeInfo {
        ComputeInfo { threads: 1, dtype: Dtype::F32, kernels: "reference" }
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        batch.check(self.config())?;
        let mut losses = Vec::with_capacity(batch.targets.len());
        for pass in passes(batch) {
            let hidden = self.network.forward(&pass, PassDropout::NONE, &mut []).hidden;
            losses.extend(cross_entropy_forward(&self.network.logits(&hidden), &pass.targets));
        }
        Ok(losses)
    }

    fn decoder_within(&self, sequences: usize, pages: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        Ok(Box::new(ReferenceDecoder::new(&self.network, sequences, pages)?))
    }
}

impl Trainer for Reference {
    fn forward_backward(&mut self, batch: &Batch, backward: Backward) -> Result<f32, Error> {
        batch.check(self.config())?;
        check_backward(batch, &backward)?;
        let targets = batch.check_targets()?;
        let mut total = 0.0;
        for (i, pass) in passes(batch).iter().enumerate() {
            let drops = drops(&backward, i);
            let activations = self.network.forward(pass, drops, &mut []);
            let logits = self.network.logits(&activations.hidden);
            total += sum(&cross_entropy_forward(&logits, &pass.targets));
            let dlogits = cross_entropy_backward(&logits, &pass.targets, backward.weight / targets as f32);
            self.network.backward(pass, drops, &activations, &dlogits, &mut self.grads);
        }
        Ok((total / targets as f64) as f32)
    }

    fn set_share(&mut self, share: Range<usize>) -> Result<(), Error> {
        let total = self.grads.len();
        if share.start > share.end || share.end > total {
            return Err(Error::Input(format!("the share {share:?} is not within {total} parameters")));
        }
        self.exp_avg = vec![0.0; share.len()];
        self.exp_avg_sq = vec![0.0; share.len()];
        self.share = share;
        Ok(())
    }

    fn grad_square_sum(&self) -> f64 {
        square_sum(&self.grads[self.share.clone()])
    }

    fn update_share(&mut self, adamw: &AdamW, muon: Option<&Muon>, grad_norm: f32) -> Result<(), Error> {
        if grad_norm.is_finite() {
            let Self { network, grads, exp_avg, exp_avg_sq, share } = self;
            let clip = clip_factor(adamw, grad_norm);
            let (list, params) = network.learned_mut();
            for param in list {
                let range = param.offset.max(share.start)..param.range().end.min(share.end);
                if range.is_empty() {
                    continue;
                }
                let (p, g) = (&mut params[range.clone()], &grads[range.clone()]);
                let range = range.start - share.start..range.end - share.start;
                let (m, v) = (&mut exp_avg[range.clone()], &mut exp_avg_sq[range]);
                match (muon, param.num_layer_matrices()) {
                    (None, _) | (_, 0) => adamw_update(adamw, param.decays(), clip, p, g, m, v),
                    (Some(muon), matrices) => {
                        let len = param.len() / matrices;
                        let parts = p.chunks_exact_mut(len).zip(g.chunks_exact(len)).zip(m.chunks_exact_mut(len));
                        parts.for_each(|((p, g), m)| muon_update(muon, clip, param.shape[1], p, g, m));
                    }
                }
            }
        }
        self.grads.fill(0.0);
        Ok(())
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        Cow::Borrowed(match slot {
            Slot::Params => self.network.learned().1,
            Slot::Grads => &self.grads,
            Slot::ExpAvg => &self.exp_avg,
            Slot::ExpAvgSq => &self.exp_avg_sq,
        })
    }

    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error> {
        match slot {
            Slot::Params | Slot::Grads => self.values_mut(slot)?.copy_from_slice(values),
            Slot::ExpAvg => self.exp_avg.copy_from_slice(values),
            Slot::ExpAvgSq => self.exp_avg_sq.copy_from_slice(values),
        }
        Ok(())
    }

    fn values_mut(&mut self, slot: Slot) -> Result<&mut [f32], Error> {
        match slot {
            Slot::Params => Ok(self.network.learned_mut().1),
            Slot::Grads => Ok(&mut self.grads),
            Slot::ExpAvg | Slot::ExpAvgSq => Err(Error::Unsupported("changing moments in place")),
        }
    }

    fn merged(&self) -> Cow<'_, [f32]> {
        Cow::Owned(self.network.merged())
    }

    fn adapt(&mut self, lora: &Lora, params: Vec<f32>) -> Result<(), Error> {
        if self.network.is_adapted() {
            return Err(Error::Input("the model has adapters already: merge them first".into()));
        }
        self.network.adapt(lora, params)?;
        self.start_optimizer();
        Ok(())
    }

    fn merge(&mut self) {
        if self.network.is_adapted() {
            self.network.merge();
            self.start_optimizer();
        }
    }

    fn distiller(&mut self) -> Result<&mut dyn Distiller, Error> {
        Ok(self)
    }
}

impl Distiller for Reference {
    fn distill(
        &mut self,
        batch: &Batch,
        teacher: TeacherSource<'_>,
        distill: &DistillConfig,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error> {
        batch.check(self.config())?;
        distill.validate()?;
        if let Some(backward) = &backward {
            check_backward(batch, backward)?;
        }
        match teacher {
            TeacherSource::Teacher(teacher) => {
                let teacher: &mut dyn Any = teacher;
                let Some(teacher) = teacher.downcast_ref::<ReferenceTeacher>() else {
                    return Err(Error::Input("the teacher is on another device than the student".into()));
                };
                let (own, vocab_size) = (teacher.config().vocab_size, self.config().vocab_size);
                if own != vocab_size {
                    return Err(Error::Input(format!(
                        "expected a teacher with a vocabulary of {vocab_size} tokens, got {own}"
                    )));
                }
                batch.check(teacher.config())?;
                self.distill_with(batch, distill, backward, |pass, _| Guide::Logits(teacher.logits(pass)))
            }
            TeacherSource::TopK(top_k) => {
                top_k.check(distill.divergence, batch, self.config())?;
                self.distill_with(batch, distill, backward, |_, tokens| {
                    let places = tokens.start * top_k.k..tokens.end * top_k.k;
                    let (ids, log_probs) = (top_k.ids[places.clone()].to_vec(), top_k.log_probs[places].to_vec());
                    Guide::TopK(TopK { k: top_k.k, ids, log_probs })
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
