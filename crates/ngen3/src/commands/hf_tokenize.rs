//! `ngen3 hf_tokenize`: rows of a Hugging Face dataset become a dataset.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ngen3_data::chat::ChatInput;
use ngen3_data::{HfDatasetSpec, HfSource, build_hf_dataset};

use super::tokenize::{self, ChatFlags};
use crate::interrupt::{self, interruptible};
use crate::progress::Progress;
use crate::stdout;
use crate::threads::Threads;

/// Turn a dataset of the Hugging Face hub into a dataset of tokens, the folder _data_NAME_
///
/// Each row is a document and is followed by <|endoftext|>; rows without text are left out. A folder or file in place of
/// OWNER/NAME is read where it is. Which files make a split is told by the README's configs, else by the names of folders
/// and files (data/train-00000-of-00002.parquet, train/x.jsonl, train.csv), else by the hub's conversion to parquet, which
/// is how datasets that are Python scripts are read. The formats are parquet, arrow, JSON lines, JSON arrays, csv, tsv and
/// plain text (each line a row, column text); all may be compressed (.gz, .zst).
///
/// A column holds a string, or a conversation: a list of strings, or of {role, content} or {from, value}, which reads
/// "role: content". Turns are joined by --hf_separator. a.b is the field b within a. With --chats conversations stay
/// conversations and go through a chat template.
///
/// Files come into the cache that Python's libraries share. HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and
/// HF_HUB_OFFLINE mean what they mean there. A download that was broken off goes on where it was.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
#[command(mut_arg("chat_template", |arg| arg.requires("chats")), mut_arg("skip_bad", |arg| arg.requires("chats")))]
pub struct Args {
    #[command(flatten)]
    rows: Rows,
    /// Separator between the turns of a conversation; \n is a line break, \t a tab
    #[arg(long, value_name = "TEXT", default_value = r"\n", conflicts_with = "chats", allow_hyphen_values = true)]
    hf_separator: String,
    /// Name of the dataset that is made; its folder is _data_NAME_
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// A Hugging Face tokenizer.json to use instead of GPT-2's tokenizer
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
    /// The rows are conversations: mask.bin beside data.bin tells which tokens are the assistant's, as finetune wants it
    #[arg(long)]
    chats: bool,
    #[command(flatten)]
    chat: ChatFlags,
}

/// Which rows, of which dataset.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Rows {
    /// The dataset: OWNER/NAME on the hub, or a folder or file here
    #[arg(long, value_name = "OWNER/NAME")]
    hf_dataset: String,
    /// Its rows: train, train[:10%], train[1000:2000], train+validation
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    hf_split: String,
    /// The column that holds the text
    #[arg(long, value_name = "COLUMN", default_value = "text")]
    hf_text_column: String,
    /// Which of its configurations, if it has several
    #[arg(long, value_name = "NAME")]
    hf_config: Option<String>,
    /// A branch, a tag or a commit [default: the main branch]
    #[arg(long, value_name = "REVISION")]
    hf_revision: Option<String>,
}

impl Rows {
    /// The rows as a source, whose turns are joined by `separator` where they become text.
    pub fn source(self, separator: String) -> HfSource {
        HfSource {
            dataset: self.hf_dataset,
            config: self.hf_config,
            split: self.hf_split,
            column: self.hf_text_column,
            revision: self.hf_revision,
            separator,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  ngen3 hf_tokenize --hf_dataset roskoN/dailydialog --hf_split train --hf_text_column utterances \\
      --dataset dailydialog_train
  ngen3 hf_tokenize --hf_dataset roneneldan/TinyStories --dataset stories
  ngen3 hf_tokenize --hf_dataset OWNER/NAME --hf_config en --hf_split 'train[:10%]' --dataset tenth
  ngen3 hf_tokenize --hf_dataset my_folder/ --hf_text_column messages --dataset chats --chats
  HF_HUB_OFFLINE=1 ngen3 hf_tokenize --hf_dataset roneneldan/TinyStories --dataset stories";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let source = args.rows.source(unescape(&args.hf_separator));
    let stop = interrupt::watch()?;
    if args.chats {
        let input = ChatInput::Hf(&source);
        return tokenize::chats(&args.dataset, input, args.tokenizer.as_deref(), &args.chat, args.threads, &stop);
    }
    let spec = HfDatasetSpec {
        name: &args.dataset,
        source: &source,
        tokenizer: args.tokenizer.as_deref(),
        threads: args.threads.count(),
        root: Path::new(""),
    };
    let started = Instant::now();
    let progress = Progress::bytes("tokenizing");
    let result = build_hf_dataset(&spec, &stop, &mut |event| tokenize::show(&progress, event));
    drop(progress);
    let made = interruptible(result)?;
    stdout::print(&tokenize::report(&made, started.elapsed()))
}

/// `\n`, `\t` and `\\` as what they stand for; any other backslash is a backslash.
fn unescape(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text.chars());
    while let Some(c) = rest.next() {
        match (c, rest.as_str().chars().next()) {
            ('\\', Some(next @ ('n' | 't' | '\\'))) => {
                plain.push(match next {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
                rest.next();
            }
            _ => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_written_with_backslashes() {
        assert_eq!(unescape(r"\n\n"), "\n\n");
        assert_eq!(unescape(r"a\tb\\n\x\"), "a\tb\\n\\x\\");
        assert_eq!(unescape(""), "");
    }
}
