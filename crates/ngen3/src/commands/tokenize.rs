//! `ngen3 tokenize`: tokenizes text into a dataset.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ngen3_data::chat::{ChatInput, ChatMapping, ChatReading, ChatSpec, build_chats};
use ngen3_data::source::{Event, Source, SplitBy, TextEncoding, TextOptions};
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
/// <|endoftext|>, or another tokenizer's token for that; so is each text of an archive. Compressed files (.gz, .zst, .xz, .bz2)
/// and archives (.tar, .zip) are recognized by their content and read as streams. A UTF-8 byte order mark at the start of a file
/// is dropped.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
#[command(mut_arg("chat_template", |arg| arg.conflicts_with("txt")))]
#[command(mut_arg("skip_bad", |arg| arg.conflicts_with("txt")))]
#[command(mut_arg("roles", |arg| arg.conflicts_with("txt")), mut_arg("columns", |arg| arg.conflicts_with("txt")))]
#[command(mut_arg("lossy", |arg| arg.conflicts_with("chats")))]
pub struct Args {
    /// Name of the dataset; its folder is _data_NAME_
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// Text: files, archives, folders (their .txt and .md files), http(s) URLs, - for stdin, or builtin:shakespeare;
    /// optionally compressed
    #[arg(long, value_name = "PATH_OR_URL", required_unless_present = "chats", num_args = 1..)]
    txt: Vec<OsString>,
    /// Conversations instead of text: files, or - for stdin, of JSON lines (messages, conversations, instruction data, lists
    /// of strings), one JSON list of them, or one dialogue per line, its turns separated by tabs or __eou__; optionally
    /// compressed, or in archives
    #[arg(long, value_name = "FILE", conflicts_with_all = ["txt", "split_by", "eot_in_text"], num_args = 1..)]
    chats: Vec<PathBuf>,
    #[command(flatten)]
    tokenizer: TokenizerFlags,
    #[command(flatten)]
    text: TextFlags,
    /// Unit of text that becomes a document: document (the whole file), paragraph (up to a blank line), line, or the text up
    /// to a separator of your own, in which \n is a line break and \t a tab
    #[arg(
        long,
        value_name = "document|paragraph|line|SEPARATOR",
        default_value = "document",
        allow_hyphen_values = true
    )]
    split_by: String,
    /// Meaning of <|endoftext|> (the tokenizer's end-of-text token) within a text: token separates documents, text keeps its
    /// characters [default: text, with a note if it occurs]
    #[arg(long, value_name = "token|text")]
    eot_in_text: Option<EotInText>,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    chat: ChatFlags,
}

/// Flags for reading text.
#[derive(clap::Args)]
#[command(rename_all = "snake_case")]
pub struct TextFlags {
    /// Replace bytes that are invalid in the encoding with U+FFFD instead of stopping
    #[arg(long)]
    pub lossy: bool,
    /// Encoding of the text, such as cp1252, latin1, utf-16 or shift_jis [default: UTF-8, or UTF-16 if a file begins with its
    /// byte order mark]
    #[arg(long, value_name = "NAME")]
    pub encoding: Option<TextEncoding>,
}

impl TextFlags {
    /// Converts the flags to options.
    pub fn options(&self) -> TextOptions {
        TextOptions { lossy: self.lossy, encoding: self.encoding }
    }
}

/// Meaning of the end-of-text token within a text.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum EotInText {
    Token,
    Text,
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
    /// Roles of speakers' names that are not known, as NAME=ROLE: system, user, assistant or tool
    #[arg(long, value_name = "NAME=ROLE", value_delimiter = ',')]
    pub roles: Vec<String>,
    /// Columns (keys) that hold the turns, in order, as COLUMN=ROLE, such as question=user,answer=assistant; neighbours of
    /// one role are joined by a line break [default: lists of turns and instruction data are recognised]
    #[arg(long, value_name = "COLUMN=ROLE", value_delimiter = ',')]
    pub columns: Vec<String>,
}

impl ChatFlags {
    /// Returns how to read conversations; with `answers`, the assistant's tokens must be identifiable.
    pub fn reading(&self, answers: bool) -> anyhow::Result<ChatReading> {
        let mapping = ChatMapping::new(&self.roles, &self.columns)?;
        Ok(ChatReading { mapping, answers, skip_bad: self.skip_bad })
    }

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
  ngen3 tokenize --dataset archive --txt papers.tar.gz notes.zip
  ngen3 tokenize --dataset lines --txt sentences.txt --split_by line
  ngen3 tokenize --dataset latin --txt old.txt --encoding cp1252
  cat *.log | ngen3 tokenize --dataset logs --txt - --lossy
  ngen3 tokenize --dataset small --txt books/ --tokenizer my_tokenizer.json";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sources = parse_sources(&args.txt)?;
    let stop = interrupt::watch()?;
    if !args.chats.is_empty() {
        let input = ChatInput::Files(&args.chats, args.text.encoding);
        return chats(&args.dataset, input, args.tokenizer.file(), &args.chat, args.threads, &stop);
    }
    let spec = DatasetSpec {
        name: &args.dataset,
        sources: &sources,
        tokenizer: args.tokenizer.file(),
        text: args.text.options(),
        split_by: parse_split(&args.split_by)?,
        eot_splits: args.eot_in_text.map(|meaning| meaning == EotInText::Token),
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
    let spec = ChatSpec { name, input, tokenizer, template, reading: flags.reading(true)?, root };
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

/// Parses `--split_by`.
fn parse_split(text: &str) -> anyhow::Result<SplitBy> {
    Ok(match text {
        "document" => SplitBy::Document,
        "paragraph" => SplitBy::Paragraph,
        "line" => SplitBy::Line,
        "" => bail!("--split_by: expected document, paragraph, line or a separator, got an empty text"),
        separator => SplitBy::Separator(unescape(separator)),
    })
}

/// Replaces the escapes `\n`, `\t` and `\\`; any other backslash stays.
pub fn unescape(text: &str) -> String {
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
