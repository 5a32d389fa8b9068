//! `ngen3 export`: writes a model for other programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;
use ngen3_data::hub::{CommitInfo, Hub};
use ngen3_data::source::Event;
use ngen3_model::hf::{CurvePoint, Export, ExportDtype, ExportFormat, check_export, export};
use ngen3_model::words::file_size;
use ngen3_model::{Checkpoint, Variant};
use ngen3_train::{RunPaths, read_metrics};

use crate::commands::tokenize::show;
use crate::interrupt::{self, interruptible};
use crate::model::{self, CHECK_VARIANT, variant_help};
use crate::progress::{Progress, write_line};
use crate::stdout;

/// Export a model to Hugging Face or GGUF
///
/// --format hf writes a Hugging Face folder that transformers loads with AutoModelForCausalLM and AutoTokenizer.
/// --format gguf writes one file for llama.cpp, including the tokenizer. Both add a model card, README.md. The folder is
/// written atomically.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Model to export: .pt, .safetensors, .gguf, a Hugging Face folder, a hub name, or hf (GPT-2 in the size of --variant)
    #[arg(long, value_name = "MODEL")]
    model_path: PathBuf,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name, help = variant_help(CHECK_VARIANT))]
    variant: Option<&'static Variant>,
    /// Folder to create
    #[arg(long, value_name = "FOLDER")]
    output_dir: PathBuf,
    /// Format: hf or gguf
    #[arg(long, value_name = "FORMAT", default_value = "hf")]
    format: ExportFormat,
    /// Type of the stored weights: f32, bf16, f16; with gguf also q8_0 and q4_0 (8 and 4 bits)
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: ExportDtype,
    /// Replace an existing export in the folder
    #[arg(long)]
    overwrite: bool,
    /// Upload the export to the hub as one commit, creating the repository if needed; requires HF_TOKEN
    #[arg(long, value_name = "OWNER/NAME")]
    push: Option<String>,
    /// Create the repository as private
    #[arg(long, requires = "push")]
    private: bool,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 export --variant 7M --model_path 7M_model.pt --output_dir exported_7M
  ngen3 export --model_path 7M_model.pt --output_dir half_7M --dtype bf16
  ngen3 export --model_path 7M_model.pt --output_dir gguf_7M --format gguf \\
    --dtype q8_0
  HF_TOKEN=hf_… ngen3 export --model_path 7M_model.pt \\
    --output_dir exported_7M --push me/shakespeare-7M";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    check_export(&args.output_dir, args.format, args.dtype, args.overwrite)?;
    let hub = args.push.as_ref().map(|_| Hub::from_env()).transpose()?;
    if let (Some(hub), Some(repository)) = (&hub, &args.push) {
        hub.check_push(repository)?;
    }
    let (found, checkpoint) = model::load(&args.model_path, args.variant)?;
    let tokenizer = model::tokenizer(&args.model_path, &checkpoint.config, &checkpoint.meta)?;
    if tokenizer.is_none() {
        write_line("note: the model has no recorded tokenizer; exporting without one");
    }
    let json = tokenizer.as_ref().map(|tokenizer| tokenizer.to_json());
    let eot = tokenizer.as_ref().and_then(|tokenizer| tokenizer.eot().map(|id| (tokenizer.decode(&[id]), id)));
    let (curve, loss_svg) = training_curve(&found.path, &checkpoint)?;
    let exported = export(
        &Export {
            name: &found.name,
            checkpoint: &checkpoint,
            tokenizer: json.as_deref(),
            eot: eot.as_ref().map(|(text, id)| (text.as_str(), *id)),
            curve: &curve,
            loss_svg: loss_svg.as_deref(),
            format: args.format,
            dtype: args.dtype,
        },
        &args.output_dir,
        args.overwrite,
    )?;
    let mut text = format!("{}:\n", args.output_dir.display());
    for (name, bytes) in &exported.files {
        let size = if *bytes < 100_000 { format!("{bytes} bytes") } else { file_size(*bytes as f64) };
        text += &format!("  {name} ({size})\n");
    }
    stdout::print(&text)?;
    let (Some(hub), Some(repository)) = (hub, args.push) else { return Ok(()) };
    let files: Vec<String> = exported.files.into_iter().map(|(name, _)| name).collect();
    push(&hub, &repository, &args.output_dir, &files, args.private)
}

/// Uploads the exported files and prints the repository's URL.
fn push(hub: &Hub, repository: &str, folder: &Path, files: &[String], private: bool) -> anyhow::Result<()> {
    let stop = interrupt::watch()?;
    let progress = Progress::bytes("uploading");
    let pushed = hub.push(repository, folder, files, private, "Upload by ngen3 export", &mut |event| {
        match event {
            Event::Downloading { done, total } => {
                progress.set_total(total);
                progress.set(done, "");
            }
            event => show(&progress, event),
        }
        !stop.load(Ordering::Relaxed)
    });
    drop(progress);
    let CommitInfo { url, commit } = interruptible(pushed)?;
    let commit = commit.map_or_else(String::new, |commit| format!(", commit {commit}"));
    stdout::print(&format!("{url}{commit}\n"))
}

/// Loss curve up to the model's step, and `loss.svg`, from the run folder beside the model; empty if there is none.
fn training_curve(path: &Path, checkpoint: &Checkpoint) -> anyhow::Result<(Vec<CurvePoint>, Option<String>)> {
    let run = match RunPaths::new(path) {
        Ok(paths) if path.is_file() && paths.run.is_dir() => paths.run,
        // A folder, or a model without a run folder.
        _ => return Ok((Vec::new(), None)),
    };
    let points: Vec<CurvePoint> = read_metrics(&run, checkpoint.meta.iter_num)?
        .into_iter()
        .map(|line| CurvePoint {
            step: line.step,
            train_loss: line.train.map(|train| train.train_loss),
            val_loss: line.val_loss,
        })
        .collect();
    let svg = run.join("loss.svg");
    let drawn = !points.is_empty() && svg.is_file();
    let svg = drawn.then(|| fs::read_to_string(&svg).with_context(|| format!("cannot read {}", svg.display())));
    Ok((points, svg.transpose()?))
}
