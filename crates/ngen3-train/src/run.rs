//! A run under way: what stands around the steps of the loop (`train.rs`), evaluations, the log and saves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ngen3_engine::Trainer;

use crate::objective::{Evaluation, Objective};
use crate::run_files::metrics::{MetricsLine, StepMetrics};
use crate::run_files::record::TrainProgress;
use crate::run_files::run_log::RunLog;
use crate::run_files::state;
use crate::{Error, Job};

/// Whoever watches a run: a terminal, or nobody.
pub trait Progress {
    /// A step is done.
    fn step(&mut self, report: &StepReport<'_>);
    /// The model was evaluated after `step` updates; `best` if no evaluation was better.
    fn evaluated(&mut self, step: u64, val_loss: f32, best: bool);
}

/// A step, for whoever watches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport<'a> {
    /// Updates done.
    pub step: u64,
    /// Updates of the whole run.
    pub max_iters: u64,
    /// Loss of the step's batch, in nats per token.
    pub loss: f32,
    /// The terms of the loss, if the objective tells them apart.
    pub parts: &'a [(&'static str, f32)],
    /// Learning rate of the step.
    pub lr: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Tokens trained on in a second, since the last logged step.
    pub tokens_per_s: f64,
    /// How long the rest will take at the pace so far.
    pub left: Duration,
    /// True if the step has a line in metrics.jsonl.
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

/// Updates since the last logged one.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pace {
    pub busy: Duration,
    pub steps: u32,
    pub tokens: u64,
}

impl Pace {
    /// Milliseconds of a step, tokens in a second.
    pub fn rates(&self) -> (f64, f64) {
        let busy = self.busy.as_secs_f64();
        (1e3 * (busy / f64::from(self.steps)), self.tokens as f64 / busy)
    }
}

/// A job with everything that it needs to run.
pub(crate) struct Run<'a> {
    pub job: &'a Job,
    pub objective: &'a mut dyn Objective,
    pub trainer: &'a mut dyn Trainer,
    pub watcher: &'a mut dyn Progress,
    stop: &'a AtomicBool,
    pub progress: TrainProgress,
    pub pace: Pace,
    /// The step of the state on the disk.
    saved: Option<u64>,
    clock: Instant,
}

impl<'a> Run<'a> {
    /// A run that stands where the job does.
    pub fn new(
        job: &'a Job,
        objective: &'a mut dyn Objective,
        trainer: &'a mut dyn Trainer,
        watcher: &'a mut dyn Progress,
        stop: &'a AtomicBool,
    ) -> Self {
        let (progress, clock) = (job.progress.clone(), Instant::now());
        Self { job, objective, trainer, watcher, stop, progress, pace: Pace::default(), saved: None, clock }
    }

    /// Does what comes before the next step. At step 0 the model is evaluated and saved, so that a full disk is noticed now, and so
    /// that a run which diverges leaves the model that it started from. A run that goes on makes the evaluation that it owes.
    /// Returns the log, and the outcome if the run ends here.
    pub fn prepare(&mut self) -> Result<(RunLog, Option<Outcome>), Error> {
        let (job, step) = (self.job, self.job.progress.step);
        if step > 0 {
            self.saved = Some(step);
            let owed = self.progress.unevaluated.take();
            let mut log = RunLog::open(&job.paths.run, if owed.is_some() { step } else { step + 1 })?;
            let outcome = match owed {
                Some(metrics) => self.after_step(metrics, true, &mut log)?,
                None => None,
            };
            return Ok((log, outcome));
        }
        // A run that was stopped here begins anew.
        self.progress = TrainProgress { elapsed_s: job.progress.elapsed_s, ..TrainProgress::default() };
        let evaluation = if job.settings.max_iters == 0 { Evaluation::NothingHeldOut } else { self.evaluate()? };
        self.save(evaluation)?;
        if job.adapters.is_none() {
            job.paths.remove_adapters()?;
        }
        let mut log = RunLog::open(&job.paths.run, 0)?;
        if let Evaluation::Loss(loss) = evaluation {
            let elapsed_s = self.elapsed_s();
            log.write(MetricsLine { step: 0, train: None, elapsed_s, val_loss: Some(loss) })?;
        }
        log.sync()?;
        Ok((log, (evaluation == Evaluation::Stopped).then_some(Outcome::Interrupted(0))))
    }

