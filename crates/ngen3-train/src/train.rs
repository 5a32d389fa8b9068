//! The training loop: one straight page, as in nanoGPT's `train.py`.
//!
//! A step is: learn from the next micro-batches, which adds up their gradients, clip, update. Now and then it is logged,
//! the model is evaluated on what is held out, and everything is saved. What a step does follows from the settings, the
//! lesson and its number alone, so a run that stops after any step and goes on from its state is the run that never
//! stopped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ngen3_engine::{Backward, Trainer, splitmix};

use crate::objective::{Evaluation, Micro, Objective};
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
/// first, and an evaluation is left for the run that goes on.
///
/// # Errors
/// [`Error::Diverged`] when a loss or a gradient is no longer a number: the last checkpoint before it is kept. Otherwise
/// what a file, the lesson or the engine could not do; the last checkpoint is whole then too.
pub fn train(
    job: &Job,
    lesson: &mut dyn Objective,
    engine: &mut dyn Trainer,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome, Error> {
    let settings = &job.settings;
    let (reached, saved, clock, pace) = (job.reached.clone(), None, Instant::now(), Pace::default());
    let mut run = Run { job, lesson, engine, progress, stop, reached, saved, clock, pace };
    let mut log;

    if job.reached.step == 0 {
        // Saved before the first step, so that a full disk is noticed now, and so that a run which diverges leaves the
        // model that it started from. A run that was stopped here begins anew.
        run.reached = Reached { elapsed_s: job.reached.elapsed_s, ..Reached::default() };
        let evaluation = if settings.max_iters == 0 { Evaluation::NothingHeldOut } else { run.evaluate()? };
        run.save(evaluation)?;
        if job.adapting.is_none() {
            job.paths.remove_adapters()?;
        }
        log = RunLog::open(&job.paths.run, 0)?;
        match evaluation {
            Evaluation::Loss(loss) => {
                log.write(Line { step: 0, train: None, elapsed_s: run.elapsed_s(), val_loss: Some(loss) })?;
            }
            Evaluation::NothingHeldOut => {}
            Evaluation::Stopped => {
                log.sync()?;
                return Ok(Outcome::Interrupted(0));
            }
        }
        log.sync()?;
    } else {
        run.saved = Some(job.reached.step);
        match run.reached.unevaluated.take() {
            None => log = RunLog::open(&job.paths.run, job.reached.step + 1)?,
            Some(train) => {
                log = RunLog::open(&job.paths.run, job.reached.step)?;
                if !run.follow(train, true, &mut log)? {
                    return Ok(Outcome::Interrupted(job.reached.step));
                }
            }
        }
    }

    let loop_clock = Instant::now();
    while run.reached.step < settings.max_iters {
        let before = run.reached.step;
        if run.reached.is_stale(settings.patience) {
            run.save_if_needed(&mut log)?;
            return Ok(Outcome::Stale(before));
        }
        if stop.load(Ordering::Relaxed) {
            run.save_if_needed(&mut log)?;
            return Ok(Outcome::Interrupted(before));
        }

        let started = Instant::now();
        let lr = settings.lr_at(before);
        let counted: Vec<u64> =
            (0..settings.gradient_accumulation).map(|i| run.lesson.num_target_tokens(before, i)).collect();
        let all: u64 = counted.iter().sum();
        let (mut loss, mut parts) = (0.0, Vec::new());
        for (index, counted) in (0..).zip(counted) {
            let weight = (counted as f64 / all as f64) as f32;
            let seed = dropout_seed(settings.seed, before, index);
            let backward = Backward { weight, dropout: settings.dropout, seed };
            let learned = run.lesson.training_step(run.engine, &Micro { step: before, index, backward })?;
            loss += weight * learned.loss;
            run.pace.tokens += learned.tokens;
            add(&mut parts, weight, learned.parts);
        }
        run.check("loss", loss, before + 1)?;
        let grad_norm = run.engine.update(&settings.adamw(before + 1, lr))?;
        run.check("gradient norm", grad_norm, before + 1)?;
        run.reached.step += 1;
        let step = run.reached.step;
        run.pace.busy += started.elapsed();
        run.pace.steps += 1;

        let (ms_per_step, tokens_per_s) = run.pace.rates();
        run.progress.step(&StepReport {
            step,
            max_iters: settings.max_iters,
            loss,
            parts: &parts,
            lr,
            grad_norm,
            tokens_per_s,
            left: remaining(loop_clock.elapsed(), step - job.reached.step, settings.max_iters - step),
            logged: run.is_logged(),
        });
        let parts = parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let train = Train { train_loss: loss, parts, lr, grad_norm, ms_per_step, tokens_per_s };
        if !run.follow(train, false, &mut log)? {
            return Ok(Outcome::Interrupted(step));
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

/// Updates since the last logged one.
#[derive(Clone, Copy, Default)]
struct Pace {
    busy: Duration,
    steps: u32,
    tokens: u64,
}

impl Pace {
    /// Milliseconds of a step, tokens in a second.
    fn rates(&self) -> (f64, f64) {
        let busy = self.busy.as_secs_f64();
        (1e3 * (busy / f64::from(self.steps)), self.tokens as f64 / busy)
    }
}

/// A run under way.
struct Run<'a> {
    job: &'a Job,
    lesson: &'a mut dyn Objective,
    engine: &'a mut dyn Trainer,
    progress: &'a mut dyn Progress,
    stop: &'a AtomicBool,
    reached: Reached,
    /// The step of the state on the disk.
    saved: Option<u64>,
    clock: Instant,
    pace: Pace,
}

impl Run<'_> {
    /// Seconds of training since step 0.
    fn elapsed_s(&self) -> f64 {
        self.job.reached.elapsed_s + self.clock.elapsed().as_secs_f64()
    }

    fn is_last(&self) -> bool {
        self.reached.step == self.job.settings.max_iters
    }

    /// Whether the step has a line in the log, evaluated or not.
    fn is_logged(&self) -> bool {
        let step = self.reached.step;
        self.is_last() || step == 1 || step.is_multiple_of(self.job.settings.log_interval)
    }

    /// What comes after an update that measured `train`: the evaluation, the line of the log and the save, if they are due, as
    /// all are where the evaluation is `owed`. `false` if it was stopped: the state then says that it is to be made.
    fn follow(&mut self, train: Train, owed: bool, log: &mut RunLog) -> Result<bool, Error> {
        let step = self.reached.step;
        let due = |interval| step.is_multiple_of(interval) || owed;
        let mut evaluation = Evaluation::NothingHeldOut;
        if self.is_last() || due(self.job.settings.eval_interval) {
            evaluation = self.evaluate()?;
        }
        let val_loss = match evaluation {
            Evaluation::Loss(loss) => Some(loss),
            Evaluation::NothingHeldOut => None,
            Evaluation::Stopped => {
                self.reached.unevaluated = Some(train);
                log.sync()?;
                self.save(evaluation)?;
                return Ok(false);
            }
        };
        if self.is_logged() || val_loss.is_some() || owed {
            log.write(Line { step, train: Some(train), elapsed_s: self.elapsed_s(), val_loss })?;
            self.pace = Pace::default();
        }
        if self.is_last() || due(self.job.settings.save_interval) {
            log.sync()?;
            self.save(evaluation)?;
        }
        Ok(true)
    }

    /// Judges the model by what is held out. Keeps it if it is the best and the best is wanted.
    fn evaluate(&mut self) -> Result<Evaluation, Error> {
        let evaluation = self.lesson.evaluate(self.engine, self.stop)?;
        let Evaluation::Loss(loss) = evaluation else { return Ok(evaluation) };
        self.check("validation loss", loss, self.reached.step)?;
        let best = self.reached.evaluated(loss);
        if best && self.job.settings.keep_best {
            // Before the state says so: a run that is killed in between finds the same best again.
            self.job.save_model(self.engine, &self.reached)?;
        }
        self.progress.evaluated(self.reached.step, loss, best);
        Ok(evaluation)
    }

    /// Writes the state, then the model: a crash in between leaves a state that is ahead, and resuming it writes the
    /// model again. Weights are saved only if they give a loss that is a number, the evaluation's or one looked at here.
    fn save(&mut self, evaluation: Evaluation) -> Result<(), Error> {
        let job = self.job;
        let step = self.reached.step;
        if step > 0 && !matches!(evaluation, Evaluation::Loss(_)) {
            let loss = self.lesson.probe(self.engine)?;
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
        let mut saved = state::save(&job.paths.state, &header, self.engine);
        if saved.is_ok() {
            self.saved = Some(step);
            if !self.keeps_best() {
                saved = job.save_model(self.engine, &self.reached);
            }
        }
        saved.map_err(|what| match self.saved {
            Some(step) => Error::Save { what: what.into(), step },
            None => what,
        })
    }

    /// Saves a run that ends between its saves.
    fn save_if_needed(&mut self, log: &mut RunLog) -> Result<(), Error> {
        if self.saved == Some(self.reached.step) {
            return Ok(());
        }
        log.sync()?;
        self.save(Evaluation::NothingHeldOut)
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
