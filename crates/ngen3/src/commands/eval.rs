//! `ngen3 eval`: how good models are, on benchmarks and texts.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use ngen3_data::Tokenizer;
use ngen3_engine::{Dtype, Options, Quant, Slot, Trainer};
use ngen3_eval::{EvalConfig, EvalModel, Evaluation, Metric, PerplexityText, Report};
use ngen3_model::words::{grouped, grouped_count};
use ngen3_model::{Checkpoint, ParamList, Variant, checkpoint, files};
use ngen3_train::default_reference;
use serde_json::{Value, json};

use super::tokenize::show;
use crate::device::device;
use crate::interrupt::{self, interruptible};
use crate::model::{self, Found};
use crate::progress::{Progress, write_line};
use crate::threads::Threads;
use crate::{json_file, stdout};

/// Measure models on benchmarks and texts
///
/// The tasks piqa, hellaswag, winogrande and mmlu (or a part of it, such as mmlu_stem or mmlu_anatomy) are those of
/// EleutherAI's lm-evaluation-harness: the same questions, prompts, examples and sums, so that the numbers can stand beside
/// each other. The task perplexity measures a text: --text, or else the last tenth of builtin:shakespeare.
///
/// The tasks' data comes from the Hugging Face hub, or from a folder: --data_dir has a folder for each task (piqa,
/// hellaswag, winogrande, mmlu/SUBJECT), with a file for each split in it (validation.jsonl, test.parquet), or is one task's
/// own. What was measured of all questions is added to a checkpoint of ours, and export writes it into the model card. An
/// evaluation that is stopped, or fails, still gives the models that are done.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Models to measure, side by side: .pt, .safetensors, Hugging Face folders, names on the hub
    #[arg(long, value_name = "MODEL", num_args = 1.., required = true)]
    model_checkpoint: Vec<PathBuf>,
    /// Check that the models are of this variant
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// What to measure, with commas: piqa, hellaswag, winogrande, mmlu, perplexity
    #[arg(long, value_name = "TASKS", value_delimiter = ',', required = true)]
    tasks: Vec<String>,
    /// Folder with the tasks' data [default: from the hub]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Examples before each question
    #[arg(long, value_name = "K", default_value_t = 0)]
    num_fewshot: u16,
    /// Decides which examples, where they are drawn by chance
    #[arg(long, value_name = "SEED", default_value_t = 1234)]
    fewshot_seed: u32,
    /// Only so many questions of each task, the first ones, or windows of the text: to try things out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// What perplexity measures: a text (as tokenize reads it) or a data.bin [default: the last tenth of
    /// builtin:shakespeare]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Of a data.bin only what train keeps for validation: the last part, such as 0.1, or the val.bin beside it, if there is
    /// one
    #[arg(long, value_name = "F", requires = "text", value_parser = fraction)]
    val_fraction: Option<f64>,
    /// Tokens from one window over the text to the next [default: the model's block]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Write the results into a file, as JSON in the harness's shape; of several models, a list
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write every question with its scores into FOLDER/MODEL/samples_TASK.jsonl
    #[arg(long, value_name = "FOLDER")]
    log_samples: Option<PathBuf>,
    /// Do not add the results to the checkpoints
    #[arg(long)]
    no_merge: bool,
    /// Numbers to compute with: auto (the fastest that the processor has), f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    dtype: Dtype,
    /// Measure each model a second time, with its weights rounded as sample --quant does: none or int8
    #[arg(long, value_name = "KIND", default_value = "none")]
    quant: Quant,
    #[command(flatten)]
    threads: Threads,
}

/// The task that measures a text.
const PERPLEXITY: &str = "perplexity";

const EXAMPLES: &str = "\
Examples:
  ngen3 eval --model_checkpoint 7M_model.pt --tasks piqa,hellaswag,winogrande,mmlu,perplexity --out results.json
  ngen3 eval --model_checkpoint 7M_model.pt openai-community/gpt2 --tasks piqa --data_dir benchmarks/
  ngen3 eval --model_checkpoint 7M_model.pt --tasks mmlu_stem --num_fewshot 5 --limit 100
  ngen3 eval --model_checkpoint 7M_model.pt --tasks perplexity --text novel.txt --stride 64
  ngen3 eval --model_checkpoint 7M_model.pt --tasks perplexity --text _data_x_/data.bin --val_fraction 0.1
  ngen3 eval --model_checkpoint 7M_model.pt --tasks perplexity --text novel.txt --quant int8";

