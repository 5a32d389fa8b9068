//! `ngen3 tokenizer train`: trains a tokenizer.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use ngen3_data::train_tokenizer;
use ngen3_model::words::{file_size, grouped, grouped_count};

use super::tokenize::{TextFlags, parse_sources, show};
use crate::interrupt::{self, interruptible};
use crate::progress::Progress;
use crate::threads::Threads;
use crate::{json_file, stdout};

/// Train a tokenizer
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
#[command(rename_all = "snake_case")]
enum Action {
    Train(TrainArgs),
}

/// Train a byte-level BPE tokenizer on text
///
/// A small vocabulary makes a small model much smaller and faster. Writes a Hugging Face tokenizer.json. Pass it to tokenize
/// with --tokenizer; the dataset and the model then include it.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
struct TrainArgs {
    /// Text, as in tokenize: files, folders, http(s) URLs, - for stdin, or builtin:shakespeare
    #[arg(long, value_name = "PATH_OR_URL", required = true, num_args = 1..)]
    txt: Vec<OsString>,
    /// Vocabulary size in tokens: 256 bytes, merges, and <|endoftext|>
    #[arg(long, value_name = "N", default_value_t = 8192)]
    vocab_size: usize,
    /// Tokenizer file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    text: TextFlags,
    #[command(flatten)]
    threads: Threads,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 tokenizer train --txt books/ --vocab_size 8192 --out books.json
  ngen3 tokenize --dataset books --txt books/ --tokenizer books.json";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Action::Train(args) = args.action;
    json_file::check(&args.out, &json_file::TOKENIZER)?;
    let sources = parse_sources(&args.txt)?;
    let stop = interrupt::watch()?;
    args.threads.start()?;
    let started = Instant::now();
    let progress = Progress::bytes("counting words");
    let result = train_tokenizer(&sources, args.text.options(), args.vocab_size, &args.out, &stop, &mut |event| {
        show(&progress, event)
    });
    drop(progress);
    let made = interruptible(result)?;
    let short = if made.reached() {
        String::new()
    } else {
        format!(" (not {}: no other pair occurs twice in the text)", grouped(made.requested as u64))
    };
    stdout::print(&format!(
        "{}: {}{short}, from {} and {} in {:.1} s\n",
        args.out.display(),
        grouped_count(made.tokenizer.vocab_size() as u64, "token"),
        file_size(made.bytes as f64),
        grouped_count(made.words as u64, "distinct word"),
        started.elapsed().as_secs_f64(),
    ))
}
