//! `ngen3 quickstart`: the whole path on a small scale, by typing the other commands one after the other.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;

use crate::interrupt::{self, Interrupted};
use crate::progress::write_line;
use crate::stdout;
use crate::training::quoted;

/// From text to a trained model and a sample in about two minutes, with no network
///
/// Types the commands of the main path, small, on the Shakespeare that comes with the program, showing each as you would
/// type it. The files stay in a folder for you to look at and go on from.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    /// Folder for the files; it is made, and must not hold an earlier quickstart
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

/// What the commands make.
const DATA: &str = "_data_tinyshakespeare_/data.bin";
const MODEL: &str = "7M_model.pt";

/// What is typed, with what it is for. A vocabulary of 2,048 learned from the text itself makes each step a sixth as long
/// as GPT-2's 50,257 would, so that the model gets to see the plays several times.
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
            "learn a vocabulary",
            words("tokenizer train --txt builtin:shakespeare --vocab_size 2048 --out tokenizer.json"),
        ),
        (
            "turn the text into tokens",
            words("tokenize --dataset tinyshakespeare --txt builtin:shakespeare --tokenizer tokenizer.json"),
        ),
        ("train a model on them", words(&train)),
        ("let it write", sample),
        (
            "make it a folder that Hugging Face's transformers open",
            words("export --variant 7M --model_path 7M_model.pt --output_dir exported_7M"),
        ),
    ]
}

/// Runs the command; `run_line` runs a command line, without the name of the program.
pub fn run(args: Args, run_line: fn(&[String]) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let dir = &args.dir;
    if dir.join(MODEL).exists() {
        anyhow::bail!(
            "{} holds a quickstart already: give another folder with --dir, or remove this one",
            dir.display()
        );
    }
    let program = program()?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    std::env::set_current_dir(dir).with_context(|| format!("cannot enter the folder {}", dir.display()))?;
    let stop = interrupt::watch()?;
    for (purpose, words) in script(args.steps) {
        write_line(&format!("\n# {purpose}\n$ ngen3 {}", words.join(" ")));
        run_line(&words).inspect_err(|error| {
            // The run says how to go on from where it is; whoever reads it is elsewhere.
            if error.is::<Interrupted>() && Path::new(MODEL).exists() {
                let (dir, program) = (quoted(dir.as_os_str()), quoted(program.as_os_str()));
                write_line(&format!(
                    "from here that is: cd {dir} && {program} train --data {DATA} --out {MODEL} --resume"
                ));
            }
        })?;
        // Some commands do not listen, and had their way.
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted.into());
        }
    }
    stdout::print(&format!(
        "
The files are in {}: 7M_model.pt (the model), _data_tinyshakespeare_ (its tokens), 7M_model.run (loss.svg, metrics),
exported_7M (the model for transformers, with a model card).
From there, go on with:
  cd {}
  ngen3 sample --model_checkpoint 7M_model.pt --prompt \"JULIET:\" --length 300 --temperature 0.8
  ngen3 train --variant 7M --data _data_tinyshakespeare_/data.bin --max_iters {} --resume
And with a text of your own, and GPT-2's vocabulary:
  ngen3 tokenize --dataset mine --txt FILE_OR_URL
  ngen3 train --variant 7M --data _data_mine_/data.bin
",
        dir.display(),
        quoted(dir.as_os_str()),
        args.steps * 2,
    ))
}

/// This program, as it can be typed in any folder.
fn program() -> anyhow::Result<PathBuf> {
    let typed = PathBuf::from(std::env::args_os().next().unwrap_or_else(|| "ngen3".into()));
    let is_found_by_name = typed.components().count() == 1;
    if is_found_by_name { Ok(typed) } else { std::path::absolute(&typed).context("cannot tell where this program is") }
}
