//! `ngen3 hf_finetune`: fine-tunes a model on a Hugging Face dataset.

use std::ffi::OsStr;

use super::finetune::{self, Common, Input};
use super::hf_tokenize::Rows;

/// Fine-tune a model on a Hugging Face dataset
///
/// Like finetune, on the rows of a dataset. A column of conversations (lists of {role, content} or {from, value}, or of
/// strings, user and assistant in turn) or columns of instruction data (instruction, input, output; prompt, response;
/// question, answer; …) are found by their names, or named with --hf_text_column or --columns. A local folder or file can
/// replace OWNER/NAME.
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
  ngen3 hf_finetune --variant 120M --model_checkpoint distilled_120M_model.pt \\
    --hf_dataset roskoN/dailydialog --hf_split train \\
    --hf_text_column utterances --finetune_iters 1000 \\
    --prompt \"Hello, how are you?\" --sample_length 100 --sample_temperature 1.0
  ngen3 hf_finetune --variant 120M --model_checkpoint hf \\
    --hf_dataset HuggingFaceH4/no_robots
  ngen3 hf_finetune --model_checkpoint 7M_model.pt --hf_dataset questions.csv \\
    --columns question=user,best_answer=assistant";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut source = args.rows.source(String::new());
    source.options.skip_bad = args.common.chat.skip_bad;
    // Flags to repeat when the run is resumed.
    let more =
        [("--hf_text_column", &source.column), ("--hf_config", &source.config), ("--hf_revision", &source.revision)];
    let more = more.into_iter().filter_map(|(flag, value)| Some([flag, value.as_deref()?])).flatten();
    let command: Vec<&str> =
        [["hf_finetune", "--hf_dataset"].as_slice(), &[&source.dataset, "--hf_split", &source.split]]
            .concat()
            .into_iter()
            .chain(more)
            .collect();
    let command: Vec<&OsStr> = command.into_iter().map(OsStr::new).collect();
    finetune::fine_tune(args.common, Input::Hf(&source), &command)
}
