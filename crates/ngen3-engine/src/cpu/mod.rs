//! The engine on the CPU: one file for each layer with its forward beside its backward, and [`CpuEngine`], which walks
//! through them.
//!
//! Read `model.rs` for the order of things, `arena.rs` for where activations live, then whichever layer you like.

mod adamw;
mod arena;
mod attention;
mod decode;
mod dropout;
mod embedding;
mod gelu;
mod layernorm;
mod linear;
mod loss;
mod model;
mod simd;
#[cfg(test)]
pub(crate) mod testing;

use std::borrow::Cow;

use ngen3_model::{Config, ParamList};
use rayon::ThreadPool;

use crate::{AdamW, Batch, Decoder, Engine, Error, Slot};
use arena::Arena;

/// The numbers that products are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// The fastest that this processor has.
    #[default]
    Auto,
    /// Exact, on every processor.
    F32,
}

/// How a [`CpuEngine`] runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Threads that compute; 0 is one for each core.
    pub threads: usize,
    /// The numbers that products are made of.
    pub dtype: Dtype,
}

/// A model, its gradients and its optimizer on the CPU.
#[derive(Debug)]
pub struct CpuEngine {
    config: Config,
    list: ParamList,
    pool: ThreadPool,
    /// `[total]`, as are the three below; those are empty until training needs them.
    params: Vec<f32>,
    grads: Vec<f32>,
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
    arena: Arena,
}

impl CpuEngine {
    /// An engine over these parameters, `[total]` in the order of [`ParamList`].
    ///
    /// # Errors
    /// [`Error::Input`] when the shape is invalid or `params` has another length, [`Error::Threads`] when the threads cannot
    /// be started.
    pub fn new(config: Config, params: Vec<f32>, options: Options) -> Result<Self, Error> {
        config.validate().map_err(|e| Error::Input(e.to_string()))?;
        let list = ParamList::new(&config);
        if params.len() != list.total() {
            return Err(Error::Input(format!("{} parameters for a model of {}", params.len(), list.total())));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads)
            .thread_name(|i| format!("ngen3-{i}"))
            .build()
            .map_err(|e| Error::Threads(e.to_string()))?;
        Ok(Self {
            config,
            list,
            pool,
            params,
            grads: Vec::new(),
            exp_avg: Vec::new(),
            exp_avg_sq: Vec::new(),
            arena: Arena::default(),
        })
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn slot_mut(&mut self, slot: Slot) -> &mut Vec<f32> {
        match slot {
            Slot::Params => &mut self.params,
            Slot::Grads => &mut self.grads,
            Slot::ExpAvg => &mut self.exp_avg,
            Slot::ExpAvgSq => &mut self.exp_avg_sq,
        }
    }

    /// Makes sure that a slot holds `[total]` numbers, zeros at first.
    fn fill_slot(&mut self, slot: Slot) -> Result<(), Error> {
        let total = self.list.total();
        let values = self.slot_mut(slot);
        if values.is_empty() {
            *values = zeros(total, "a copy of the parameters")?;
        }
        Ok(())
    }
}

/// `[n]` zeros, or an error where memory does not reach.
fn zeros(n: usize, what: &'static str) -> Result<Vec<f32>, Error> {
    let mut values = Vec::new();
    values.try_reserve_exact(n).map_err(|_| Error::Memory { what, bytes: n.saturating_mul(4) })?;
    values.resize(n, 0.0);
    Ok(values)
}

impl Engine for CpuEngine {
    fn config(&self) -> &Config {
        &self.config
    }

    fn loss(&mut self, batch: &Batch) -> Result<f32, Error> {
        batch.check(&self.config)?;
        self.arena.reserve(&self.config, batch, self.pool.current_num_threads())?;
        let model = model::Model { config: &self.config, list: &self.list, params: &self.params };
        Ok(self.pool.install(|| model.loss(batch, &mut self.arena)))
    }

    fn forward_backward(&mut self, batch: &Batch, weight: f32, dropout: f32, seed: u64) -> Result<f32, Error> {
        batch.check(&self.config)?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::Input(format!("dropout is {dropout}; it must be at least 0 and below 1")));
        }
        self.arena.reserve(&self.config, batch, self.pool.current_num_threads())?;
        self.fill_slot(Slot::Grads)?;
        let model = model::Model { config: &self.config, list: &self.list, params: &self.params };
        let drops = model::Drops { p: dropout, seed };
        Ok(self.pool.install(|| model.forward_backward(batch, weight, drops, &mut self.arena, &mut self.grads)))
    }

    fn update(&mut self, adamw: &AdamW) -> Result<f32, Error> {
        for slot in [Slot::Grads, Slot::ExpAvg, Slot::ExpAvgSq] {
            self.fill_slot(slot)?;
        }
        let Self { list, pool, params, grads, exp_avg, exp_avg_sq, .. } = self;
        Ok(pool.install(|| {
            let norm = adamw::grad_norm(grads);
            if !norm.is_finite() {
                grads.fill(0.0);
                return norm;
            }
            // As torch.nn.utils.clip_grad_norm_ has it.
            let clip = if adamw.grad_clip > 0.0 { (adamw.grad_clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
            for param in list.iter() {
                let range = param.range();
                adamw::update(
                    adamw,
                    param.decays(),
                    clip,
                    &mut params[range.clone()],
                    &mut grads[range.clone()],
                    &mut exp_avg[range.clone()],
                    &mut exp_avg_sq[range],
                );
            }
            norm
        }))
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        let values = match slot {
            Slot::Params => &self.params,
            Slot::Grads => &self.grads,
            Slot::ExpAvg => &self.exp_avg,
            Slot::ExpAvgSq => &self.exp_avg_sq,
        };
        if values.is_empty() { Cow::Owned(vec![0.0; self.list.total()]) } else { Cow::Borrowed(values) }
    }

    fn write(&mut self, slot: Slot, values: &[f32]) {
        assert_eq!(values.len(), self.list.total(), "a flat array of every parameter");
        let target = self.slot_mut(slot);
        target.clear();
        target.extend_from_slice(values);
    }

    fn decoder(&self, rows: usize) -> Result<Box<dyn Decoder + '_>, Error> {
        let model = model::Model { config: &self.config, list: &self.list, params: &self.params };
        Ok(Box::new(decode::CpuDecoder::new(model, &self.pool, rows)?))
    }
}
