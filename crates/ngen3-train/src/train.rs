//! The training loop: one straight page, as in nanoGPT's `train.py`. Prepare; step; maybe evaluate; maybe save.
//!
//! A step learns from the next micro-batches, which adds up their gradients, clips, and updates. What it does follows from the
//! settings, the objective and its number alone, so a run that stops after any step and goes on from its state is the run that
//! never stopped.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ngen3_engine::{Backward, Trainer, splitmix};

use crate::objective::{Micro, Objective};
use crate::run::{Outcome, Progress, Run, StepReport};
use crate::run_files::metrics::StepMetrics;
use crate::{Error, Job};

/// Trains until the last step, until patience is out, or until `stop` is set: then the step that is under way is finished
/// first, and an evaluation is left for the run that goes on.
///
/// # Errors
/// [`Error::Diverged`] when a loss or a gradient is no longer a number: the last checkpoint before it is kept. Otherwise those of
/// a file, the objective or the trainer; the last checkpoint is whole then too.
pub fn train(
    job: &Job,
    objective: &mut dyn Objective,
    trainer: &mut dyn Trainer,
    watcher: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Outcome, Error> {
    let mut run = Run::new(job, objective, trainer, watcher, stop);
    let (mut log, outcome) = run.prepare()?;
    if let Some(outcome) = outcome {
        return Ok(outcome);
    }
    let clock = Instant::now();
    while run.progress.step < job.settings.max_iters {
        if let Some(outcome) = run.ends_early(&mut log)? {
            return Ok(outcome);
        }
        let metrics = step(&mut run, clock)?;
        // Evaluates, logs and saves where that is due.
        if let Some(outcome) = run.after_step(metrics, false, &mut log)? {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Finished)
}

/// One step: forward and backward of each micro-batch, then the update.
fn step(run: &mut Run<'_>, clock: Instant) -> Result<StepMetrics, Error> {
    let (started, settings, before) = (Instant::now(), &run.job.settings, run.progress.step);
    let lr = settings.lr_at(before);
    let targets: Vec<u64> =
        (0..settings.gradient_accumulation).map(|i| run.objective.num_target_tokens(before, i)).collect();
    let all: u64 = targets.iter().sum();
    let (mut loss, mut parts) = (0.0, Vec::new());
    for (index, targets) in (0..).zip(targets) {
        let weight = (targets as f64 / all as f64) as f32;
        let seed = dropout_seed(settings.seed, before, index);
        let backward = Backward { weight, dropout: settings.dropout, seed };
        let output = run.objective.training_step(run.trainer, &Micro { step: before, index, backward })?;
        loss += weight * output.loss;
        run.pace.tokens += output.tokens;
        add(&mut parts, weight, output.parts);
    }
    run.check("loss", loss, before + 1)?;
    let grad_norm = run.trainer.update(&settings.adamw(before + 1, lr))?;
    run.check("gradient norm", grad_norm, before + 1)?;
    run.progress.step += 1;

    run.pace.busy += started.elapsed();
    run.pace.steps += 1;
    let (step, (ms_per_step, tokens_per_s)) = (run.progress.step, run.pace.rates());
    run.watcher.step(&StepReport {
        step,
        max_iters: settings.max_iters,
        loss,
        parts: &parts,
        lr,
        grad_norm,
        tokens_per_s,
        left: remaining(clock.elapsed(), step - run.job.progress.step, settings.max_iters - step),
        logged: run.is_logged(),
    });
    let parts = parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(StepMetrics { train_loss: loss, parts, lr, grad_norm, ms_per_step, tokens_per_s })
}

/// Adds a micro-batch's terms to the step's.
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

/// Mixes the numbers so that no two micro-batches of a run share their masks.
fn dropout_seed(seed: u64, step: u64, micro: u64) -> u64 {
    [seed, step, micro].into_iter().fold(0, |hash, n| splitmix(hash ^ n))
}

#[cfg(test)]
mod tests;
