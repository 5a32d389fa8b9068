//! A run in progress: evaluation, logging and saving around the steps of the loop (`train.rs`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ngen3_cluster::sums;
use ngen3_cluster::wire::Wire;
use ngen3_engine::{Model, Slot, Trainer};

use crate::objective::{Evaluation, Objective, ValLoss};
use crate::prepare::memory::resident_gib;
use crate::rounds::Rounds;
use crate::run_files::metrics::{MetricsLine, StepMetrics};
use crate::run_files::record::TrainProgress;
use crate::run_files::run_log::RunLog;
use crate::run_files::state;
use crate::{Error, Job, TrainSettings, ranks};

/// Receives the progress of a run, such as a progress line on a terminal.
pub trait Progress {
    /// Called after each step.
    fn step(&mut self, report: &StepReport<'_>);
    /// Called after an evaluation at `step`; `best` is true if its loss is the lowest so far.
    fn evaluated(&mut self, step: u64, val: ValLoss, best: bool);
    /// Returns a sample of the model's text, to be kept with the run's metrics. Called after an evaluation, except that of step 0, if
    /// [`TrainSettings::eval_sample`] is not 0.
    fn sample(&mut self, _model: &dyn Model) -> Option<String> {
        None
    }
}

/// Report of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport<'a> {
    /// Updates done.
    pub step: u64,
    /// Number of updates of the run.
    pub max_iters: u64,
    /// Loss of the step's batch, in nats per token.
    pub loss: f32,
    /// Terms of the loss, if the objective has several.
    pub parts: &'a [(&'static str, f32)],
    /// Learning rate.
    pub lr: f32,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Training tokens per second since the last logged step.
    pub tokens_per_s: f64,
    /// Estimated time left.
    pub left: Duration,
    /// `true` if the step has a line in metrics.jsonl.
    pub logged: bool,
}

/// How a run ended. Everything is saved in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// Stopped early after this many updates: `patience` evaluations without improvement.
    Stale(u64),
    /// Interrupted after this many updates.
    Interrupted(u64),
}

/// Time, steps and tokens since the last logged step.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pace {
    pub busy: Duration,
    pub steps: u32,
    pub tokens: u64,
}

impl Pace {
    /// Milliseconds per step, tokens per second.
    pub fn rates(&self) -> (f64, f64) {
        let busy = self.busy.as_secs_f64();
        (1e3 * (busy / f64::from(self.steps)), self.tokens as f64 / busy)
    }
}

/// A job with its objective, trainer and progress.
pub(crate) struct Run<'a> {
    pub job: &'a Job,
    pub objective: &'a mut dyn Objective,
    pub trainer: &'a mut dyn Trainer,
    pub watcher: &'a mut dyn Progress,
    stop: &'a AtomicBool,
    /// The job's settings; in a run of so many minutes `max_iters` is foreseen anew with each step.
    pub settings: TrainSettings,
    pub progress: TrainProgress,
    pub pace: Pace,
    /// Step of the state on disk.
    saved: Option<u64>,
    /// The next save writes the model before the state.
    model_first: bool,
    /// Seconds of the first evaluation and checkpoint, before the first step.
    before_steps_s: f64,
    clock: Instant,
    /// Way of what the ranks add up.
    pub wire: Wire,
    /// Rounds, if ranks exchange what they learned every few steps only.
    rounds: Option<Rounds>,
}

impl<'a> Run<'a> {
    /// Creates a run at the job's progress.
    pub fn new(
        job: &'a Job,
        objective: &'a mut dyn Objective,
        trainer: &'a mut dyn Trainer,
        watcher: &'a mut dyn Progress,
        stop: &'a AtomicBool,
    ) -> Self {
        let (settings, progress, clock) = (job.settings.clone(), job.progress.clone(), Instant::now());
        let pace = Pace::default();
        let rounds = (settings.sync_every > 1)
            .then(|| Rounds::new(trainer.read(Slot::Params).into_owned(), job.outer_momentum.clone(), progress.step));
        let wire = ranks::wire(&*job.world, &job.shares, &settings);
        Self {
            job,
            objective,
            trainer,
            watcher,
            stop,
            settings,
            progress,
            pace,
            saved: None,
            model_first: false,
            before_steps_s: 0.0,
            clock,
            wire,
            rounds,
        }
    }

