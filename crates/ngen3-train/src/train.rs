//! The training loop: one straight page, as in nanoGPT's `train.py`.
//!
//! A step is: learn from the next micro-batches, which adds up their gradients, clip, update. Now and then it is logged,
//! the model is evaluated on what is held out, and everything is saved. What a step does follows from the settings, the
//! lesson and its number alone, so a run that stops after any step and goes on from its state is the run that never
//! stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ngen3_engine::{Backward, Engine, splitmix};

use crate::lesson::{Lesson, Micro};
use crate::run_log::{Line, RunLog, Train};
use crate::state::{self, Header, Reached};
use crate::{Error, Job};

/// Who watches a run: a terminal, or nobody.
pub trait Progress {
    /// A step is done.
    fn step(&mut self, report: &StepReport<'_>);
    /// The model was evaluated after `step` updates; `best` if no evaluation was better.
    fn evaluated(&mut self, step: u64, val_loss: f32, best: bool);
}

/// What there is to say about a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport<'a> {
    /// Updates done.
    pub step: u64,
    /// Updates of the whole run.
    pub max_iters: u64,
    /// Loss of the step's batch, in nats per token.
    pub loss: f32,
    /// What the loss is made of, if the lesson tells it apart.
    pub parts: &'a [(&'static str, f32)],
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
    /// The last evaluations, as many as the patience, brought nothing: it stopped after so many updates.
    Stale(u64),
    /// It was asked to stop, after so many updates.
    Interrupted(u64),
}

/// Trains until the last step, until patience is out, or until `stop` is set: then the step that is under way is finished
/// first.
///
/// # Errors
/// [`Error::Diverged`] when a loss or a gradient is no longer a number: the last checkpoint before it is kept. Otherwise
/// what a file, the lesson or the engine could not do; the last checkpoint is whole then too.
pub fn train(
    job: &Job,
    lesson: &mut dyn Lesson,
    engine: &mut dyn Engine,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome, Error> {
    let settings = &job.settings;
    let mut run = Run { job, reached: job.reached.clone(), saved: None, clock: Instant::now() };
    let mut log;

    if job.reached.step == 0 {
        // Saved before the first step, so that a full disk is noticed now, and so that a run which diverges leaves the
        // model that it started from. A run that was stopped here begins anew.
        run.reached = Reached { elapsed_s: job.reached.elapsed_s, ..Reached::default() };
        let val_loss = if settings.max_iters == 0 { None } else { run.evaluate(lesson, engine, progress)? };
        run.save(lesson, engine, val_loss)?;
        if job.adapting.is_none() {
            job.paths.remove_adapters()?;
        }
        log = RunLog::open(&job.paths.run, 0)?;
        if val_loss.is_some() {
            log.write(Line { step: 0, train: None, elapsed_s: run.elapsed_s(), val_loss })?;
        }
        log.sync()?;
    } else {
        log = RunLog::open(&job.paths.run, job.reached.step)?;
        run.saved = Some(job.reached.step);
    }

    let loop_clock = Instant::now();
    // Time spent in steps, their number and their tokens, since the last logged one.
    let (mut busy, mut count, mut tokens) = (Duration::ZERO, 0u32, 0u64);
    while run.reached.step < settings.max_iters {
        let before = run.reached.step;
        if run.reached.is_stale(settings.patience) {
            run.save_if_needed(lesson, engine, &mut log)?;
            return Ok(Outcome::Stale(before));
        }
        if stop.load(Ordering::Relaxed) {
            run.save_if_needed(lesson, engine, &mut log)?;
            return Ok(Outcome::Interrupted(before));
        }

        let started = Instant::now();
        let lr = settings.lr_at(before);
        let counted: Vec<u64> = (0..settings.gradient_accumulation).map(|i| lesson.counted(before, i)).collect();
        let all: u64 = counted.iter().sum();
        let (mut loss, mut parts) = (0.0, Vec::new());
        for (index, counted) in (0..).zip(counted) {
            let weight = (counted as f64 / all as f64) as f32;
            let seed = dropout_seed(settings.seed, before, index);
            let backward = Backward { weight, dropout: settings.dropout, seed };
            let learned = lesson.learn(engine, &Micro { step: before, index, backward })?;
            loss += weight * learned.loss;
            tokens += learned.tokens;
            add(&mut parts, weight, learned.parts);
        }
        run.check("loss", loss, before + 1)?;
        let grad_norm = engine.update(&settings.adamw(before + 1, lr))?;
        run.check("gradient norm", grad_norm, before + 1)?;
        run.reached.step += 1;
        let step = run.reached.step;
        busy += started.elapsed();
        count += 1;

        let last = step == settings.max_iters;
        let logged = last || step == 1 || step.is_multiple_of(settings.log_interval);
        let s_per_step = busy.as_secs_f64() / f64::from(count);
        let tokens_per_s = tokens as f64 / busy.as_secs_f64();
        progress.step(&StepReport {
            step,
            max_iters: settings.max_iters,
            loss,
            parts: &parts,
            lr,
            grad_norm,
            tokens_per_s,
            left: remaining(loop_clock.elapsed(), step - job.reached.step, settings.max_iters - step),
            logged,
        });

        let evaluates = last || step.is_multiple_of(settings.eval_interval);
        let val_loss = if evaluates { run.evaluate(lesson, engine, progress)? } else { None };
        if logged || val_loss.is_some() {
            let parts = parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let train = Train { train_loss: loss, parts, lr, grad_norm, ms_per_step: 1e3 * s_per_step, tokens_per_s };
            log.write(Line { step, train: Some(train), elapsed_s: run.elapsed_s(), val_loss })?;
            (busy, count, tokens) = (Duration::ZERO, 0, 0);
        }
        if last || step.is_multiple_of(settings.save_interval) {
            log.sync()?;
            run.save(lesson, engine, val_loss)?;
        }
    }
    Ok(Outcome::Finished)
}

/// Adds a micro-batch's parts to the step's.
fn add(sums: &mut Vec<(&'static str, f32)>, weight: f32, parts: Vec<(&'static str, f32)>) {
    if sums.is_empty() {
        *sums = parts.iter().map(|&(name, _)| (name, 0.0)).collect();
    }
    for ((_, sum), (_, value)) in sums.iter_mut().zip(parts) {
        *sum += weight * value;
    }
}

/// How long `left` steps take if `done` took so long.
fn remaining(elapsed: Duration, done: u64, left: u64) -> Duration {
    Duration::try_from_secs_f64(elapsed.as_secs_f64() / done as f64 * left as f64).unwrap_or(Duration::MAX)
}

/// A run under way.
struct Run<'a> {
    job: &'a Job,
    reached: Reached,
    /// The step of the state on the disk.
    saved: Option<u64>,
    clock: Instant,
}

