//! `ngen3 import`: converts a Hugging Face model to a checkpoint.

use std::path::PathBuf;

use anyhow::ensure;
use ngen3_model::checkpoint;
use ngen3_model::words::grouped_count;
use ngen3_model::{Checkpoint, TokenizerRef, Variant, files};
use ngen3_train::RunPaths;

use crate::model::{self, gpt2_sizes};
use crate::stdout;

/// Import a Hugging Face model
///
/// Converts a folder (config.json with model.safetensors or pytorch_model.bin), a GGUF file, a model on the hub, or hf (OpenAI's
/// GPT-2 in the size of --variant) to a checkpoint, including its tokenizer. The other commands also read these models directly; a
/// checkpoint is for keeping, and for nanoGPT.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Model to import: a Hugging Face folder, a .gguf file, a hub name, hf, or another checkpoint
    #[arg(long, value_name = "MODEL")]
    from: PathBuf,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    #[arg(help = format!("GPT-2 size for hf: {}", gpt2_sizes()))]
    variant: Option<&'static Variant>,
    /// Branch, tag or commit on the hub [default: main]
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// Checkpoint to write (.pt or .safetensors)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace an existing checkpoint
    #[arg(long)]
    overwrite: bool,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 import --from exported_7M --out 7M_copy.pt
  ngen3 import --from openai-community/gpt2 --out gpt2.pt
  ngen3 import --from hf --variant 300M --out gpt2_medium.pt";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let paths = RunPaths::new(&args.out)?;
    ensure!(
        args.overwrite || !args.out.exists(),
        "{}: already exists; replace it with --overwrite",
        args.out.display()
    );
    files::check(&args.out)?;
    // Locked like a training run's file, so that no run writes it at the same time.
    let _held = paths.prepare()?;
    let found = model::find(&args.from, args.variant, args.revision.as_deref())?;
    let Checkpoint { config, params, meta } = Checkpoint::load(&found.path)?;
    let tokenizer = model::tokenizer(&args.from, &config, &meta)?;
    checkpoint::save(&args.out, &config, &params, &meta)?;
    stdout::print(&format!(
        "{}: {}; {}\n",
        args.out.display(),
        model::describe(&config),
        match tokenizer {
            Some(_) if meta.tokenizer == TokenizerRef::Gpt2 => "GPT-2's tokenizer".into(),
            Some(tokenizer) => format!("tokenizer of {}", grouped_count(tokenizer.vocab_size() as u64, "token")),
            None => "no recorded tokenizer".into(),
        }
    ))
}