fn fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|fraction| *fraction > 0.0 && *fraction <= 1.0);
    fraction.ok_or_else(|| "it is above 0 and at most 1".into())
}

/// A model that is to be measured.
struct Candidate<'a> {
    /// As the user named it.
    named: &'a Path,
    /// For columns and folders.
    name: String,
    /// Where it is.
    path: PathBuf,
}

/// A model that was measured, with the weights that it has or with others made of them.
struct Done {
    name: String,
    report: Report,
    json: Value,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.threads.start()?;
    let tasks: Vec<_> = args.tasks.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    ensure!(!tasks.is_empty(), "no task is named");
    for (flag, given) in [("--text", args.text.is_some()), ("--stride", args.stride.is_some())] {
        let used = !given || tasks.contains(&PERPLEXITY);
        ensure!(used, "{flag} is for the task perplexity, which is not among --tasks");
    }
    check_outputs(&args)?;
    // Before the signals are watched: a download that is stopped goes on the next time.
    let plan = plan(&args, &tasks)?;
    let models = candidates(&args, &plan)?;

    let stop = interrupt::watch()?;
    let mut run = Run { args: &args, plan: &plan, stop: &stop, done: Vec::new() };
    let outcome = models.iter().try_for_each(|model| run.measure(model));
    // What is measured is kept, whatever came after it.
    let done = run.done;
    let models: Vec<_> = done.iter().map(|done| (done.name.as_str(), &done.report)).collect();
    let mut text = ngen3_eval::table(&models);
    if args.quant == Quant::Int8 {
        text.extend(done.chunks_exact(2).filter_map(|pair| cost(&pair[0], &pair[1])));
    }
    let written = args.out.as_deref().map_or(Ok(()), |out| write_results(&args, out, &done));
    let printed = stdout::print(&text);
    if let (Err(_), Err(error)) = (&outcome, &written) {
        write_line(&format!("note: {error}"));
    }
    outcome.and(written).and(printed)
}

/// Reads all data, before the first model.
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

/// Finds all models, reads each and checks it against the plan, so that what is wrong with the last one is known before the
/// first is measured.
fn candidates<'a>(args: &'a Args, plan: &Evaluation) -> anyhow::Result<Vec<Candidate<'a>>> {
    let mut candidates = Vec::new();
    for named in &args.model_checkpoint {
        let (Found { path, name, .. }, Checkpoint { config, meta, .. }) = model::load(named, args.variant)?;
        let tokenizer = model::tokenizer(named, &config, &meta)?;
        plan.check(&config, tokenizer.as_ref()).with_context(|| format!("cannot measure {}", named.display()))?;
        candidates.push(Candidate { named, name, path });
    }
    tell_apart(&mut candidates);
    Ok(candidates)
}

/// Models that are called alike go by all that the user said of them.
fn tell_apart(candidates: &mut [Candidate]) {
    let names: Vec<_> = candidates.iter().map(|one| one.name.clone()).collect();
    for one in candidates {
        if names.iter().filter(|name| **name == one.name).count() > 1 {
            one.name = one.named.display().to_string().replace(['/', '\\'], "_");
        }
    }
}

/// The work, and what is done of it.
struct Run<'a> {
    args: &'a Args,
    plan: &'a Evaluation<'a>,
    stop: &'a AtomicBool,
    done: Vec<Done>,
}

