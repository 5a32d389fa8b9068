//! `ngen3 eval`: evaluates models on benchmarks and texts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use ngen3_cluster::sums;
use ngen3_data::Tokenizer;
use ngen3_engine::{Device, Dtype, Options, Quant, Slot, Trainer};
use ngen3_eval::{Dealt, EvalConfig, EvalModel, Evaluation, Metric, PerplexityText, Report};
use ngen3_model::words::{grouped, grouped_count};
use ngen3_model::{Checkpoint, ParamList, Variant, checkpoint, files};
use ngen3_train::default_reference;
use serde_json::{Value, json};

use super::tokenize::show;
use crate::device::DeviceFlag;
use crate::interrupt::{self, interruptible};
use crate::model::{self, CHECK_VARIANT, Found, variant_help};
use crate::progress::{Progress, write_line};
use crate::threads::Threads;
use crate::world::{is_quiet, world};
use crate::{json_file, stdout};

/// Evaluate models on benchmarks and texts
///
/// The tasks piqa, hellaswag, winogrande and mmlu (or a part of it, such as mmlu_stem or mmlu_anatomy) follow EleutherAI's
/// lm-evaluation-harness: same questions, prompts, few-shot examples and metrics, so results are comparable. The task
/// perplexity evaluates --text, by default the last tenth of builtin:shakespeare.
///
/// Task data comes from the Hugging Face hub or from --data_dir: one folder per task (piqa, hellaswag, winogrande,
/// mmlu/SUBJECT) with one file per split (validation.jsonl, test.parquet), or a single task's folder. Full results are
/// added to checkpoints that ngen3 wrote, and export puts them into the model card. If the evaluation is interrupted or
/// fails, models already evaluated are still reported.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Models to evaluate side by side: .pt, .safetensors, .gguf, Hugging Face folders, hub names, or hf (GPT-2 in the size of
    /// --variant)
    #[arg(long, value_name = "MODEL", num_args = 1.., required = true)]
    model_checkpoint: Vec<PathBuf>,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name, help = variant_help(CHECK_VARIANT))]
    variant: Option<&'static Variant>,
    /// Tasks, separated by commas: piqa, hellaswag, winogrande, mmlu, perplexity
    #[arg(long, value_name = "TASKS", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Folder with the task data [default: download from the hub]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Few-shot examples before each question
    #[arg(long, value_name = "K", default_value_t = 0)]
    num_fewshot: u16,
    /// Seed for drawing few-shot examples, in tasks that draw them at random
    #[arg(long, value_name = "SEED", default_value_t = 1234)]
    fewshot_seed: u32,
    /// Evaluate only the first N questions of each task, or windows of the text
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Text for the task perplexity: any text that tokenize reads, a data.bin, or a folder with one [default: the last tenth of
    /// builtin:shakespeare]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Evaluate only the validation split of a data.bin, as train splits it: its last fraction F (above 0, at most 1), or
    /// val.bin if it exists beside it
    #[arg(long, value_name = "F", requires = "text", value_parser = fraction)]
    val_fraction: Option<f64>,
    /// Stride between windows over the text, in tokens [default: the model's context length]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Write the results to this file, as JSON in the harness's format; a list for several models
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write every question with its scores to FOLDER/MODEL/samples_TASK.jsonl
    #[arg(long, value_name = "FOLDER")]
    log_samples: Option<PathBuf>,
    /// Do not add the results to the checkpoints
    #[arg(long)]
    no_merge: bool,
    /// Precision: auto (the fastest that the processor supports), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    /// Evaluate each model a second time with weights quantized as in sample --quant: int8, int4 or none
    #[arg(long, value_name = "KIND", default_value = "none")]
    quant: Quant,
    #[command(flatten)]
    device: DeviceFlag,
    #[command(flatten)]
    threads: Threads,
}

/// Name of the task that evaluates a text.
const PERPLEXITY: &str = "perplexity";

