//! `ngen3 hf_tokenize`: tokenizes a Hugging Face dataset.

use std::path::Path;
use std::time::Instant;

use anyhow::bail;
use ngen3_data::chat::ChatInput;
use ngen3_data::{HfDatasetSpec, HfSource, RecordOptions, build_hf_dataset};

use super::tokenize::{self, ChatFlags, TextFlags, TokenizerFlags};
use crate::interrupt::{self, interruptible};
use crate::progress::Progress;
use crate::stdout;
use crate::threads::Threads;

/// Tokenize a Hugging Face dataset
///
/// Writes the folder _data_NAME_. Each row is a document, followed by the tokenizer's token for that; rows without text are skipped. A local
/// folder or file can replace OWNER/NAME. The files of a split come from the README's configs, else from the names of
/// folders and files (data/train-00000-of-00002.parquet, train/x.jsonl, train.csv), else from the hub's conversion to
/// parquet, which also covers datasets that are Python scripts. Formats are parquet, arrow, JSON lines, JSON arrays, csv, tsv
/// and plain text (one row per line, in the column text), all optionally compressed (.gz, .zst, .xz, .bz2). A local archive
/// (.tar, .zip) counts as a folder.
///
/// The column holds a string or a conversation: a list of strings, or of {role, content} or {from, value}, which becomes
/// "role: content". Turns are joined by --hf_separator. a.b selects the field b of a. With --chats, conversations are
/// rendered with a chat template instead.
///
/// Downloads share the cache of Python's Hugging Face libraries, and HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and
/// HF_HUB_OFFLINE have the same meaning. Partial downloads are resumed.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
#[command(mut_arg("chat_template", |arg| arg.requires("chats")))]
#[command(mut_arg("roles", |arg| arg.requires("chats")), mut_arg("columns", |arg| arg.requires("chats")))]
#[command(mut_arg("skip_bad", |arg| {
    arg.help_heading(None::<&str>).help("Skip and count bad records or conversations instead of stopping at the first")
}))]
pub struct Args {
    #[command(flatten)]
    rows: Rows,
    /// Text between the turns of a conversation; \n is a line break, \t a tab
    #[arg(long, value_name = "TEXT", default_value = r"\n", conflicts_with = "chats", allow_hyphen_values = true)]
    hf_separator: String,
    /// Name of the dataset to write; its folder is _data_NAME_
    #[arg(long, value_name = "NAME")]
    dataset: String,
    #[command(flatten)]
    tokenizer: TokenizerFlags,
    #[command(flatten)]
    text: TextFlags,
    /// Separator of CSV fields: a character, or \t for a tab [default: the README's, else one of , ; | and tab that fits the
    /// header]
    #[arg(long, value_name = "CHAR", allow_hyphen_values = true)]
    csv_separator: Option<String>,
    #[command(flatten)]
    threads: Threads,
    /// Treat rows as conversations for finetune, and write mask.bin, which marks the assistant's tokens
    #[arg(long)]
    chats: bool,
    #[command(flatten)]
    chat: ChatFlags,
}

/// Flags that select the rows of a dataset.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct Rows {
    /// Dataset: OWNER/NAME on the hub, or a local folder, file or archive
    #[arg(long, value_name = "OWNER/NAME")]
    hf_dataset: String,
    /// Split, or part of it: train, train[:10%], train[1000:2000], train+validation
    #[arg(long, value_name = "SPLIT", default_value = "train")]
    hf_split: String,
    /// Column with the text or conversation [default: text, content, messages, conversations, … or instruction data]
    #[arg(long, value_name = "COLUMN")]
    hf_text_column: Option<String>,
    /// Configuration, if the dataset has several
    #[arg(long, value_name = "NAME")]
    hf_config: Option<String>,
    /// Branch, tag or commit [default: main]
    #[arg(long, value_name = "REVISION")]
    hf_revision: Option<String>,
}

impl Rows {
    /// Converts the flags to a source; `separator` joins the turns of conversations that become text.
    pub fn source(self, separator: String) -> HfSource {
        HfSource {
            dataset: self.hf_dataset,
            config: self.hf_config,
            split: self.hf_split,
            column: self.hf_text_column,
            revision: self.hf_revision,
            separator,
            options: RecordOptions::default(),
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  ngen3 hf_tokenize --hf_dataset roskoN/dailydialog --hf_split train \\
    --hf_text_column utterances --dataset dailydialog_train
  ngen3 hf_tokenize --hf_dataset roneneldan/TinyStories --dataset stories
  ngen3 hf_tokenize --hf_dataset OWNER/NAME --hf_config en \\
    --hf_split 'train[:10%]' --dataset tenth
  ngen3 hf_tokenize --hf_dataset my_folder/ --hf_text_column messages \\
    --dataset chats --chats
  HF_HUB_OFFLINE=1 ngen3 hf_tokenize --hf_dataset roneneldan/TinyStories \\
    --dataset stories";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let options = RecordOptions {
        text: args.text.options(),
        csv_separator: args.csv_separator.as_deref().map(parse_csv_separator).transpose()?,
        skip_bad: args.chat.skip_bad,
    };
    let source = HfSource { options, ..args.rows.source(tokenize::unescape(&args.hf_separator)) };
    let stop = interrupt::watch()?;
    if args.chats {
        let input = ChatInput::Hf(&source);
        return tokenize::chats(&args.dataset, input, args.tokenizer.file(), &args.chat, args.threads, &stop);
    }
    let spec = HfDatasetSpec {
        name: &args.dataset,
        source: &source,
        tokenizer: args.tokenizer.file(),
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

/// Parses `--csv_separator`.
fn parse_csv_separator(text: &str) -> anyhow::Result<u8> {
    match tokenize::unescape(text).as_bytes() {
        [byte] if byte.is_ascii() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => bail!("--csv_separator: expected one ASCII character that is not a quote or a line break, got {text:?}"),
    }
}
