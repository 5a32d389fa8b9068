//! `ngen3 finetune`: fine-tunes a model on conversations or tokens.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail, ensure};
use ngen3_data::chat::{ChatEncoder, ChatInput, ChatReading, Chats, Message, TooLong, TrainOn};
use ngen3_data::{HfSource, TokenFile, Tokenizer};
use ngen3_engine::Model;
use ngen3_generate::Sampling;
use ngen3_model::{ChatFormat, Checkpoint, Lora, Targets, Variant};
use ngen3_train::setup::ChatOptions;
use ngen3_train::{
    FINETUNE_HELP, InitialWeights, Job, Objective, Reference, ReferenceReport, RunKind, RunSpec, StartFrom,
    default_reference, read_reference, setup,
};

use super::tokenize::{ChatFlags, show};
use super::train::{Flags, RunFlags, open_device};
use crate::interrupt::{self, Interrupted, interruptible};
use crate::model::{self, variant_help};
use crate::progress::{Progress, write_line};
use crate::stdout;
use crate::streaming::{Answer, say_what_is_missing, say_what_is_seen};
use crate::training::{Training, resume_command};
use crate::world::{self, world};

/// Fine-tune a model on conversations
///
/// --data is a token file from ngen3 tokenize (for conversations, with mask.bin beside it), or conversations: JSON lines of
/// {"messages": [{role, content}…]}, of ShareGPT's {"conversations": [{from, value}…]} or of lists of strings (user and
/// assistant in turn), one JSON list of these, or text with one dialogue per line, its turns separated by tabs or __eou__.
/// A line without separators is a text to train on as a whole.
///
/// Conversations are rendered with the model's chat template, or the default one: the role, a line break, the message,
/// <|endoftext|>. By default, the loss covers only the assistant's turns. Conversations are packed without padding and never
/// attend to each other. Some are held out for validation; the model with the lowest validation loss is kept as
/// finetuned_VARIANT_model.pt. Perplexity on a reference text, before and after, shows how much the model has forgotten.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Token file, or a folder with one, or conversations (.jsonl, .json or .txt, optionally .gz or .zst; - for stdin)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Flags shared by `finetune` and `hf_finetune`.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Common {
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    #[arg(help = variant_help("Model's variant, which sets defaults and the output's name; with hf, the GPT-2 size"))]
    variant: Option<&'static Variant>,
    /// Model to fine-tune: .pt, .safetensors, .gguf, a Hugging Face folder, a hub name, or hf (GPT-2 in the size of --variant)
    #[arg(long, value_name = "MODEL", required_unless_present = "resume", conflicts_with = "resume")]
    model_checkpoint: Option<PathBuf>,
    #[command(flatten)]
    files: RunFlags,
    /// Total training steps [default: 1000]
    #[arg(long, value_name = "N", conflicts_with = "max_iters")]
    finetune_iters: Option<u64>,
    /// Turns to train on: assistant or all
    #[arg(long, value_name = "WHO", default_value = "assistant")]
    train_on: TrainOn,
    /// Conversations longer than the context length: split (between turns; an error if one message is longer), cut_left
    /// (keep the end), cut_right (keep the beginning), skip, or error
    #[arg(long, value_name = "HOW", default_value = "split")]
    too_long: TooLong,
    /// Text for the perplexity before and after [default: the last tenth of builtin:shakespeare]
    #[arg(long, value_name = "FILE")]
    reference_text: Option<PathBuf>,
    /// Message to answer after training, or text to continue if the model was not trained on conversations
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Tokens to generate after training
    #[arg(long, value_name = "N", default_value_t = 100)]
    sample_length: usize,
    /// Divides the logits: below 1 favours likely tokens, above 1 flattens the distribution; 0 always takes the most likely
    /// token
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    sample_temperature: f32,
    #[command(flatten)]
    pub chat: ChatFlags,
    #[command(flatten)]
    lora: LoraFlags,
    #[command(flatten)]
    flags: Flags,
}

/// Flags of low-rank adapters (LoRA).
#[derive(clap::Args)]
#[command(rename_all = "snake_case", next_help_heading = "Low-rank adapters (LoRA)")]
struct LoraFlags {
    /// Train only LoRA adapters of this rank. Writes finetuned_VARIANT_model.pt with the adapters merged, and
    /// finetuned_VARIANT_model.adapter with the adapters alone, in the format of Python's peft
    #[arg(long, value_name = "R", conflicts_with = "resume")]
    lora_rank: Option<usize>,
    /// Adapter outputs are scaled by alpha / rank [default: twice the rank]
    #[arg(long, value_name = "A", requires = "lora_rank")]
    lora_alpha: Option<f32>,
    /// Layers with adapters, separated by commas: c_attn, c_fc, c_proj (or only attn.c_proj, mlp.c_proj) of GPT-2; q_proj,
    /// k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj of the Llama family [default: all]
    #[arg(long, value_name = "NAMES", requires = "lora_rank")]
    lora_targets: Option<Targets>,
}