    /// Foresees the number of steps of a run of so many minutes: as many as fit at the pace since it was started or resumed,
    /// with an evaluation and a checkpoint at the end. A warm-up of the default length follows.
    pub fn plan(&mut self) {
        let (step, done) = (self.progress.step, self.progress.step - self.job.progress.step);
        if self.settings.minutes == 0.0 || done == 0 || !self.is_together() {
            return;
        }
        let left = 60.0 * self.settings.minutes - self.elapsed_s() - self.before_steps_s;
        let pace = (self.clock.elapsed().as_secs_f64() - self.before_steps_s) / done as f64;
        // The clock of rank 0 is that of all.
        let max_iters = sums::of_root(&*self.job.world, step + (left / pace).round().max(0.0) as u64);
        let TrainSettings { warmup_iters: asked, max_iters: before, .. } = self.job.settings;
        let follows = asked == TrainSettings::default_warmup(before);
        self.settings.max_iters = max_iters;
        self.settings.warmup_iters =
            if follows { TrainSettings::default_warmup(max_iters) } else { asked.min(max_iters) };
    }

    /// Prepares the first step. At step 0 the model is evaluated and saved, so that a full disk is noticed now, and a run that
    /// diverges still has its initial model. A resumed run does its pending evaluation. Returns the log, and the outcome if the
    /// run ends here.
    pub fn prepare(&mut self) -> Result<(RunLog, Option<Outcome>), Error> {
        let (job, step) = (self.job, self.job.progress.step);
        if step > 0 {
            self.saved = Some(step);
            let owed = self.progress.unevaluated.take();
            let mut log = self.open_log(if owed.is_some() { step } else { step + 1 })?;
            let outcome = match owed {
                Some(metrics) => self.after_step(metrics, true, &mut log)?,
                None => None,
            };
            return Ok((log, outcome));
        }
        // A run that was interrupted at step 0 starts again.
        self.progress = TrainProgress { elapsed_s: job.progress.elapsed_s, ..TrainProgress::default() };
        // The files of another run are replaced state first, so that its state never stands beside a model of this run.
        let replaces = sums::any(&*job.world, job.world.is_root() && job.paths.state.exists());
        if replaces {
            self.save_state()?;
        }
        // Otherwise a state stands beside a model at all times, since finetune resumes with both. A run that is killed between the two
        // starts again.
        self.model_first = !replaces;
        let evaluation = if self.settings.max_iters == 0 { Evaluation::NothingHeldOut } else { self.evaluate()? };
        self.save(evaluation)?;
        if job.adapters.is_none() && job.world.is_root() {
            job.paths.remove_adapters()?;
        }
        let mut log = self.open_log(0)?;
        if let Evaluation::Loss(ValLoss { nats, bits_per_byte: val_bpb }) = evaluation {
            let elapsed_s = self.elapsed_s();
            log.write(MetricsLine {
                step: 0,
                train: None,
                elapsed_s,
                val_loss: Some(nats),
                val_bpb,
                memory_gib: resident_gib(),
            })?;
        }
        log.sync()?;
        self.before_steps_s = self.clock.elapsed().as_secs_f64();
        Ok((log, (evaluation == Evaluation::Stopped).then_some(Outcome::Interrupted(0))))
    }

    /// Opens the log, on rank 0 only; see [`RunLog::open`].
    fn open_log(&self, from: u64) -> Result<RunLog, Error> {
        if self.job.world.is_root() { RunLog::open(&self.job.paths.run, from) } else { Ok(RunLog::elsewhere()) }
    }

    /// Ends a round of steps that this rank trained by itself, if it is over: also for an evaluation or a checkpoint, which are of the
    /// model that all ranks agree on.
    pub fn end_round(&mut self) -> Result<(), Error> {
        let (step, settings) = (self.progress.step, &self.settings);
        let due = [settings.sync_every, settings.eval_interval, settings.save_interval];
        if !self.is_last() && !due.iter().any(|&interval| step.is_multiple_of(interval)) {
            return Ok(());
        }
        let Self { job, trainer, settings, wire, rounds, .. } = self;
        let Some(rounds) = rounds else { return Ok(()) };
        rounds.agree(&*job.world, &job.shares, &mut **trainer, settings, wire, step)
    }

    /// Returns `true` if all ranks have the same parameters, and meet.
    pub fn is_together(&self) -> bool {
        self.rounds.as_ref().is_none_or(|rounds| rounds.agreed_at(self.progress.step))
    }