const EXAMPLES: &str = "\
Examples:
  ngen3 eval --model_checkpoint 7M_model.pt --out results.json \\
    --tasks piqa,hellaswag,winogrande,mmlu,perplexity
  ngen3 eval --model_checkpoint 7M_model.pt openai-community/gpt2 --tasks piqa \\
    --data_dir benchmarks/
  ngen3 eval --model_checkpoint 7M_model.pt --tasks mmlu_stem --num_fewshot 5 \\
    --limit 100
  ngen3 eval --model_checkpoint 7M_model.pt --tasks perplexity \\
    --text novel.txt --stride 64
  ngen3 eval --model_checkpoint 7M_model.pt --tasks perplexity \\
    --text _data_x_/data.bin --val_fraction 0.1
  ngen3 eval --model_checkpoint 7M_model.pt --tasks perplexity \\
    --text novel.txt --quant int8";

fn fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|fraction| *fraction > 0.0 && *fraction <= 1.0);
    fraction.ok_or_else(|| "expected a number above 0 and at most 1".into())
}

/// A model to evaluate.
struct Candidate<'a> {
    /// Name on the command line.
    named: &'a Path,
    /// Short name, for table columns and folders.
    name: String,
    /// File or folder.
    path: PathBuf,
}

/// Results of one evaluation, with a model's own weights or quantized ones.
struct Done {
    name: String,
    report: Report,
    json: Value,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.threads.start()?;
    let tasks: Vec<_> = args.tasks.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    ensure!(!tasks.is_empty(), "--tasks: expected at least one task");
    for (flag, given) in [("--text", args.text.is_some()), ("--stride", args.stride.is_some())] {
        let used = !given || tasks.contains(&PERPLEXITY);
        ensure!(used, "{flag} requires the task perplexity in --tasks");
    }
    check_outputs(&args)?;
    // Before watching for signals: an interrupted download resumes on the next run.
    let plan = plan(&args, &tasks)?;
    let models = candidates(&args, &plan)?;

    let device = args.device.open(world().size() == 1 && args.dtype != Dtype::Bf16 && args.quant == Quant::None)?;
    let stop = interrupt::watch()?;
    let mut run = Run { args: &args, plan: &plan, device, stop: &stop, done: Vec::new() };
    let outcome = models.iter().try_for_each(|model| run.measure(model));
    // Finished models are reported even if a later one failed.
    let done = run.done;
    let models: Vec<_> = done.iter().map(|done| (done.name.as_str(), &done.report)).collect();
    let mut text = ngen3_eval::table(&models);
    if args.quant != Quant::None {
        text.extend(done.chunks_exact(2).filter_map(|pair| cost(&pair[0], &pair[1], args.quant)));
    }
    let out = args.out.as_deref().filter(|_| !is_quiet());
    let written = out.map_or(Ok(()), |out| write_results(&args, out, &done));
    let printed = stdout::print(&text);
    if let (Err(_), Err(error)) = (&outcome, &written) {
        write_line(&format!("note: {error}"));
    }
    outcome.and(written).and(printed)
}

/// Reads all task data, before the first model is loaded.
fn plan<'a>(args: &'a Args, tasks: &'a [&'a str]) -> anyhow::Result<Evaluation<'a>> {
    let progress = Progress::bytes("reading");
    let text = match args.text.as_deref() {
        Some(text) => {
            let never = AtomicBool::new(false);
            Some(PerplexityText::read(text, args.val_fraction, &never, &mut |event| show(&progress, event))?)
        }
        None if tasks.contains(&PERPLEXITY) => {
            let (name, text) = default_reference();
            Some(PerplexityText::of(name, text))
        }
        None => None,
    };
    let settings = EvalConfig {
        tasks,
        data_dir: args.data_dir.as_deref(),
        num_fewshot: args.num_fewshot.into(),
        fewshot_seed: args.fewshot_seed,
        limit: args.limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX)),
        stride: args.stride,
    };
    let mut tell = |event| {
        show(&progress, event);
        true
    };
    Ok(Evaluation::new(settings, text, &mut tell)?)
}

/// Loads every model and checks it against the plan, so that an error in the last one is reported before the first is
/// evaluated.
fn candidates<'a>(args: &'a Args, plan: &Evaluation) -> anyhow::Result<Vec<Candidate<'a>>> {
    let mut candidates = Vec::new();
    for named in &args.model_checkpoint {
        let (Found { path, name, .. }, Checkpoint { config, meta, .. }) = model::load(named, args.variant)?;
        let tokenizer = model::tokenizer(named, &config, &meta)?;
        plan.check(&config, tokenizer.as_ref()).with_context(|| format!("cannot evaluate {}", named.display()))?;
        candidates.push(Candidate { named, name, path });
    }
    tell_apart(&mut candidates);
    Ok(candidates)
}

