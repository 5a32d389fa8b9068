//! A tiny model and device, for the tests of the loop.

use std::borrow::Cow;
use std::ops::Range;

use ngen3_engine::{
    AdamW, Backward, Batch, Device, Error, Model, Muon, Options, Slot, Teacher, TopK, Trainer, Workload,
};
use ngen3_model::{Config, ParamList, Recipe};

use crate::{Overrides, TrainSettings};

/// Settings of a run of `max_iters` steps with frequent logging and evaluation.
pub fn settings(max_iters: u64) -> TrainSettings {
    let asked = Overrides {
        max_iters: Some(max_iters),
        log_interval: Some(1),
        eval_interval: Some(4),
        eval_iters: Some(2),
        batch_size: Some(2),
        learning_rate: Some(0.1),
        dropout: Some(0.25),
        val_fraction: Some(0.2),
        ..Overrides::default()
    };
    TrainSettings::settle(
        asked,
        &Recipe { batch_size: 1, learning_rate: 1.0, max_iters: 1 },
        &Config::new(1, 1, 4, 4, 5),
    )
    .expect("a valid run")
}

/// Unigram model: the first `vocab_size` parameters are the logits.
pub struct FakeEngine {
    config: Config,
    arrays: [Vec<f32>; 4],
    /// Weight and dropout seed of each backward pass.
    pub calls: Vec<(f32, u64)>,
    /// Update at which the weights become NaN, to simulate a diverged run.
    pub breaks_at: Option<u64>,
    share: Range<usize>,
}

fn index(slot: Slot) -> usize {
    match slot {
        Slot::Params => 0,
        Slot::Grads => 1,
        Slot::ExpAvg => 2,
        Slot::ExpAvgSq => 3,
    }
}

impl FakeEngine {
    /// Creates a model of this shape with random weights.
    pub fn new(config: Config, seed: u64) -> Self {
        let params = ParamList::new(&config).init(seed);
        let zeros = vec![0.0; params.len()];
        let share = 0..params.len();
        let arrays = [params, zeros.clone(), zeros.clone(), zeros];
        Self { config, arrays, calls: Vec::new(), breaks_at: None, share }
    }

    fn probabilities(&self) -> Vec<f32> {
        let exp: Vec<f32> = self.arrays[0][..self.config.vocab_size].iter().map(|logit| logit.exp()).collect();
        let sum: f32 = exp.iter().sum();
        exp.iter().map(|e| e / sum).collect()
    }
}

/// Device of fake models, which report no memory.
pub struct FakeDevice;

impl Device for FakeDevice {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn open(&self, config: Config, params: Vec<f32>, _: Options) -> Result<Box<dyn Trainer>, Error> {
        let mut engine = FakeEngine::new(config, 0);
        engine.write(Slot::Params, &params)?;
        Ok(Box::new(engine))
    }

    fn memory(&self, _: &Config, _: Workload<'_>, _: Options) -> Result<u64, Error> {
        Ok(0)
    }
}

impl Model for FakeEngine {
    fn config(&self) -> &Config {
        &self.config
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f32>, Error> {
        let p = self.probabilities();
        let loss = |&target: &u32| match p.get(target as usize) {
            Some(p) => Ok(-p.ln()),
            None => Err(Error::Input(format!("token {target}"))),
        };
        batch.targets.iter().map(loss).collect()
    }
}

impl Trainer for FakeEngine {
    fn forward_backward(&mut self, batch: &Batch, backward: Backward) -> Result<f32, Error> {
        let Backward { weight, dropout, seed, .. } = backward;
        let loss = self.loss(batch)?;
        self.calls.push((weight, seed));
        let p = self.probabilities();
        // The dropout seed changes the gradient, so a wrong seed changes the run.
        let kept = 1.0 - dropout * (seed % 1_000) as f32 / 1_000.0;
        let count = batch.targets.len() as f32;
        for (token, p) in p.iter().enumerate() {
            let share = batch.targets.iter().filter(|&&target| target as usize == token).count() as f32 / count;
            self.arrays[1][token] += weight * kept * (p - share);
        }
        Ok(loss)
    }

    fn set_share(&mut self, share: Range<usize>) -> Result<(), Error> {
        self.arrays[2] = vec![0.0; share.len()];
        self.arrays[3] = vec![0.0; share.len()];
        self.share = share;
        Ok(())
    }

    fn grad_square_sum(&self) -> f64 {
        self.arrays[1][self.share.clone()].iter().map(|&g| f64::from(g * g)).sum()
    }

    fn update_share(&mut self, adamw: &AdamW, _: Option<&Muon>, norm: f32) -> Result<(), Error> {
        let [params, grads, exp_avg, exp_avg_sq] = &mut self.arrays;
        let scale = if adamw.grad_clip > 0.0 && norm > adamw.grad_clip { adamw.grad_clip / norm } else { 1.0 };
        let correction = |beta: f32| 1.0 - beta.powi(adamw.step as i32);
        for ((i, m), v) in self.share.clone().zip(exp_avg).zip(exp_avg_sq) {
            let g = grads[i] * scale;
            *m = adamw.beta1 * *m + (1.0 - adamw.beta1) * g;
            *v = adamw.beta2 * *v + (1.0 - adamw.beta2) * g * g;
            let root = (*v / correction(adamw.beta2)).sqrt() + adamw.eps;
            params[i] -= adamw.lr * (*m / correction(adamw.beta1) / root + adamw.weight_decay * params[i]);
        }
        grads.fill(0.0);
        if self.breaks_at == Some(adamw.step) {
            params.fill(f32::NAN);
        }
        Ok(())
    }

    fn values_mut(&mut self, slot: Slot) -> Result<&mut [f32], Error> {
        Ok(&mut self.arrays[index(slot)])
    }

    fn read(&self, slot: Slot) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.arrays[index(slot)])
    }

    fn write(&mut self, slot: Slot, values: &[f32]) -> Result<(), Error> {
        self.arrays[index(slot)].copy_from_slice(values);
        Ok(())
    }
}

impl Teacher for FakeEngine {
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error> {
        let exp: Vec<f32> = self.probabilities().iter().map(|p| p.powf(1.0 / temperature)).collect();
        let sum: f32 = exp.iter().sum();
        // All positions have the same probabilities, but ids that depend on the input, so that mixed-up positions are noticed.
        let vocab = self.config.vocab_size as u32;
        let ids: Vec<u32> =
            batch.inputs.iter().flat_map(|&input| (0..k as u32).map(move |i| (input + i) % vocab)).collect();
        let log_probs = ids.iter().map(|&id| (exp[id as usize] / sum).ln()).collect();
        Ok(TopK { k, ids, log_probs })
    }
}
