//! `ngen3 distill`: a small model learns from a large one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ngen3_engine::{Divergence, Options, Quant, Teacher};
use ngen3_model::words::{file_size, grouped_count};
use ngen3_model::{Checkpoint, Config, Variant};
use ngen3_train::distill::{Compared, DistillObjective, DistillRequest, DistillTask};
use ngen3_train::{Job, RunKind, RunSpec, StartFrom, setup};

use super::train::{Flags, RunFlags};
use crate::device::device;
use crate::interrupt::{self, Interrupted};
use crate::model::{self, Found};
use crate::progress::{Progress, write_line};
use crate::training::Training;

/// Batches on which the loss from a cache is held against the teacher's own.
const COMPARED: u64 = 2;

/// Distill a large model into a small one
///
/// At each place the student learns from the next token, as in training, and from what the teacher thinks of all tokens
/// (Hinton et al. 2015). With p = softmax(teacher's logits / T) and q = softmax(student's logits / T),
///
///   loss = alpha · T² · KL(p ‖ q) + (1 − alpha) · cross entropy
///
/// KL(p ‖ q) is the sum over the tokens of p · ln(p / q). The log gives both parts, "divergence" with its T² (ce and div on a
/// terminal). Validation is by the student's plain cross entropy, as in ngen3 train.
///
/// Leaves distilled_VARIANT_model.pt, and beside it what train leaves. Ctrl-C finishes the step, saves, and says how to go on.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// The model to learn from: .pt, .safetensors, a Hugging Face folder, a name on the hub, or hf (GPT-2 in the size of
    /// --teacher_variant). Its vocabulary and tokenizer must be those of the data
    #[arg(long, value_name = "MODEL")]
    teacher_model_path: PathBuf,
    /// The teacher's variant: which GPT-2 hf is; of any other model it is checked
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    teacher_variant: Option<&'static Variant>,
    /// The student's shape and training defaults; ngen3 variants lists them
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    student_variant: Option<&'static Variant>,
    /// Tokens to train on; ngen3 tokenize makes them
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// T, from 0.1 to 100: above 1 the teacher's less likely tokens count for more [default: 2]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// The teacher's share of the loss, from 0 to 1 [default: 0.5]
    #[arg(long, value_name = "A")]
    alpha: Option<f32>,
    /// Round the teacher's weights, and at each token what they are multiplied with, to int8, in less memory and, where the
    /// processor has AVX512-VNNI, faster; what it says changes by a little. Or none [default: none]
    #[arg(long, value_name = "KIND")]
    teacher_quant: Option<Quant>,
    /// What stands for KL(p ‖ q): forward_kl (itself), reverse_kl (KL(q ‖ p), as in MiniLLM) or jensen_shannon
    /// (KL(p ‖ m) / 2 + KL(q ‖ m) / 2 with m = (p + q) / 2, as in GKD) [default: forward_kl]
    #[arg(long, value_name = "NAME")]
    divergence: Option<Divergence>,
    /// Where the student's first weights come from: a model of its shape, or from-teacher-layers (every other layer of the
    /// teacher, or as many as the student has, as DistilGPT-2; widths must be alike) [default: drawn at random]
    #[arg(long, value_name = "MODEL", conflicts_with = "resume")]
    init_student: Option<PathBuf>,
    /// Folder for what the teacher says of each place, its likeliest tokens: made once, it serves further epochs, students
    /// and runs without the teacher's time. Rows then start at whole blocks only. For forward_kl
    #[arg(long, value_name = "FOLDER")]
    teacher_cache: Option<PathBuf>,
    /// How many tokens of each place the cache tells apart; the others are one lump
    #[arg(long, value_name = "K", default_value_t = 64, requires = "teacher_cache")]
    teacher_top_k: usize,
    #[command(flatten)]
    files: RunFlags,
    #[command(flatten)]
    flags: Flags,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 distill --teacher_model_path hf --teacher_variant 120M --student_variant 7M \\
    --data _data_tinyshakespeare_/data.bin --temperature 2.0 --alpha 0.5
  ngen3 distill --teacher_model_path 120M_model.pt --student_variant 7M --data _data_plays_/data.bin \\
    --teacher_cache said_of_plays --max_iters 10000
  ngen3 distill --teacher_model_path gpt2 --init_student from-teacher-layers --data _data_plays_/data.bin \\
    --block_size 256 --out distilled_gpt2.pt";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let command = args.command();
    // Before the signals are watched: a download that is stopped goes on the next time.
    let (Found { path, name, .. }, teacher) = model::load(&args.teacher_model_path, args.teacher_variant)?;
    let teacher = Arc::new(teacher);
    let (settings, mut shape) = args.flags.asked();
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
    };
    let Args { temperature, alpha, divergence, teacher_quant, .. } = args;
    let top_k = args.teacher_cache.as_ref().map(|_| args.teacher_top_k);
    let request = DistillRequest { temperature, alpha, divergence, teacher_quant, top_k };
    let (job, task, weights) = setup::with_teacher(device(), spec, &args.data, request, &path, &teacher)?;
    let Some(mut training) = Training::new(&job, weights)? else { return Ok(()) };

    // The student has taken from it what it needs, so that this copies nothing.
    let Checkpoint { config, params, .. } = Arc::unwrap_or_clone(teacher);
    let Config { n_layer, n_head, n_embd, block_size, .. } = config;
    let quant = task.record.quant();
    let rounded = if quant == Quant::None { String::new() } else { format!(", in {quant}") };
    write_line(&format!(
        "teacher: {name}: {}, {}, width {n_embd}, block {block_size}{rounded}",
        grouped_count(n_layer as u64, "layer"),
        grouped_count(n_head as u64, "head")
    ));
    let teacher = device().open_teacher(config, params, Options { quant, ..job.settings.options() })?;
    let mut objective = match args.teacher_cache {
        Some(folder) => ask_once(&folder, task, &job, teacher, &mut training, &stop)?,
        None => DistillObjective::from_teacher(task, teacher),
    };
    let command: Vec<&OsStr> = command.iter().map(OsString::as_os_str).collect();
    training.run(&mut objective, &command, &stop)
}