/// Replaces names that several models share by their names on the command line.
fn tell_apart(candidates: &mut [Candidate]) {
    let names: Vec<_> = candidates.iter().map(|one| one.name.clone()).collect();
    for one in candidates {
        if names.iter().filter(|name| **name == one.name).count() > 1 {
            one.name = one.named.display().to_string().replace(['/', '\\'], "_");
        }
    }
}

/// An evaluation in progress, with its results so far.
struct Run<'a> {
    args: &'a Args,
    plan: &'a Evaluation<'a>,
    device: &'static dyn Device,
    stop: &'a AtomicBool,
    done: Vec<Done>,
}

impl Run<'_> {
    /// Evaluates one model, with `--quant` a second time, and adds the results of its own weights to its checkpoint.
    fn measure(&mut self, model: &Candidate) -> anyhow::Result<()> {
        let args = self.args;
        let Checkpoint { config, params, meta } = Checkpoint::load(&model.path)?;
        let tokenizer = model::tokenizer(model.named, &config, &meta)?;
        let options = Options { threads: args.threads.count(), dtype: args.dtype, ..Options::default() };
        let mut engine = self.device.open(config.clone(), params, options)?;
        let plain = self.ask(model, Quant::None, &mut *engine, tokenizer.as_ref())?;
        if !args.no_merge && !is_quiet() {
            merge(&model.path, meta.iter_num, &plain.report, args.limit.is_some());
        }
        self.keep(plain)?;
        if args.quant != Quant::None {
            let params = engine.read(Slot::Params).into_owned();
            drop(engine);
            let mut engine = self.device.open(config, params, Options { quant: args.quant, ..options })?;
            let rounded = self.ask(model, args.quant, &mut *engine, tokenizer.as_ref())?;
            self.keep(rounded)?;
        }
        Ok(())
    }

    /// Evaluates the model that an engine holds.
    fn ask(
        &self,
        model: &Candidate,
        quant: Quant,
        engine: &mut dyn Trainer,
        tokenizer: Option<&Tokenizer>,
    ) -> anyhow::Result<Done> {
        let (started, world) = (Instant::now(), world());
        let progress = Progress::items("evaluating");
        let mut tell = |at: ngen3_eval::Progress| {
            progress.set_total(Some(at.total as u64));
            progress.set(at.done as u64, at.task);
            // What stops one rank stops all, at the same batch.
            !sums::any(&*world, self.stop.load(Ordering::Relaxed))
        };
        let mut dealt = Dealt::new(&mut *engine, &*world);
        let report = interruptible(self.plan.run(&mut EvalModel { engine: &mut dealt, tokenizer }, &mut tell));
        drop(progress);
        let report = report.with_context(|| format!("cannot evaluate {}", model.named.display()))?;
        let seconds = started.elapsed().as_secs_f64();
        let items = report.items() as u64;
        let rate = (items as f64 / seconds.max(1e-9)).round() as u64;
        let name = match quant {
            Quant::None => model.name.clone(),
            quant => format!("{}-{quant}", model.name),
        };
        write_line(&format!("{name}: {} in {seconds:.1} s ({}/s)", grouped_count(items, "item"), grouped(rate)));
        for note in report.notes() {
            write_line(&format!("note: {note}"));
        }

        let mut json = report.json(
            self.plan,
            json!({
                "model": "ngen3",
                "model_args": model.named.display().to_string(),
                "model_num_parameters": ParamList::new(engine.config()).total(),
                "model_dtype": engine.info().dtype.to_string(),
                "device": self.device.name(),
                "limit": self.args.limit,
                "fewshot_seed": self.args.fewshot_seed,
            }),
        );
        json["model_name"] = name.clone().into();
        json["max_length"] = engine.config().block_size.into();
        json["eot_token_id"] = tokenizer.and_then(Tokenizer::eot).into();
        json["ngen3_version"] = env!("CARGO_PKG_VERSION").into();
        json["total_evaluation_time_seconds"] = format!("{seconds:.3}").into();
        if quant != Quant::None {
            json["config"]["quant"] = quant.to_string().into();
        }
        Ok(Done { name, report, json })
    }

    /// Records the results, then writes their samples, which can fail.
    fn keep(&mut self, done: Done) -> anyhow::Result<()> {
        self.done.push(done);
        match (&self.args.log_samples, self.done.last()) {
            (Some(folder), Some(done)) if !is_quiet() => {
                Ok(done.report.write_samples(self.plan, &folder.join(&done.name))?)
            }
            _ => Ok(()),
        }
    }
}

