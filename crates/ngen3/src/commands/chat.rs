//! `ngen3 chat`: a conversation with a model, at a terminal or from a pipe.

use std::fs;
use std::io::{BufRead, ErrorKind, IsTerminal, StdinLock, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail, ensure};
use ngen3_data::chat::{ChatEncoder, Message, Role};
use ngen3_generate::Sampling;
use ngen3_model::files::write_atomic;
use ngen3_model::words::grouped_count;
use ngen3_model::{Checkpoint, Variant};
use serde_json::{Map, Value, json};
use signal_hook::consts::SIGINT;

use crate::error_line::one_line;
use crate::line_editor::{LineEditor, Typed, quoted};
use crate::model::{self, CHECK_VARIANT, variant_help};
use crate::progress::write_line;
use crate::streaming::{Answer, SamplingFlags, say_what_is_missing};
use crate::{interrupt, stdout};

/// Chat with a model
///
/// Each line is a turn; the answer streams to stdout. The model sees the whole conversation; when it outgrows the context, the
/// oldest turns are dropped. A line that begins with / is a command: /help lists them.
///
/// At a terminal, lines can be edited, and the history of earlier chats is kept (in ~/.local/state/ngen3/chat_history; lines
/// that begin with a space are left out). A line that ends in \ continues on the next; so does a turn that begins with """,
/// until """ closes it. Text that is pasted is one turn. Ctrl-C stops an answer or clears the line, and on an empty line ends
/// the chat, as Ctrl-D does. With NO_COLOR set, the prompts have no colour.
///
/// With input from a pipe or a file, the exit code is 1 if one of its lines failed.
#[derive(clap::Args)]
#[command(rename_all = "snake_case", after_help = EXAMPLES, mut_arg("temperature", |arg| arg.default_value("0.8")))]
pub struct Args {
    /// Model to chat with: .pt, .safetensors, .gguf, a Hugging Face folder, a hub name, or hf (GPT-2 in the size of --variant)
    #[arg(long, value_name = "MODEL")]
    model_checkpoint: PathBuf,
    #[arg(long, value_name = "NAME", value_parser = Variant::by_name, help = variant_help(CHECK_VARIANT))]
    variant: Option<&'static Variant>,
    /// System message, before all turns
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Maximum tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 200)]
    length: usize,
    #[command(flatten)]
    flags: SamplingFlags,
}

const EXAMPLES: &str = "\
Examples:
  ngen3 chat --model_checkpoint finetuned_7M_model.pt
  ngen3 chat --model_checkpoint finetuned_7M_model.pt --temperature 0 \\
    --system \"Answer in one word.\"
  echo \"Hello, how are you?\" |
    ngen3 chat --model_checkpoint finetuned_7M_model.pt --seed 1";

/// Commands of a conversation, for completion.
const COMMANDS: &[&str] = &["/reset", "/save ", "/help", "/quit"];

const HELP: &str = "\
/reset      forget the conversation
/save FILE  append the conversation to FILE as a line of JSON, which finetune reads
/help       show this list
/quit       end the chat (as Ctrl-D does)
At a terminal, \\ at the end of a line continues the turn, and \"\"\" … \"\"\" encloses several lines.
";

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let sampling = args.flags.sampling()?;
    let path = &args.model_checkpoint;
    let loaded = args.flags.decode.load(path, args.variant)?;
    let Checkpoint { config, meta, .. } = &loaded.checkpoint;
    let Some(tokenizer) = model::tokenizer(path, config, meta)? else {
        bail!("{}: no recorded tokenizer, so it cannot chat", path.display());
    };
    if meta.chat.is_none() {
        write_line("note: the model was not trained on conversations; its answers may make little sense");
    }
    let encoder = ChatEncoder::new(tokenizer, meta.chat.clone())?;
    let block_size = config.block_size;
    let engine = args.flags.decode.open(loaded)?;
    let stop = interrupt::watch_for(&[SIGINT])?;

    let mut input = Input::open()?;
    let system = args.system.into_iter().map(|content| Message::new(Role::System, content));
    let messages: Vec<_> = system.collect();
    messages.iter().try_for_each(|system: &Message| {
        say_what_is_missing(encoder.tokenizer(), system.content.as_deref().unwrap_or_default())
    })?;
    let system = messages.len();
    let (length, stops) = (args.length, args.flags.stop);
    let name = input.name_of_model();
    let mut chat = Conversation { encoder, block_size, length, stops, name, messages, system, first: system };
    let (mut turn, mut failed) = (0, 0);
    loop {
        // No answer is under way: the first signal ends the program.
        interrupt::idle(true);
        let Some(entry) = input.read()? else { break };
        match entry {
            Entry::Command(command) => match command.as_str() {
                "/quit" => break,
                "/help" => stdout::print(HELP)?,
                "/reset" => chat.reset(),
                command => {
                    if let Err(error) = run_other(command, &chat) {
                        write_line(&format!("error: {}", one_line(&error)));
                        failed += 1;
                    }
                }
            },
            Entry::Turn(text) => {
                interrupt::idle(false);
                stop.store(false, Ordering::Relaxed);
                turn += 1;
                // Each answer has a seed of its own, which does not depend on the answers before it.
                let sampling = Sampling { seed: sampling.seed.wrapping_add(turn), ..sampling };
                match chat.answer(&text, &*engine, sampling, &stop)? {
                    Ok(whole) => failed += u64::from(!whole),
                    Err(error) => {
                        write_line(&format!("error: {error}"));
                        failed += 1;
                    }
                }
            }
        }
    }
    // A person at a terminal has seen the errors; a script has not.
    ensure!(input.is_terminal() || failed == 0, "{} of stdin failed", grouped_count(failed, "line"));
    Ok(())
}

