//! `ngen3 train`: a model learns from a dataset.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ngen3_engine::{CpuEngine, Dtype, Options};
use ngen3_model::{ParamList, Variant};
use ngen3_train::{
    Begin, Job, Outcome, Overrides, Progress, Request, Shape, StepReport, TrainSettings, Weights, pretrain,
};

use super::variants;
use crate::interrupt::{self, Interrupted};
use crate::progress::{counted, write_line};
use crate::{model, stdout};

/// Train a model on a dataset
///
/// Leaves VARIANT_model.pt (the model, in nanoGPT's layout), VARIANT_model.state (what --resume goes on from) and
/// VARIANT_model.run (metrics.jsonl, TensorBoard events, loss.svg). Ctrl-C finishes the step, saves, and says how to go
/// on.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Shape and training defaults; ngen3 variants lists them
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// Tokens to train on; ngen3 tokenize makes them
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// File for the model (.pt or .safetensors) [default: VARIANT_model.pt]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Settings in TOML, named as the flags below, and the shape of a model that is no variant (n_layer, n_head, n_embd,
    /// block_size, vocab_size, activation); a flag comes before the file, and the file before the variant
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Go on from where the run stopped, as if it never had; settings given now replace the run's own
    #[arg(long)]
    resume: bool,
    /// Start from the weights of a model: .pt, .safetensors, a Hugging Face folder, a name on the hub, or hf (GPT-2 in the
    /// size of the variant)
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    init_from: Option<PathBuf>,
    /// Replace a model that is there already
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    #[command(flatten)]
    flags: Flags,
}

