//! Runs training for the commands: prints the header, the progress line and the result.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ngen3_engine::{ComputeInfo, Device, Model, Trainer};
use ngen3_model::words::{grouped, grouped_count, memory_size};
use ngen3_model::{Lora, LoraList};
use ngen3_train::{
    AdapterRecord, InitialWeights, Job, Objective, ObjectiveRecord, Outcome, Progress, RecipeName, StepReport,
    TrainSettings, ValLoss, train,
};

use crate::interrupt::Interrupted;
use crate::model::describe;
use crate::progress::write_line;
use crate::run_samples::RunSampler;
use crate::sparkline::Sparkline;
use crate::stdout;
use crate::threads::spawn;

/// A training job with its model.
pub struct Training<'a> {
    job: &'a Job,
    pub trainer: Box<dyn Trainer>,
}

impl<'a> Training<'a> {
    /// Opens the model. Returns `None` if no step is left, after printing so to stdout.
    pub fn new(device: &dyn Device, job: &'a Job, mut weights: InitialWeights) -> anyhow::Result<Option<Self>> {
        if job.is_finished() {
            weights.moments = None;
        }
        let trainer = job.open(device, weights).map_err(advised)?;
        if job.is_finished() {
            job.complete(&*trainer)?;
            let (model, step) = (job.paths.model.display(), job.progress.step);
            let done = grouped(step);
            let text = match (step == job.settings.max_iters, step) {
                (true, 1) => format!("{model}: its only step is done; increase --max_iters to train further\n"),
                (true, _) => format!("{model}: all {done} steps are done; increase --max_iters to train further\n"),
                (false, _) => {
                    format!("{model}: stopped early, after step {done}; increase --patience to train further\n")
                }
            };
            stdout::print(&text)?;
            return Ok(None);
        }
        Ok(Some(Self { job, trainer }))
    }

    /// Trains to the end and prints the result. If `stop` is set, saves, prints the resume command, and returns
    /// [`Interrupted`]. `command` holds the command's name and its data flags.
    pub fn run(
        mut self,
        objective: &mut dyn Objective,
        command: &[&OsStr],
        stop: &Arc<AtomicBool>,
    ) -> anyhow::Result<()> {
        let job = self.job;
        let model = job.paths.model.display();
        write_line(&header(job, self.trainer.info())?);
        let started = Instant::now();
        let mut status = Status::new(job.progress.step, job.progress.best().map(|loss| (job.progress.best_step, loss)));
        status.sampler = RunSampler::new(job, stop)?;
        let told = tell_when_stopped(stop, &status.line)?;
        let outcome = train(job, objective, &mut *self.trainer, &mut status, stop);
        drop(told);
        status.line.finish_and_clear();
        let steps = match outcome.map_err(advised)? {
            Outcome::Finished => status.step,
            Outcome::Stale(step) => {
                write_line(&match job.settings.patience {
                    1 => "stopped early: 1 evaluation without a lower validation loss".into(),
                    n => format!("stopped early: {n} evaluations in a row without a lower validation loss"),
                });
                step
            }
            Outcome::Interrupted(step) => {
                let command = resume_command(command, &job.paths.model);
                write_line(&format!("{model}: saved after step {}; resume with: {command}", grouped(step)));
                return Err(Interrupted.into());
            }
        };
        let took = started.elapsed().as_secs_f64() + job.progress.elapsed_s;
        let mut text = format!("{model}: {} in {}", grouped_count(steps, "step"), span(took));
        match (status.best, status.val_loss) {
            (Some((step, loss)), _) if job.settings.keep_best => {
                text += &format!(", kept the best: {} at step {}", val_text(loss, ""), grouped(step));
            }
            (_, Some(loss)) => text += &format!(", {}", val_text(loss, "")),
            (_, None) => {}
        }
        stdout::print(&(text + "\n"))
    }
}

/// Adds to an error of memory what would need less.
fn advised(error: ngen3_train::Error) -> anyhow::Error {
    match error {
        ngen3_train::Error::Engine(ngen3_engine::Error::Memory { .. }) => {
            anyhow::anyhow!("{error}: expected enough memory; --recompute or a smaller --batch_size needs less")
        }
        error => error.into(),
    }
}