/// Source of the turns and commands.
enum Input {
    /// A terminal.
    Editor(Box<LineEditor>),
    /// Lines of stdin; `prompt` is set if it is a terminal, but stdout is not.
    Lines { stdin: StdinLock<'static>, prompt: bool },
}

/// A line or text of the input.
enum Entry {
    /// A line that begins with `/`.
    Command(String),
    Turn(String),
}

/// Colours of the roles: bold green and bold blue.
const ROLES: [(&str, &str); 2] = [("you> ", "1;32"), ("model> ", "1;34")];

impl Input {
    fn open() -> anyhow::Result<Self> {
        let prompt = std::io::stdin().is_terminal();
        if prompt {
            write_line("/help lists the commands");
        }
        Ok(if prompt && std::io::stdout().is_terminal() {
            Self::Editor(Box::new(LineEditor::new(COMMANDS)?))
        } else {
            Self::Lines { stdin: std::io::stdin().lock(), prompt }
        })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor(_) | Self::Lines { prompt: true, .. })
    }

    /// Returns the text that answers begin with; empty unless a line editor prompts the user, too.
    fn name_of_model(&self) -> String {
        let (name, style) = ROLES[1];
        if matches!(self, Self::Editor(_)) { stdout::styled(name, style) } else { String::new() }
    }

    /// Reads the next entry; `None` at the end of the input. Ctrl-C at a terminal's prompt ends the process.
    fn read(&mut self) -> anyhow::Result<Option<Entry>> {
        loop {
            let text = match self {
                Self::Editor(editor) => {
                    let (name, style) = ROLES[0];
                    match editor.read(name, &stdout::styled(name, style))? {
                        Typed::Text(text) => text,
                        Typed::End => return Ok(None),
                        Typed::Interrupted => interrupt::exit(),
                    }
                }
                Self::Lines { stdin, prompt } => {
                    if *prompt {
                        let mut err = std::io::stderr().lock();
                        // A stderr that nobody reads is no reason to stop.
                        let _ = err.write_all(b"> ").and_then(|()| err.flush());
                    }
                    let mut line = String::new();
                    if stdin.read_line(&mut line).context("cannot read from stdin")? == 0 {
                        return Ok(None);
                    }
                    line
                }
            };
            // Only an editor returns several lines, and only there do quotes have a meaning.
            let is_editor = matches!(self, Self::Editor(_));
            let text = text.trim();
            let inside = quoted(text).filter(|_| is_editor).map(str::trim);
            match inside.unwrap_or(text) {
                "" => {}
                line if inside.is_none() && line.starts_with('/') && !line.contains('\n') => {
                    return Ok(Some(Entry::Command(line.into())));
                }
                turn => return Ok(Some(Entry::Turn(turn.into()))),
            }
        }
    }
}

/// Runs a command that can fail.
fn run_other(command: &str, chat: &Conversation) -> anyhow::Result<()> {
    match command.split_once(char::is_whitespace).unwrap_or((command, "")) {
        ("/save", file) if !file.trim().is_empty() => save(Path::new(file.trim()), &chat.answered()),
        ("/save", _) => bail!("/save: expected the name of a file"),
        (name, _) => bail!("unknown command {name}: expected one that /help lists"),
    }
}