impl LoraFlags {
    fn asked(self) -> Option<Lora> {
        let rank = self.lora_rank?;
        let alpha = self.lora_alpha.unwrap_or(2.0 * rank as f32);
        Some(Lora { rank, alpha, targets: self.lora_targets.unwrap_or_default() })
    }
}

const EXAMPLES: &str = "\
Examples:
  ngen3 finetune --variant 120M --model_checkpoint distilled_120M_model.pt \\
    --data _data_conversations_/data.bin --finetune_iters 1000 \\
    --prompt \"Hello, how are you?\" --sample_length 100 --sample_temperature 1.0
  ngen3 finetune --model_checkpoint 7M_model.pt --data chats.jsonl --skip_bad \\
    --patience 5 --out talking.pt
  ngen3 finetune --data chats.jsonl --out talking.pt --resume
  ngen3 finetune --variant 120M --model_checkpoint hf --data chats.jsonl \\
    --lora_rank 8 --lora_targets c_attn,c_proj
  ngen3 finetune --variant 120M --model_checkpoint hf --data chats.jsonl \\
    --train_on all --chat_template mine.jinja";

/// Replaces the help of settings whose defaults differ in fine-tuning.
pub fn with_defaults(command: clap::Command) -> clap::Command {
    FINETUNE_HELP.into_iter().fold(command, |command, (name, help)| command.mut_arg(name, |arg| arg.help(help)))
}

