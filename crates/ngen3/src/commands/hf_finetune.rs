//! `ngen3 hf_finetune`: a model learns from conversations of the Hugging Face hub.

use std::ffi::OsStr;

use super::finetune::{self, Common, Input};
use super::hf_tokenize::Rows;

/// Fine-tune a model on conversations of the Hugging Face hub
///
/// As finetune, on the rows of a dataset: a column holds a conversation (a list of {role, content} or {from, value}, or of
/// strings, which are the user's and the assistant's in turn) or a line of text (turns separated by tabs or __eou__, or a
/// text that is learned whole). A folder or file here may stand in place of OWNER/NAME.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    rows: Rows,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 hf_finetune --variant 120M --model_checkpoint distilled_120M_model.pt --hf_dataset roskoN/dailydialog \\
      --hf_split train --hf_text_column utterances --finetune_iters 1000 --prompt \"Hello, how are you?\" \\
      --sample_length 100 --sample_temperature 1.0
  ngen3 hf_finetune --model_checkpoint hf --variant 120M --hf_dataset HuggingFaceH4/no_robots --hf_text_column messages";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let source = args.rows.source(String::new());
    // What a run that goes on must be told again.
    let more = [("--hf_config", &source.config), ("--hf_revision", &source.revision)];
    let more = more.into_iter().filter_map(|(flag, value)| Some([flag, value.as_deref()?])).flatten();
    let command: Vec<&str> = [
        ["hf_finetune", "--hf_dataset"].as_slice(),
        &[&source.dataset, "--hf_split", &source.split, "--hf_text_column", &source.column],
    ]
    .concat()
    .into_iter()
    .chain(more)
    .collect();
    let command: Vec<&OsStr> = command.into_iter().map(OsStr::new).collect();
    finetune::fine_tune(args.common, Input::Hf(&source), &command)
}