/// Appends a conversation to a file of conversations, or creates it.
fn save(path: &Path, messages: &[&Message]) -> anyhow::Result<()> {
    let has_answer = messages.iter().any(|message| message.role == Role::Assistant);
    ensure!(has_answer, "/save: the conversation has no answer yet");
    let shown = path.display();
    let before = match fs::read(path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown} to append to it")),
    };
    let added = before.is_some();
    let text = String::from_utf8(before.unwrap_or_default()).ok().filter(|text| text.lines().all(is_conversation));
    let mut text =
        text.with_context(|| format!("{shown}: expected conversations to append to; choose another name"))?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    let turns: Vec<_> =
        messages.iter().map(|message| json!({ "role": message.role.name(), "content": message.content })).collect();
    text += &format!("{}\n", json!({ "messages": turns }));
    write_atomic(path, |file| file.write_all(text.as_bytes()))?;
    let turns = grouped_count(messages.len() as u64, "turn");
    write_line(&format!("{}{shown}: {turns}", if added { "appended to " } else { "" }));
    Ok(())
}

/// Returns true if a line is a conversation as [`save`] writes it, or empty.
fn is_conversation(line: &str) -> bool {
    let line = line.trim();
    let has_messages = |object: Map<String, Value>| object.get("messages").is_some_and(Value::is_array);
    line.is_empty() || serde_json::from_str(line).is_ok_and(has_messages)
}

/// A conversation with the settings of its answers.
struct Conversation {
    encoder: ChatEncoder,
    /// Context length in tokens.
    block_size: usize,
    /// Maximum tokens of an answer.
    length: usize,
    /// Texts before which an answer ends.
    stops: Vec<String>,
    /// Printed before each answer.
    name: String,
    /// System message, if any, then each user's turn with its answer.
    messages: Vec<Message>,
    /// Number of system messages, which are never dropped.
    system: usize,
    /// Index of the first turn that the model still sees.
    first: usize,
}

impl Conversation {
    /// Forgets all turns.
    fn reset(&mut self) {
        self.messages.truncate(self.system);
        self.first = self.system;
    }

    /// Returns the messages worth training on: without empty answers, as a stopped one may be, and their questions.
    fn answered(&self) -> Vec<&Message> {
        let (system, turns) = self.messages.split_at(self.system);
        let turns = turns.chunks(2).filter(|pair| pair.iter().all(has_text)).flatten();
        system.iter().filter(|message| has_text(message)).chain(turns).collect()
    }

    /// Answers a turn on stdout; `true` if the answer was not stopped. The conversation survives an inner error.
    fn answer(
        &mut self,
        turn: &str,
        model: &dyn ngen3_engine::Model,
        sampling: Sampling,
        stop: &AtomicBool,
    ) -> anyhow::Result<Result<bool, String>> {
        say_what_is_missing(self.encoder.tokenizer(), turn)?;
        self.messages.push(Message::user(turn));
        let prompt = match self.prompt() {
            Ok(prompt) => prompt,
            Err(error) => {
                self.messages.pop();
                return Ok(Err(error));
            }
        };
        let (tokenizer, end) = (self.encoder.tokenizer(), Some(self.encoder.end()));
        let mut text = String::new();
        stdout::print(&self.name)?;
        let answer = Answer { prompt: &prompt, length: self.length, end, stops: &self.stops, sampling };
        let whole = answer.make(model, tokenizer, stop, &mut |piece| {
            text.push_str(piece);
            stdout::print(piece)
        })?;
        stdout::print("\n")?;
        if !whole {
            write_line("(stopped)");
        }
        self.messages.push(Message::assistant(text));
        Ok(Ok(whole))
    }

    /// Encodes the conversation, after dropping the oldest turns until there is room for an answer.
    fn prompt(&mut self) -> Result<Vec<u32>, String> {
        let room = self.length.min(self.block_size / 4).max(1);
        let mut first = self.first;
        loop {
            let kept = [&self.messages[..self.system], &self.messages[first..]].concat();
            let ids = self.encoder.prompt(&kept).map_err(|error| error.to_string())?;
            if ids.len() + room <= self.block_size {
                if first > self.first {
                    let dropped = grouped_count((first - self.first) as u64, "turn");
                    self.first = first;
                    write_line(&format!("note: the context is full; the oldest {dropped} were dropped"));
                }
                return Ok(ids);
            }
            // A question goes together with its answer.
            first += 2;
            if first >= self.messages.len() {
                return Err(format!(
                    "the turn is too long: it takes {} with room for an answer, and the context has {}",
                    grouped_count((ids.len() + room) as u64, "token"),
                    self.block_size
                ));
            }
        }
    }
}

fn has_text(message: &Message) -> bool {
    !message.content.as_deref().unwrap_or_default().trim().is_empty()
}