    /// Returns the outcome if the run stops early or is interrupted, after saving it.
    pub fn ends_early(&mut self, log: &mut RunLog) -> Result<Option<Outcome>, Error> {
        if !self.is_together() {
            return Ok(None);
        }
        let step = self.progress.step;
        let outcome = if self.progress.is_stale(self.settings.patience) {
            Outcome::Stale(step)
        } else if sums::any(&*self.job.world, self.stop.load(Ordering::Relaxed)) {
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

    /// Evaluates, logs and saves after an update, where due; all three if the evaluation is `owed`. An interrupted evaluation is
    /// recorded in the state, and ends the run.
    pub fn after_step(&mut self, metrics: StepMetrics, owed: bool, log: &mut RunLog) -> Result<Option<Outcome>, Error> {
        let step = self.progress.step;
        let due = |interval| step.is_multiple_of(interval) || owed;
        let mut evaluation = Evaluation::NothingHeldOut;
        let evaluates = self.is_last() || due(self.settings.eval_interval);
        if evaluates {
            evaluation = self.evaluate()?;
        }
        let (val_loss, val_bpb) = match evaluation {
            Evaluation::Loss(loss) => (Some(loss.nats), loss.bits_per_byte),
            Evaluation::NothingHeldOut => (None, None),
            Evaluation::Stopped => {
                self.progress.unevaluated = Some(metrics);
                log.sync()?;
                self.save(evaluation)?;
                return Ok(Some(Outcome::Interrupted(step)));
            }
        };
        if self.is_logged() || val_loss.is_some() || owed {
            let elapsed_s = self.elapsed_s();
            log.write(MetricsLine {
                step,
                train: Some(metrics),
                elapsed_s,
                val_loss,
                val_bpb,
                memory_gib: resident_gib(),
            })?;
            self.pace = Pace::default();
        }
        if evaluates && self.settings.eval_sample > 0 && self.job.world.is_root() {
            let text = self.watcher.sample(&*self.trainer);
            text.map_or(Ok(()), |text| log.sample(step, text))?;
        }
        if self.is_last() || due(self.settings.save_interval) {
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
        self.progress.step == self.settings.max_iters
    }

    /// Returns `true` if the step has a line in the log even without an evaluation.
    pub fn is_logged(&self) -> bool {
        let step = self.progress.step;
        self.is_last() || step == 1 || step.is_multiple_of(self.settings.log_interval)
    }

    /// Evaluates the model. Saves it if it is the best and `keep_best` is set.
    fn evaluate(&mut self) -> Result<Evaluation, Error> {
        let evaluation = self.objective.evaluate(self.trainer, &*self.job.world, self.stop)?;
        let Evaluation::Loss(loss) = evaluation else { return Ok(evaluation) };
        self.check("validation loss", loss.nats, self.progress.step)?;
        let best = self.progress.evaluated(loss);
        if best && self.settings.keep_best {
            // Before the state records it: a run killed in between finds the same best again.
            self.job.save_model(self.trainer, &self.settings, &self.progress)?;
        }
        self.watcher.evaluated(self.progress.step, loss, best);
        Ok(evaluation)
    }

    /// Writes the state, then the model: after a crash in between the state is newer, and resuming rewrites the model. The first save
    /// of a new run is the other way round.
    /// Weights are saved only if their loss is finite: the evaluation's, or that of one batch.
    fn save(&mut self, evaluation: Evaluation) -> Result<(), Error> {
        let (job, step) = (self.job, self.progress.step);
        if step > 0 && !matches!(evaluation, Evaluation::Loss(_)) {
            let loss = self.objective.probe(self.trainer)?;
            self.check("loss", loss, step)?;
        }
        let model_first = std::mem::take(&mut self.model_first);
        let save_model = |run: &Self| match run.keeps_best() {
            false => job.save_model(run.trainer, &run.settings, &run.progress),
            true => Ok(()),
        };
        let mut saved = if model_first { save_model(self) } else { Ok(()) };
        if saved.is_ok() {
            saved = self.save_state();
        }
        if saved.is_ok() {
            self.saved = Some(step);
            if !model_first {
                saved = save_model(self);
            }
        }
        saved.map_err(|what| match self.saved {
            Some(step) => Error::Save { what: what.into(), step },
            None => what,
        })
    }

    /// Writes the state.
    fn save_state(&mut self) -> Result<(), Error> {
        self.progress.elapsed_s = self.elapsed_s();
        let job = self.job;
        state::save(
            &job.paths.state,
            &job.record(&self.settings, &self.progress),
            self.trainer,
            &*job.world,
            &job.shares,
            self.rounds.as_ref().map(Rounds::momentum),
        )
    }

    /// Returns `true` if the model file holds the best model instead of the latest. Without held-out data there is no best.
    fn keeps_best(&self) -> bool {
        self.settings.keep_best && self.progress.best_val_loss.is_some()
    }

    /// Fails with [`Error::Diverged`] if a loss or a gradient norm is not finite.
    pub fn check(&self, what: &'static str, value: f32, step: u64) -> Result<(), Error> {
        if value.is_finite() {
            return Ok(());
        }
        let kept = match if self.keeps_best() { Some(self.progress.best_step) } else { self.saved } {
            Some(saved) => format!("{} keeps the model of step {saved}", self.job.paths.model.display()),
            None => "nothing was saved".into(),
        };
        Err(Error::Diverged { what, value, step, lr: self.settings.lr_at(step.saturating_sub(1)), kept })
    }
}
