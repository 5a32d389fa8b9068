//! `ngen3 quickstart`: runs the whole pipeline on a small example, with the other commands.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;

use crate::interrupt::{self, Interrupted};
use crate::progress::write_line;
use crate::stdout;
use crate::training::quoted;

/// Run the whole pipeline on a small example
///
/// Trains a tokenizer and a model on the built-in Shakespeare, generates text and exports the model, in about two minutes and
/// without a network. Prints each command as you would type it. The files stay in a folder for you to continue from.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Folder to create for the files; must not contain an earlier quickstart
    #[arg(long, value_name = "FOLDER", default_value = "ngen3_quickstart")]
    dir: PathBuf,
    /// Training steps
    #[arg(long, value_name = "N", default_value_t = 1_200)]
    steps: u64,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 quickstart
  ngen3 quickstart --dir playground --steps 200";

/// Files that the commands write.
const DATA: &str = "_data_tinyshakespeare_/data.bin";
const MODEL: &str = "7M_model.pt";

/// Command lines to run, each with its purpose. With a vocabulary of 2,048 trained on the text, a step takes a sixth of the
/// time that it takes with GPT-2's 50,257, so that the model sees the plays several times.
pub fn script(steps: u64) -> Vec<(&'static str, Vec<String>)> {
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let train = format!(
        "train --variant 7M --data {DATA} --max_iters {steps} --learning_rate 2e-3 \
         --log_interval 100 --eval_interval {}",
        (steps / 4).max(1)
    );
    let mut sample =
        words("sample --variant 7M --model_checkpoint 7M_model.pt --length 200 --temperature 0.8 --seed 1");
    sample.extend(["--prompt".into(), "ROMEO:".into()]);
    vec![
        (
            "train a tokenizer",
            words("tokenizer train --txt builtin:shakespeare --vocab_size 2048 --out tokenizer.json"),
        ),
        (
            "tokenize the text",
            words("tokenize --dataset tinyshakespeare --txt builtin:shakespeare --tokenizer tokenizer.json"),
        ),
        ("train a model", words(&train)),
        ("generate text", sample),
        (
            "export the model for Hugging Face transformers",
            words("export --variant 7M --model_path 7M_model.pt --output_dir exported_7M"),
        ),
    ]
}

/// Runs the command; `run_line` runs a command line, without the name of the program.
pub fn run(args: Args, run_line: &dyn Fn(&[String]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let dir = &args.dir;
    if dir.join(MODEL).exists() {
        anyhow::bail!("{}: already contains a quickstart; choose another --dir, or remove the folder", dir.display());
    }
    let program = program()?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create folder {}", dir.display()))?;
    std::env::set_current_dir(dir).with_context(|| format!("cannot enter folder {}", dir.display()))?;
    let stop = interrupt::watch()?;
    for (purpose, words) in script(args.steps) {
        write_line(&format!("\n# {purpose}\n$ ngen3 {}", words.join(" ")));
        run_line(&words).inspect_err(|error| {
            // The run prints a resume command for its own folder, but the user is in another one.
            if error.is::<Interrupted>() && Path::new(MODEL).exists() {
                let (dir, program) = (quoted(dir.as_os_str()), quoted(program.as_os_str()));
                write_line(&format!(
                    "from the current folder: cd {dir} && {program} train --data {DATA} --out {MODEL} --resume"
                ));
            }
        })?;
        // Some commands ignore the flag and run to their end.
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
    }
    stdout::print(&format!(
        "
Files in {}: 7M_model.pt (model), _data_tinyshakespeare_ (tokens), 7M_model.run (loss.svg, metrics),
exported_7M (model for transformers, with a model card).
Next steps:
  cd {}
  ngen3 sample --model_checkpoint 7M_model.pt --prompt \"JULIET:\" --length 300 --temperature 0.8
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin --max_iters {} --resume
With your own text, and GPT-2's vocabulary:
  ngen3 tokenize --dataset mine --txt FILE_OR_URL
  ngen3 train --variant 7M --data _data_mine_/data.bin
",
        dir.display(),
        quoted(dir.as_os_str()),
        args.steps * 2,
    ))
}

/// Path of this program that works in any folder.
fn program() -> anyhow::Result<PathBuf> {
    let typed = PathBuf::from(std::env::args_os().next().unwrap_or_else(|| "ngen3".into()));
    let is_found_by_name = typed.components().count() == 1;
    if is_found_by_name {
        Ok(typed)
    } else {
        std::path::absolute(&typed).context("cannot determine the path of this program")
    }
}
