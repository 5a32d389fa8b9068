//! [`FaultyTrainer`]: faults in losses, training, updates and adapters.

use std::borrow::Cow;
use std::ops::Range;

use ngen3_engine::reference::ReferenceDevice;
use ngen3_engine::{
    AdamW, Backward, Batch, Decoder, Device, Distiller, Error, IGNORE, Model, Muon, Options, Ready, Sequence, Slot,
    Trainer,
};
use ngen3_model::{Config, Lora, LoraList, Param, ParamList};

use super::Fault;
use super::decoder::FaultyDecoder;

/// A model of the reference device, with a fault.
pub struct FaultyTrainer {
    pub fault: Fault,
    pub inner: Box<dyn Trainer>,
    /// The parameters that it was opened with, `[total]`.
    base: Vec<f32>,
    /// The model as it was opened.
    opened: Box<dyn Trainer>,
    /// The model as it was before an update or a write that the forward pass does not see.
    stale: Option<Box<dyn Trainer>>,
    adapters: Option<Lora>,
    /// True once adapters were merged.
    merged: bool,
    /// A parameter outside the share, if it is known.
    outside_share: Option<usize>,
}

fn open(config: &Config, params: &[f32]) -> Result<Box<dyn Trainer>, Error> {
    ReferenceDevice.open(config.clone(), params.to_vec(), Options::default())
}

impl FaultyTrainer {
    pub fn new(fault: Fault, config: Config, base: Vec<f32>) -> Result<Self, Error> {
        let [inner, opened] = [open(&config, &base)?, open(&config, &base)?];
        Ok(Self { fault, inner, base, opened, stale: None, adapters: None, merged: false, outside_share: None })
    }

    pub fn clear_gradients(&mut self) -> Result<(), Error> {
        let total = self.inner.read(Slot::Grads).len();
        self.inner.write(Slot::Grads, &vec![0.0; total])
    }

    /// Makes the gradient of a parameter 1.001 times as large.
    fn enlarge_gradient(&mut self, param: Option<&Param>) -> Result<(), Error> {
        let Some(param) = param else { return Ok(()) };
        let mut grads = self.inner.read(Slot::Grads).into_owned();
        grads[param.range()].iter_mut().for_each(|grad| *grad *= 1.001);
        self.inner.write(Slot::Grads, &grads)
    }

    /// Lets the forward pass go on with the parameters of now.
    fn keep_stale(&mut self) -> Result<(), Error> {
        let params = self.inner.read(Slot::Params).into_owned();
        self.stale = Some(match &self.adapters {
            None => open(self.inner.config(), &params)?,
            Some(lora) => {
                let mut stale = open(self.inner.config(), &self.base)?;
                stale.adapt(lora, params)?;
                stale
            }
        });
        Ok(())
    }

    /// Divides what adapters have added to the parameters by their scale.
    fn unscaled(&self, merged: &[f32]) -> Vec<f32> {
        let scale = self.adapters.as_ref().map_or(1.0, Lora::scale);
        merged.iter().zip(&self.base).map(|(merged, base)| base + (merged - base) / scale).collect()
    }
}

/// The batch with its second and third sequence as one.
fn joined(batch: &Batch) -> Batch {
    let mut batch = batch.clone();
    let len = batch.sequences.remove(2).len;
    batch.sequences[1].len += len;
    batch
}

impl Model for FaultyTrainer {
    fn config(&self) -> &Config {
        self.inner.config()
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let model = self.stale.as_mut().unwrap_or(&mut self.inner);
        match self.fault {
            Fault::JoinedSequences => return model.losses(&joined(batch)),
            Fault::ContinuedAlone => {
                let alone = |sequence: &Sequence| Sequence { continues: false, ..*sequence };
                let sequences = batch.sequences.iter().map(alone).collect();
                return model.losses(&Batch { sequences, ..batch.clone() });
            }
            _ => {}
        }
        let mut losses = model.losses(batch)?;
        let off = |ignored: bool| batch.targets.iter().rposition(|&target| (target == IGNORE) == ignored);
        match self.fault {
            Fault::Loss => losses[off(false).expect("a target")] *= 1.001,
            Fault::IgnoredLoss => losses[off(true).expect("an ignored target")] = 1e-7,
            _ => {}
        }
        Ok(losses)
    }

    fn loss(&mut self, batch: &Batch) -> Result<f32, Error> {
        let loss = self.inner.loss(batch)?;
        match self.fault {
            Fault::MeanLoss => Ok(loss * batch.num_target_tokens() as f32 / batch.targets.len() as f32),
            _ => Ok(loss),
        }
    }

    fn decoder_within(&self, sequences: usize, pages: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        let model = match self.fault {
            Fault::StaleDecoder if self.adapters.is_none() => &self.opened,
            Fault::AdaptersDecode if self.adapters.is_some() => &self.opened,
            _ => &self.inner,
        };
        let sequences = if self.fault == Fault::AcceptsNoSequences { sequences.max(1) } else { sequences };
        Ok(Box::new(FaultyDecoder::new(self.fault, &**model, sequences, pages)?))
    }
}

