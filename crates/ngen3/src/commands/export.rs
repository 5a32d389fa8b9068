//! `ngen3 export`: a model for others to use.

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
use crate::progress::{Progress, write_line};
use crate::{model, stdout};

/// Write a model as a folder that other programs open
///
/// The hf format is a Hugging Face folder: AutoModelForCausalLM and AutoTokenizer of transformers open it as GPT-2. The gguf
/// format is one file for llama.cpp, with the tokenizer in it. Both come with a model card, README.md. The folder appears
/// whole or not at all.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// The model: .pt, .safetensors, a Hugging Face folder, or a name on the hub
    #[arg(long, value_name = "MODEL")]
    model_path: PathBuf,
    /// Check that the model is of this variant
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// Folder to make
    #[arg(long, value_name = "FOLDER")]
    output_dir: PathBuf,
    /// What for: hf or gguf
    #[arg(long, value_name = "FORMAT", default_value = "hf")]
    format: ExportFormat,
    /// How to store the weights: f32, bf16, f16, or, in gguf, q8_0
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: ExportDtype,
    /// Replace an export that is in the folder already
    #[arg(long)]
    overwrite: bool,
    /// Then upload it to the hub, as one commit; needs HF_TOKEN. A repository that is not there is made
    #[arg(long, value_name = "OWNER/NAME")]
    push: Option<String>,
    /// Make the repository for its owner alone
    #[arg(long, requires = "push")]
    private: bool,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 export --variant 7M --model_path 7M_model.pt --output_dir exported_7M
  ngen3 export --model_path 7M_model.pt --output_dir exported_7M_half --dtype bf16
  ngen3 export --model_path 7M_model.pt --output_dir gguf_7M --format gguf --dtype q8_0
  HF_TOKEN=hf_… ngen3 export --model_path 7M_model.pt --output_dir exported_7M --push me/shakespeare-7M";

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
        write_line("note: the model does not say which tokenizer made its token ids, so none is exported");
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

/// Uploads the export.
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

/// How a model was trained, up to where it stands, and the drawing of it: what its run left beside it.
fn training_curve(path: &Path, checkpoint: &Checkpoint) -> anyhow::Result<(Vec<CurvePoint>, Option<String>)> {
    let run = match RunPaths::new(path) {
        Ok(paths) if path.is_file() && paths.run.is_dir() => paths.run,
        // A folder, or a model that no run of ours made.
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