/// Training data.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// Token file, or file of conversations.
    File(&'a Path),
    /// Rows of a Hugging Face dataset.
    Hf(&'a HfSource),
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let command = ["finetune".as_ref(), "--data".as_ref(), args.data.as_os_str()];
    fine_tune(args.common, Input::File(&args.data), &command)
}

/// Model to fine-tune, without its weights.
struct Learner {
    path: PathBuf,
    tokenizer: Option<Tokenizer>,
    chat: Option<ChatFormat>,
}

impl Common {
    /// Flags to repeat when the run is resumed.
    fn again(&self) -> Vec<OsString> {
        let mut words = Vec::new();
        let mut tell =
            |flag: &str, value: Option<OsString>| words.extend([Some(flag.into()), value].into_iter().flatten());
        if self.train_on == TrainOn::All {
            tell("--train_on", Some("all".into()));
        }
        if self.too_long != TooLong::default() {
            tell("--too_long", Some(self.too_long.name().into()));
        }
        if self.chat.skip_bad {
            tell("--skip_bad", None);
        }
        for (flag, pairs) in [("--roles", &self.chat.roles), ("--columns", &self.chat.columns)] {
            if !pairs.is_empty() {
                tell(flag, Some(pairs.join(",").into()));
            }
        }
        if let Some(path) = &self.reference_text {
            tell("--reference_text", Some(path.into()));
        }
        if let Some(prompt) = &self.prompt {
            tell("--prompt", Some(prompt.into()));
            tell("--sample_length", Some(self.sample_length.to_string().into()));
            tell("--sample_temperature", Some(self.sample_temperature.to_string().into()));
        }
        words.extend(self.files.device.again());
        words
    }
}

/// Fine-tunes a model. `command` holds the command's name and its data flags, for the resume command.
pub fn fine_tune(args: Common, input: Input, command: &[&OsStr]) -> anyhow::Result<()> {
    let again = args.again();
    let command: Vec<&OsStr> = command.iter().copied().chain(again.iter().map(OsString::as_os_str)).collect();
    let sampling = Sampling { temperature: args.sample_temperature, ..Sampling::default() };
    sampling.validate()?;
    let template = args.chat.template()?;
    let (prompt, length) = (args.prompt.clone(), args.sample_length);
    let options = ChatOptions { train_on: args.train_on, too_long: args.too_long, skip_bad: args.chat.skip_bad };
    let reading = args.chat.reading(args.train_on == TrainOn::Assistant)?;
    let reference_text = args.reference_text.clone();
    let device_flag = args.files.device;
    // Before watching for signals: an interrupted download resumes on the next run.
    let (model, spec) = begin(args)?;
    let device = open_device(device_flag, &spec.settings)?;
    if prompt.is_some() && model.tokenizer.is_none() {
        bail!("{}: no recorded tokenizer, so it cannot answer --prompt", model.path.display());
    }
    let stop = interrupt::watch()?;

    // Rank 0 alone measures the perplexity and samples.
    let reference = match world::is_quiet() {
        true => None,
        false => reference(reference_text.as_deref(), model.tokenizer.as_ref())?,
    };
    let chats = read(&model, input, &reading, template, &stop)?;
    let (job, mut objective, weights): (Job, Box<dyn Objective>, InitialWeights) = match chats {
        Some(chats) => {
            let (job, objective, weights) = setup::on_chats(device, spec, chats, options, model.chat.as_ref())?;
            (job, Box::new(objective), weights)
        }
        None => {
            let Input::File(path) = input else { unreachable!("dataset rows are conversations") };
            let (job, objective, weights) = setup::on_tokens(device, spec, path)?;
            (job, Box::new(objective), weights)
        }
    };
    // `None` if training is finished; the perplexity and the sample after it may still be missing.
    let mut training = Training::new(device, &job, weights)?;
    let begins = job.progress.step == 0;
    if begins && !world::is_quiet() {
        ReferenceReport::remove(&job.paths)?;
    }
    let report = match (&reference, ReferenceReport::read(&job.paths)?, &mut training) {
        (Some(reference), Some(report), _) if report.text == reference.title() => Some(report),
        (Some(reference), None, Some(training)) if begins => {
            // If interrupted, it is measured on resume, which then starts at step 0.
            match reference.perplexity(&mut *training.trainer, job.config.block_size, &stop)? {
                None => None,
                Some(before) => {
                    let report = ReferenceReport { text: reference.title(), before, after: None };
                    report.write(&job.paths)?;
                    Some(report)
                }
            }
        }
        (Some(_), Some(ReferenceReport { text, .. }), _) => {
            write_line(&format!(
                "note: the run measured the perplexity on {text}; pass the same --reference_text to measure it again"
            ));
            None
        }
        (Some(reference), ..) => {
            let title = reference.title();
            write_line(&format!("note: skipping the perplexity on {title}, which was not measured before training"));
            None
        }
        (None, ..) => {
            write_line("note: the model has no recorded tokenizer; skipping the perplexity");
            None
        }
    };
    let finished = training.is_none();
    if let Some(training) = training {
        training.run(&mut *objective, &command, &stop)?;
        if begins && reference.is_some() && report.is_none() {
            // A run of zero steps, interrupted while the perplexity was measured.
            return Err(Interrupted.into());
        }
    }
    drop(objective);
    if world::is_quiet() {
        return Ok(());
    }
    let report = report.filter(|report| !(finished && report.after.is_some()));
    if finished && report.is_none() && prompt.is_none() {
        return Ok(());
    }

    let Checkpoint { config, params, meta } = Checkpoint::load(&job.paths.model)?;
    let mut engine = device.open(config, params, job.settings.options())?;
    if let (Some(reference), Some(mut report)) = (reference, report) {
        let Some(after) = reference.perplexity(&mut *engine, job.config.block_size, &stop)? else {
            let (model, command) = (job.paths.model.display(), resume_command(&command, &job.paths.model));
            write_line(&format!("{model}: training is finished; measure the perplexity with: {command}"));
            return Err(Interrupted.into());
        };
        report.after = Some(after);
        report.write(&job.paths)?;
        stdout::print(&format!(
            "perplexity on {}: {:.2} before, {after:.2} after ({:+.1} %)\n",
            report.text,
            report.before,
            100.0 * (after / report.before - 1.0)
        ))?;
    }
    match (prompt, model.tokenizer) {
        (Some(prompt), Some(tokenizer)) => {
            let sampling = Sampling { seed: job.settings.seed, ..sampling };
            sample(&*engine, tokenizer, meta.chat, &prompt, length, sampling, &stop)
        }
        _ => Ok(()),
    }
}

/// Loads the model to fine-tune and builds the run's specification.
fn begin(args: Common) -> anyhow::Result<(Learner, RunSpec)> {
    let (mut settings, shape) = args.flags.asked();
    settings.max_iters = args.finetune_iters.or(settings.max_iters);
    let (found, checkpoint) = match (&args.model_checkpoint, args.files.resume) {
        (Some(named), false) => model::load(named, args.variant)?,
        _ => {
            // A resumed run reads its own checkpoint.
            let default = || args.variant.map(|variant| format!("finetuned_{}_model.pt", variant.name).into());
            let out = args
                .files
                .out
                .clone()
                .or_else(default)
                .context("--resume: expected --out FILE or --variant NAME to identify the run")?;
            model::load(&out, args.variant)?
        }
    };
    let tokenizer = model::tokenizer(&found.path, &checkpoint.config, &checkpoint.meta)?;
    let out = match args.variant {
        None if !args.files.resume => {
            args.files.out.clone().or_else(|| Some(format!("finetuned_{}.pt", found.name).into()))
        }
        _ => args.files.out.clone(),
    };
    let model = Learner { path: found.path.clone(), tokenizer, chat: checkpoint.meta.chat.clone() };
    let start = args.files.start(StartFrom::Loaded(found.path, Box::new(checkpoint)));
    let (variant, overwrite, lora) = (args.variant, args.files.overwrite, args.lora.asked());
    let config_file = args.files.config;
    let kind = RunKind::Finetune;
    Ok((model, RunSpec { kind, variant, config_file, out, start, overwrite, settings, shape, lora, world: world() }))
}

/// Reads and tokenizes the conversations; `None` if the input is a file of plain tokens.
fn read(
    model: &Learner,
    input: Input,
    reading: &ChatReading,
    template: Option<String>,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Option<Chats>> {
    let in_folder = match input {
        Input::File(path) => TokenFile::in_folder(path)?,
        Input::Hf(_) => None,
    };
    if let Input::File(path) = input
        && (in_folder.is_some() || path.extension().is_some_and(|ending| ending == "bin"))
    {
        let chats = Chats::open(in_folder.as_deref().unwrap_or(path))?;
        if template.is_some() {
            bail!("{}: already tokenized; --chat_template applies only to untokenized conversations", path.display());
        }
        return Ok(chats);
    }
    let Some(tokenizer) = model.tokenizer.clone() else {
        bail!(
            "{}: no recorded tokenizer, so it cannot read conversations; tokenize them with ngen3 tokenize --chats",
            model.path.display()
        );
    };
    let encoder = match template {
        Some(template) => ChatEncoder::with_template(tokenizer, Some(&template))?,
        None => ChatEncoder::new(tokenizer, model.chat.clone())?,
    };
    let files;
    let (name, input) = match input {
        Input::File(path) => {
            files = [path.to_owned()];
            (path.display().to_string(), ChatInput::Files(&files, None))
        }
        Input::Hf(source) => (format!("{}, split {}", source.dataset, source.split), ChatInput::Hf(source)),
    };
    let progress = Progress::bytes("reading");
    let chats = Chats::read(&name, input, &encoder, reading, stop, &mut |event| show(&progress, event));
    drop(progress);
    Ok(Some(interruptible(chats)?))
}

/// Reads the text for the perplexity; `None` without a tokenizer.
fn reference(path: Option<&Path>, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Option<Reference>> {
    let Some(tokenizer) = tokenizer else { return Ok(None) };
    let (name, text) = match path {
        Some(path) => (path.display().to_string(), read_reference(path)?),
        None => {
            let (name, text) = default_reference();
            (name.to_owned(), text)
        }
    };
    let reference = Reference::new(&name, &text, tokenizer)?;
    if reference.is_none() {
        bail!("{name}: too short to measure a perplexity");
    }
    Ok(reference)
}

/// Prints the model's answer to `prompt`, or its continuation if the model was not trained on conversations.
fn sample(
    model: &dyn Model,
    tokenizer: Tokenizer,
    chat: Option<ChatFormat>,
    prompt: &str,
    length: usize,
    sampling: Sampling,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    say_what_is_missing(&tokenizer, prompt)?;
    let (shown, ids, end) = match chat {
        Some(format) => {
            let encoder = ChatEncoder::new(tokenizer.clone(), Some(format))?;
            let ids = encoder.prompt(&[Message::user(prompt)])?;
            (format!("user: {prompt}\nassistant: "), ids, Some(encoder.end()))
        }
        None => {
            let mut ids: Vec<u32> = tokenizer.document_start().into_iter().collect();
            tokenizer.encode_into(prompt, &mut ids)?;
            if ids.is_empty() {
                ids.extend(tokenizer.eot());
            }
            ensure!(!ids.is_empty(), "--prompt: expected characters of the model's vocabulary");
            (prompt.to_owned(), ids, tokenizer.eot())
        }
    };
    say_what_is_seen(ids.len(), model.config().block_size);
    stdout::print(&shown)?;
    let answer = Answer { prompt: &ids, length, end, stops: &[], sampling };
    let whole = answer.make(model, &tokenizer, stop, &mut stdout::print)?;
    stdout::print("\n")?;
    if whole { Ok(()) } else { Err(Interrupted.into()) }
}
