//! The training loop: one straight page, as in nanoGPT's `train.py`.
//!
//! A step is: take the next batches, add up their gradients, clip, update. Now and then it is logged, the model is
//! evaluated on the validation tokens, and everything is saved. What a step does follows from the settings and its
//! number alone, so a run that stops after any step and goes on from its state is the run that never stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ngen3_engine::{Batch, Engine, Row, Slot};

use crate::run_log::{Line, RunLog, Train};
use crate::state::{self, Header};
use crate::{Error, Job};

/// Who watches a run: a terminal, or nobody.
pub trait Progress {
    /// A step is done.
    fn step(&mut self, report: &StepReport);
    /// The model was evaluated after `step` updates; `best` if no evaluation was better.
    fn evaluated(&mut self, step: u64, val_loss: f32, best: bool);
}

/// What there is to say about a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Updates done.
    pub step: u64,
    /// Updates of the whole run.
    pub max_iters: u64,
    /// Loss of the step's batch, in nats per token.
    pub loss: f32,
    /// Learning rate of the step.
    pub lr: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Tokens trained on in a second, since the last logged step.
    pub tokens_per_s: f64,
    /// How long the rest will take at the pace so far.
    pub left: Duration,
    /// Whether the step has a line in metrics.jsonl.
    pub logged: bool,
}

/// How a run ended; all is saved either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It was asked to stop, after so many updates.
    Interrupted(u64),
}

/// Trains until the last step, or until `stop` is set: then the step that is under way is finished first.
///
/// # Errors
/// [`Error::Diverged`] when a loss or a gradient is no longer a number: the last checkpoint before it is kept. Otherwise
/// what a file or the engine could not do; the last checkpoint is whole then too.
pub fn pretrain(
    job: &Job,
    engine: &mut dyn Engine,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome, Error> {
    let settings = &job.settings;
    let tokens_per_step = settings.tokens_per_step(job.config.block_size);
    let clock = Instant::now();
    let elapsed_s = || job.elapsed_s + clock.elapsed().as_secs_f64();
    let mut step = job.step;
    let row = Row { len: job.config.block_size, continues: false };
    let mut run = Run {
        job,
        batch: Batch { rows: vec![row; settings.batch_size], ..Batch::default() },
        saved: None,
        best: job.best_val_loss,
    };
    let mut log;

    if step == 0 {
        // Saved before the first step, so that a full disk is noticed now, and so that a run which diverges leaves the
        // model that it started from.
        let val_loss = if settings.max_iters == 0 { None } else { run.evaluate(engine, 0, progress)? };
        run.save(engine, 0, elapsed_s(), val_loss)?;
        log = RunLog::open(&job.paths.run, 0)?;
        if val_loss.is_some() {
            log.write(Line { step: 0, train: None, elapsed_s: elapsed_s(), val_loss })?;
        }
        log.sync()?;
    } else {
        log = RunLog::open(&job.paths.run, step)?;
        run.saved = Some(step);
    }

    let loop_clock = Instant::now();
    // Time spent in steps, and their number, since the last logged one.
    let (mut busy, mut count) = (Duration::ZERO, 0u32);
    while step < settings.max_iters {
        if stop.load(Ordering::Relaxed) {
            if run.saved != Some(step) {
                log.sync()?;
                run.save(engine, step, elapsed_s(), None)?;
            }
            return Ok(Outcome::Interrupted(step));
        }

        let started = Instant::now();
        let lr = settings.lr_at(step);
        let weight = 1.0 / settings.gradient_accumulation as f32;
        let mut loss = 0.0;
        for micro in 0..settings.gradient_accumulation {
            job.sampler.train_batch(step, micro, &mut run.batch.inputs, &mut run.batch.targets);
            let seed = dropout_seed(settings.seed, step, micro);
            loss += weight * engine.forward_backward(&run.batch, weight, settings.dropout, seed)?;
        }
        run.check("loss", loss, step + 1)?;
        let grad_norm = engine.update(&settings.adamw(step + 1, lr))?;
        run.check("gradient norm", grad_norm, step + 1)?;
        step += 1;
        busy += started.elapsed();
        count += 1;

        let last = step == settings.max_iters;
        let logged = last || step == 1 || step.is_multiple_of(settings.log_interval);
        let s_per_step = busy.as_secs_f64() / f64::from(count);
        let tokens_per_s = tokens_per_step as f64 / s_per_step;
        progress.step(&StepReport {
            step,
            max_iters: settings.max_iters,
            loss,
            lr,
            grad_norm,
            tokens_per_s,
            left: remaining(loop_clock.elapsed(), step - job.step, settings.max_iters - step),
            logged,
        });

        let evaluates = last || step.is_multiple_of(settings.eval_interval);
        let val_loss = if evaluates { run.evaluate(engine, step, progress)? } else { None };
        if logged || val_loss.is_some() {
            let train = Train { train_loss: loss, lr, grad_norm, ms_per_step: 1e3 * s_per_step, tokens_per_s };
            log.write(Line { step, train: Some(train), elapsed_s: elapsed_s(), val_loss })?;
            (busy, count) = (Duration::ZERO, 0);
        }
        if last || step.is_multiple_of(settings.save_interval) {
            log.sync()?;
            run.save(engine, step, elapsed_s(), val_loss)?;
        }
    }
    Ok(Outcome::Finished)
}

/// How long `left` steps take if `done` took so long.
fn remaining(elapsed: Duration, done: u64, left: u64) -> Duration {
    Duration::try_from_secs_f64(elapsed.as_secs_f64() / done as f64 * left as f64).unwrap_or(Duration::MAX)
}

/// What evaluating and saving need besides the engine.
struct Run<'a> {
    job: &'a Job,
    batch: Batch,
    /// The step of the state on the disk.
    saved: Option<u64>,
    /// Lowest validation loss so far.
    best: Option<f32>,
}

