//! [`CpuEngine`]: a model on the CPU with gradients and optimizer, which implements the engine traits.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;

use ngen3_engine::{
    AdamW, Backward, Batch, ComputeInfo, Decoder, DistillConfig, DistillLoss, Distiller, Dtype, Error, IGNORE, Model,
    Muon, Options, PASS_TOKENS, PassDropout, Quant, Slot, TeacherSource, Trainer,
};
use ngen3_model::{Config, Lora, ParamList, StoredWeight};

use super::decoder::CpuDecoder;
use super::precision::kernels;
use super::runner::Runner;
use super::stored::StoredWeights;
use super::teacher::CpuTeacher;
use crate::base::memory::Buffer;
use crate::gemm::Precision;
use crate::layers::lora::Adapters;
use crate::layers::loss::{self, Distill};
use crate::optimizer::{Moment, OptimizerState};

/// Trainable model on the CPU, with its gradients and optimizer state.
#[derive(Debug)]
pub struct CpuEngine {
    runner: Runner,
    quant: Quant,
    optimizer: OptimizerState,
    /// Buffers of the distillation loss.
    logits: Buffer,
}

impl CpuEngine {
    /// Creates an engine with these parameters, `[total]` in the order of [`ngen3_model::ParamList`].
    ///
    /// # Errors
    /// [`Error::Input`] if the shape is invalid, `params` has the wrong length, or the processor lacks the dtype;
    /// [`Error::Threads`] if the threads cannot be started.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        Ok(Self {
            runner: Runner::new(config, params, options)?,
            quant: options.quant,
            optimizer: OptimizerState::default(),
            logits: Buffer::default(),
        })
    }

    /// Creates an engine for generation that decodes with weights as a file stores them.
    ///
    /// # Errors
    /// As [`CpuEngine::new`] and [`StoredWeights::new`].
    pub(super) fn with_stored(
        config: Config,
        params: Vec<f32>,
        stored: Vec<Option<StoredWeight>>,
        options: Options,
    ) -> Result<Self, Error> {
        let mut engine = Self::new(config, params, options)?;
        let Runner { model, pool, .. } = &mut engine.runner;
        model.stored = Some(pool.install(|| StoredWeights::new(&model.config, &model.list, stored))?);
        Ok(engine)
    }
}

/// Checks that the batch has a gradient.
fn check_gradient(batch: &Batch) -> Result<(), Error> {
    if batch.sequences.iter().any(|sequence| sequence.continues) {
        return Err(Error::Input("sequences that continue another have no gradient".into()));
    }
    batch.check_targets()?;
    Ok(())
}

/// Checks the dropout of a training step.
fn drops(backward: &Backward) -> Result<PassDropout, Error> {
    let Backward { dropout, seed, .. } = *backward;
    if !(0.0..1.0).contains(&dropout) {
        return Err(Error::Input(format!("dropout is {dropout}: expected 0 ≤ dropout < 1")));
    }
    Ok(PassDropout { p: dropout, seed })
}

impl Model for CpuEngine {
    fn config(&self) -> &Config {
        &self.runner.model.config
    }

    fn info(&self) -> ComputeInfo {
        let precision = self.runner.model.precision;
        let dtype = match precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
        };
        ComputeInfo { threads: self.runner.pool.current_num_threads(), dtype, kernels: kernels(precision) }
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let mut losses = Vec::with_capacity(batch.targets.len());
        self.runner.plan(batch, PASS_TOKENS)?;
        self.runner.run(batch, |model, passes| model.losses(passes, |some| losses.extend_from_slice(some)))?;
        let mut found = losses.into_iter();
        let at = |&target: &u32| if target == IGNORE { 0.0 } else { found.next().unwrap_or_default() };
        Ok(batch.targets.iter().map(at).collect())
    }

    fn decoder_within(&self, sequences: usize, pages: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        if self.runner.model.adapters.is_some() {
            return Err(Error::Input("the model has adapters: merge them before decoding".into()));
        }
        Ok(Box::new(CpuDecoder::new(&self.runner.model, &self.runner.pool, self.quant, sequences, pages)?))
    }
}

impl Trainer for CpuEngine {
    fn forward_backward(&mut self, batch: &Batch, backward: Backward) -> Result<f32, Error> {
        self.runner.plan(batch, PASS_TOKENS)?;
        let drops = drops(&backward)?;
        check_gradient(batch)?;
        let Self { runner, optimizer, .. } = self;
        let grads = optimizer.batch_grads(runner.model.learned().1.len())?;
        let loss = runner.run_backward(batch, grads, backward.ready, |model, passes, grads| {
            model.forward_backward(passes, backward.weight, drops, grads)
        });
        loss.inspect_err(|_| optimizer.drop_batch())
    }

    fn set_share(&mut self, share: Range<usize>) -> Result<(), Error> {
        self.optimizer.set_share(share, self.runner.model.learned().1.len())
    }

    fn grad_square_sum(&self) -> f64 {
        self.runner.pool.install(|| self.optimizer.grad_square_sum())
    }