impl Run<'_> {
    /// Measures one model, if that is asked for with rounded weights too; adds the results of the weights that it has to its
    /// checkpoint.
    fn measure(&mut self, model: &Candidate) -> anyhow::Result<()> {
        let args = self.args;
        let Checkpoint { config, params, meta } = Checkpoint::load(&model.path)?;
        let tokenizer = model::tokenizer(model.named, &config, &meta)?;
        let options = Options { threads: args.threads.count(), dtype: args.dtype, ..Options::default() };
        let mut engine = device().open(config.clone(), params, options)?;
        let plain = self.ask(model, Quant::None, &mut *engine, tokenizer.as_ref())?;
        if !args.no_merge {
            merge(&model.path, meta.iter_num, &plain.report, args.limit.is_some());
        }
        self.keep(plain)?;
        if args.quant == Quant::Int8 {
            let params = engine.read(Slot::Params).into_owned();
            drop(engine);
            let mut engine = device().open(config, params, Options { quant: Quant::Int8, ..options })?;
            let rounded = self.ask(model, Quant::Int8, &mut *engine, tokenizer.as_ref())?;
            self.keep(rounded)?;
        }
        Ok(())
    }

    /// Measures what an engine holds.
    fn ask(
        &self,
        model: &Candidate,
        quant: Quant,
        engine: &mut dyn Trainer,
        tokenizer: Option<&Tokenizer>,
    ) -> anyhow::Result<Done> {
        let started = Instant::now();
        let progress = Progress::items("evaluating");
        let mut tell = |at: ngen3_eval::Progress| {
            progress.set_total(Some(at.total as u64));
            progress.set(at.done as u64, at.task);
            !self.stop.load(Ordering::Relaxed)
        };
        let report = interruptible(self.plan.run(&mut EvalModel { engine, tokenizer }, &mut tell));
        drop(progress);
        let report = report.with_context(|| format!("cannot measure {}", model.named.display()))?;
        let seconds = started.elapsed().as_secs_f64();
        let items = report.items() as u64;
        let rate = (items as f64 / seconds.max(1e-9)).round() as u64;
        let name = match quant {
            Quant::None => model.name.clone(),
            Quant::Int8 => format!("{}-int8", model.name),
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
                "device": device().name(),
                "limit": self.args.limit,
                "fewshot_seed": self.args.fewshot_seed,
            }),
        );
        json["model_name"] = name.clone().into();
        json["max_length"] = engine.config().block_size.into();
        json["eot_token_id"] = tokenizer.and_then(Tokenizer::eot).into();
        json["ngen3_version"] = env!("CARGO_PKG_VERSION").into();
        json["total_evaluation_time_seconds"] = format!("{seconds:.3}").into();
        if quant == Quant::Int8 {
            json["config"]["quant"] = "int8".into();
        }
        Ok(Done { name, report, json })
    }

    /// Keeps what was measured, then writes its samples, which can fail.
    fn keep(&mut self, done: Done) -> anyhow::Result<()> {
        self.done.push(done);
        match (&self.args.log_samples, self.done.last()) {
            (Some(folder), Some(done)) => Ok(done.report.write_samples(self.plan, &folder.join(&done.name))?),
            _ => Ok(()),
        }
    }
}

/// Writes what is measured as JSON: a list, unless only one model was to be measured.
fn write_results(args: &Args, out: &Path, done: &[Done]) -> anyhow::Result<()> {
    let several = args.model_checkpoint.len() > 1 || args.quant != Quant::None;
    let text = match done {
        [] => return Ok(()),
        [one] if !several => format!("{:#}\n", one.json),
        all => format!("{:#}\n", all.iter().map(|one| &one.json).cloned().collect::<Value>()),
    };
    Ok(files::write_atomic(out, |file| file.write_all(text.as_bytes()))?)
}

/// What rounded weights cost in perplexity, in a line, if that was measured.
fn cost(plain: &Done, rounded: &Done) -> Option<String> {
    let perplexity = |done: &Done| {
        let mut values = done.report.measured.iter().flat_map(|one| &one.values);
        values.find(|value| value.metric == Metric::Perplexity).map(|value| value.value)
    };
    let (before, after) = (perplexity(plain)?, perplexity(rounded)?);
    let (name, percent) = (&plain.name, 100.0 * (after / before - 1.0));
    Some(format!("{name}: perplexity {before:.4}, with int8 weights {after:.4} ({percent:+.2} %)\n"))
}

/// Adds results to a checkpoint of ours, unless only some questions were asked, or the file has changed meanwhile. What was
/// measured is worth more than that: if the file cannot be written, that is only told.
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
        "--limit left questions out".into()
    } else if path.is_dir() {
        "it is a folder".into()
    } else {
        match amend() {
            Ok(true) if !changed => return,
            Ok(true) => "it was trained on meanwhile".into(),
            Ok(false) => "another program wrote it".into(),
            Err(error) => format!("it is as it was: {error}"),
        }
    };
    write_line(&format!("note: the results were not added to {shown}: {reason}"));
}

/// Better now than after an hour.
fn check_outputs(args: &Args) -> anyhow::Result<()> {
    if let Some(out) = &args.out {
        json_file::check(out, &json_file::RESULTS)?;
    }
    match &args.log_samples {
        None => Ok(()),
        Some(folder) if folder.is_dir() => Ok(files::check(&folder.join("samples"))?),
        Some(folder) if folder.exists() => bail!("cannot write samples into {}: it is no folder", folder.display()),
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
