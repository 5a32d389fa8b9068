//! A model with its threads and working memory: the common base of [`super::CpuEngine`] and [`super::CpuTeacher`].

use std::sync::mpsc::channel;

use ngen3_engine::{Batch, Error, Options, Ready};
use ngen3_model::{Config, ParamList};
use rayon::ThreadPool;

use super::arena::{Arena, Checkpointing};
use super::batch_plan::BatchPlan;
use super::grads::Grads;
use super::model::Passes;
use super::precision::{checked_precision, pool};
use super::weights::Weights;
use crate::layers::rotary::Rotary;
use crate::optimizer::BatchGrads;

#[derive(Debug)]
pub struct Runner {
    pub model: Weights,
    pub pool: ThreadPool,
    pub arena: Arena,
    plan: BatchPlan,
}

impl Runner {
    /// Checks the shape and starts the threads. Rounds the weights in place if they are to be quantised.
    ///
    /// # Errors
    /// [`Error::Input`] if the shape is invalid, `params` has the wrong length, or the processor lacks the dtype;
    /// [`Error::Threads`] if the threads cannot be started.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        config.validate().map_err(|e| Error::Input(e.to_string()))?;
        let list = ParamList::new(&config);
        if params.len() != list.total() {
            return Err(Error::Input(format!("expected {} parameters, got {}", list.total(), params.len())));
        }
        let precision = checked_precision(options.dtype)?;
        let pool = pool(options.threads)?;
        let keep = Checkpointing::of(options);
        let rotary = config.rope.map(|rope| {
            let (frequencies, factor) = rope.frequencies(config.head_width());
            Rotary::new(frequencies, factor)
        });
        let (adapters, packed, frozen, stored) = (None, None, None, None);
        let mut model = Weights { config, list, precision, keep, params, adapters, packed, frozen, rotary, stored };
        pool.install(|| model.round(options.quant));
        Ok(Self { model, pool, arena: Arena::default(), plan: BatchPlan::default() })
    }

    /// Checks a batch and splits it into passes of up to `most` tokens.
    ///
    /// # Errors
    /// As [`Batch::check`].
    pub fn plan(&mut self, batch: &Batch, most: usize) -> Result<(), Error> {
        batch.check(&self.model.config)?;
        self.plan.make(batch, most);
        Ok(())
    }

    /// Runs `work` on the planned batch, on the compute threads.
    ///
    /// # Errors
    /// The errors of `work`.
    pub fn run<R: Send>(
        &mut self,
        batch: &Batch,
        work: impl FnOnce(&Weights, Passes<'_>) -> Result<R, Error> + Send,
    ) -> Result<R, Error> {
        let Self { model, pool, arena, plan } = self;
        let threads = pool.current_num_threads();
        pool.install(|| work(model, Passes { batch, plan, threads, arena }))
    }

    /// As [`Runner::run`], for work that adds to the step's gradients. Those that it finishes go to `ready` on this thread, while the
    /// compute threads go on.
    ///
    /// # Errors
    /// The errors of `work`.
    pub fn run_backward<R: Send>(
        &mut self,
        batch: &Batch,
        grads: BatchGrads<'_>,
        ready: Option<Ready<'_>>,
        work: impl FnOnce(&Weights, Passes<'_>, Grads<'_>) -> Result<R, Error> + Send,
    ) -> Result<R, Error> {
        let Some(Ready(receive)) = ready else {
            return self.run(batch, |model, passes| work(model, passes, Grads::new(grads, None)));
        };
        let Self { model, pool, arena, plan } = self;
        let passes = Passes { batch, plan, threads: pool.current_num_threads(), arena };
        let (sender, parts) = channel();
        let mut result = None;
        pool.in_place_scope(|scope| {
            scope.spawn(|_| result = Some(work(model, passes, Grads::new(grads, Some(sender)))));
            parts.into_iter().for_each(|(start, part)| receive(start, part));
        });
        result.expect("the work of a scope has ended")
    }
}
