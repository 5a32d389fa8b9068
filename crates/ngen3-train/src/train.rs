//! The training loop, one page as in nanoGPT's `train.py`: prepare; step; maybe evaluate; maybe save.
//!
//! A step accumulates the gradients of its micro-batches, clips them, and updates the weights. It depends only on the settings,
//! the objective and its number, so a run that is stopped after any step and resumed equals an uninterrupted one.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ngen3_cluster::sums;
use ngen3_engine::{Backward, Ready, Trainer, splitmix};

use crate::objective::{Micro, Objective};
use crate::ranks::{self, Reduction, dealt};
use crate::run::{Outcome, Progress, Run, StepReport};
use crate::run_files::metrics::StepMetrics;
use crate::{Error, Job};

/// Trains until the last step, until `patience` runs out, or until `stop` is set. On `stop` the current step is finished, and an
/// evaluation is left to the resumed run.
///
/// # Errors
/// [`Error::Diverged`] if a loss or a gradient norm is not finite; otherwise errors of files, the objective or the trainer. The
/// last checkpoint stays intact.
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
    while run.progress.step < run.settings.max_iters {
        if let Some(outcome) = run.ends_early(&mut log)? {
            return Ok(outcome);
        }
        let metrics = step(&mut run, clock)?;
        // Evaluates, logs and saves if due.
        if let Some(outcome) = run.after_step(metrics, false, &mut log)? {
            return Ok(outcome);
        }
    }
    Ok(Outcome::Finished)
}

/// Runs one step: forward and backward pass of each micro-batch, then the update.
fn step(run: &mut Run<'_>, clock: Instant) -> Result<StepMetrics, Error> {
    let (started, settings, before) = (Instant::now(), run.settings.clone(), run.progress.step);
    let lr = settings.lr_at(before);
    let targets: Vec<u64> =
        (0..settings.gradient_accumulation).map(|i| run.objective.num_target_tokens(before, i)).collect();
    let (job, mut sums, mut names) = (run.job, Vec::new(), Vec::new());
    let world = &*job.world;
    let own: Vec<u64> = dealt(world, settings.gradient_accumulation).collect();
    // The mean is over the targets of all ranks, or, within a round, over this rank's.
    let alone = settings.sync_every > 1;
    let all: u64 = if alone { own.iter().map(|&index| targets[index as usize]).sum() } else { targets.iter().sum() };
    let mut wire = std::mem::take(&mut run.wire);
    let reduction = Reduction::new(world, &job.shares, &mut wire);
    let add_up = |start: usize, grads: &mut [f32]| reduction.add(start, grads);
    let total = job.shares.last().map_or(0, |last| last.end);
    let ready = (!alone && ranks::overlaps(total, world.size())).then_some(Ready(&add_up));
    for &index in &own {
        let weight = (targets[index as usize] as f64 / all as f64) as f32;
        let seed = dropout_seed(settings.seed, before, index);
        let ready = ready.filter(|_| own.last() == Some(&index));
        let backward = Backward { weight, dropout: settings.dropout, seed, ready };
        let output = run.objective.training_step(run.trainer, &Micro { step: before, index, backward })?;
        names = output.parts.iter().map(|&(name, _)| name).collect();
        let weighted = [output.loss].into_iter().chain(output.parts.into_iter().map(|(_, part)| part));
        add(&mut sums, [output.tokens as f64].into_iter().chain(weighted.map(|value| f64::from(weight * value))));
    }
    if alone {
        // About as many on each other rank.
        sums[0] *= world.size() as f64;
    } else {
        sums::sum(world, &mut sums);
    }
    run.pace.tokens += sums[0] as u64;
    let loss = sums[1] as f32;
    let parts: Vec<_> = names.into_iter().zip(sums[2..].iter().map(|&part| part as f32)).collect();
    run.check("loss", loss, before + 1)?;
    let (adamw, muon) = (settings.adamw(before + 1, lr), settings.muon(lr));
    let grad_norm = match alone {
        true => run.trainer.update(&adamw, muon.as_ref())?,
        false => ranks::update(reduction, run.trainer, &adamw, muon.as_ref())?,
    };
    run.wire = wire;
    run.check("gradient norm", grad_norm, before + 1)?;
    run.progress.step += 1;
    run.end_round()?;
    run.plan();

    run.pace.busy += started.elapsed();
    run.pace.steps += 1;
    let (step, (ms_per_step, tokens_per_s)) = (run.progress.step, run.pace.rates());
    run.watcher.step(&StepReport {
        step,
        max_iters: run.settings.max_iters,
        loss,
        parts: &parts,
        lr,
        grad_norm,
        tokens_per_s,
        left: remaining(clock.elapsed(), step - run.job.progress.step, run.settings.max_iters - step),
        logged: run.is_logged(),
    });
    let parts = parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(StepMetrics { train_loss: loss, parts, lr, grad_norm, ms_per_step, tokens_per_s })
}

/// Adds the numbers of a micro-batch to the step's.
fn add(sums: &mut Vec<f64>, values: impl Iterator<Item = f64>) {
    for (index, value) in values.enumerate() {
        match sums.get_mut(index) {
            Some(sum) => *sum += value,
            None => sums.push(value),
        }
    }
}

/// Estimates the time of `left` steps from the time of `done`.
fn remaining(elapsed: Duration, done: u64, left: u64) -> Duration {
    Duration::try_from_secs_f64(elapsed.as_secs_f64() / done as f64 * left as f64).unwrap_or(Duration::MAX)
}

/// Hashes the numbers, so that no two micro-batches of a run share dropout masks.
fn dropout_seed(seed: u64, step: u64, micro: u64) -> u64 {
    [seed, step, micro].into_iter().fold(0, |hash, n| splitmix(hash ^ n))
}

#[cfg(test)]
mod tests;
