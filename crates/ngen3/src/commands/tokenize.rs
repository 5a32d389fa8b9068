//! `ngen3 tokenize`: tokenizes text into a dataset.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use ngen3_data::chat::{ChatInput, ChatSpec, build_chats};
use ngen3_data::source::{Event, Source};
use ngen3_data::{DatasetSpec, DatasetSummary, TokenizerFile, build_dataset};
use ngen3_model::words::{file_size, grouped, grouped_count};

use crate::interrupt::{self, interruptible};
use crate::progress::Progress;
use crate::stdout;
use crate::threads::Threads;

/// Tokenize text into a dataset
///
/// Writes the folder _data_NAME_: data.bin (little-endian token ids of 16 bits, or 32 if the vocabulary exceeds 65,536),
/// meta.json (their description) and, unless it is GPT-2's, the tokenizer. Each file is a document, followed by
/// <|endoftext|> or another tokenizer's token for that. A UTF-8 byte order mark at the start of a file is dropped.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
#[command(mut_arg("chat_template", |arg| arg.conflicts_with("txt")))]
#[command(mut_arg("skip_bad", |arg| arg.conflicts_with("txt")))]
pub struct Args {
    /// Name of the dataset; its folder is _data_NAME_
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// Text: files, folders (their .txt and .md files), http(s) URLs, - for stdin, or builtin:shakespeare; optionally
    /// compressed (.gz, .zst)
    #[arg(long, value_name = "PATH_OR_URL", required_unless_present = "chats", num_args = 1..)]
    txt: Vec<OsString>,
    /// Conversations instead of text: files, or - for stdin, of JSON lines (messages, conversations, lists of strings), one
    /// JSON list of them, or one dialogue per line, its turns separated by tabs or __eou__; optionally compressed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["txt", "lossy"], num_args = 1..)]
    chats: Vec<PathBuf>,
    #[command(flatten)]
    tokenizer: TokenizerFlags,
    /// Replace bytes that are not UTF-8 with U+FFFD instead of stopping
    #[arg(long)]
    lossy: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    chat: ChatFlags,
}

/// Flags that choose the tokenizer.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct TokenizerFlags {
    /// Hugging Face tokenizer.json to use instead of GPT-2's tokenizer
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Token that ends a document [default: as tokenizer_config.json, special_tokens_map.json or generation_config.json beside
    /// the tokenizer.json say, else the first that it has of <|endoftext|>, <|end_of_text|>, </s>, <eos> and others]
    #[arg(long, value_name = "TOKEN", requires = "tokenizer")]
    eos_token: Option<String>,
    /// Token that begins a text, for chat templates [default: found as --eos_token is]. It begins every document only if
    /// tokenizer_config.json has add_bos_token: true
    #[arg(long, value_name = "TOKEN", requires = "tokenizer")]
    bos_token: Option<String>,
}

impl TokenizerFlags {
    /// Returns the file with the tokens that were named; `None` for GPT-2's tokenizer.
    pub fn file(&self) -> Option<TokenizerFile<'_>> {
        let Self { tokenizer, eos_token, bos_token } = self;
        let path = tokenizer.as_deref()?;
        Some(TokenizerFile { path, eos: eos_token.as_deref(), bos: bos_token.as_deref() })
    }
}

/// Flags for reading and rendering conversations.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", next_help_heading = "Conversations")]
pub struct ChatFlags {
    /// Jinja chat template, as in transformers [default: the role, a line break, the message, <|endoftext|>]
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Skip and count invalid conversations instead of stopping at the first
    #[arg(long)]
    pub skip_bad: bool,
}

impl ChatFlags {
    /// Reads the chat template, if one is given.
    pub fn template(&self) -> anyhow::Result<Option<String>> {
        let read =
            |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        self.chat_template.as_ref().map(read).transpose()
    }
}

const EXAMPLES: &str = "\
Examples:
  ngen3 tokenize --dataset tinyshakespeare --txt builtin:shakespeare
  ngen3 tokenize --dataset books --txt books/ more/a.txt.gz more/b.txt.zst
  ngen3 tokenize --dataset web --txt https://example.org/corpus.txt.gz
  ngen3 tokenize --dataset conversations --chats chats.jsonl
  cat *.log | ngen3 tokenize --dataset logs --txt - --lossy
  ngen3 tokenize --dataset small --txt books/ --tokenizer my_tokenizer.json";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sources = parse_sources(&args.txt)?;
    let stop = interrupt::watch()?;
    if !args.chats.is_empty() {
        let input = ChatInput::Files(&args.chats);
        return chats(&args.dataset, input, args.tokenizer.file(), &args.chat, args.threads, &stop);
    }
    let spec = DatasetSpec {
        name: &args.dataset,
        sources: &sources,
        tokenizer: args.tokenizer.file(),
        lossy: args.lossy,
        threads: args.threads.count(),
        root: Path::new(""),
    };
    let started = Instant::now();
    let progress = Progress::bytes("tokenizing");
    let result = build_dataset(&spec, &stop, &mut |event| show(&progress, event));
    drop(progress);
    let made = interruptible(result)?;
    stdout::print(&report(&made, started.elapsed()))
}

/// Builds a dataset of conversations and prints a summary.
pub fn chats(
    name: &str,
    input: ChatInput,
    tokenizer: Option<TokenizerFile>,
    flags: &ChatFlags,
    threads: Threads,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    threads.start()?;
    let template = flags.template()?;
    let (template, root) = (template.as_deref(), Path::new(""));
    let spec = ChatSpec { name, input, tokenizer, template, skip_bad: flags.skip_bad, root };
    let progress = Progress::bytes("tokenizing");
    let result = build_chats(&spec, stop, &mut |event| show(&progress, event));
    drop(progress);
    let made = interruptible(result)?;
    stdout::print(&format!(
        "{}: {}, {}, {} of them to train on (mask.bin)\n",
        made.data.display(),
        grouped_count(made.conversations, "conversation"),
        grouped_count(made.tokens, "token"),
        grouped(made.num_target_tokens)
    ))
}

/// Formats a summary of the dataset, in one line.
pub fn report(made: &DatasetSummary, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    let around = |token: &Option<String>| token.as_ref().map(|token| format!(" + {} {token}", grouped(made.documents)));
    let start = around(&made.start_of_text).unwrap_or_default();
    let end = around(&made.end_of_text);
    let end =
        end.unwrap_or_else(|| ", with no token between documents (the tokenizer has no end-of-text token)".into());
    format!(
        "{}: {} of text{start}{end}, from {} in {seconds:.1} s ({}/s)\n",
        made.data.display(),
        grouped_count(made.text_tokens, "token"),
        file_size(made.text_bytes as f64),
        file_size(made.text_bytes as f64 / seconds.max(1e-9)),
    )
}

/// Parses the sources of `--txt`.
pub fn parse_sources(named: &[OsString]) -> anyhow::Result<Vec<Source>> {
    named.iter().map(|named| Source::parse(named)).collect::<Result<_, _>>().context("--txt")
}

/// Shows an event of a text source.
pub fn show(progress: &Progress, event: Event) {
    match event {
        Event::Note(note) => progress.line(&format!("note: {note}")),
        Event::Downloading { done, total } => {
            progress.set_total(total);
            progress.set(done, "downloading");
        }
        Event::Reading { done, total } => {
            progress.set_total(total);
            progress.set(done, "");
        }
    }
}