/// Fills the cache, if there is anything to fill, and says what is lost by it. The teacher is not needed after that.
fn ask_once(
    folder: &Path,
    mut task: DistillTask,
    job: &Job,
    mut teacher: Box<dyn Teacher>,
    training: &mut Training<'_>,
    stop: &AtomicBool,
) -> anyhow::Result<DistillObjective> {
    let cache = task.open_cache(job, folder, training.trainer.info().dtype)?;
    if let Some(dtype) = cache.other_dtype() {
        let (folder, now) = (folder.display(), training.trainer.info().dtype);
        write_line(&format!("note: {folder} is what the teacher said in {dtype}; this run computes in {now}"));
    }
    let progress = Progress::bytes("asking the teacher");
    progress.set_total(Some(cache.bytes()));
    let done = cache.fill(&mut *teacher, &mut task.tokens, job.settings.batch_size, &mut |bytes| {
        progress.set(bytes, "");
        !stop.load(Ordering::Relaxed)
    })?;
    drop(progress);
    if !done {
        return Err(interrupted(folder));
    }
    let compared = task.compare(&cache, &mut *teacher, &mut *training.trainer, COMPARED, stop)?;
    let Compared { exact, cached, covered } = compared.ok_or_else(|| interrupted(folder))?;
    write_line(&format!(
        "cache: {}: {}, the {} likeliest tokens of each place, {:.1}% of the teacher's probability; divergence now {:.4} \
         with it and {:.4} without",
        folder.display(),
        file_size(cache.bytes() as f64),
        cache.top_k(),
        100.0 * covered,
        cached.divergence,
        exact.divergence
    ));
    Ok(DistillObjective::from_cache(task, cache))
}

/// Says what becomes of a cache when the run is stopped before it begins.
fn interrupted(folder: &Path) -> anyhow::Error {
    write_line(&format!("what is whole in {} stays; the same command goes on from it", folder.display()));
    Interrupted.into()
}

impl Args {
    /// The words that go on with this run, but for where it is: its state knows the rest.
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
        words
    }
}