/// Acknowledges a request to stop, since the current step can take long. Watches `stop` until the returned guard is dropped.
fn tell_when_stopped(stop: &Arc<AtomicBool>, line: &ProgressBar) -> anyhow::Result<Arc<()>> {
    let guard = Arc::new(());
    let (running, stop, line) = (Arc::downgrade(&guard), Arc::clone(stop), line.clone());
    spawn(move || {
        while running.strong_count() > 0 {
            if stop.load(Ordering::Relaxed) {
                line.suspend(|| {
                    write_line("finishing this step and saving; press Ctrl-C again to quit now without saving")
                });
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })?;
    Ok(guard)
}

/// Formats the lines printed before training: the model, the data, the run and the job's notes.
fn header(job: &Job, info: ComputeInfo) -> anyhow::Result<String> {
    let Job { config, settings, data, .. } = job;
    let TrainSettings { max_iters, minutes, batch_size, gradient_accumulation, .. } = *settings;
    let accumulated = match gradient_accumulation {
        1 => String::new(),
        n => format!(", {n} times"),
    };
    // Conversations are packed, up to this many tokens per step.
    let upto = if matches!(job.objective, ObjectiveRecord::Chat(_)) { "up to " } else { "" };
    let teachers = if matches!(job.objective, ObjectiveRecord::Distill(_)) { " (including the teacher)" } else { "" };
    let each = if job.world.size() > 1 { " each" } else { "" };
    let adapters = match &job.adapters {
        None => String::new(),
        Some(AdapterRecord { lora, .. }) => {
            let learned = LoraList::new(config, lora)?.total() as u64;
            let Lora { rank, alpha, targets } = lora;
            format!("; adapters of rank {rank}, alpha {alpha}, at {targets}: {} trainable", grouped(learned))
        }
    };
    let mut lines = vec![
        format!("model: {}{adapters}", describe(config)),
        format!(
            "data:  {}: {} for training, {} for validation",
            data.path.display(),
            grouped_count(data.identity.train_tokens, "token"),
            grouped(data.identity.val_tokens)
        ),
        format!(
            "run:   {} of {upto}{} ({} of {}{accumulated}), {}, {}, about {} of memory{each}{teachers}",
            if minutes > 0.0 { format!("{minutes} min of steps") } else { grouped_count(max_iters, "step") },
            grouped_count(settings.tokens_per_step(config.block_size), "token"),
            grouped_count(batch_size as u64, "sequence"),
            config.block_size,
            match job.world.size() {
                1 => processors(info),
                size => format!("{size} ranks of {}", processors(info)),
            },
            info.dtype,
            memory_size(job.bytes)
        ),
    ];
    if settings.recipe == RecipeName::Fast {
        let TrainSettings { optimizer, learning_rate, matrix_lr, schedule, decay_fraction, min_lr, .. } = *settings;
        let TrainSettings { beta1, beta2, momentum, .. } = *settings;
        lines.push(format!(
            "       recipe fast: optimizer {optimizer}, learning_rate {learning_rate}, matrix_lr {matrix_lr}, beta1 {beta1}, beta2 \
             {beta2}, momentum {momentum}, schedule {schedule}, decay_fraction {decay_fraction}, min_lr {min_lr}"
        ));
    }
    if job.progress.step > 0 {
        lines.push(format!("       resuming after step {}", grouped(job.progress.step)));
    }
    lines.extend(job.notes.iter().map(|note| format!("note: {note}")));
    Ok(lines.join("\n"))
}

/// Names what a model computes on: `2 threads` or `GPU`.
pub fn processors(info: ComputeInfo) -> String {
    if info.threads == 0 { "GPU".into() } else { grouped_count(info.threads as u64, "thread") }
}

/// The progress of a run on stderr: at a terminal a line that is redrawn at every step, elsewhere a line for each logged step.
struct Status {
    line: ProgressBar,
    terminal: bool,
    /// Steps done.
    step: u64,
    /// Training losses of the steps so far.
    losses: Sparkline,
    /// Latest validation loss.
    val_loss: Option<ValLoss>,
    /// Step and value of the lowest validation loss.
    best: Option<(u64, ValLoss)>,
    /// `None` if the run wants no samples.
    sampler: Option<RunSampler>,
}

impl Status {
    /// Step, and step and validation loss of the best evaluation, of a run that is resumed.
    fn new(step: u64, best: Option<(u64, ValLoss)>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let line = ProgressBar::with_draw_target(None, target);
        line.set_style(ProgressStyle::with_template("{wide_msg}").expect("the template is well formed"));
        Self { line, terminal, step, losses: Sparkline::new(), val_loss: None, best, sampler: None }
    }
}

impl Progress for Status {
    fn step(&mut self, report: &StepReport<'_>) {
        self.step = report.step;
        if self.terminal {
            let columns =
                terminal_size::terminal_size_of(std::io::stderr()).map_or(COLUMNS, |(width, _)| width.0.into());
            self.losses.push(report.loss);
            self.line.set_message(short_step_line(report, &self.losses, columns));
        } else if report.logged {
            write_line(&step_line(report));
        }
    }

    fn evaluated(&mut self, step: u64, val: ValLoss, best: bool) {
        self.val_loss = Some(val);
        if best {
            self.best = Some((step, val));
        }
        let best = if best { "best so far" } else { "" };
        self.line.suspend(|| write_line(&format!("step {}: {}", grouped(step), val_text(val, best))));
    }

    fn sample(&mut self, model: &dyn Model) -> Option<String> {
        self.line.suspend(|| self.sampler.as_ref()?.sample(model))
    }
}

/// Formats a validation loss, with a remark unless it is empty: `validation loss 5.4330 (1.871 bits/byte, best so far)`.
fn val_text(val: ValLoss, remark: &str) -> String {
    let bits = val.bits_per_byte.map(|bits| format!("{bits:.3} bits/byte"));
    let remarks: Vec<_> = bits.into_iter().chain((!remark.is_empty()).then(|| remark.into())).collect();
    let remarks = if remarks.is_empty() { String::new() } else { format!(" ({})", remarks.join(", ")) };
    format!("validation loss {:.4}{remarks}", val.nats)
}

/// Columns of a terminal that does not report them.
const COLUMNS: usize = 80;

/// Columns of the loss chart. With less room than the first, there is none.
const CHART: RangeInclusive<usize> = 8..=24;

/// Short names of the parts of a loss.
const SHORT: [(&str, &str); 2] = [("cross_entropy", "ce"), ("divergence", "div")];

/// Formats a step in full.
fn step_line(report: &StepReport<'_>) -> String {
    parts_of(report, |name| name.replace('_', " ")).concat()
}

/// Formats a step for one line of a terminal: the loss and the time left, then as much else as there is room for, by
/// importance. The chart of the losses comes after the speed, and before the learning rate and the norm.
fn short_step_line(report: &StepReport<'_>, losses: &Sparkline, columns: usize) -> String {
    let name = |name: &str| SHORT.iter().find(|(long, _)| *long == name).map_or(name, |(_, short)| short).to_owned();
    let parts = parts_of(report, name);
    let (mut shown, mut room, mut chart) = ([false; 6], columns, String::new());
    for index in [0, 5, 1, 4, 6, 2, 3] {
        if let Some(part) = parts.get(index) {
            let columns = part.chars().count();
            if columns <= room {
                (shown[index], room) = (true, room - columns);
            }
        } else if shown[4] && shown[5] && room > *CHART.start() {
            // In steps of four: a width that follows the other parts would flicker.
            let columns = (room - 1).min(*CHART.end()) / 4 * 4;
            (chart, room) = (format!(" {}", losses.draw(columns)), room - 1 - columns);
        }
    }
    let text: String = parts.into_iter().zip(shown).filter_map(|(text, shown)| shown.then_some(text)).collect();
    text + &chart
}

/// Formats the parts of a step's line, in order: its loss, the parts of the loss, the learning rate, the gradient's norm, the
/// speed, and the time left.
fn parts_of(report: &StepReport<'_>, name: impl Fn(&str) -> String) -> [String; 6] {
    let StepReport { step, max_iters, loss, parts, lr, grad_norm, tokens_per_s, left, .. } = *report;
    let parts: Vec<String> = parts.iter().map(|(part, value)| format!("{} {value:.4}", name(part))).collect();
    [
        format!("step {}/{}: loss {loss:.4}", grouped(step), grouped(max_iters)),
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) },
        format!(", lr {lr:.1e}"),
        format!(", norm {grad_norm:.2}"),
        format!(", {} tokens/s", grouped(tokens_per_s as u64)),
        format!(", {} left", span(left.as_secs_f64())),
    ]
}