    /// How the run ends here, if patience is out or it is asked to stop; saved either way.
    pub fn ends_early(&mut self, log: &mut RunLog) -> Result<Option<Outcome>, Error> {
        let step = self.progress.step;
        let outcome = if self.progress.is_stale(self.job.settings.patience) {
            Outcome::Stale(step)
        } else if self.stop.load(Ordering::Relaxed) {
            Outcome::Interrupted(step)
        } else {
            return Ok(None);
        };
        if self.saved != Some(step) {
            log.sync()?;
            self.save(Evaluation::NothingHeldOut)?;
        }
        Ok(Some(outcome))
    }

    /// The evaluation, the line of the log and the save that follow an update, if they are due, as all are where the evaluation
    /// is `owed`. One that is stopped is recorded in the state, and ends the run.
    pub fn after_step(&mut self, metrics: StepMetrics, owed: bool, log: &mut RunLog) -> Result<Option<Outcome>, Error> {
        let step = self.progress.step;
        let due = |interval| step.is_multiple_of(interval) || owed;
        let mut evaluation = Evaluation::NothingHeldOut;
        if self.is_last() || due(self.job.settings.eval_interval) {
            evaluation = self.evaluate()?;
        }
        let val_loss = match evaluation {
            Evaluation::Loss(loss) => Some(loss),
            Evaluation::NothingHeldOut => None,
            Evaluation::Stopped => {
                self.progress.unevaluated = Some(metrics);
                log.sync()?;
                self.save(evaluation)?;
                return Ok(Some(Outcome::Interrupted(step)));
            }
        };
        if self.is_logged() || val_loss.is_some() || owed {
            let elapsed_s = self.elapsed_s();
            log.write(MetricsLine { step, train: Some(metrics), elapsed_s, val_loss })?;
            self.pace = Pace::default();
        }
        if self.is_last() || due(self.job.settings.save_interval) {
            log.sync()?;
            self.save(evaluation)?;
        }
        Ok(None)
    }

    /// Seconds of training since step 0.
    fn elapsed_s(&self) -> f64 {
        self.job.progress.elapsed_s + self.clock.elapsed().as_secs_f64()
    }

    fn is_last(&self) -> bool {
        self.progress.step == self.job.settings.max_iters
    }

    /// True if the step has a line in the log, evaluated or not.
    pub fn is_logged(&self) -> bool {
        let step = self.progress.step;
        self.is_last() || step == 1 || step.is_multiple_of(self.job.settings.log_interval)
    }

    /// Judges the model by what is held out. Keeps it if it is the best and the best is wanted.
    fn evaluate(&mut self) -> Result<Evaluation, Error> {
        let evaluation = self.objective.evaluate(self.trainer, self.stop)?;
        let Evaluation::Loss(loss) = evaluation else { return Ok(evaluation) };
        self.check("validation loss", loss, self.progress.step)?;
        let best = self.progress.evaluated(loss);
        if best && self.job.settings.keep_best {
            // Before the state says so: a run that is killed in between finds the same best again.
            self.job.save_model(self.trainer, &self.progress)?;
        }
        self.watcher.evaluated(self.progress.step, loss, best);
        Ok(evaluation)
    }

    /// Writes the state, then the model: a crash in between leaves a state that is ahead, and resuming it writes the
    /// model again. Weights are saved only if they give a loss that is a number, the evaluation's or one looked at here.
    fn save(&mut self, evaluation: Evaluation) -> Result<(), Error> {
        let (job, step) = (self.job, self.progress.step);
        if step > 0 && !matches!(evaluation, Evaluation::Loss(_)) {
            let loss = self.objective.probe(self.trainer)?;
            self.check("loss", loss, step)?;
        }
        self.progress.elapsed_s = self.elapsed_s();
        let mut saved = state::save(&job.paths.state, &job.record(&self.progress), self.trainer);
        if saved.is_ok() {
            self.saved = Some(step);
            if !self.keeps_best() {
                saved = job.save_model(self.trainer, &self.progress);
            }
        }
        saved.map_err(|what| match self.saved {
            Some(step) => Error::Save { what: what.into(), step },
            None => what,
        })
    }

    /// True if the model file holds the best, not the latest. With nothing held out there is no best.
    fn keeps_best(&self) -> bool {
        self.job.settings.keep_best && self.progress.best_val_loss.is_some()
    }

    /// Stops a run whose numbers are no longer numbers.
    pub fn check(&self, what: &'static str, value: f32, step: u64) -> Result<(), Error> {
        if value.is_finite() {
            return Ok(());
        }
        let kept = match if self.keeps_best() { Some(self.progress.best_step) } else { self.saved } {
            Some(saved) => format!("{} keeps the model of step {saved}", self.job.paths.model.display()),
            None => "nothing was saved".into(),
        };
        Err(Error::Diverged { what, value, step, lr: self.job.settings.lr_at(step.saturating_sub(1)), kept })
    }
}
