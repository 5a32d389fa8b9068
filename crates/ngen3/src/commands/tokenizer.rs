//! `ngen3 tokenizer train`: trains a tokenizer.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use ngen3_data::tokenizer::ENDOFTEXT;
use ngen3_data::{TokenizerKind, train_tokenizer};
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

/// Make a vocabulary for your text: byte-level BPE, its characters, or bytes
///
/// A small vocabulary makes a small model much smaller and faster. Writes a Hugging Face tokenizer.json. Pass it to tokenize
/// with --tokenizer; the dataset and the model then include it.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES)]
struct TrainArgs {
    /// Text, as in tokenize: files, folders, http(s) URLs, - for stdin, or builtin:shakespeare
    #[arg(long, value_name = "PATH_OR_URL", required_unless_present = "kind", num_args = 1..)]
    #[arg(required_if_eq_any([("kind", "bpe"), ("kind", "char")]))]
    txt: Vec<OsString>,
    /// Kind of the vocabulary: bpe (byte-level BPE), char (each character of the text, as in nanoGPT) or byte (each byte;
    /// needs no text)
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Kind::Bpe, hide_possible_values = true)]
    kind: Kind,
    /// Vocabulary size of a bpe in tokens: 256 bytes, merges, and <|endoftext|> [default: 8192]. That of a char comes from the
    /// text, that of a byte is 257
    #[arg(long, value_name = "N")]
    vocab_size: Option<usize>,
    /// Token that ends a document, for char [default: none]. The others have <|endoftext|>
    #[arg(long, value_name = "TOKEN")]
    eos_token: Option<String>,
    /// Tokenizer file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    text: TextFlags,
    #[command(flatten)]
    threads: Threads,
}

/// Kind of a vocabulary.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Bpe,
    Char,
    Byte,
}

/// Default size of a byte-level BPE, in tokens.
const VOCAB_SIZE: usize = 8192;

impl TrainArgs {
    /// Checks that the flags belong to the kind.
    fn kind(&self) -> anyhow::Result<TokenizerKind<'_>> {
        match self.kind {
            Kind::Bpe => {}
            Kind::Char => ensure!(
                self.vocab_size.is_none(),
                "--vocab_size: expected only with --kind bpe; the size of a char vocabulary comes from the text"
            ),
            Kind::Byte => ensure!(
                self.vocab_size.is_none(),
                "--vocab_size: expected only with --kind bpe; a byte vocabulary has 257 tokens"
            ),
        }
        ensure!(
            self.kind == Kind::Char || self.eos_token.is_none(),
            "--eos_token: expected only with --kind char; bpe and byte vocabularies end documents with {ENDOFTEXT}"
        );
        ensure!(
            self.kind != Kind::Byte || self.txt.is_empty(),
            "--txt: expected only with --kind bpe or char; a byte vocabulary is the same for every text"
        );
        Ok(match self.kind {
            Kind::Bpe => TokenizerKind::Bpe(self.vocab_size.unwrap_or(VOCAB_SIZE)),
            Kind::Char => TokenizerKind::Char(self.eos_token.as_deref()),
            Kind::Byte => TokenizerKind::Byte,
        })
    }
}

const EXAMPLES: &str = "\
Examples:
  ngen3 tokenizer train --txt books/ --vocab_size 8192 --out books.json
  ngen3 tokenizer train --kind char --txt builtin:shakespeare --out chars.json
  ngen3 tokenizer train --kind byte --out bytes.json
  ngen3 tokenize --dataset books --txt books/ --tokenizer books.json";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Action::Train(args) = args.action;
    let kind = args.kind()?;
    json_file::check(&args.out, &json_file::TOKENIZER)?;
    let sources = parse_sources(&args.txt)?;
    let stop = interrupt::watch()?;
    args.threads.start()?;
    let started = Instant::now();
    let progress = Progress::bytes("reading text");
    let text = args.text.options();
    let result = train_tokenizer(&sources, text, kind, &args.out, &stop, &mut |event| show(&progress, event));
    drop(progress);
    let made = interruptible(result)?;
    let short = if made.reached() {
        String::new()
    } else {
        format!(" (not {}: no other pair occurs twice in the text)", grouped(made.requested as u64))
    };
    let (size, seconds) = (made.tokenizer.vocab_size() as u64, started.elapsed().as_secs_f64());
    let of = match kind {
        TokenizerKind::Bpe(_) => {
            let (bytes, words) = (file_size(made.bytes as f64), grouped_count(made.words as u64, "distinct word"));
            format!("{short}, from {bytes} and {words} in {seconds:.1} s")
        }
        TokenizerKind::Char(eos) => {
            let (chars, bytes) = (size - u64::from(eos.is_some()), file_size(made.bytes as f64));
            let chars = grouped_count(chars, "character");
            let eos = eos.map_or(String::new(), |eos| format!(" and {eos}"));
            format!(": {chars} of {bytes} of text{eos}, in {seconds:.1} s")
        }
        TokenizerKind::Byte => format!(": 256 bytes and {ENDOFTEXT}"),
    };
    stdout::print(&format!("{}: {}{of}\n", args.out.display(), grouped_count(size, "token")))
}
