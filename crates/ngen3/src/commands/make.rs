//! `ngen3 make`: a model of a text within a time, with the other commands.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use ngen3_data::source::Source;
use ngen3_data::{TextSurvey, TokenFile, Tokenizer, TokenizerKind, dataset_folder, is_trained, survey_text};
use ngen3_engine::Dtype;
use ngen3_model::words::grouped_count;
use ngen3_model::{Variant, files};
use ngen3_train::{RunPaths, was_never_begun};

use crate::commands::tokenize::{TextFlags, parse_sources, show};
use crate::device::cpu;
use crate::interrupt::{self, Interrupted, interruptible};
use crate::model::variant_help;
use crate::plan::{Length, Plan};
use crate::progress::{Progress, write_line};
use crate::stdout;
use crate::threads::Threads;
use crate::training::quoted;

/// Make a model of a text within a time
///
/// Measures this machine and the text, chooses vocabulary, shape and steps for the minutes that it is given, and runs the other
/// commands: tokenizer train, tokenize, train --recipe fast, sample, export. Prints its choices and each command as you would type
/// it. Writes the model, NAME_tokenizer.json, _data_NAME_ and exported_NAME, named after the model; Ctrl-C saves, and the printed
/// command resumes.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Text: files, archives, folders (their .txt and .md files), http(s) URLs, or builtin:shakespeare; optionally compressed
    #[arg(long, value_name = "PATH_OR_URL", required = true, num_args = 1..)]
    txt: Vec<OsString>,
    /// Minutes from the start to the finished model; a text that is used up before takes less
    #[arg(long, value_name = "N", default_value_t = 20.0, value_parser = minutes)]
    minutes: f64,
    /// Model file to write (.pt or .safetensors)
    #[arg(long, value_name = "FILE", default_value = "model.pt")]
    out: PathBuf,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    #[arg(help = variant_help("Shape, in place of one that suits the minutes"))]
    like: Option<&'static Variant>,
    /// Random seed of the model and its batches
    #[arg(long, value_name = "N", default_value_t = 1337)]
    seed: u64,
    #[command(flatten)]
    text: TextFlags,
    #[command(flatten)]
    threads: Threads,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 make --txt book.txt --minutes 20
  ngen3 make --txt builtin:shakespeare --minutes 2 --out plays.pt
  ngen3 make --txt english.txt.zst --minutes 60 --like 120M --out english.pt";

/// Least time that leaves some for training.
const MIN_MINUTES: f64 = 0.1;

/// Smallest text in bytes of which a vocabulary and held-out text can be made.
const MIN_BYTES: u64 = 10_000;

fn minutes(text: &str) -> Result<f64, String> {
    let range = MIN_MINUTES..=1e6;
    text.parse()
        .ok()
        .filter(|n| range.contains(n))
        .ok_or_else(|| format!("expected a number from {MIN_MINUTES} to 1e6"))
}

/// Runs the command; `run_line` runs a command line, without the name of the program.
pub fn run(args: Args, run_line: &dyn Fn(&[String]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let started = Instant::now();
    let name = name_of(&args.out)?;
    let sources = parse_sources(&args.txt)?;
    ensure!(!sources.contains(&Source::Stdin), "--txt: expected files or URLs, which are read several times, got -");
    let stop = interrupt::watch()?;
    let progress = Progress::bytes("reading text");
    let survey = survey_text(&sources, args.text.options(), &stop, &mut |event| show(&progress, event));
    drop(progress);
    let TextSurvey { bytes, beginning } = interruptible(survey)?;
    let size = grouped_count(bytes, "byte");
    ensure!(bytes >= MIN_BYTES, "--txt: expected at least {}, got {size}", grouped_count(MIN_BYTES, "byte"));
    // The shape of a small model's products.
    let gflops = cpu().product_gflops(Dtype::Auto, args.threads.count(), [2048, 512, 512])?;
    let plan = Plan::new(bytes, args.minutes, gflops, args.like);
    for line in plan.describe(bytes) {
        write_line(&line);
    }
    let lines = Lines { args: &args, name: &name, plan: &plan };
    let left = Left { args: &args, name: &name, sources: &sources, stop: &stop };
    let run = |words: Vec<String>| -> anyhow::Result<()> {
        let shown: Vec<String> = words.iter().map(|word| quoted(word.as_ref())).collect();
        write_line(&format!("\n$ ngen3 {}", shown.join(" ")));
        run_line(&words)?;
        // Some commands ignore the flag and run to their end.
        if stop.load(Ordering::Relaxed) { Err(Interrupted.into()) } else { Ok(()) }
    };
    if Path::new(&tokenizer_of(&name)).exists() {
        left.check_vocabulary(plan.vocab_size)?;
    } else {
        run(lines.vocabulary())?;
    }
    left.check_tokens()?;
    run(lines.tokens())?;
    run(lines.train(started.elapsed().as_secs_f64()))?;
    run(lines.sample(&beginning))?;
    run(lines.export())?;
    let took = started.elapsed().as_secs_f64() / 60.0;
    stdout::print(&format!(
        "\n{}: made of {size} in {took:.1} min; exported_{name} has its model card\n",
        args.out.display()
    ))
}

/// Returns the name of the model's other files, after checking that the model can be written and that none is there but those
/// that a killed run may have left, which [`Left`] checks.
fn name_of(out: &Path) -> anyhow::Result<String> {
    let paths = RunPaths::new(out)?;
    let stem = out.file_stem().and_then(|stem| stem.to_str());
    let name = stem.with_context(|| format!("--out: expected the name of a file, got {}", out.display()))?.to_owned();
    if !was_never_begun(&paths) {
        refuse(out)?;
    }
    refuse(Path::new(&format!("exported_{name}")))?;
    files::check(out)?;
    Ok(name)
}

fn tokenizer_of(name: &str) -> String {
    format!("{name}_tokenizer.json")
}

/// Fails if there is a file.
fn refuse(path: &Path) -> anyhow::Result<()> {
    ensure!(!path.exists(), "{}: already exists; choose another --out, or remove it", path.display());
    Ok(())
}

/// Files of a run that was killed before training. They are recognised by what they hold, and not by their names: a file that
/// this run would write bit for bit is nobody's loss.
struct Left<'a> {
    args: &'a Args,
    name: &'a str,
    sources: &'a [Source],
    stop: &'a AtomicBool,
}