impl Run<'_> {
    /// Seconds of training since step 0.
    fn elapsed_s(&self) -> f64 {
        self.job.reached.elapsed_s + self.clock.elapsed().as_secs_f64()
    }

    /// Mean loss on what is held out, or `None` if nothing is. Keeps the model if it is the best and the best is wanted.
    fn evaluate(
        &mut self,
        lesson: &mut dyn Lesson,
        engine: &mut dyn Engine,
        progress: &mut dyn Progress,
    ) -> Result<Option<f32>, Error> {
        let Some(loss) = lesson.evaluate(engine)? else { return Ok(None) };
        self.check("validation loss", loss, self.reached.step)?;
        let best = self.reached.evaluated(loss);
        if best && self.job.settings.keep_best {
            // Before the state says so: a run that is killed in between finds the same best again.
            self.job.save_model(engine, &self.reached)?;
        }
        progress.evaluated(self.reached.step, loss, best);
        Ok(Some(loss))
    }

    /// Writes the state, then the model: a crash in between leaves a state that is ahead, and resuming it writes the
    /// model again. Weights are saved only if they give a loss that is a number, `val_loss` or one looked at here.
    fn save(&mut self, lesson: &mut dyn Lesson, engine: &mut dyn Engine, val_loss: Option<f32>) -> Result<(), Error> {
        let job = self.job;
        let step = self.reached.step;
        if step > 0 && val_loss.is_none() {
            let loss = lesson.probe(engine)?;
            self.check("loss", loss, step)?;
        }
        self.reached.elapsed_s = self.elapsed_s();
        let header = Header {
            kind: job.kind,
            config: job.config.clone(),
            settings: job.settings.clone(),
            reached: self.reached.clone(),
            data: job.data.identity.clone(),
            lesson: job.lesson.clone(),
            adapting: job.adapting.clone(),
            chat: job.data.chat.clone(),
        };
        let mut saved = state::save(&job.paths.state, &header, engine);
        if saved.is_ok() {
            self.saved = Some(step);
            if !self.keeps_best() {
                saved = job.save_model(engine, &self.reached);
            }
        }
        saved.map_err(|what| match self.saved {
            Some(step) => Error::Save { what: what.into(), step },
            None => what,
        })
    }

    /// Saves a run that ends between its saves.
    fn save_if_needed(
        &mut self,
        lesson: &mut dyn Lesson,
        engine: &mut dyn Engine,
        log: &mut RunLog,
    ) -> Result<(), Error> {
        if self.saved == Some(self.reached.step) {
            return Ok(());
        }
        log.sync()?;
        self.save(lesson, engine, None)
    }

    /// Whether the model file holds the best, not the latest. With nothing held out there is no best.
    fn keeps_best(&self) -> bool {
        self.job.settings.keep_best && self.reached.best_val_loss.is_some()
    }

    /// Stops a run whose numbers are no longer numbers.
    fn check(&self, what: &'static str, value: f32, step: u64) -> Result<(), Error> {
        if value.is_finite() {
            return Ok(());
        }
        let kept = match if self.keeps_best() { Some(self.reached.best_step) } else { self.saved } {
            Some(saved) => format!("{} keeps the model of step {saved}", self.job.paths.model.display()),
            None => "nothing was saved".into(),
        };
        Err(Error::Diverged { what, value, step, lr: self.job.settings.lr_at(step.saturating_sub(1)), kept })
    }
}

/// Mixes the numbers so that no two micro-batches of a run share their masks.
fn dropout_seed(seed: u64, step: u64, micro: u64) -> u64 {
    [seed, step, micro].into_iter().fold(0, |hash, n| splitmix(hash ^ n))
}

#[cfg(test)]
mod tests;