    fn update_share(&mut self, adamw: &AdamW, muon: Option<&Muon>, grad_norm: f32) -> Result<(), Error> {
        let Self { runner: Runner { model, pool, .. }, optimizer, .. } = self;
        let precision = model.precision;
        let (list, params) = model.learned_mut();
        optimizer.reserve_all(params.len())?;
        pool.install(|| optimizer.update(adamw, muon, precision, grad_norm, list.as_slice(), params));
        Ok(())
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        let Self { runner, optimizer, .. } = self;
        let params = runner.model.learned().1;
        match slot {
            Slot::Params => Cow::Borrowed(params),
            Slot::Grads if optimizer.grads().is_empty() => Cow::Owned(vec![0.0; params.len()]),
            Slot::Grads => Cow::Borrowed(optimizer.grads()),
            Slot::ExpAvg => optimizer.moment(Moment::First, params.len()),
            Slot::ExpAvgSq => optimizer.moment(Moment::Second, params.len()),
        }
    }

    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error> {
        let total = self.runner.model.learned().1.len();
        match slot {
            Slot::Params | Slot::Grads => {
                assert_eq!(values.len(), total, "number of trainable parameters");
                self.values_mut(slot)?.copy_from_slice(values);
                Ok(())
            }
            Slot::ExpAvg => self.optimizer.write_moment(Moment::First, values, total),
            Slot::ExpAvgSq => self.optimizer.write_moment(Moment::Second, values, total),
        }
    }

    fn values_mut(&mut self, slot: Slot) -> Result<&mut [f32], Error> {
        let params = self.runner.model.learned_mut().1;
        match slot {
            Slot::Params => Ok(params),
            Slot::Grads => self.optimizer.grads_mut(params.len()),
            Slot::ExpAvg | Slot::ExpAvgSq => Err(Error::Unsupported("changing moments in place")),
        }
    }

    fn merged(&self) -> Cow<'_, [f32]> {
        let Runner { model, pool, .. } = &self.runner;
        let Some(adapters) = &model.adapters else { return Cow::Borrowed(&model.params) };
        Cow::Owned(pool.install(|| {
            let mut params = model.all_params();
            adapters.merge_into(&ParamList::new(&model.config), &mut params);
            params
        }))
    }

    fn adapt(&mut self, lora: &Lora, params: Vec<f32>) -> Result<(), Error> {
        if self.runner.model.adapters.is_some() {
            return Err(Error::Input("the model already has adapters: merge them first".into()));
        }
        let Runner { model, pool, .. } = &mut self.runner;
        model.adapters = Some(Adapters::new(&model.config, lora, params)?);
        // Half the memory, and no step packs them again. Weights that bf16 does not hold exactly stay: they are needed to merge.
        if model.precision == Precision::Bf16 {
            pool.install(|| {
                if model.layers_exact_in_bf16() {
                    model.pack(Quant::None)?;
                    if model.embeddings_exact_in_bf16() {
                        model.freeze_embeddings()?;
                    }
                }
                Ok(())
            })?;
        }
        self.runner.arena.forget();
        self.optimizer = OptimizerState::default();
        Ok(())
    }

    fn merge(&mut self) {
        let Runner { model, pool, .. } = &mut self.runner;
        if let Some(adapters) = model.adapters.take() {
            pool.install(|| {
                model.unpack();
                adapters.merge_into(&model.list, &mut model.params);
            });
            self.optimizer = OptimizerState::default();
        }
    }

    fn distiller(&mut self) -> Result<&mut dyn Distiller, Error> {
        Ok(self)
    }
}

impl Distiller for CpuEngine {
    fn distill(
        &mut self,
        batch: &Batch,
        teacher: TeacherSource<'_>,
        distill: &DistillConfig,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error> {
        distill.validate()?;
        batch.check_targets()?;
        let config = &self.runner.model.config;
        let teacher = match teacher {
            TeacherSource::Teacher(teacher) => {
                let teacher: &mut dyn Any = teacher;
                let teacher = teacher.downcast_mut::<CpuTeacher>();
                let teacher =
                    teacher.ok_or_else(|| Error::Input("the teacher is on another device: expected cpu".into()))?;
                teacher.output(batch, config.vocab_size)?
            }
            TeacherSource::TopK(top_k) => {
                top_k.check(distill.divergence, batch, config)?;
                loss::Teacher::TopK { k: top_k.k, ids: &top_k.ids, log_probs: &top_k.log_probs }
            }
        };
        self.distill_from(batch, teacher, distill, backward)
    }
}

impl CpuEngine {
    /// Runs a distillation step on a teacher's output for the batch.
    pub(super) fn distill_from(
        &mut self,
        batch: &Batch,
        teacher: loss::Teacher<'_>,
        distill: &DistillConfig,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error> {
        self.runner.plan(batch, PASS_TOKENS)?;
        distill.validate()?;
        batch.check_targets()?;
        let drops = backward.as_ref().map(drops).transpose()?;
        let DistillConfig { temperature, alpha, divergence } = *distill;
        let distill = Distill { teacher, temperature, alpha, divergence };
        let Self { runner, optimizer, logits, .. } = self;
        runner.pool.install(|| runner.model.thaw_embeddings());
        let Some((backward, drops)) = backward.zip(drops) else {
            return runner.run(batch, |model, passes| model.distill(passes, &distill, None, logits));
        };
        check_gradient(batch)?;
        let grads = optimizer.batch_grads(runner.model.learned().1.len())?;
        let loss = runner.run_backward(batch, grads, backward.ready, |model, passes, grads| {
            model.distill(passes, &distill, Some((backward.weight, drops, grads)), logits)
        });
        loss.inspect_err(|_| optimizer.drop_batch())
    }
}