/// Writes the results as JSON: one object for a single evaluation, otherwise a list.
fn write_results(args: &Args, out: &Path, done: &[Done]) -> anyhow::Result<()> {
    let several = args.model_checkpoint.len() > 1 || args.quant != Quant::None;
    let text = match done {
        [] => return Ok(()),
        [one] if !several => format!("{:#}\n", one.json),
        all => format!("{:#}\n", all.iter().map(|one| &one.json).cloned().collect::<Value>()),
    };
    Ok(files::write_atomic(out, |file| file.write_all(text.as_bytes()))?)
}

/// Formats the perplexity before and after quantization as one line; `None` if it was not evaluated.
fn cost(plain: &Done, rounded: &Done, quant: Quant) -> Option<String> {
    let perplexity = |done: &Done| {
        let mut values = done.report.measured.iter().flat_map(|one| &one.values);
        values.find(|value| value.metric == Metric::Perplexity).map(|value| value.value)
    };
    let (before, after) = (perplexity(plain)?, perplexity(rounded)?);
    let (name, percent) = (&plain.name, 100.0 * (after / before - 1.0));
    Some(format!("{name}: perplexity {before:.4}, with {quant} weights {after:.4} ({percent:+.2} %)\n"))
}

/// Adds results to a checkpoint that ngen3 wrote, unless `limited` or the file has changed since it was read. A failed write
/// only prints a note, so that the results are not lost.
fn merge(path: &Path, iter_num: u64, report: &Report, limited: bool) {
    let shown = path.display();
    let mut changed = false;
    let mut amend = || {
        checkpoint::amend(path, |meta| {
            changed = meta.iter_num != iter_num;
            if !changed {
                meta.evaluations.extend(report.record());
            }
        })
    };
    let reason = if limited {
        "--limit was given".into()
    } else if path.is_dir() {
        "it is a folder".into()
    } else {
        match amend() {
            Ok(true) if !changed => return,
            Ok(true) => "it was trained further in the meantime".into(),
            Ok(false) => "ngen3 did not write it".into(),
            Err(error) => format!("{error}; the file is unchanged"),
        }
    };
    write_line(&format!("note: results not added to {shown}: {reason}"));
}

/// Checks that the outputs can be written, before the evaluation starts.
fn check_outputs(args: &Args) -> anyhow::Result<()> {
    if let Some(out) = &args.out {
        json_file::check(out, &json_file::RESULTS)?;
    }
    match &args.log_samples {
        None => Ok(()),
        Some(folder) if folder.is_dir() => {
            // Removes what a killed check of a folder that was missing left.
            files::create_folders(folder).with_context(|| format!("cannot write {}", folder.display()))?;
            Ok(files::check(&folder.join("samples"))?)
        }
        Some(folder) if folder.exists() => {
            bail!("{}: expected a folder for --log_samples, got a file", folder.display())
        }
        Some(folder) => Ok(files::check(folder)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_are_called_alike_go_by_their_paths() {
        let paths = ["a/7M_model.pt", "b/7M_model.pt", "owner/gpt2-1.5"].map(Path::new);
        let mut models = paths.map(|named| {
            let name = named.file_name().unwrap().to_str().unwrap().trim_end_matches(".pt").to_owned();
            Candidate { named, name, path: named.into() }
        });
        tell_apart(&mut models);
        assert_eq!(models.map(|model| model.name), ["a_7M_model.pt", "b_7M_model.pt", "gpt2-1.5"]);
    }
}
