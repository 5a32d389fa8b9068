//! `ngen3 import`: a model of others becomes a checkpoint.

use std::path::PathBuf;

use anyhow::ensure;
use ngen3_model::checkpoint;
use ngen3_model::words::{grouped, grouped_count};
use ngen3_model::{Checkpoint, ParamList, TokenizerRef, Variant, files};
use ngen3_train::RunPaths;

use crate::{model, stdout};

/// Turn a model of Hugging Face's into a checkpoint
///
/// Takes a folder (config.json with model.safetensors or pytorch_model.bin), a name on the hub, or hf, which is OpenAI's
/// GPT-2 in the size of the variant. The tokenizer comes along. The other commands take all of these as they are; a
/// checkpoint is for keeping, and for nanoGPT.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// The model: a Hugging Face folder, a name on the hub, hf, or another checkpoint
    #[arg(long, value_name = "MODEL")]
    from: PathBuf,
    /// Which GPT-2 is meant by hf: 120M, 300M, 700M or 1B
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name)]
    variant: Option<&'static Variant>,
    /// Branch, tag or commit on the hub [default: main]
    #[arg(long, value_name = "NAME")]
    revision: Option<String>,
    /// File for the checkpoint (.pt or .safetensors)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a checkpoint that is there already
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
        "{} is there already; replace it with --overwrite",
        args.out.display()
    );
    files::check(&args.out)?;
    // Held as a run's is, so that no run is writing it meanwhile.
    let _held = paths.prepare()?;
    let found = model::find(&args.from, args.variant, args.revision.as_deref())?;
    let Checkpoint { config, params, meta } = Checkpoint::load(&found.path)?;
    let tokenizer = model::tokenizer(&args.from, &config, &meta)?;
    checkpoint::save(&args.out, &config, &params, &meta)?;
    stdout::print(&format!(
        "{}: {}, {}, width {}, block {}, vocabulary {}: {}; {}\n",
        args.out.display(),
        grouped_count(config.n_layer as u64, "layer"),
        grouped_count(config.n_head as u64, "head"),
        config.n_embd,
        config.block_size,
        grouped(config.vocab_size as u64),
        grouped_count(ParamList::new(&config).total() as u64, "parameter"),
        match tokenizer {
            Some(_) if meta.tokenizer == TokenizerRef::Gpt2 => "with GPT-2's tokenizer".into(),
            Some(tokenizer) => format!("with a tokenizer of {}", grouped_count(tokenizer.vocab_size() as u64, "token")),
            None => "it does not say which tokenizer made its token ids".into(),
        }
    ))
}