impl Trainer for FaultyTrainer {
    fn forward_backward(&mut self, batch: &Batch, mut backward: Backward) -> Result<f32, Error> {
        match self.fault {
            Fault::Dropout => backward.seed += 1,
            Fault::Weight => backward.weight = 1.0,
            Fault::GradientsOverwritten => self.clear_gradients()?,
            Fault::ReadyTooEarly | Fault::ReadyBackwards => {
                if let Some(Ready(receive)) = backward.ready {
                    let mut grads = self.inner.read(Slot::Grads).into_owned();
                    let end = if self.fault == Fault::ReadyBackwards { 1 } else { grads.len() };
                    receive(0, &mut grads[..end]);
                    self.inner.write(Slot::Grads, &grads)?;
                }
            }
            _ => {}
        }
        let mut loss = self.inner.forward_backward(batch, backward)?;
        match (self.fault, &self.adapters) {
            (Fault::TrainingLoss, _) => loss *= 1.0001,
            (Fault::Gradient(number), None) => {
                let list = ParamList::new(self.inner.config());
                self.enlarge_gradient(list.iter().nth(number))?;
            }
            (Fault::AdapterGradient(number), Some(lora)) => {
                let list = LoraList::new(self.inner.config(), lora).expect("an adapter");
                self.enlarge_gradient(list.iter().nth(number))?;
            }
            (Fault::MergedFrozen, None) if self.merged => self.clear_gradients()?,
            _ => {}
        }
        Ok(loss)
    }

    fn update(&mut self, adamw: &AdamW, muon: Option<&Muon>) -> Result<f32, Error> {
        let mut adamw = *adamw;
        let mut grads = self.inner.read(Slot::Grads).into_owned();
        let total: f64 = grads.iter().map(|&grad| f64::from(grad).powi(2)).sum();
        let norm = total.sqrt() as f32;
        match self.fault {
            // βᵗ vanishes.
            Fault::NoBiasCorrection => adamw.step = u64::MAX,
            Fault::NoClipping => adamw.grad_clip = 0.0,
            Fault::ClippedUpwards if adamw.grad_clip > norm => {
                grads.iter_mut().for_each(|grad| *grad *= adamw.grad_clip / norm);
                self.inner.write(Slot::Grads, &grads)?;
            }
            Fault::NoDecay => adamw.weight_decay = 0.0,
            Fault::AdaptersNoDecay if self.adapters.is_some() => adamw.weight_decay = 0.0,
            Fault::MomentForgotten => self.inner.write(Slot::ExpAvg, &vec![0.0; grads.len()])?,
            Fault::InfiniteApplied => {
                let finite: Vec<f32> = grads.iter().map(|&grad| if grad.is_finite() { grad } else { 0.0 }).collect();
                self.inner.write(Slot::Grads, &finite)?;
            }
            // One that is skipped would bring it up to date.
            Fault::StaleAfterUpdate if self.adapters.is_none() && norm.is_finite() => self.keep_stale()?,
            Fault::StaleAdapters if self.adapters.is_some() => self.keep_stale()?,
            _ => {}
        }
        let muon = muon.filter(|_| self.fault != Fault::MuonIgnored);
        self.inner.update(&adamw, muon)?;
        match self.fault {
            Fault::BiasesDecay => {
                let mut params = self.inner.read(Slot::Params).into_owned();
                let kept = 1.0 - adamw.lr * adamw.weight_decay;
                for param in ParamList::new(self.inner.config()).iter().filter(|param| !param.decays()) {
                    params[param.range()].iter_mut().for_each(|param| *param *= kept);
                }
                self.inner.write(Slot::Params, &params)?;
            }
            Fault::InfiniteKept if !norm.is_finite() => self.inner.write(Slot::Grads, &grads)?,
            Fault::GradientsKept => self.inner.write(Slot::Grads, &grads)?,
            Fault::ClippedNorm if adamw.grad_clip > 0.0 => return Ok(norm.min(adamw.grad_clip)),
            _ => {}
        }
        Ok(norm)
    }

    fn set_share(&mut self, share: Range<usize>) -> Result<(), Error> {
        self.outside_share = (share.start > 0).then_some(0);
        self.inner.set_share(share)
    }

    fn grad_square_sum(&self) -> f64 {
        self.inner.grad_square_sum()
    }

    fn update_share(&mut self, adamw: &AdamW, muon: Option<&Muon>, grad_norm: f32) -> Result<(), Error> {
        self.inner.update_share(adamw, muon, grad_norm)?;
        if let (Fault::ShareIgnored, Some(outside)) = (self.fault, self.outside_share) {
            self.inner.values_mut(Slot::Params)?[outside] += 1.0;
        }
        Ok(())
    }

    fn values_mut(&mut self, slot: Slot) -> Result<&mut [f32], Error> {
        self.inner.values_mut(slot)
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        self.inner.read(slot)
    }

    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error> {
        match self.fault {
            Fault::WriteIgnored(ignored) if ignored == slot => return Ok(()),
            Fault::StaleAfterWrite if slot == Slot::Params => self.keep_stale()?,
            _ => {}
        }
        self.inner.write(slot, values)
    }

    fn merged(&self) -> Cow<'_, [f32]> {
        let merged = self.inner.merged();
        match self.fault {
            Fault::MergedUnscaled => Cow::Owned(self.unscaled(&merged)),
            _ => merged,
        }
    }

    fn adapt(&mut self, lora: &Lora, params: Vec<f32>) -> Result<(), Error> {
        if self.fault == Fault::Unsupported {
            return Err(Error::Unsupported("low-rank adapters"));
        }
        self.inner.adapt(lora, params)?;
        self.adapters = Some(lora.clone());
        Ok(())
    }

    fn merge(&mut self) {
        self.inner.merge();
        if self.fault == Fault::MergeUnscaled {
            let params = self.unscaled(&self.inner.read(Slot::Params));
            self.inner.write(Slot::Params, &params).expect("an array that is held");
        }
        self.merged |= self.adapters.take().is_some();
    }

    fn distiller(&mut self) -> Result<&mut dyn Distiller, Error> {
        if self.fault == Fault::Unsupported { Err(Error::Unsupported("distillation")) } else { Ok(self) }
    }
}