impl Run<'_> {
    /// Mean loss over the validation batches, or `None` if there are no validation tokens.
    fn evaluate(
        &mut self,
        engine: &mut dyn Engine,
        step: u64,
        progress: &mut dyn Progress,
    ) -> Result<Option<f32>, Error> {
        if self.job.sampler.val_len() == 0 {
            return Ok(None);
        }
        let mut sum = 0.0;
        for index in 0..self.job.settings.eval_iters {
            self.job.sampler.val_batch(index, &mut self.batch.inputs, &mut self.batch.targets);
            sum += f64::from(engine.loss(&self.batch)?);
        }
        let loss = (sum / self.job.settings.eval_iters as f64) as f32;
        self.check("validation loss", loss, step)?;
        let best = self.best.is_none_or(|best| loss < best);
        if best {
            self.best = Some(loss);
        }
        progress.evaluated(step, loss, best);
        Ok(Some(loss))
    }

    /// Writes the state, then the model: a crash in between leaves a state that is ahead, and resuming it writes the
    /// model again. Weights are saved only if they give a loss that is a number, `val_loss` or one looked at here.
    fn save(&mut self, engine: &mut dyn Engine, step: u64, elapsed_s: f64, val_loss: Option<f32>) -> Result<(), Error> {
        let job = self.job;
        if step > 0 && val_loss.is_none() {
            if job.sampler.val_len() > 0 {
                job.sampler.val_batch(0, &mut self.batch.inputs, &mut self.batch.targets);
            }
            let loss = engine.loss(&self.batch)?;
            self.check("loss", loss, step)?;
        }
        let header = Header {
            config: job.config.clone(),
            settings: job.settings.clone(),
            step,
            best_val_loss: self.best,
            elapsed_s,
            data: job.data.clone(),
        };
        let saved = state::save(&job.paths.state, &header, engine)
            .and_then(|()| job.save_model(&engine.read(Slot::Params), step, self.best));
        match (saved, self.saved) {
            (Err(what), Some(step)) => Err(Error::Save { what: what.into(), step }),
            (saved, _) => {
                self.saved = Some(step);
                saved
            }
        }
    }

    /// Stops a run whose numbers are no longer numbers.
    fn check(&self, what: &'static str, value: f32, step: u64) -> Result<(), Error> {
        if value.is_finite() {
            return Ok(());
        }
        let kept = match self.saved {
            Some(saved) => format!("{} keeps the model of step {saved}", self.job.paths.model.display()),
            None => "nothing was saved".into(),
        };
        Err(Error::Diverged { what, value, step, lr: self.job.settings.lr_at(step.saturating_sub(1)), kept })
    }
}

/// Mixes the numbers so that no two micro-batches of a run share their masks (the finaliser of SplitMix64, Steele et
/// al. 2014).
fn dropout_seed(seed: u64, step: u64, micro: u64) -> u64 {
    [seed, step, micro].into_iter().fold(0, |hash: u64, n| {
        let mut z = (hash ^ n).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    })
}

#[cfg(test)]
mod tests;