impl Left<'_> {
    /// Makes the vocabulary again and fails if the tokenizer that is there is another.
    fn check_vocabulary(&self, vocab_size: usize) -> anyhow::Result<()> {
        let Self { args, name, sources, stop } = *self;
        let path = tokenizer_of(name);
        args.threads.start()?;
        let progress = Progress::bytes("reading text");
        let kind = TokenizerKind::Bpe(vocab_size);
        let show = &mut |event| show(&progress, event);
        let same = interruptible(is_trained(sources, args.text.options(), kind, Path::new(&path), stop, show));
        drop(progress);
        if !same? {
            return refuse(Path::new(&path));
        }
        write_line(&format!("note: {path} is there already, as this run would make it"));
        Ok(())
    }

    /// Fails if the folder for the tokens holds anything but those of the same text by the same tokenizer.
    fn check_tokens(&self) -> anyhow::Result<()> {
        let folder = PathBuf::from(dataset_folder(self.name)?);
        let is_empty = || folder.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty() && !self.made(&folder).unwrap_or(false) {
            refuse(&folder)?;
        }
        Ok(())
    }

    fn made(&self, folder: &Path) -> anyhow::Result<bool> {
        let file = TokenFile::open(folder)?;
        let sources: Vec<String> = self.sources.iter().map(Source::to_string).collect();
        let path = tokenizer_of(self.name);
        let ours = Tokenizer::from_json(&std::fs::read(&path)?, &path)?;
        let same_text = file.meta().is_some_and(|meta| meta.source == sources && meta.chat.is_none());
        Ok(same_text && file.tokenizer()?.to_json() == ours.to_json())
    }
}

/// Command lines, each for its purpose.
struct Lines<'a> {
    args: &'a Args,
    name: &'a str,
    plan: &'a Plan,
}

impl Lines<'_> {
    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    /// The text, as the flags say.
    fn text(&self) -> Vec<String> {
        let mut words = vec!["--txt".to_owned()];
        words.extend(self.args.txt.iter().map(|txt| txt.to_string_lossy().into_owned()));
        if self.args.text.lossy {
            words.push("--lossy".into());
        }
        if let Some(encoding) = &self.args.text.encoding {
            words.extend(["--encoding".into(), encoding.to_string()]);
        }
        words
    }

    fn vocabulary(&self) -> Vec<String> {
        let mut words = Self::words("tokenizer train");
        words.extend(self.text());
        words.extend(Self::words(&format!("--vocab_size {}", self.plan.vocab_size)));
        words.extend(["--out".into(), tokenizer_of(self.name)]);
        words
    }

    fn tokens(&self) -> Vec<String> {
        let mut words = vec!["tokenize".to_owned(), "--dataset".into(), self.name.into()];
        words.extend(self.text());
        words.extend(["--tokenizer".into(), tokenizer_of(self.name)]);
        words
    }

    /// `elapsed` seconds are gone.
    fn train(&self, elapsed: f64) -> Vec<String> {
        let Plan { variant, dropout, eval_interval, val_fraction, ref length, .. } = *self.plan;
        let mut words = vec!["train".to_owned(), "--variant".into(), variant.name.into(), "--data".into()];
        words.push(format!("_data_{}_/data.bin", self.name));
        let log_interval = eval_interval / 2;
        let length = match length {
            Length::Time => format!("--minutes {:.2}", self.plan.train_minutes(self.args.minutes, elapsed)),
            Length::Steps(steps) => format!("--max_iters {steps}"),
        };
        let line = format!(
            "--recipe fast {length} --dropout {dropout} --log_interval {log_interval} --eval_interval {eval_interval} \
             --val_fraction {val_fraction} \
             --keep_best --seed {} --threads {} --out",
            self.args.seed,
            self.args.threads.count()
        );
        words.extend(Self::words(&line));
        words.push(self.args.out.to_string_lossy().into_owned());
        words
    }

    fn sample(&self, beginning: &str) -> Vec<String> {
        let mut words = vec!["sample".to_owned(), "--model_checkpoint".into()];
        words.push(self.args.out.to_string_lossy().into_owned());
        words.extend(Self::words("--length 100 --temperature 0.8 --seed 1"));
        words.push(format!("--prompt={beginning}"));
        words
    }

    fn export(&self) -> Vec<String> {
        let mut words = vec!["export".to_owned(), "--model_path".into()];
        words.push(self.args.out.to_string_lossy().into_owned());
        words.extend(["--output_dir".into(), format!("exported_{}", self.name)]);
        words
    }
}