/// Formats a duration in seconds coarsely: `99 s`, `99 min`, `47.9 h`, `2.0 days`.
fn span(seconds: f64) -> String {
    let (minute, hour, day) = (60.0, 3_600.0, 86_400.0);
    match seconds.round() {
        s if s < 100.0 => format!("{s} s"),
        s if s < 100.0 * minute => format!("{:.0} min", s / minute),
        s if s < 48.0 * hour => format!("{:.1} h", s / hour),
        s => format!("{:.1} days", s / day),
    }
}

/// Returns the command that resumes a run. Its state holds every setting but the model file and the data flags.
pub fn resume_command(command: &[&OsStr], model: &Path) -> String {
    let program = std::env::args_os().next().unwrap_or_else(|| "ngen3".into());
    resume_with(&program, command, model)
}

fn resume_with(program: &OsStr, command: &[&OsStr], model: &Path) -> String {
    let words = [&[program], command, &["--out".as_ref(), model.as_ref()]].concat();
    words.into_iter().map(quoted).collect::<Vec<_>>().join(" ") + " --resume"
}

/// Quotes a word for a POSIX shell, if needed.
pub fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_go_on_is_one_that_a_shell_understands() {
        let command = |data: &str| {
            let command = ["train", "--data", data].map(OsStr::new);
            resume_with("ngen3".as_ref(), &command, "7M_model.pt".as_ref())
        };
        assert_eq!(command("_data_x_/data.bin"), "ngen3 train --data _data_x_/data.bin --out 7M_model.pt --resume");
        assert_eq!(command("my data's/d.bin"), r"ngen3 train --data 'my data'\''s/d.bin' --out 7M_model.pt --resume");
    }

    #[test]
    fn a_step_is_one_line() {
        let report = StepReport {
            step: 1_200,
            max_iters: 2_000,
            loss: 4.25,
            parts: &[],
            lr: 3e-4,
            grad_norm: 0.5,
            tokens_per_s: 4_096.7,
            left: Duration::from_secs(754),
            logged: true,
        };
        assert_eq!(
            step_line(&report),
            "step 1,200/2,000: loss 4.2500, lr 3.0e-4, norm 0.50, 4,096 tokens/s, 13 min left"
        );
        let parts = StepReport { parts: &[("cross_entropy", 5.5), ("divergence", 3.0)], ..report };
        assert!(step_line(&parts).contains(": loss 4.2500 (cross entropy 5.5000, divergence 3.0000), lr "));
        let mut losses = Sparkline::new();
        (0..100).for_each(|step| losses.push(-(step as f32)));
        let short = |report: &StepReport<'_>, columns| {
            let line = short_step_line(report, &losses, columns);
            assert!(line.chars().count() <= columns, "{line}");
            let plain = line.trim_end_matches(|c| ('▁'..='█').contains(&c));
            (plain.trim_end().to_owned(), line.chars().count() - plain.chars().count())
        };
        let plain = StepReport { parts: &[], ..parts };
        let (start, left) = ("step 1,200/2,000: loss 4.2500", "13 min left");
        assert_eq!(short(&plain, 40), (format!("{start}, lr 3.0e-4"), 0));
        assert_eq!(short(&plain, 50), (format!("{start}, {left}"), 0));
        assert_eq!(short(&plain, 60), (format!("{start}, 4,096 tokens/s, {left}"), 0));
        assert_eq!(short(&plain, 80), (format!("{start}, 4,096 tokens/s, {left}"), 20));
        assert_eq!(short(&plain, 120), (step_line(&report), 24));
        let start = format!("{start} (ce 5.5000, div 3.0000)");
        assert_eq!(short(&parts, 80), (format!("{start}, lr 3.0e-4, {left}"), 0));
        assert_eq!(short(&parts, 110), (format!("{start}, 4,096 tokens/s, {left}"), 24));
        let long = StepReport { step: 100_000, max_iters: 100_000, grad_norm: 1e9, lr: 3e-12, ..parts };
        assert_eq!(short(&long, 80).0, "step 100,000/100,000: loss 4.2500 (ce 5.5000, div 3.0000), 13 min left");
        for (s, expected) in
            [(0.4, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (11_160.0, "3.1 h"), (187_200.0, "2.2 days")]
        {
            assert_eq!(span(s), expected);
        }
    }
}
