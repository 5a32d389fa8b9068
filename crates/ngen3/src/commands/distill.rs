//! `ngen3 distill`: trains a small model (the student) on a large model's (the teacher's) predictions.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_data::TokenFile;
use ngen3_engine::{Divergence, Options, Quant, Teacher};
use ngen3_model::words::file_size;
use ngen3_model::{Checkpoint, Family, Variant};
use ngen3_train::distill::{Compared, DistillObjective, DistillRequest, DistillTask};
use ngen3_train::{Job, RunKind, RunSpec, StartFrom, setup};

use super::train::{Flags, RunFlags, open_device};
use crate::interrupt::{self, Interrupted};
use crate::model::{self, CHECK_VARIANT, variant_help};
use crate::progress::{Progress, write_line};
use crate::teacher_writing::{WritingFlags, write_texts};
use crate::training::Training;
use crate::world::{on_root, world};

/// Batches on which the loss from the cache is compared with the loss from the teacher.
const COMPARED: u64 = 2;

/// Distil a large model into a small one
///
/// At each position the student learns from the next token, as in training, and from the teacher's probabilities of all
/// tokens (Hinton et al. 2015). With p = softmax(teacher logits / T) and q = softmax(student logits / T),
///
///   loss = alpha · T² · KL(p ‖ q) + (1 − alpha) · cross entropy
///
/// KL(p ‖ q) is the sum over tokens of p · ln(p / q). The log shows both terms (ce and div on a terminal); "divergence"
/// includes T². Validation uses the student's plain cross entropy, as in ngen3 train.
///
/// A teacher of another tokenizer has no probabilities of the student's tokens. With --teacher_writes N it writes N texts
/// instead, which the student learns as in ngen3 train.
///
/// Writes distilled_VARIANT_model.pt, and the same files beside it as train. Ctrl-C finishes the step, saves, and prints
/// the resume command.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Teacher model: .pt, .safetensors, .gguf, a Hugging Face folder, a hub name, or hf (GPT-2 in the size of --teacher_variant).
    /// Its vocabulary and tokenizer must match the data, except with --teacher_writes
    #[arg(long, value_name = "MODEL")]
    teacher_model_path: PathBuf,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name, help = variant_help(CHECK_VARIANT))]
    teacher_variant: Option<&'static Variant>,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    #[arg(help = variant_help("Student's shape and training defaults"))]
    student_variant: Option<&'static Variant>,
    /// Student's family: gpt2, llama, mistral, qwen2 or qwen3 [default: gpt2]
    #[arg(long, value_name = "NAME")]
    student_arch: Option<Family>,
    /// Token file to train on, from ngen3 tokenize, or a folder with one (data.bin or train.bin)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Temperature T, from 0.1 to 100: above 1, the teacher's less likely tokens get more weight [default: 2]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Weight of the teacher's term in the loss, from 0 to 1 [default: 0.5]
    #[arg(long, value_name = "A")]
    alpha: Option<f32>,
    /// Quantize the teacher: int8 (weights and activations; less memory, faster with AVX512-VNNI, slightly different logits),
    /// int4 (weights only, as in sample --quant; for what such a model teaches, not faster) or none [default: none]
    #[arg(long, value_name = "KIND")]
    teacher_quant: Option<Quant>,
    /// Divergence in the loss: forward_kl (KL(p ‖ q)), reverse_kl (KL(q ‖ p), as in MiniLLM) or jensen_shannon
    /// (KL(p ‖ m) / 2 + KL(q ‖ m) / 2 with m = (p + q) / 2, as in GKD) [default: forward_kl]
    #[arg(long, value_name = "NAME")]
    divergence: Option<Divergence>,
    /// Student's initial weights: a model of the same shape, or from-teacher-layers (every other teacher layer, or as many as
    /// the student has, as in DistilGPT-2; the widths must match) [default: random]
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    init_student: Option<PathBuf>,
    /// Folder that caches the teacher's top tokens at each position, so that later epochs, students and runs need no teacher
    /// passes. Sequences then start only at multiples of block_size. Requires forward_kl
    #[arg(long, value_name = "FOLDER")]
    teacher_cache: Option<PathBuf>,
    /// Tokens cached per position; the rest of the probability is cached as one sum
    #[arg(long, value_name = "K", default_value_t = 64, requires = "teacher_cache")]
    teacher_top_k: usize,
    #[command(flatten)]
    files: RunFlags,
    #[command(flatten)]
    writing: WritingFlags,
    #[command(flatten)]
    flags: Flags,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 distill --teacher_model_path hf --teacher_variant 120M \\
    --student_variant 7M --data _data_tinyshakespeare_/data.bin \\
    --temperature 2.0 --alpha 0.5
  ngen3 distill --teacher_model_path 120M_model.pt --student_variant 7M \\
    --data _data_plays_/data.bin --teacher_cache plays_cache --max_iters 10000
  ngen3 distill --teacher_model_path gpt2 --init_student from-teacher-layers \\
    --data _data_plays_/data.bin --block_size 256 --out distilled_gpt2.pt
  ngen3 distill --teacher_model_path SmolLM2-135M-Instruct --student_variant 7M \\
    --data _data_plays_/data.bin --teacher_writes 2000 --out written.pt";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let command = args.command();
    // Before watching for signals: an interrupted download resumes on the next run.
    let (found, teacher) = model::load(&args.teacher_model_path, args.teacher_variant)?;
    let teacher = Arc::new(teacher);
    let path = found.path.clone();
    let (settings, mut shape) = args.flags.asked();
    shape.family = args.student_arch;
    let start = match args.init_student {
        Some(named) if named == Path::new("from-teacher-layers") || named == Path::new("from_teacher_layers") => {
            StartFrom::LayersOf(path.clone(), Arc::clone(&teacher))
        }
        Some(named) => {
            let found = model::find(&named, args.student_variant, None)?;
            shape = found.shaped(shape);
            StartFrom::Checkpoint(found.path)
        }
        None => StartFrom::Scratch,
    };
    let device = open_device(args.files.device, &settings)?;
    let stop = interrupt::watch()?;
    let spec = RunSpec {
        kind: RunKind::Distill,
        variant: args.student_variant,
        start: args.files.start(start),
        overwrite: args.files.overwrite,
        config_file: args.files.config,
        out: args.files.out,
        settings,
        shape,
        lora: None,
        world: world(),
    };
    let command: Vec<&OsStr> = command.iter().map(OsString::as_os_str).collect();
    if let Some(n) = args.writing.teacher_writes {
        let data = TokenFile::open(&args.data)?;
        setup::check_student(spec.clone(), &data, &path)?;
        if let Some(doubt) = data.doubt() {
            write_line(&format!("note: {doubt}"));
        }
        let from = (&found, Arc::unwrap_or_clone(teacher));
        let how = (&spec.settings, args.teacher_quant.unwrap_or_default());
        on_root(|| write_texts(&args.writing, n as usize, &data, from, how, &stop))?;
        let data = args.writing.texts();
        let (job, mut objective, weights) = setup::on_tokens(device, spec, &data)?;
        let Some(training) = Training::new(device, &job, weights)? else { return Ok(()) };
        return training.run(&mut objective, &command, &stop);
    }
    let Args { temperature, alpha, divergence, teacher_quant, .. } = args;
    let top_k = args.teacher_cache.as_ref().map(|_| args.teacher_top_k);
    let request = DistillRequest { temperature, alpha, divergence, teacher_quant, top_k };
    let (job, task, weights) = setup::with_teacher(device, spec, &args.data, request, &path, &teacher)?;
    let Some(mut training) = Training::new(device, &job, weights)? else { return Ok(()) };

    // Setup has dropped its reference to the teacher, so this moves instead of copying.
    let Checkpoint { config, params, .. } = Arc::unwrap_or_clone(teacher);
    let quant = task.record.quant();
    let quantized = if quant == Quant::None { String::new() } else { format!(", {quant}") };
    write_line(&format!("teacher: {}: {}{quantized}", found.name, model::describe(&config)));
    let teacher = device.open_teacher(config, params, Options { quant, ..job.settings.options() })?;
    let mut objective = match args.teacher_cache {
        Some(folder) => ask_once(&folder, task, &job, teacher, &mut training, &stop)?,
        None => DistillObjective::from_teacher(task, teacher),
    };
    training.run(&mut objective, &command, &stop)
}