/// The settings of a run. What they are when not given stands in `ngen3_train::TrainSettings` and in the variant.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", next_help_heading = "Settings")]
pub struct Flags {
    /// Steps of the whole run [default: the variant's]
    #[arg(long, value_name = "N")]
    max_iters: Option<u64>,
    /// Steps between two lines of the log [default: 10]
    #[arg(long, value_name = "N")]
    log_interval: Option<u64>,
    /// Steps between two evaluations [default: 250]
    #[arg(long, value_name = "N")]
    eval_interval: Option<u64>,
    /// Validation batches in an evaluation [default: 20]
    #[arg(long, value_name = "N")]
    eval_iters: Option<u64>,
    /// Steps between two saves [default: eval_interval]
    #[arg(long, value_name = "N")]
    save_interval: Option<u64>,
    /// Rows in a batch [default: the variant's]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Tokens in a row, and the model's longest context [default: the variant's]
    #[arg(long, value_name = "N")]
    block_size: Option<usize>,
    /// Batches whose gradients make one step [default: 1]
    #[arg(long, value_name = "N")]
    gradient_accumulation: Option<u64>,
    /// Highest learning rate [default: the variant's]
    #[arg(long, value_name = "LR", allow_negative_numbers = true)]
    learning_rate: Option<f32>,
    /// Learning rate at the end, after a cosine [default: learning_rate / 10]
    #[arg(long, value_name = "LR", allow_negative_numbers = true)]
    min_lr: Option<f32>,
    /// Steps in which the learning rate climbs [default: 100, in a short run a tenth of it]
    #[arg(long, value_name = "N")]
    warmup_iters: Option<u64>,
    /// AdamW's decay of matrices and embeddings [default: 0.1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f32>,
    /// AdamW's first beta [default: 0.9]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta1: Option<f32>,
    /// AdamW's second beta [default: 0.95]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    beta2: Option<f32>,
    /// Largest norm of the gradient; 0 lets it be any [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    grad_clip: Option<f32>,
    /// Share of activations that are zeroed [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    dropout: Option<f32>,
    /// Decides the first weights, the batches and the dropout [default: 1337]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Share of the tokens, at their end, to validate on, where there is no val.bin [default: 0.1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    val_fraction: Option<f64>,
    /// Threads to compute with; 0 is all cores [default: 0]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Numbers to compute with: auto (the fastest that the processor has), f32 or bf16 [default: auto]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin --max_iters 5000 --resume
  ngen3 train --config tiny.toml --data _data_tinyshakespeare_/data.bin --out tiny.pt
  ngen3 train --variant 7M --init_from 7M_model.pt --data _data_plays_/data.bin --out plays.pt";

impl Flags {
    /// What was asked of a run, and of its model's shape.
    pub fn asked(self) -> (Overrides, Shape) {
        let overrides = Overrides {
            max_iters: self.max_iters,
            log_interval: self.log_interval,
            eval_interval: self.eval_interval,
            eval_iters: self.eval_iters,
            save_interval: self.save_interval,
            batch_size: self.batch_size,
            gradient_accumulation: self.gradient_accumulation,
            learning_rate: self.learning_rate,
            min_lr: self.min_lr,
            warmup_iters: self.warmup_iters,
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            grad_clip: self.grad_clip,
            dropout: self.dropout,
            seed: self.seed,
            val_fraction: self.val_fraction,
            threads: self.threads,
            dtype: self.dtype,
        };
        (overrides, Shape { block_size: self.block_size, ..Shape::default() })
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (settings, mut shape) = args.flags.asked();
    // Before the signals are watched: a download that is stopped goes on the next time.
    let init_from = args.init_from.map(|named| model::find(&named, args.variant, None)).transpose()?;
    if let Some(gpt2) = init_from.as_ref().and_then(|found| found.gpt2) {
        // Not every variant has the shape of the GPT-2 that is named after it.
        let (n_layer, n_head, n_embd) = (Some(gpt2.n_layer), Some(gpt2.n_head), Some(gpt2.n_embd));
        shape = Shape { n_layer, n_head, n_embd, ..shape };
    }
    let stop = interrupt::watch()?;
    let begin = match args.resume {
        true => Begin::Resume,
        false => Begin::Fresh { init_from: init_from.map(|found| found.path), overwrite: args.overwrite },
    };
    let request = Request {
        variant: args.variant,
        config_file: args.config,
        data: args.data,
        out: args.out,
        begin,
        settings,
        shape,
    };
    let (job, Weights { params, moments }) = Job::prepare(request)?;
    let model = job.paths.model.display();
    if job.is_finished() {
        // The last save may have been cut off between the state and the model.
        job.save_model(&params, job.step, job.best_val_loss)?;
        let steps = counted(job.step);
        return stdout::print(&format!("{model}: all {steps} steps are done; a larger --max_iters trains on\n"));
    }

    let options = Options { threads: job.settings.threads, dtype: job.settings.dtype, ..Options::default() };
    let mut engine = CpuEngine::new(job.config.clone(), params, options)?;
    if let Some(moments) = moments {
        moments.restore(&mut engine)?;
    }
    write_line(&header(&job, &engine));
    let started = Instant::now();
    let mut status = Status::new();
    let told = tell_when_stopped(&stop, &status.line);
    let outcome = pretrain(&job, &mut engine, &mut status, &stop);
    drop(told);
    status.line.finish_and_clear();
    match outcome? {
        Outcome::Finished => {
            let took = started.elapsed().as_secs_f64() + job.elapsed_s;
            let mut text = format!("{model}: {} steps in {}", counted(job.settings.max_iters), span(took));
            if let Some(loss) = status.val_loss {
                text += &format!(", validation loss {loss:.4}");
            }
            stdout::print(&(text + "\n"))
        }
        Outcome::Interrupted(step) => {
            let program = std::env::args_os().next().unwrap_or_else(|| "ngen3".into());
            let command = resume_command(&program, job.sampler.data().path(), &job.paths.model);
            write_line(&format!("{model} is saved after step {}; go on with: {command}", counted(step)));
            Err(Interrupted.into())
        }
    }
}

/// Says, when the run is asked to stop, that it heard: the step that is under way can be a long one. Until the returned
/// guard is dropped.
fn tell_when_stopped(stop: &Arc<AtomicBool>, line: &ProgressBar) -> Arc<()> {
    let guard = Arc::new(());
    let (running, stop, line) = (Arc::downgrade(&guard), Arc::clone(stop), line.clone());
    std::thread::spawn(move || {
        while running.strong_count() > 0 {
            if stop.load(Ordering::Relaxed) {
                line.suspend(|| write_line("stopping after this step; once more to stop at once, without saving"));
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    guard
}

/// What is about to happen, in a few lines.
fn header(job: &Job, engine: &CpuEngine) -> String {
    let Job { config, settings, sampler, .. } = job;
    let TrainSettings { max_iters, batch_size, gradient_accumulation, .. } = *settings;
    let accumulated = match gradient_accumulation {
        1 => String::new(),
        n => format!(", {n} times"),
    };
    let same = Options { threads: engine.threads(), dtype: engine.dtype(), ..Options::default() };
    let mut lines = vec![
        format!(
            "model: {} layers, {} heads, width {}, block {}, vocabulary {}: {} parameters",
            config.n_layer,
            config.n_head,
            config.n_embd,
            config.block_size,
            counted(config.vocab_size as u64),
            counted(ParamList::new(config).total() as u64)
        ),
        format!(
            "data:  {}: {} tokens to train on, {} to validate on",
            sampler.data().path().display(),
            counted(sampler.train_len() as u64),
            counted(sampler.val_len() as u64)
        ),
        format!(
            "run:   {} steps of {} tokens ({batch_size} rows of {}{accumulated}), {} threads, {}, about {} of memory",
            counted(max_iters),
            counted(settings.tokens_per_step(config.block_size)),
            config.block_size,
            engine.threads(),
            engine.dtype(),
            variants::bytes(CpuEngine::training_bytes(config, batch_size, same))
        ),
    ];
    if job.step > 0 {
        lines.push(format!("       goes on after step {}", counted(job.step)));
    }
    lines.extend(job.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

/// The line that says how far the run is: redrawn at every step on a terminal, written at every logged one elsewhere.
struct Status {
    line: ProgressBar,
    terminal: bool,
    /// The latest.
    val_loss: Option<f32>,
}

impl Status {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let line = ProgressBar::with_draw_target(None, target);
        line.set_style(ProgressStyle::with_template("{wide_msg}").expect("the template is well formed"));
        Self { line, terminal, val_loss: None }
    }
}

impl Progress for Status {
    fn step(&mut self, report: &StepReport) {
        let text = step_line(report);
        if self.terminal {
            self.line.set_message(text);
        } else if report.logged {
            write_line(&text);
        }
    }

    fn evaluated(&mut self, step: u64, val_loss: f32, best: bool) {
        self.val_loss = Some(val_loss);
        let best = if best { " (best so far)" } else { "" };
        self.line.suspend(|| write_line(&format!("step {}: validation loss {val_loss:.4}{best}", counted(step))));
    }
}

fn step_line(report: &StepReport) -> String {
    let StepReport { step, max_iters, loss, lr, grad_norm, tokens_per_s, left, .. } = *report;
    format!(
        "step {}/{}: loss {loss:.4}, lr {lr:.1e}, norm {grad_norm:.2}, {} tokens/s, {} left",
        counted(step),
        counted(max_iters),
        counted(tokens_per_s as u64),
        span(left.as_secs_f64())
    )
}

/// `99 s`, `99 min`, `47.9 h`, `2.0 days`: no finer than anyone plans by.
fn span(seconds: f64) -> String {
    let (minute, hour, day) = (60.0, 3_600.0, 86_400.0);
    match seconds.round() {
        s if s < 100.0 => format!("{s} s"),
        s if s < 100.0 * minute => format!("{:.0} min", s / minute),
        s if s < 48.0 * hour => format!("{:.1} h", s / hour),
        s => format!("{:.1} days", s / day),
    }
}

/// The command that goes on with a run. Its state knows everything but where it and the data are.
fn resume_command(program: &OsStr, data: &Path, model: &Path) -> String {
    let words = [program, "train".as_ref(), "--data".as_ref(), data.as_ref(), "--out".as_ref(), model.as_ref()];
    words.map(quoted).join(" ") + " --resume"
}

/// A word as a POSIX shell reads it.
fn quoted(word: &OsStr) -> String {
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
        let command = |data: &str| resume_command("ngen3".as_ref(), data.as_ref(), "7M_model.pt".as_ref());
        assert_eq!(command("_data_x_/data.bin"), "ngen3 train --data _data_x_/data.bin --out 7M_model.pt --resume");
        assert_eq!(command("my data's/d.bin"), r"ngen3 train --data 'my data'\''s/d.bin' --out 7M_model.pt --resume");
    }

    #[test]
    fn a_step_is_one_line() {
        let report = StepReport {
            step: 1_200,
            max_iters: 2_000,
            loss: 4.25,
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
        for (s, expected) in
            [(0.4, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (11_160.0, "3.1 h"), (187_200.0, "2.2 days")]
        {
            assert_eq!(span(s), expected);
        }
    }
}