/// Has rank 0 fill the cache, opens it on all ranks, and drops the teacher.
fn ask_once(
    folder: &Path,
    mut task: DistillTask,
    job: &Job,
    mut teacher: Box<dyn Teacher>,
    training: &mut Training<'_>,
    stop: &AtomicBool,
) -> anyhow::Result<DistillObjective> {
    let dtype = training.trainer.info().dtype;
    on_root(|| fill(folder, &mut task, job, &mut *teacher, training, stop))?;
    let cache = task.open_cache(job, folder, dtype)?;
    Ok(DistillObjective::from_cache(task, cache))
}

/// Fills the cache if it is incomplete, and reports its approximation error.
fn fill(
    folder: &Path,
    task: &mut DistillTask,
    job: &Job,
    teacher: &mut dyn Teacher,
    training: &mut Training<'_>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let cache = task.open_cache(job, folder, training.trainer.info().dtype)?;
    if let Some(dtype) = cache.other_dtype() {
        let (folder, now) = (folder.display(), training.trainer.info().dtype);
        write_line(&format!("note: {folder} was cached in {dtype}; this run computes in {now}"));
    }
    let progress = Progress::bytes("caching teacher");
    progress.set_total(Some(cache.bytes()));
    let done = cache.fill(teacher, &mut task.tokens, job.settings.batch_size, &mut |bytes| {
        progress.set(bytes, "");
        !stop.load(Ordering::Relaxed)
    })?;
    drop(progress);
    if !done {
        return Err(interrupted(folder));
    }
    let compared = task.compare(&cache, teacher, &mut *training.trainer, COMPARED, stop)?;
    let Compared { exact, cached, covered } = compared.ok_or_else(|| interrupted(folder))?;
    write_line(&format!(
        "cache: {}: {}, top {} tokens per position, {:.1} % of the teacher's probability; divergence {:.4} with the \
         cache, {:.4} without",
        folder.display(),
        file_size(cache.bytes() as f64),
        cache.top_k(),
        100.0 * covered,
        cached.divergence,
        exact.divergence
    ));
    Ok(())
}

/// Prints how to complete an interrupted cache, and returns [`Interrupted`].
fn interrupted(folder: &Path) -> anyhow::Error {
    write_line(&format!("{}: completed files are kept; rerun the same command to continue", folder.display()));
    Interrupted.into()
}

impl Args {
    /// Words of the resume command, without `--out`; the run's state holds the other settings.
    fn command(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["distill".into(), "--teacher_model_path".into()];
        words.push(self.teacher_model_path.clone().into());
        if let Some(variant) = self.teacher_variant {
            words.extend(["--teacher_variant".into(), variant.name.into()]);
        }
        words.extend(["--data".into(), self.data.clone().into()]);
        if let Some(folder) = &self.teacher_cache {
            words.extend(["--teacher_cache".into(), folder.clone().into()]);
            words.extend(["--teacher_top_k".into(), self.teacher_top_k.to_string().into()]);
        }
        words.extend(self.writing.words());
        if let (Some(quant), Some(_)) = (self.teacher_quant, self.writing.teacher_writes) {
            words.extend(["--teacher_quant".into(), quant.to_string().into()]);
        }
        words
    }
}
